"""Ablations of JEPA4Rec: what does each part contribute?

    python studies/ablations.py --data data/scientific

The base recipe is trained whole and with one part taken out or changed at a time, once a seed; each variant is
compared with the whole by a paired bootstrap over users. JEPA4Rec, section 4.4, Table 3; the last three objectives are
choices that its section 3.3.2 leaves open. RecFormer, Table 4: "one stage" is its variant (1), which encodes the items
once and leaves them; the three of that name are (1) + (2) to (4).
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

from jepa4rec.evaluation.metrics.significance import paired_bootstrap
from jepa4rec.studies.studying import METRICS, Point, Study, StudyRecipe, stack, study_command
from jepa4rec.training.recipe import Recipe

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
MODELS = {
    "without token types": ["token_types"],
    "without item positions": ["item_positions"],
    "without item positions and token types": ["item_positions", "token_types"],
}
# What of the items and words learns in fine-tuning's first phase, where no second one follows.
FROZEN_ITEMS = {"item_vectors": "start", "objective.item_matrix": "frozen"}
LEARNED_ITEMS = {"item_vectors": "start", "objective.item_matrix": "learnable"}
STAGES = {
    "one stage": FROZEN_ITEMS,
    "one stage, frozen words": {**FROZEN_ITEMS, "freeze_word_embeddings": True},
    "one stage, learned items": LEARNED_ITEMS,
    "one stage, learned items, frozen words": {**LEARNED_ITEMS, "freeze_word_embeddings": True},
}
VARIANTS = ["whole", *OBJECTIVES, *MODELS, *STAGES, "without pre-training"]


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
        tuned = [name for name in self.variants if name in (*STAGES, "without pre-training")]
        if not self.finetune and tuned:
            raise ValueError(f"variants: {tuned[0]} needs finetune: true, which it changes or is all that is trained")


def variant(study: Study, name: str) -> Recipe:
    """The base recipe with one part taken out or changed."""
    changes = {f"objective.{key}": value for key, value in OBJECTIVES.get(name, {}).items()}
    settings = [
        f"phases.{place}.{key}={value}" for place in study.phases("pretrain") for key, value in changes.items()
    ]
    settings += [f"model.config.{part}=false" for part in MODELS.get(name, ())]
    if name in STAGES:
        first = study.phases("finetune")[0]
        settings += [f"phases.{first}.{key}={value}" for key, value in STAGES[name].items()]
    kinds = BOTH if study.recipe.finetune else ("pretrain",)
    recipe = study.variant(settings, ("finetune",) if name == "without pre-training" else kinds)
    if name in STAGES:
        tuned = [phase.kind == "finetune" for phase in recipe.phases]
        recipe.phases = recipe.phases[: tuned.index(True) + 1]
    return recipe


def measure(study: Study) -> tuple[list[Point], dict]:
    names = ["whole", *(name for name in study.recipe.variants if name != "whole")]
    seeds = study.recipe.seeds
    ranks = {name: stack(study.train(variant(study, name), seed) for seed in seeds) for name in names}
    tests = {
        name: {metric: paired_bootstrap(ranks[name], ranks["whole"], metric)._asdict() for metric in METRICS}
        for name in names[1:]
    }
    series = "fine-tuned" if study.recipe.finetune else "zero-shot"
    return [Point(series, name, ranks[name]) for name in names], {"against_whole": tests}


main = study_command(PARSER, AblationRecipe, "Ablations of JEPA4Rec", "variant", measure)


if __name__ == "__main__":
    main()
