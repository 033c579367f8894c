"""Robustness of the text: shuffled attributes, missing attributes, typing errors.

    python studies/robustness.py --data data/scientific

The base recipe's pre-training is run once a seed (or `pretrained` names checkpoints); then catalogue and histories are
read as texts that were changed: attributes in another order, each attribute but one missing with a
probability, each letter replaced with a probability. Reviewers of JEPA4Rec asked how much attribute order matters.
"""

import string
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

import numpy as np

from jepa4rec.studies.measuring import change_texts, open_trained, rank_as_texts
from jepa4rec.studies.studying import CheckpointsRecipe, Point, Study, study_command

Change = Callable[[dict[str, str], np.random.Generator], dict[str, str]]


@dataclass(kw_only=True)
class RobustnessRecipe(CheckpointsRecipe):
    """`missing` and `noise`: percents of attributes that are dropped, of letters that are replaced."""

    missing: list[float] = field(default_factory=lambda: [20.0, 50.0])
    noise: list[float] = field(default_factory=lambda: [2.0, 5.0, 10.0])


def shuffled(item: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """The attributes in a random order."""
    names = list(item)
    return {names[place]: item[names[place]] for place in rng.permutation(len(names))}


def missing(share: float) -> Change:
    """Each attribute dropped with a probability; one that has text always stays."""

    def drop(item: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
        kept = rng.random(len(item)) >= share
        telling = [place for place, text in enumerate(item.values()) if text and not text.isspace()]
        kept[rng.choice(telling)] = True
        return {name: text for (name, text), keep in zip(item.items(), kept, strict=True) if keep}

    return drop


def noisy(share: float) -> Change:
    """Each letter of a value replaced by a random one with a probability."""

    def change(text: str, rng: np.random.Generator) -> str:
        hit = rng.random(len(text)) < share
        letters = rng.choice(list(string.ascii_lowercase), len(text))
        return "".join(n if h and c.isalpha() else c for c, h, n in zip(text, hit, letters, strict=True))

    return lambda item, rng: {name: change(text, rng) for name, text in item.items()}


def changes(recipe: RobustnessRecipe) -> dict[str, Change]:
    return {
        "attributes reversed": lambda item, rng: dict(reversed(item.items())),
        "attributes shuffled": shuffled,
        **{f"{percent:g} % of attributes missing": missing(percent / 100) for percent in recipe.missing},
        **{f"{percent:g} % of letters wrong": noisy(percent / 100) for percent in recipe.noise},
    }


def measure(study: Study) -> tuple[list[Point], dict]:
    texts, seeds, points = study.data.dataset.item_texts(), study.recipe.seeds, []
    for name, checkpoints in study.pretrained().items():
        opened = [open_trained(checkpoint) for checkpoint in checkpoints]
        for what, change in {"as it is": None, **changes(study.recipe)}.items():
            versions = [change_texts(texts, change, seed) if change else texts for seed in seeds]
            ranks = np.stack([rank_as_texts(study, *pair) for pair in zip(opened, versions, strict=True)])
            points.append(Point(name or "zero-shot", what, ranks))
    return points, {}


main = study_command(PARSER, RobustnessRecipe, "Robustness of the text", "change of the texts", measure)


if __name__ == "__main__":
    main()
