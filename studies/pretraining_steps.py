"""How much pre-training does zero-shot ranking need?

    python studies/pretraining_steps.py --data data/scientific --set base=../jepa4rec_pretrain.yaml

The base recipe's pre-training is run for each number of `steps`, each run with a schedule of its own; 0 is its start.
RecFormer, Figure 6.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

from jepa4rec.studies.measuring import baseline_ranks, rank_as_texts, start_checkpoint
from jepa4rec.studies.studying import Point, Study, StudyRecipe, stack, study_command


@dataclass(kw_only=True)
class PretrainingStepsRecipe(StudyRecipe):
    """`steps` of each pre-training phase, 0 for none."""

    steps: list[int] = field(default_factory=lambda: [0, 50, 100, 200])

    def __post_init__(self):
        super().__post_init__()
        if not self.steps or min(self.steps) < 0:
            raise ValueError(f"steps is {self.steps}: name numbers of steps, 0 or more")


def measure(study: Study) -> tuple[list[Point], dict]:
    places, points = study.phases("pretrain"), []
    for steps in study.recipe.steps:
        settings = [f"phases.{place}.steps={steps}" for place in places] + ["evaluation.zero_shot=false"]
        if steps:
            ranks = stack(study.train_seeds(settings, ("pretrain",)))
        else:
            ranks = rank_as_texts(study, start_checkpoint(study))
        points.append(Point("zero-shot", steps, ranks))
    counted = baseline_ranks(study).items()
    return points + [Point(name, steps, ranks) for name, ranks in counted for steps in study.recipe.steps], {}


main = study_command(PARSER, PretrainingStepsRecipe, "Length of pre-training", "steps of pre-training", measure)


if __name__ == "__main__":
    main()
