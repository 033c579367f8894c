"""Systems side by side, domain by domain: the tables of every paper.

    python studies/systems.py --recipe recipes/studies/systems_st5.yaml --data data/domains

Each of `systems` is trained on the dataset once a seed, or measured as it is where its recipe has no phases; test
users are grouped by the dataset's domains, and each two systems are compared user by user (paired bootstrap).
JEPA4Rec, Table 2; RecFormer, Table 2; ST5 thesis, Tables A.1 and A.2 (`systems_st5.yaml`) and Tables 5.1 and 5.2
(`systems_st5_unseen.yaml`).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

from jepa4rec.studies.measuring import baseline_ranks, compare, group_points, user_groups
from jepa4rec.studies.studying import Point, Study, SystemsRecipe, study_command


def measure(study: Study) -> tuple[list[Point], dict]:
    ranks = study.train_systems(study.recipe.systems)
    points = group_points(study, {**ranks, **baseline_ranks(study)}, user_groups(study))
    return points, {"comparisons": compare(ranks)}


main = study_command(PARSER, SystemsRecipe, "Systems side by side", "domain", measure)


if __name__ == "__main__":
    main()
