"""Does it help to pre-train on several domains? Each alone, all together, none.

    python studies/pretraining_domains.py --recipe recipes/studies/pretraining_domains_real.yaml

The base recipe's `data.pretrain` names the domains. It is pre-trained on each alone, on all, and not at all, and then
fine-tuned; with `finetune: false` what is measured is zero-shot ranking. JEPA4Rec, section 4.3 and Figure 3.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

from jepa4rec.studies.measuring import rank_as_texts, start_checkpoint
from jepa4rec.studies.studying import Point, Study, StudyRecipe, stack, study_command
from jepa4rec.training.data import DatasetRecipe


@dataclass(kw_only=True)
class PretrainingDomainsRecipe(StudyRecipe):
    """`finetune`: also run the recipe's fine-tuning phases; without, "none" is the start."""

    finetune: bool = True


def name_of(domain: DatasetRecipe) -> str:
    return Path(domain.dir).name if domain.dir else str(domain.options.get("category") or domain.config or domain.name)


def measure(study: Study) -> tuple[list[Point], dict]:
    study.phases("pretrain")
    domains, finetune = study.variant().data.pretrain, study.recipe.finetune
    if len(domains) < 2:
        raise ValueError(f"{study.recipe.base} names {len(domains)} domains in data.pretrain: this study needs two")
    series = "fine-tuned" if finetune else "zero-shot"
    sets = {**{f"{place} {name_of(one)}": [one] for place, one in enumerate(domains, 1)}, "all": domains}
    points = [Point(series, name, _trained(study, read, finetune)) for name, read in sets.items()]
    nothing = _trained(study, [], finetune) if finetune else rank_as_texts(study, start_checkpoint(study))
    return [*points, Point(series, "none", nothing)], {"domains": [name_of(one) for one in domains]}


def _trained(study: Study, domains: Sequence[DatasetRecipe], finetune: bool):
    """Ranks (seeds, U) after pre-training on these domains alone."""
    kinds = (["pretrain"] if domains else []) + (["finetune"] if finetune else [])
    recipe = study.variant(kinds=kinds)
    recipe.data.pretrain = list(domains)
    return stack(study.train(recipe, seed) for seed in study.recipe.seeds)


main = study_command(PARSER, PretrainingDomainsRecipe, "Domains of pre-training", "pre-trained on", measure)


if __name__ == "__main__":
    main()
