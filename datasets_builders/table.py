"""Anybody's data: one file of interactions and one of items, as CSV, TSV, JSON lines, Parquet or Excel.

    build("table", data_files=["sales.csv", "products.csv"], min_user_interactions=5)

Interactions need the columns ``user_id`` and ``item_id``; ``timestamp`` (dates, seconds or milliseconds) and
``rating`` are used where they are there. Without timestamps the order of the file is the order of events. Items need
``item_id``; every other column that holds text becomes an attribute, in the file's order. Options rename all of these.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
from ibis import _

from .builder import SeqRecBuilder, table_configs
from .contract import SeqRecDataset, make_dataset
from .preparation import Workspace, build_tables, drop_duplicate_rows, open_workspace
from .reading import column_names, read_columns, require_columns, text_columns, to_milliseconds, to_numbers

SECONDS_BELOW = 1e11  # as milliseconds 1973, as seconds the year 5138
TIMESTAMP_UNITS = ("auto", "s", "ms")


def prepare(
    files: list[Path] | dict[str, Path] | None,
    config: str = "default",
    *,
    user_id: str = "user_id",
    item_id: str = "item_id",
    timestamp: str | None = None,
    rating: str | None = None,
    items_item_id: str | None = None,
    attributes: Sequence[str] | str | None = None,
    timestamp_unit: str = "auto",
    delimiter: str | None = None,
    drop_duplicates: bool = False,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
    items_without_text: str = "error",
    all_items: bool = False,
    name: str = "table",
    threads: int | None = None,
    engine: str = "duckdb",
) -> SeqRecDataset:
    """Builds a dataset from an interactions file and an items file, in this order or as {"interactions", "items"}.

    Args:
        user_id, item_id, timestamp, rating: columns of the interactions file. timestamp and rating are optional
            unless named here.
        items_item_id: the id column of the items file, where it is not called like ``item_id``.
        attributes: columns of the items file, in the order wanted; None = all others that hold text.
        timestamp_unit: of numbers: "s", "ms", or "auto" (seconds below 10^11).
        delimiter: of CSV files; None = comma, tab for .tsv.
        drop_duplicates: drop interactions that repeat an earlier one in user, item, time and rating.
        min_user_interactions, min_item_interactions: iterative k-core, 1 = keep all.
        items_without_text: "error", "drop" or "use_id" (the id serves as text).
        all_items: keep items that nobody has bought yet in the catalogue.
        name: what dataset_info calls the dataset.
    """
    options = {
        key: value for key, value in locals().items() if key not in ("files", "config", "threads", "engine", "name")
    }
    interactions_file, items_file = _two_files(files)
    columns = _interaction_columns(interactions_file, user_id, item_id, timestamp, rating, delimiter)
    chosen = _attribute_columns(items_file, items_item_id or item_id, attributes, delimiter)
    with open_workspace(threads, engine) as workspace:
        rows = _interactions(interactions_file, columns, delimiter)
        interactions = _in_milliseconds(workspace, workspace.stage(rows, interactions_file.name), timestamp_unit)
        tables = build_tables(
            workspace,
            drop_duplicate_rows(interactions) if drop_duplicates else interactions,
            workspace.stage(_items(items_file, items_item_id or item_id, chosen, delimiter), items_file.name),
            min_user_interactions,
            min_item_interactions,
            items_without_text,
            all_items,
            items_file.name,
        )
    order = "time, then file order" if "timestamp" in columns else "file order (there are no timestamps)"
    about = {"name": name, "config": config, "source": interactions_file.name, "licence": "not stated"}
    return make_dataset(*tables, {**about, "splits": f"leave_one_out; order: {order}", "options": options})


def _two_files(files: list[Path] | dict[str, Path] | None) -> tuple[Path, Path]:
    if isinstance(files, dict) and set(files) == {"interactions", "items"}:
        return files["interactions"], files["items"]
    if isinstance(files, list) and len(files) == 2:
        return files[0], files[1]
    raise ValueError("table needs two data_files: the interactions, then the items (a folder of them is not enough)")


# Interactions


def _interaction_columns(
    path: Path, user_id: str, item_id: str, timestamp: str | None, rating: str | None, delimiter: str | None
) -> dict[str, str]:
    """Our name -> the file's name of the columns to read."""
    present = column_names(path, delimiter)
    optional = {"timestamp": timestamp, "rating": rating}
    columns = {"user_id": user_id, "item_id": item_id}
    columns |= {ours: given or ours for ours, given in optional.items() if given or ours in present}
    require_columns(path, present, list(columns.values()))
    return columns


def _interactions(path: Path, columns: dict[str, str], delimiter: str | None) -> Iterator[pa.RecordBatch]:
    row = 1
    for batch in read_columns(path, list(dict.fromkeys(columns.values())), delimiter):
        values = {ours: batch[theirs] for ours, theirs in columns.items()}
        for ours in columns:
            _check_filled(values[ours], path, columns[ours], row)
        if "rating" in values:
            values["rating"] = to_numbers(values["rating"], f"{path}, column {columns['rating']!r}")
        if "timestamp" in values:
            values["timestamp"] = _times(values["timestamp"], f"{path}, column {columns['timestamp']!r}")
        row += batch.num_rows
        yield pa.RecordBatch.from_pydict(values)


def _check_filled(values: pa.Array, path: Path, column: str, first_row: int) -> None:
    place = pc.index(values, "").as_py()
    if place >= 0:
        raise ValueError(f"{path}: row {first_row + place} has no value in column {column!r}")


def _times(texts: pa.Array, where: str) -> pa.Array:
    """Numbers as they are (float64, unit still open), dates in milliseconds (int64)."""
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        return to_milliseconds(texts, where)


def _in_milliseconds(workspace: Workspace, interactions: ir.Table, unit: str) -> ir.Table:
    """Timestamps as int64 milliseconds; dates (already int64) are."""
    if unit not in TIMESTAMP_UNITS:
        raise ValueError(f"timestamp_unit is {unit!r}; it may be {', '.join(TIMESTAMP_UNITS)}")
    if "timestamp" not in interactions.columns or interactions.timestamp.type().is_integer():
        return interactions
    if unit == "auto":
        unit = "s" if interactions.timestamp.max().to_pyarrow().as_py() < SECONDS_BELOW else "ms"
    scale = 1000 if unit == "s" else 1
    milliseconds = (_.timestamp * ibis.literal(scale)).round().cast("int64")
    return workspace.checkpoint(interactions.mutate(timestamp=milliseconds))


# Items


def _attribute_columns(
    path: Path, item_id: str, attributes: Sequence[str] | str | None, delimiter: str | None
) -> list[str]:
    present = column_names(path, delimiter)
    require_columns(path, present, [item_id])
    if attributes is None:
        attributes = [column for column in text_columns(path, delimiter) if column != item_id]
    elif isinstance(attributes, str):
        attributes = [column.strip() for column in attributes.split(",")]
    require_columns(path, present, attributes)
    if not attributes:
        raise ValueError(f"{path}: there is no column with text beside {item_id!r}; name some with attributes=")
    return list(attributes)


def _items(path: Path, item_id: str, attributes: list[str], delimiter: str | None) -> Iterator[pa.RecordBatch]:
    row = 1
    for batch in read_columns(path, [item_id, *attributes], delimiter):
        _check_filled(batch[item_id], path, item_id, row)
        row += batch.num_rows
        yield batch.rename_columns(["item_id", *attributes])


class Table(SeqRecBuilder):
    VERSION = "1.0.0"
    BUILDER_CONFIGS = table_configs("default")
    DEFAULT_CONFIG_NAME = "default"
    prepare = staticmethod(prepare)
