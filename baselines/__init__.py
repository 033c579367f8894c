"""Baselines that stand beside every result. Each is ranked as a scorer: `num_items`, `score(histories) -> (B, N)`.

Every file here with a model is a baseline that recipes, scripts and `AutoModel` know by its `model_type`: nothing else
lists it. Its class says `trained_by` which kind of phase it is trained (None: it is counted) and whether it
`predicts_ratings`. `BASELINES` are counted in a moment and stand in every record.
"""

from importlib import import_module
from pkgutil import iter_modules

import numpy as np
from transformers import PreTrainedModel

from .item_transition import ItemTransition
from .popularity import Popularity

__all__ = ["BASELINES", "BASELINE_MODELS", "SEQUENCE_MODELS", "ItemTransition", "Popularity", "fit_baseline"]

BASELINES = ("popularity", "item_transition", "item_transition_decayed")


def _models_in(module) -> dict[str, type[PreTrainedModel]]:
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    models = [c for c in own if issubclass(c, PreTrainedModel) and hasattr(c, "trained_by")]
    return {c.config_class.model_type: c for c in models if c.config_class.model_type}


BASELINE_MODELS: dict[str, type[PreTrainedModel]] = {}
for _found in iter_modules(__path__):
    BASELINE_MODELS |= _models_in(import_module(f"{__name__}.{_found.name}"))
SEQUENCE_MODELS = {name: model for name, model in BASELINE_MODELS.items() if model.trained_by == "sequence"}


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
