"""How much of the next item should be hidden in pre-training? The paper's sweep, 0 to 90 %.

    python studies/masking_ratio.py --data data/scientific

The base recipe's pre-training is repeated with each share of the next item's tokens masked; what is measured is
zero-shot ranking, or with `finetune: true` the recipe's fine-tuned result. At least one token is always masked: an
untouched next item would give itself away, so 0 % means one token. JEPA4Rec, Appendix F and Figure 8 (the
optimum is 50 % there).
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

from jepa4rec.studies.studying import Point, Study, StudyRecipe, stack, study_command


@dataclass(kw_only=True)
class MaskingRatioRecipe(StudyRecipe):
    """`percents` of next-item tokens that are masked; `finetune`: also run the recipe's fine-tuning phases."""

    percents: list[float] = field(default_factory=lambda: [0.0, 10.0, 30.0, 50.0, 70.0, 90.0])
    finetune: bool = False


def measure(study: Study) -> tuple[list[Point], dict]:
    places, points = study.phases("pretrain"), []
    kinds = ("pretrain", "finetune") if study.recipe.finetune else ("pretrain",)
    for percent in study.recipe.percents:
        settings = [f"phases.{place}.next_mask_rate={percent / 100}" for place in places]
        trained = study.train_seeds(settings, kinds)
        points.append(Point("fine-tuned" if study.recipe.finetune else "zero-shot", percent, stack(trained)))
    return points, {}


main = study_command(
    PARSER, MaskingRatioRecipe, "Masking the next item", "masked tokens of the next item (%)", measure
)


if __name__ == "__main__":
    main()
