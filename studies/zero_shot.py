"""Zero-shot: how well does a model rank a shop it has never seen, before and after pre-training elsewhere?

    python studies/zero_shot.py --data data/scientific --recipe recipes/studies/zero_shot.yaml

The base recipe's pre-training phases are run for each seed; items and histories are then read as texts alone. Its
`data.pretrain` names the domains to learn from; where it names none, the shop's own training sequences are read (the
item texts are then known, the ranking task is not). RecFormer, Figure 4; JEPA4Rec, section 4.3,
Figure 4 and Appendix E.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

from jepa4rec.studies.measuring import baseline_points, rank_as_texts, start_checkpoint
from jepa4rec.studies.studying import Point, Study, StudyRecipe, stack, study_command


def measure(study: Study) -> tuple[list[Point], dict]:
    study.phases("pretrain")
    trained = study.train_seeds(["evaluation.zero_shot=false"], ("pretrain",))
    before = rank_as_texts(study, start_checkpoint(study))
    points = baseline_points(study, x="baselines")
    points.append(Point("before pre-training", "text alone", before))
    points.append(Point("pre-trained", "text alone", stack(trained)))
    return points, {}


main = study_command(PARSER, StudyRecipe, "Zero-shot ranking", "what is known of the shop", measure)


if __name__ == "__main__":
    main()
