"""The data contract: what a built dataset is, how it is stored, how it is split.

A dataset is two Arrow tables and a description:

- ``items``: ``item_id`` (string), then the text attributes (strings, ``""`` = no value) in a fixed order; where
  several domains are in one dataset also ``domain`` (string), which is no text (an attribute that happens to be
  called so is marked as text in the column's metadata). The row number is the item index everywhere else.
- ``sequences``: ``user_id`` (string), ``domain`` (string; where each user belongs to one), ``items`` (list<int32>,
  oldest first), ``timestamps`` (list<int64>, milliseconds; absent if unknown) and ``ratings`` (list<float32>; absent
  if unknown).
- ``info``: name, config, counts, fingerprint, source, licence, notes and the options it was built with.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..serving.whole_files_seqrec import written_folder

ITEMS_FILE = "items.parquet"
SEQUENCES_FILE = "sequences.parquet"
INFO_FILE = "dataset_info.json"
# What lets `datasets.load_dataset(folder, "items")` open a built folder; a published one has a card in its place.
CONFIGS = """\
---
configs:
- config_name: sequences
  default: true
  data_files: sequences.parquet
- config_name: items
  data_files: items.parquet
---

A dataset for sequential recommendation; dataset_info.json says where it comes from.
"""
DOMAIN = "domain"
TEXT_MARK = {b"role": b"text"}  # metadata of an attribute called "domain", see `marked_as_text`
SEQUENCE_TYPES = {
    "user_id": pa.string(),
    "domain": pa.string(),
    "items": pa.list_(pa.int32()),
    "timestamps": pa.list_(pa.int64()),
    "ratings": pa.list_(pa.float32()),
}
# Absolute-timestamp protocol of Amazon Reviews 2023 (Hou et al., arXiv:2403.03952, §4.1), milliseconds.
AMAZON_2023_VALIDATION_START = 1628643414042
AMAZON_2023_TEST_START = 1658002729837


@dataclass(frozen=True)
class SeqRecDataset:
    """A built dataset in memory. Make one with :func:`make_dataset` or :func:`load_dataset_dir`."""

    items: pa.Table
    sequences: pa.Table
    info: dict

    @property
    def fingerprint(self) -> str:
        return self.info["fingerprint"]

    @property
    def num_items(self) -> int:
        return self.items.num_rows

    @property
    def num_users(self) -> int:
        return self.sequences.num_rows

    @property
    def attributes(self) -> list[str]:
        return text_columns(self.items)

    @cached_property
    def _item_texts(self) -> list[dict[str, str]]:
        return [{name: text for name, text in row.items() if text} for row in self._item_rows]

    @cached_property
    def _item_rows(self) -> list[dict[str, str]]:
        return self.items.select(self.attributes).to_pylist()

    def item_texts(self, empty: bool = False) -> list[dict[str, str]]:
        """The text of every item, by item index: attribute -> value in the fixed order, empty values left out.

        With `empty` they stay, as "", for a tokenizer that writes the names of attributes without a value.
        """
        return self._item_rows if empty else self._item_texts

    def histories(self) -> list[np.ndarray]:
        """Item indices (int32) of every user, oldest first, in the order of ``sequences``."""
        return list_column(self.sequences, "items")


def make_dataset(items: pa.Table, sequences: pa.Table, info: dict) -> SeqRecDataset:
    """Brings both tables into the contract's types, checks them, and adds counts and fingerprint to ``info``.

    Raises ValueError when a table breaks the contract.
    """
    items = _as_contract_items(items)
    sequences = _as_contract_sequences(sequences)
    check_tables(items, sequences)
    return SeqRecDataset(
        items, sequences, {**info, **count(items, sequences), "fingerprint": fingerprint(items, sequences)}
    )


def _as_contract_items(items: pa.Table) -> pa.Table:
    """Every column a string column without nulls; ``item_id`` first."""
    names = ["item_id", *(name for name in items.column_names if name != "item_id")]
    columns = [pc.fill_null(items[name].cast(pa.string()), "") for name in names]
    marks = {field.name: TEXT_MARK for field in items.schema if _is_marked(field)}
    return pa.table(columns, pa.schema([pa.field(name, pa.string(), metadata=marks.get(name)) for name in names]))


def _as_contract_sequences(sequences: pa.Table) -> pa.Table:
    names = [name for name in SEQUENCE_TYPES if name in sequences.column_names]
    return pa.table([sequences[name].cast(SEQUENCE_TYPES[name]) for name in names], names=names)


def check_tables(items: pa.Table, sequences: pa.Table) -> None:
    """Raises ValueError, naming the table and the first offending row, unless both tables keep the contract."""
    if not text_columns(items):
        raise ValueError("items: there is no text attribute beside item_id; a dataset needs at least one, e.g. title")
    if items.num_rows == 0 or sequences.num_rows == 0:
        raise ValueError(f"the dataset is empty: {items.num_rows} items, {sequences.num_rows} users")
    _check_text(items)
    _check_lists(sequences)
    _check_item_indices(items.num_rows, sequences)


def text_columns(items: pa.Table) -> list[str]:
    """The attributes: every column of ``items`` but id and domain."""
    return [field.name for field in items.schema if field.name not in ("item_id", DOMAIN) or _is_marked(field)]


def marked_as_text(items: pa.Table) -> pa.Table:
    """The same items, of which a column that happens to be called ``domain`` is an attribute like the others."""
    place = items.column_names.index(DOMAIN) if DOMAIN in items.column_names else -1
    return items if place < 0 else items.set_column(place, items.field(place).with_metadata(TEXT_MARK), items[place])


def _is_marked(field: pa.Field) -> bool:
    return (field.metadata or {}).items() >= TEXT_MARK.items()


def _check_text(items: pa.Table) -> None:
    has_text = np.zeros(items.num_rows, dtype=bool)
    for name in text_columns(items):
        has_text |= pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(items[name])), 0).to_numpy()
    if not has_text.all():
        row = int(np.argmin(has_text))
        raise ValueError(
            f"items: item {items['item_id'][row].as_py()!r} (row {row}) has no text in any of "
            f"{', '.join(text_columns(items))}; give it text or leave it out"
        )


def _check_lists(sequences: pa.Table) -> None:
    lengths = list_lengths(sequences, "items")
    if not lengths.all():
        row = int(np.argmin(lengths))
        raise ValueError(f"sequences: user {sequences['user_id'][row].as_py()!r} (row {row}) has no items")
    for name in (name for name, kind in SEQUENCE_TYPES.items() if pa.types.is_list(kind)):
        if name not in sequences.column_names:
            continue
        different = list_lengths(sequences, name) != lengths
        if different.any():
            row = int(np.argmax(different))
            raise ValueError(f"sequences: row {row} has not as many {name} as items")


def _check_item_indices(num_items: int, sequences: pa.Table) -> None:
    values = _flat(sequences["items"])
    if values.min() < 0 or values.max() >= num_items:
        bad = int(values.min() if values.min() < 0 else values.max())
        raise ValueError(f"sequences: item index {bad} is outside the catalogue of {num_items} items")


def count(items: pa.Table, sequences: pa.Table) -> dict:
    """Users, items, interactions, mean history length and density (interactions / (users x items))."""
    interactions = int(list_lengths(sequences, "items").sum())
    users, catalogue = sequences.num_rows, items.num_rows
    return {
        "users": users,
        "items": catalogue,
        "interactions": interactions,
        "average_length": interactions / users,
        "density": interactions / (users * catalogue),
    }


# Fingerprint


def fingerprint(items: pa.Table, sequences: pa.Table) -> str:
    """SHA-256 (hex) of the values of both tables.

    Only names, types and values enter, in row order: neither the engine and its threads nor chunking,
    dictionary encoding or Parquet settings can change it.
    """
    digest = hashlib.sha256()
    for name, table in (("items", items), ("sequences", sequences)):
        digest.update(f"{name}:{table.num_rows}:{table.num_columns};".encode())
        for field in table.schema:
            digest.update(f"{field.name}:{_type_name(field.type)};".encode())
            digest.update(_column_digest(table[field.name]))
    return digest.hexdigest()


def _type_name(kind: pa.DataType) -> str:
    """The type without the name of a list's child, which Parquet changes."""
    return f"list<{kind.value_type}>" if pa.types.is_list(kind) else str(kind)


def _column_digest(column: pa.ChunkedArray) -> bytes:
    """Lengths and contents of a string or list column, hashed apart so that chunk borders leave no trace."""
    lengths, contents = hashlib.sha256(), hashlib.sha256()
    for chunk in column.chunks:
        strings = pa.types.is_string(chunk.type)
        sizes = pc.binary_length(chunk) if strings else pc.list_value_length(chunk)
        lengths.update(sizes.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        contents.update(_string_bytes(chunk) if strings else _little_endian(chunk.flatten().to_numpy()).tobytes())
    return lengths.digest() + contents.digest()


def _string_bytes(chunk: pa.StringArray) -> memoryview:
    """The UTF-8 bytes of all strings of one chunk, one after the other."""
    _, offsets, data = chunk.buffers()
    if data is None:
        return memoryview(b"")
    first, last = np.frombuffer(offsets, np.int32)[[chunk.offset, chunk.offset + len(chunk)]]
    return memoryview(data)[first:last]


def _little_endian(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


# List columns as numpy arrays


def list_lengths(table: pa.Table, name: str) -> np.ndarray:
    """Length of each list of a column, int64 (rows,)."""
    return pc.list_value_length(table[name]).to_numpy().astype(np.int64)


def list_column(table: pa.Table, name: str) -> list[np.ndarray]:
    """A list column as one array a row: views of one flat array, nothing is copied a row."""
    starts = list_starts(table, name)
    values = _flat(table[name])
    return [values[start:end] for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


def list_starts(table: pa.Table, name: str) -> np.ndarray:
    """Where each row begins in the flat values of a list column, int64 (rows + 1,)."""
    return np.concatenate([[0], np.cumsum(list_lengths(table, name))])


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])


# On disk


def save_dataset(dataset: SeqRecDataset, directory: str | Path, overwrite: bool = False) -> None:
    """Writes items.parquet, sequences.parquet and dataset_info.json, all or nothing.

    Everything is written to a hidden sibling folder that is renamed at the end, so a build killed half-way
    leaves no folder with the name asked for. Raises FileExistsError unless the folder is new, empty or
    ``overwrite`` is set.
    """
    directory = Path(directory)
    check_output(directory, overwrite)
    with written_folder(directory) as fresh:
        pq.write_table(dataset.items, fresh / ITEMS_FILE)
        pq.write_table(dataset.sequences, fresh / SEQUENCES_FILE)
        (fresh / INFO_FILE).write_text(json.dumps(dataset.info, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (fresh / "README.md").write_text(CONFIGS, "utf-8")


def check_output(directory: str | Path, overwrite: bool) -> None:
    """Raises FileExistsError when writing a dataset to ``directory`` would destroy something.

    ``overwrite`` replaces a dataset only: a folder holding anything else is never removed.
    """
    directory = Path(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{directory} already exists: choose another --out or pass --overwrite to replace it")
    if not (directory / INFO_FILE).is_file():
        raise FileExistsError(f"{directory} holds no {INFO_FILE}, so it is not a dataset and is not overwritten")


def load_dataset_dir(directory: str | Path) -> SeqRecDataset:
    """Reads what :func:`save_dataset` wrote and checks it against the fingerprint.

    Raises FileNotFoundError when the folder is no finished dataset, ValueError when a file is damaged.
    """
    directory = Path(directory)
    missing = [n for n in (INFO_FILE, ITEMS_FILE, SEQUENCES_FILE) if not (directory / n).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{directory} is not a built dataset ({missing[0]} is missing): make one with scripts/build_dataset.py"
        )
    try:
        info = json.loads((directory / INFO_FILE).read_text("utf-8"))
        items = pq.read_table(directory / ITEMS_FILE)
        sequences = _as_contract_sequences(pq.read_table(directory / SEQUENCES_FILE))
        told = info["fingerprint"]
    except (ValueError, OSError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{directory} is damaged, build it again: {' '.join(str(error).split())}") from error
    if fingerprint(items, sequences) != told:
        raise ValueError(f"{directory}: the tables do not match the fingerprint in {INFO_FILE}; build it again")
    return SeqRecDataset(items, sequences, info)


# Split protocols


class Split(NamedTuple):
    """Ranking tasks: for each row a history (item indices, oldest first) and the item that came next."""

    user_ids: np.ndarray  # (U,) str
    histories: list[np.ndarray]  # U arrays of int32
    targets: np.ndarray  # (U,) int64


class Splits(NamedTuple):
    """``train`` holds one array of item indices per user that has any training interaction."""

    train: list[np.ndarray]
    validation: Split
    test: Split


TRAIN, VALIDATION, TEST = range(3)


def leave_one_out(sequences: pa.Table) -> Splits:
    """Last interaction = test target, second last = validation target, everything before = training.

    The test history contains the validation item. A user with fewer than three interactions has nothing left to
    learn a history from: all of them are training data and the user is not evaluated.
    """
    return _split(sequences, interaction_parts(sequences, "leave_one_out"))


def absolute_timestamp(
    sequences: pa.Table,
    validation_start: int = AMAZON_2023_VALIDATION_START,
    test_start: int = AMAZON_2023_TEST_START,
) -> Splits:
    """Splits all users at the same two moments (milliseconds since 1970).

    Training: interactions before ``validation_start``. Every interaction in [validation_start, test_start) is a
    validation target and every later one a test target, each with all earlier interactions of its user as
    history; an interaction without any is not a ranking task and is left out, so a user may appear several times
    or never. Raises ValueError when the dataset has no timestamps.
    """
    return _split(sequences, interaction_parts(sequences, "absolute_timestamp", validation_start, test_start))


PROTOCOLS = {"leave_one_out": leave_one_out, "absolute_timestamp": absolute_timestamp}


def interaction_parts(
    sequences: pa.Table,
    protocol: str,
    validation_start: int = AMAZON_2023_VALIDATION_START,
    test_start: int = AMAZON_2023_TEST_START,
) -> np.ndarray:
    """The part each interaction plays, TRAIN, VALIDATION or TEST, int64 (I,), users one after the other.

    The one place that knows the rules; see `leave_one_out` and `absolute_timestamp`. A user's first interaction is
    never a target, whatever its part. Raises ValueError for an unknown protocol, or missing timestamps.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f'protocol is "{protocol}"; there are {" and ".join(PROTOCOLS)}.')
    if protocol == "leave_one_out":
        lengths, ends = list_lengths(sequences, "items"), list_starts(sequences, "items")[1:]
        parts = np.full(ends[-1] if len(ends) else 0, TRAIN)
        last = ends[lengths >= 3] - 1
        parts[last], parts[last - 1] = TEST, VALIDATION
        return parts
    if "timestamps" not in sequences.column_names:
        raise ValueError("absolute_timestamp needs timestamps, which this dataset does not have: use leave_one_out")
    times = _flat(sequences["timestamps"])
    return (times >= validation_start).astype(np.int64) + (times >= test_start)


def _split(sequences: pa.Table, parts: np.ndarray) -> Splits:
    starts = list_starts(sequences, "items")
    before = np.concatenate([[0], np.cumsum(parts == TRAIN)])
    training = (before[starts[1:]] - before[starts[:-1]]).tolist()
    histories = list_column(sequences, "items")
    return Splits(
        train=[history[:n] for history, n in zip(histories, training, strict=True) if n],
        validation=_targets_where(sequences, parts == VALIDATION),
        test=_targets_where(sequences, parts == TEST),
    )


def _targets_where(sequences: pa.Table, chosen: np.ndarray) -> Split:
    """The chosen interactions (bool, one a flat interaction) as targets, unless they are their user's first."""
    starts, values = list_starts(sequences, "items"), _flat(sequences["items"])
    chosen = chosen.copy()
    chosen[starts[:-1]] = False
    positions = np.flatnonzero(chosen)
    rows = np.searchsorted(starts, positions, side="right") - 1
    spans = zip(starts[rows].tolist(), positions.tolist(), strict=True)
    histories = [values[start:position] for start, position in spans]
    return Split(_user_ids(sequences)[rows], histories, values[positions].astype(np.int64))


def _user_ids(sequences: pa.Table) -> np.ndarray:
    return np.array(sequences["user_id"].to_pylist(), dtype=object)
