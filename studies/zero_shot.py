"""Zero-shot: how well does a model rank a shop it has never seen, before and after pre-training elsewhere?

    python studies/zero_shot.py --data data/scientific --recipe recipes/studies/zero_shot.yaml

The base recipe's pre-training phases are run for each seed, or those of each of `systems`; items and histories are
then read as texts alone. Its `data.pretrain` names the domains to learn from; where it names none, the shop's own
training sequences are read (the item texts are then known, the ranking task is not). Beside them stands the average of
`supervised` systems, which learn from the shop; each two of all these systems are compared user by user (paired
bootstrap). RecFormer, Figure 4; JEPA4Rec, section 4.3, Figure 4 and Appendix E.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

import numpy as np

from jepa4rec.studies.measuring import baseline_points, compare, rank_as_texts, start_checkpoint
from jepa4rec.studies.studying import Point, Study, SystemsRecipe, study_command

BEFORE = "before pre-training"


@dataclass(kw_only=True)
class ZeroShotRecipe(SystemsRecipe):
    """`supervised`: systems as in `systems`, trained on the shop; what is shown is their average. `before` false
    leaves out what the base recipe starts from."""

    systems: dict[str, list[str]] = field(default_factory=lambda: {"pre-trained": []})
    supervised: dict[str, list[str]] = field(default_factory=dict)
    before: bool = True

    def __post_init__(self):
        super().__post_init__()
        both = sorted({*self.systems, BEFORE} & {*self.supervised})
        if both:
            raise ValueError(f"supervised has {both[0]}, as the text-only systems do: give it a name of its own")


def measure(study: Study) -> tuple[list[Point], dict]:
    study.phases("pretrain")
    texts = {BEFORE: rank_as_texts(study, start_checkpoint(study))} if study.recipe.before else {}
    for name, settings in study.recipe.systems.items():
        texts[name] = study.system_ranks([*settings, "evaluation.zero_shot=false"], ("pretrain",))
    points = baseline_points(study, x="baselines")
    points += [Point(name, "text alone", ranks) for name, ranks in texts.items()]
    supervised = study.train_systems(study.recipe.supervised)
    if supervised:
        name = f"supervised, average of {', '.join(supervised)}"
        points.append(Point(name, "the shop's purchases", np.concatenate(list(supervised.values()))))
    return points, {"comparisons": compare({**texts, **supervised})}


main = study_command(PARSER, ZeroShotRecipe, "Zero-shot ranking", "what is known of the shop", measure)


if __name__ == "__main__":
    main()
