"""Performance by history length: who is served well, newcomers or regulars?

    python studies/history_length.py --data data/online_retail

The base recipe is trained once a seed; test users are put into groups by the number of items in their history. The
edges are given, or quartiles of the dataset (`edges: []`). ST5 thesis, sections 5.1.6
and 5.2.6, Figure 5.4.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

import numpy as np

from jepa4rec.evaluation.ranking import length_groups
from jepa4rec.studies.measuring import baseline_ranks, group_points
from jepa4rec.studies.studying import Point, Study, SystemsRecipe, study_command


@dataclass(kw_only=True)
class HistoryLengthRecipe(SystemsRecipe):
    """`edges`: the first length of every group but the shortest; empty for quartiles."""

    edges: list[int] = field(default_factory=list)


def measure(study: Study) -> tuple[list[Point], dict]:
    lengths = np.array([len(history) for history in study.data.splits.test.histories])
    groups = length_groups(lengths, study.recipe.edges)
    ranks = study.train_systems(study.recipe.systems)
    return group_points(study, {**ranks, **baseline_ranks(study)}, groups), {}


main = study_command(PARSER, HistoryLengthRecipe, "Performance by history length", "length of the history", measure)


if __name__ == "__main__":
    main()
