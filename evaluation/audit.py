"""What a built dataset is like, before anybody trusts a number measured on it: figures, and what draws them.

Every figure is a share between 0 and 1, counted over the whole dataset by the rules of one split protocol. It needs
neither torch nor transformers, so that a dataset can be published with its audit and nothing else installed.

Future leakage. Leave-one-out cuts each user's history at a different moment, so training holds what other people did
after a user's test. Three figures say how much, all of them 0 where everybody is cut at one moment:

- `train_after_median_test` (and `_first_`): training interactions dated after the median (earliest) test target;
- `users_after_other_tests`: users whose training history ends after the test target of at least one other user;
- `targets_seen_later`: test targets whose item another user has a *training* interaction with, dated after this
  user's test. Histories are oldest first, so the later interaction is never the user's own.

See Ji et al., A Critical Study on Data Leakage in Recommender System Offline Evaluation, TOIS 2023.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..datasets_builders.contract import (
    TEST,
    TRAIN,
    SeqRecDataset,
    interaction_parts,
    list_lengths,
    list_starts,
)

NO_TIMES = "the dataset has no timestamps, only the order of each history"
HOUR = 3_600_000  # in the contract's milliseconds
GAPS = {
    "same moment": 1,
    "< 1 hour": HOUR,
    "< 1 day": 24 * HOUR,
    "< 1 week": 7 * 24 * HOUR,
    "< 30 days": 30 * 24 * HOUR,
    "< 1 year": 365 * 24 * HOUR,
    "longer": np.iinfo(np.int64).max,
}


class Figure(NamedTuple):
    """What a share is of, and what it means for numbers measured on the dataset."""

    label: str
    meaning: str
    needs_times: bool = False


FIGURES = {
    "repeat_interactions": Figure(
        "interactions that repeat an item of the user's own past",
        "where many, a list of what people bought before is a strong recommender",
    ),
    "repeat_targets": Figure(
        "test targets that are in the user's history",
        "with `exclude_history` every one of them counts as missed",
    ),
    "tied_steps": Figure(
        "steps between two interactions of one timestamp",
        "their order is the source file's, not the user's",
        True,
    ),
    "tied_targets": Figure(
        "test targets with the timestamp of the interaction before",
        "what is predicted there is partly the order of rows in a file",
        True,
    ),
    "cold_targets": Figure(
        "test targets that nobody has in training",
        "a model of item ids cannot find them, a model of texts may",
    ),
    "unseen_items": Figure("items of the catalogue without a training interaction", "candidates known by text only"),
    "duplicate_texts": Figure(
        "items whose text equals another item's",
        "a model of texts cannot tell them apart; they tie",
    ),
    "train_after_first_test": Figure(
        "training interactions dated after the earliest test target",
        "training knows a future that a test asks for",
        True,
    ),
    "train_after_median_test": Figure(
        "training interactions dated after the median test target",
        "training knows a future that half of the tests ask for",
        True,
    ),
    "users_after_other_tests": Figure(
        "users whose training history ends after another user's test", "future leakage, counted by users", True
    ),
    "targets_seen_later": Figure(
        "test targets that others have in training after the user's test",
        "training has seen the very item become popular",
        True,
    ),
    "top_tenth_items": Figure(
        "interactions with the most popular tenth of the items", "how far a list of best-sellers reaches"
    ),
}  # fmt: skip
KEY_FIGURES = ("repeat_targets", "tied_targets", "cold_targets", "duplicate_texts", "train_after_median_test",
               "targets_seen_later")  # fmt: skip


class Interactions(NamedTuple):
    """A dataset laid flat, users one after the other: all arrays have one entry an interaction, (I,)."""

    users: np.ndarray  # row of `sequences`
    items: np.ndarray
    times: np.ndarray | None
    first: np.ndarray  # bool: the user's first
    train: np.ndarray  # bool: in a training sequence
    test: np.ndarray  # bool: a test target


def audit(dataset: SeqRecDataset, protocol: str = "leave_one_out") -> dict:
    """Everything the two tables say about themselves: `figures`, `reasons` for those that are None, `distributions`.

    Raises ValueError when no user is left to test on, or the protocol needs timestamps that are not there.
    """
    flat = lay_flat(dataset, protocol)
    figures = _figures(dataset, flat)
    missing = {name: NO_TIMES for name in FIGURES if figures.get(name) is None}
    return {
        "protocol": protocol,
        "test_targets": int(flat.test.sum()),
        "training_interactions": int(flat.train.sum()),
        "figures": {name: figures.get(name) for name in FIGURES},
        "reasons": missing,
        "distributions": _distributions(dataset, flat),
    }


def summarise(audited: dict) -> dict:
    """What a record and a card carry of an audit: all but the distributions, which only plots need."""
    return {name: audited[name] for name in ("protocol", "test_targets", "figures", "reasons")}


def lay_flat(dataset: SeqRecDataset, protocol: str) -> Interactions:
    """All interactions and the part each plays, as `contract.interaction_parts` deals them out."""
    sequences = dataset.sequences
    items = _flat(sequences, "items").astype(np.int64)
    times = _flat(sequences, "timestamps") if "timestamps" in sequences.column_names else None
    starts, lengths = list_starts(sequences, "items"), list_lengths(sequences, "items")
    first = np.zeros(len(items), dtype=bool)
    first[starts[:-1]] = True
    if protocol == "absolute_timestamp" and times is None:
        raise ValueError(f"{_name(dataset)} has no timestamps, which absolute_timestamp needs: use leave_one_out")
    parts = interaction_parts(sequences, protocol)
    train, test = parts == TRAIN, (parts == TEST) & ~first
    if not test.any() or not train.any():
        need = "three interactions" if protocol == "leave_one_out" else "interactions before and after its two moments"
        raise ValueError(
            f"{_name(dataset)} is too small to audit: the {protocol} split leaves nothing to train or to test on; "
            f"users need {need}"
        )
    return Interactions(np.repeat(np.arange(len(lengths)), lengths), items, times, first, train, test)


def _flat(sequences: pa.Table, name: str) -> np.ndarray:
    return pc.list_flatten(sequences[name]).to_numpy()


def _name(dataset: SeqRecDataset) -> str:
    return " ".join(filter(None, (dataset.info.get("name"), dataset.info.get("config")))) or "the dataset"


# Figures


def _figures(dataset: SeqRecDataset, flat: Interactions) -> dict[str, float]:
    repeated = repeats(flat, dataset.num_items)
    seen = np.bincount(flat.items[flat.train], minlength=dataset.num_items) > 0
    popular = np.sort(np.bincount(flat.items, minlength=dataset.num_items))[::-1]
    figures = {
        "repeat_interactions": repeated.mean(),
        "repeat_targets": repeated[flat.test].mean(),
        "cold_targets": (~seen[flat.items[flat.test]]).mean(),
        "unseen_items": (~seen).mean(),
        "duplicate_texts": items_with_equal_text(dataset) / dataset.num_items,
        "top_tenth_items": popular[: -(-dataset.num_items // 10)].sum() / len(flat.items),
    }
    if flat.times is not None:
        figures |= _figures_of_time(flat)
    return {name: float(value) for name, value in figures.items()}


def _figures_of_time(flat: Interactions) -> dict[str, float]:
    tied = np.zeros(len(flat.items), dtype=bool)
    tied[1:] = (flat.times[1:] == flat.times[:-1]) & ~flat.first[1:]
    tests, trained = flat.times[flat.test], flat.times[flat.train]
    last_trained = np.full(flat.users[-1] + 1, np.iinfo(np.int64).min)
    np.maximum.at(last_trained, flat.users[flat.train], trained)
    item_last = np.full(flat.items.max() + 1, np.iinfo(np.int64).min)
    np.maximum.at(item_last, flat.items[flat.train], trained)
    return {
        "tied_steps": tied[~flat.first].mean(),
        "tied_targets": tied[flat.test].mean(),
        "train_after_first_test": (trained > tests.min()).mean(),
        "train_after_median_test": (trained > np.median(tests)).mean(),
        # A user's own test comes after their training, so the earliest of all tests is somebody else's.
        "users_after_other_tests": (last_trained[np.unique(flat.users[flat.train])] > tests.min()).mean(),
        "targets_seen_later": (item_last[flat.items[flat.test]] > tests).mean(),
    }


def repeats(flat: Interactions, num_items: int) -> np.ndarray:
    """Which interactions have an item that the same user had before, bool (I,)."""
    _, first_times = np.unique(flat.users * num_items + flat.items, return_index=True)
    repeated = np.ones(len(flat.items), dtype=bool)
    repeated[first_times] = False
    return repeated


def items_with_equal_text(dataset: SeqRecDataset) -> int:
    """Items that share all their attributes, letter by letter, with at least one other item."""
    groups = dataset.items.group_by(dataset.attributes).aggregate([([], "count_all")])["count_all"].to_numpy()
    return int(groups[groups > 1].sum())


# What the plots show


def _distributions(dataset: SeqRecDataset, flat: Interactions) -> dict:
    lengths = list_lengths(dataset.sequences, "items")
    edges = np.unique(np.geomspace(lengths.min(), lengths.max() + 1, 25).round().astype(np.int64))
    popular = np.sort(np.bincount(flat.items, minlength=dataset.num_items))[::-1]
    ranks = np.unique(np.geomspace(1, dataset.num_items, 80).round().astype(np.int64))
    shown = {
        "history_length": {"edges": edges.tolist(), "users": np.histogram(lengths, edges)[0].tolist()},
        "item_popularity": {"rank": ranks.tolist(), "interactions": popular[ranks - 1].tolist()},
    }
    return shown if flat.times is None else {**shown, **_distributions_of_time(flat)}


def _distributions_of_time(flat: Interactions) -> dict:
    """`time`: training interactions and test targets in 40 equal spans (edges in ms since 1970); `test_gap`: time
    from the interaction before to the test target."""
    low, high = int(flat.times.min()), int(flat.times.max())
    edges = np.linspace(low, max(high, low + 1), 41)
    before = flat.times[np.flatnonzero(flat.test) - 1]
    gap_bounds = [0, *GAPS.values()]
    return {
        "time": {
            "edges": edges.tolist(),
            "train": np.histogram(flat.times[flat.train], edges)[0].tolist(),
            "test": np.histogram(flat.times[flat.test], edges)[0].tolist(),
        },
        "test_gap": {
            "gap": list(GAPS),
            "targets": np.bincount(
                np.searchsorted(gap_bounds[1:-1], flat.times[flat.test] - before, side="right"), minlength=len(GAPS)
            ).tolist(),
        },
    }


# In words


def figure_rows(audited: dict, names: tuple[str, ...] = tuple(FIGURES)) -> list[tuple[str, str, str]]:
    """(what, value, what it means) of an audit's figures, for a table; see `unknown_because` for those not known."""
    values = [(FIGURES[name], audited["figures"][name]) for name in names]
    return [(one.label, "not known" if value is None else percent(value), one.meaning) for one, value in values]


def unknown_because(audited: dict) -> str:
    """One sentence on why some figures are not known."""
    return f"Not known: {'; '.join(dict.fromkeys(audited['reasons'].values()))}."


def percent(share: float) -> str:
    """`12.3 %`; hardly any is not called none, nor nearly all all."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"
