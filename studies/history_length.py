"""Performance by history length: who is served well, newcomers or regulars?

    python studies/history_length.py --data data/online_retail

The base recipe is trained once a seed; test users are put into groups by the number of items in their history. The
edges are given, or quartiles of the dataset (`edges: []`). ST5 thesis, chapter 6; JEPA4Rec, section 4.6.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from jepa4rec.studies.measuring import baseline_ranks, group_points
from jepa4rec.studies.studying import Point, Study, StudyRecipe, stack, study_main


@dataclass(kw_only=True)
class HistoryLengthRecipe(StudyRecipe):
    """`edges`: the first length of every group but the shortest; empty for quartiles."""

    edges: list[int] = field(default_factory=list)


def length_groups(lengths: np.ndarray, edges: list[int]) -> dict[str, np.ndarray]:
    """Masks (U,) of the users of every group, by a name such as "4-9 items"; a group nobody is in is left out."""
    bounds = [1, *sorted(set(edges)), int(lengths.max()) + 1]
    groups = {}
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        members = (lengths >= low) & (lengths < high)
        if members.any():
            name = f"{low}-{high - 1} items" if high - low > 1 else f"{low} item{'s' if low > 1 else ''}"
            groups[name] = members
    return groups


def measure(study: Study) -> tuple[list[Point], dict]:
    lengths = np.array([len(history) for history in study.data.splits.test.histories])
    quartiles = np.quantile(lengths, [0.25, 0.5, 0.75]).astype(int) + 1
    groups = length_groups(lengths, study.recipe.edges or quartiles.tolist())
    ranks = stack(study.train_seeds(study.variant))
    return group_points(study, {"this recipe": ranks, **baseline_ranks(study)}, groups), {}


def main(arguments: list[str] | None = None) -> dict:
    return study_main(
        "history_length", __doc__, HistoryLengthRecipe, "Performance by history length", "length of the history",
        measure, arguments,
    )  # fmt: skip


if __name__ == "__main__":
    main()
