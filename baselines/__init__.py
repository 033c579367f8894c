"""Baselines that stand beside every result. Each is ranked as a scorer: `num_items`, `score(histories) -> (B, N)`.

`BASELINES` are counted in a moment and stand in every record. As models, `AutoModel` opens them all: `COUNTED_MODELS`,
`SEQUENCE_MODELS`, which the one loop trains, and `RATING_MODELS`, which predict stars.
"""

import numpy as np

from .bert4rec import Bert4Rec
from .gru4rec import Gru4Rec
from .item_transition import ItemTransition
from .pmf import Pmf
from .popularity import Popularity
from .rating_mean import RatingMean
from .sasrec import SasRec
from .unisrec import UniSRec

__all__ = [
    "BASELINES", "BASELINE_MODELS", "COUNTED_MODELS", "RATING_MODELS", "SEQUENCE_MODELS", "ItemTransition",
    "Popularity", "fit_baseline",
]  # fmt: skip

BASELINES = ("popularity", "item_transition", "item_transition_decayed")
COUNTED_MODELS = {"popularity": Popularity, "item_transition": ItemTransition}
RATING_MODELS = {"rating_mean": RatingMean, "pmf": Pmf}
SEQUENCE_MODELS = {"sasrec": SasRec, "bert4rec": Bert4Rec, "gru4rec": Gru4Rec, "unisrec": UniSRec}
BASELINE_MODELS = COUNTED_MODELS | SEQUENCE_MODELS | RATING_MODELS


def fit_baseline(name: str, splits, split: str, num_items: int, **votes) -> Popularity | ItemTransition:
    """Fit one of BASELINES for ranking a split ("validation" or "test") of a `datasets_builders.contract.Splits`.

    `votes`: settings of the item-transition, see `ItemTransition.fit`.

    Popularity counts the training sequences. Transitions are counted in everything that lies before the targets: in
    training, and for the test split also from the last history item to the target of each validation row (which a
    test history contains). Leaving those out would make the baseline weaker (Online Retail, NDCG@10: .1877
    instead of .1883; Scientific, decayed: .0626 instead of .0674).
    """
    if name not in BASELINES:
        raise ValueError(f'"{name}" is no baseline; there are {", ".join(BASELINES)}.')
    popularity = Popularity.fit(splits.train, num_items)
    if name == "popularity":
        return popularity
    sequences = list(splits.train)
    if split == "test":
        last_steps = zip(splits.validation.histories, splits.validation.targets, strict=True)
        sequences += [np.array([*history[-1:], target]) for history, target in last_steps]
    order = "first" if name == "item_transition" else "decayed"
    return ItemTransition.fit(sequences, num_items, popularity, **{"order": order, **votes})
