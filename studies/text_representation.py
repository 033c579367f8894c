"""How should histories and items be written? The ST5 thesis' Tables A.3 and A.4.

    python studies/text_representation.py --data data/all_beauty

The base recipe is run once a seed in each format: histories with tags or without, each with and without the
instruction, and items by their title alone or with their description. With a base recipe without phases the starting
weights are compared as they are, as in the thesis: recipes/studies/text_representation_only.yaml. Users are grouped by
the dataset's domains. ST5 thesis, section 4.1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

from jepa4rec.studies.measuring import baseline_points, group_points, user_groups
from jepa4rec.studies.studying import Point, Study, StudyRecipe, stack, study_command

# Name -> tokenizer settings. The first two say what Table A.3 varies, the last what Table A.4 does.
FORMATS = {
    "structured": ("structured", False, False),
    "unstructured": ("unstructured", False, False),
    "instruction, structured": ("structured", True, False),
    "instruction, unstructured": ("unstructured", True, False),
    "structured, with descriptions": ("structured", False, True),
}
NAMES = ("sentence", "instruction", "description")


def measure(study: Study) -> tuple[list[Point], dict]:
    points, groups = [], user_groups(study)
    for title, values in FORMATS.items():
        settings = [f"tokenizer.{name}={value}" for name, value in zip(NAMES, values, strict=True)]
        ranks = stack(study.train_seeds(settings))
        points += [Point(one.x, title, one.ranks) for one in group_points(study, {title: ranks}, groups)]
    return points + baseline_points(study, "(reads no text)"), {"formats": list(FORMATS)}


main = study_command(PARSER, StudyRecipe, "How histories and items are written", "format", measure)


if __name__ == "__main__":
    main()
