"""Low resource: what is left when only a part of the users may be learned from?

    python studies/low_resource.py --data data/scientific

The base recipe is trained on the first 1, 5, 10, 50 and 100 % of the training users (`percents`), once a seed, and
always measured on all test users; the baselines count the same users. RecFormer, Figure 5;
JEPA4Rec, section 4.3 and Figure 5.
With `systems`, several starts are trained side by side, each of two compared user by user (paired bootstrap); the
`finished` runs of one stand at 100 %:

    python studies/low_resource.py --recipe recipes/studies/low_resource_scientific.yaml
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

import numpy as np

from jepa4rec.studies.measuring import baseline_points, compare
from jepa4rec.studies.studying import Point, Study, SystemsRecipe, own_setting, stack, study_command
from jepa4rec.training.phases import KINDS
from jepa4rec.training.recipe import Recipe


@dataclass(kw_only=True)
class LowResourceRecipe(SystemsRecipe):
    """`percents` of the training users; `min_training_users`: a percent that leaves fewer is an error."""

    percents: list[float] = field(default_factory=lambda: [1.0, 5.0, 10.0, 50.0, 100.0])
    min_training_users: int = 5

    def __post_init__(self):
        super().__post_init__()
        if not self.systems:
            raise ValueError("systems is empty: name at least one, or leave it out for the base recipe alone")


def with_users(study: Study, users: int, settings: Sequence[str] = ()) -> Recipe:
    """The base recipe on the first training users; a batch never exceeds the examples they give."""
    recipe = study.variant([*settings, f"data.users={users}"], kinds=tuple(KINDS))
    prefixes = [max(0, len(sequence) - 1) for sequence in study.data.splits.train[:users]]
    for phase in recipe.phases:
        if recipe.data.pretrain and not phase.knows_items:
            continue  # it reads other shops, whose users are not cut
        slices = phase.gradient_accumulation
        examples = sum(prefixes) if phase.prefixes == "all" else sum(count > 0 for count in prefixes)
        phase.batch_size = min(phase.batch_size, max(1, examples // slices) * slices)
    return recipe


def learned_from(study: Study, users: int, settings: Sequence[str]) -> np.ndarray:
    """Ranks (seeds, U) of a system after the first training users; finished runs have learned from all of them."""
    if users == len(study.data.splits.train) and own_setting(settings, "finished"):
        return study.system_ranks(settings)
    return stack(study.train(with_users(study, users, settings), seed) for seed in study.recipe.seeds)


def measure(study: Study) -> tuple[list[Point], dict]:
    train, points = study.data.splits.train, []
    counts = {percent: round(len(train) * percent / 100) for percent in study.recipe.percents}
    least = min(counts.values())
    if least < study.recipe.min_training_users:
        raise ValueError(
            f"{study.dataset_name} has {len(train)} training users, {min(counts)} % of them are {least}: the dataset "
            f"is too small, set percents so that {study.recipe.min_training_users} users are left"
        )
    if len(train) in counts.values():  # what is missing is said before anything is trained
        for own in study.recipe.systems.values():
            if own_setting(own, "finished"):
                study.system_ranks(own)
    comparisons = []
    for percent, users in counts.items():
        ranks = {name: learned_from(study, users, own) for name, own in study.recipe.systems.items()}
        points += [Point(name, percent, values) for name, values in ranks.items()]
        points += baseline_points(study, percent, train[:users])
        comparisons += [{"percent": percent, **pair} for pair in compare(ranks)]
    return points, {
        "training_users": {str(percent): users for percent, users in counts.items()},
        "comparisons": comparisons,
    }


main = study_command(PARSER, LowResourceRecipe, "Learning from few users", "training users (%)", measure)


if __name__ == "__main__":
    main()
