"""How much pre-training does zero-shot ranking need?

    python studies/pretraining_steps.py --data data/scientific --set base=../jepa4rec_pretrain.yaml

Each system's pre-training is run for each number of `steps`, each run with a schedule of its own; 0 is its start. Or
`pretrained` names runs whose first phase kept what it evaluated (run.keep_evaluated), one a seed: their models of
those steps; 0 is then the start of the base recipe, which the runs are to share.
RecFormer, Figure 6.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

import numpy as np

from jepa4rec.hub.opening import find_checkpoint
from jepa4rec.studies.measuring import baseline_ranks, open_trained, rank_as_texts, start_checkpoint
from jepa4rec.studies.studying import CheckpointsRecipe, Point, Study, SystemsRecipe, own_setting, study_command
from jepa4rec.training.run_folder import RunFolder
from jepa4rec.training.typed_yaml import Range, check_ranges


@dataclass(kw_only=True)
class PretrainingStepsRecipe(CheckpointsRecipe, SystemsRecipe):
    """`steps` of each pre-training phase, 0 for none; `systems` are trained where `pretrained` names no run.
    `history_decay` and `catalogue_whitening` say how every checkpoint reads, as in config.json."""

    steps: list[int] = field(default_factory=lambda: [0, 50, 100, 200])
    systems: dict[str, list[str]] = field(default_factory=lambda: {"zero-shot": []})
    history_decay: float | None = None
    catalogue_whitening: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.steps or min(self.steps) < 0:
            raise ValueError(f"steps is {self.steps}: name numbers of steps, 0 or more")
        if not self.systems:
            raise ValueError("systems is empty: name at least one, or leave it out for the base recipe alone")
        for name, settings in self.systems.items():
            if own_setting(settings, "finished"):
                raise ValueError(f"systems: {name}: a finished run has one length of pre-training; name what to train")
        check_ranges(self, history_decay=Range(0, 1, above=True), catalogue_whitening=Range(0, 1))
        if self.catalogue_whitening is not None and self.history_decay is None:
            raise ValueError("catalogue_whitening is for histories read as items: add history_decay")


def measure(study: Study) -> tuple[list[Point], dict]:
    for runs in study.recipe.pretrained.values():  # each is looked for before the first is ranked
        for run, steps in itertools.product(runs, filter(None, study.recipe.steps)):
            kept_checkpoint(run, steps)
    trained = study.recipe.pretrained or study.recipe.systems
    ranks_of = kept_ranks if study.recipe.pretrained else system_ranks
    points = [
        Point(system, steps, ranks_of(study, given, steps))
        for system, given in trained.items()
        for steps in study.recipe.steps
    ]
    counted = baseline_ranks(study).items()
    return points + [Point(name, steps, ranks) for name, ranks in counted for steps in study.recipe.steps], {}


def system_ranks(study: Study, settings: Sequence[str], steps: int) -> np.ndarray:
    """Ranks (seeds, U) after so many steps, of a system's start (1, U) after none."""
    lengths = [f"phases.{place}.steps={steps}" for place in study.phases("pretrain", settings)]
    if not steps:
        return rank(study, start_checkpoint(study, settings))[None]
    trained = study.pretrain_seeds([*settings, *lengths])
    return np.stack([rank(study, open_trained(one.checkpoint)) for one in trained])


def kept_ranks(study: Study, runs: Sequence[str], steps: int) -> np.ndarray:
    """Ranks (seeds, U) after so many steps of runs that kept what they evaluated, of the start (1, U) after none."""
    if not steps:
        return rank(study, start_checkpoint(study, []))[None]
    return np.stack([rank(study, open_trained(kept_checkpoint(run, steps))) for run in runs])


def kept_checkpoint(run: str, steps: int) -> str:
    """What a run's first phase kept of its evaluation after so many steps."""
    return find_checkpoint(str(RunFolder(run).of_evaluation(0, steps)))


def rank(study: Study, checkpoint: tuple) -> np.ndarray:
    """Zero-shot ranks (U,) of a checkpoint that reads as the study says."""
    model, tokenizer = checkpoint
    if study.recipe.history_decay is not None:
        model.config.update({key: getattr(study.recipe, key) for key in ("history_decay", "catalogue_whitening")})
    return rank_as_texts(study, (model, tokenizer))


main = study_command(PARSER, PretrainingStepsRecipe, "Length of pre-training", "steps of pre-training", measure)


if __name__ == "__main__":
    main()
