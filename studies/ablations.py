"""Ablations of JEPA4Rec: what does each part contribute?

    python studies/ablations.py --data data/scientific

The base recipe is trained whole and with one part taken out or changed at a time, once a seed; each variant is
compared with the whole by a paired bootstrap over users. JEPA4Rec, section 4.4, Table 3; the last three objectives are
choices that its section 3.3.2 leaves open.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

from jepa4rec.evaluation.metrics.significance import paired_bootstrap
from jepa4rec.studies.studying import METRICS, Point, Study, StudyRecipe, stack, study_command

BOTH = ("pretrain", "finetune")
# What the settings of a variant are called in each pretrain phase.
OBJECTIVES = {
    "without MLM": {"mlm_weight": 0.0},
    "without mapping loss": {"map_weight": 0.0},
    "stop-gradient, no EMA": {"ema_start": 0.0, "ema_end": 0.0},
    "normalised targets": {"normalise_targets": True},
    "smooth L1": {"map_distance": "smooth_l1"},
    "positives from the target encoder": {"positive": "target"},
}
MODELS = {"without token types": "token_types", "without item positions": "item_positions"}
VARIANTS = ["whole", *OBJECTIVES, *MODELS, "without pre-training"]


@dataclass(kw_only=True)
class AblationRecipe(StudyRecipe):
    """`variants`: which of the known ones; the whole is always run. `finetune` false compares zero-shot."""

    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    finetune: bool = True

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown:
            raise ValueError(f"variants: {unknown[0]} is unknown; there are {', '.join(VARIANTS)}")
        if not self.finetune and "without pre-training" in self.variants:
            raise ValueError("variants: without pre-training needs finetune: true, or nothing would be trained")


def variant(study: Study, name: str) -> tuple[list[str], tuple[str, ...]]:
    """Settings and kinds of phase of a variant."""
    places = study.phases("pretrain")
    changes = OBJECTIVES.get(name, {})
    settings = [f"phases.{place}.objective.{key}={value}" for place in places for key, value in changes.items()]
    if name in MODELS:
        settings.append(f"model.config.{MODELS[name]}=false")
    kinds = BOTH if study.recipe.finetune else ("pretrain",)
    return settings, ("finetune",) if name == "without pre-training" else kinds


def measure(study: Study) -> tuple[list[Point], dict]:
    names = ["whole", *(name for name in study.recipe.variants if name != "whole")]
    ranks = {name: stack(study.train_seeds(*variant(study, name))) for name in names}
    tests = {
        name: {metric: paired_bootstrap(ranks[name], ranks["whole"], metric)._asdict() for metric in METRICS}
        for name in names[1:]
    }
    series = "fine-tuned" if study.recipe.finetune else "zero-shot"
    return [Point(series, name, ranks[name]) for name in names], {"against_whole": tests}


main = study_command(PARSER, AblationRecipe, "Ablations of JEPA4Rec", "variant", measure)


if __name__ == "__main__":
    main()
