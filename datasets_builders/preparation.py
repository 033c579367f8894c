"""From rows of interactions to the tables of the contract, written once as Ibis expressions.

Builders stage their files as Parquet with an explicit row number, because no engine promises to keep the order
of a file; from there on everything is relational and runs embedded on DuckDB, out of core. Nothing here is raw
SQL or a function of one engine, so the same expressions run on any Ibis backend that reads Parquet.

Columns of staged interactions: ``row`` (int64, position in the file), ``user_id``, ``item_id`` (strings) and, where
known, ``timestamp`` (int64, milliseconds) and ``rating`` (float). Columns of staged items: ``row``, ``item_id`` and
the text attributes; where several domains come together both have ``domain`` (string), which is no text.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ibis import _
from ibis.expr.operations import PhysicalTable
from tqdm.auto import tqdm

from .engines import connect, json_lines, keep
from .reading import read_json_fields

ITEMS_WITHOUT_TEXT = ("error", "drop", "use_id")
INVISIBLE = "\u00a0\u3000\u200b\u200c\u200d\u2060\ufeff"  # spaces and signs of no width, which tokenizers drop


class Workspace:
    """An Ibis connection and a folder for what passes between steps."""

    def __init__(self, connection: ibis.BaseBackend, directory: Path):
        self.connection = connection
        self.directory = directory
        self._files = 0

    def stage(self, batches: Iterable[pa.RecordBatch], description: str) -> ir.Table:
        """Writes record batches with a ``row`` column that numbers them in the order they arrive, from 0."""
        path, rows, writer = self._next_file(), 0, None
        with tqdm(desc=description, unit=" rows", unit_scale=True, disable=None, delay=1) as progress:
            try:
                for batch in batches:
                    numbers = pa.array(np.arange(rows, rows + batch.num_rows))
                    batch = pa.RecordBatch.from_arrays([numbers, *batch.columns], ["row", *batch.schema.names])
                    writer = writer or pq.ParquetWriter(path, batch.schema, compression="lz4", use_dictionary=False)
                    writer.write_batch(batch)
                    rows += batch.num_rows
                    progress.update(batch.num_rows)
            finally:
                if writer:
                    writer.close()
        if not rows:
            raise ValueError(f"{description}: there is not a single row")
        return self.connection.read_parquet(path)

    def stage_json(self, path: Path, schema: pa.Schema, description: str) -> ir.Table:
        """The fields of a schema (strings, float64, int64) from a JSON-lines file, with a ``row`` as by `stage`."""
        table = json_lines(self.connection, path, schema, self._next_file().stem)
        return self.stage(read_json_fields(path, schema), description) if table is None else table

    def checkpoint(self, table: ir.Table) -> ir.Table:
        """Runs an expression now, so that what builds on it does not run it again."""
        is_stored = isinstance(table.op(), PhysicalTable)
        return table if is_stored else keep(self.connection, table, self._next_file())

    def _next_file(self) -> Path:
        self._files += 1
        return self.directory / f"step_{self._files:03d}.parquet"


@contextmanager
def open_workspace(threads: int | None = None, engine: str = "duckdb") -> Iterator[Workspace]:
    """A workspace on an engine (see `engines`) in a temporary folder; ``threads`` of DuckDB, None = all cores."""
    with tempfile.TemporaryDirectory(prefix="seqrec-") as directory:
        with connect(engine, threads, Path(directory)) as connection:
            yield Workspace(connection, Path(directory))


# Relational steps


def drop_duplicate_rows(table: ir.Table) -> ir.Table:
    """Keeps the first of rows that are equal in every column but ``row``."""
    return table.group_by([name for name in table.columns if name != "row"]).agg(row=_.row.min())


def sample_users(workspace: Workspace, interactions: ir.Table, users: int | None, seed: int) -> ir.Table:
    """The interactions of a random sample of so many users, the same on every engine; of all users for None.

    Users are numbered by their first row and drawn by number. Raises ValueError for fewer than one.
    """
    if users is None:
        return interactions
    if users < 1:
        raise ValueError(f"users is {users}: sample at least one, or leave the option out for all")
    numbered = workspace.checkpoint(users_by_first_row(interactions))
    everybody = _number_of_rows(numbered)
    if users >= everybody:
        return interactions
    chosen = np.sort(np.random.default_rng(seed).choice(everybody, users, replace=False))
    drawn = workspace.stage([pa.RecordBatch.from_pydict({"user_index": chosen})], "sampled users").drop("row")
    return workspace.checkpoint(interactions.semi_join(numbered.semi_join(drawn, "user_index"), "user_id"))


def items_by_first_appearance(interactions: ir.Table) -> ir.Table:
    """``row`` (first appearance) and ``item_id`` of every item, for sources that come without an item table."""
    return interactions.group_by("item_id").agg(row=_.row.min()).select("row", "item_id")


def most_frequent_text(rows: ir.Table, text: str) -> ir.Table:
    """``item_id`` and the text most of its rows carry; empty texts do not count, ties go to the earliest."""
    texts = rows.filter(_[text].strip() != "").group_by(["item_id", text]).agg(times=_.row.count(), first=_.row.min())
    place = ibis.row_number().over(group_by="item_id", order_by=[ibis.desc("times"), "first"])
    return texts.mutate(place=place).filter(_.place == 0).select("item_id", text)


def k_core(workspace: Workspace, interactions: ir.Table, min_user: int, min_item: int) -> ir.Table:
    """Drops users and items with too few interactions until nobody is left to drop.

    The result is the largest set in which every user has ``min_user`` and every item ``min_item`` interactions;
    it is unique, so the order of dropping does not matter. Repeated interactions count. Everybody is counted once;
    from then on a round looks at those who leave, and takes their interactions off the counts of the other side.
    """
    least = {name: n for name, n in (("user_id", min_user), ("item_id", min_item)) if n > 1}
    interactions = workspace.checkpoint(interactions)
    times = {name: workspace.checkpoint(interactions.group_by(name).agg(times=_.count())) for name in least}
    to_look_at = list(least)
    while to_look_at:
        name = to_look_at.pop()
        leaving, times[name] = times[name].filter(_.times < least[name]), times[name].filter(_.times >= least[name])
        for other in least.keys() - {name}:
            if _number_of_rows(leaving):
                times[other] = workspace.checkpoint(less_often(times[other], interactions.semi_join(leaving, name)))
                to_look_at = [other]
    return workspace.checkpoint(among(interactions, times))


def less_often(times: ir.Table, lost: ir.Table) -> ir.Table:
    """``times`` every id of a column has interactions, less those that are ``lost``."""
    column = times.columns[0]
    lost = lost.group_by(column).agg(lost=_.count())
    return times.left_join(lost, column).select(column, times=_.times - _.lost.fill_null(0))


def among(interactions: ir.Table, kept: dict[str, ir.Table]) -> ir.Table:
    """Only the interactions whose ids are all kept, by column."""
    for name, ids in kept.items():
        interactions = interactions.semi_join(ids, name)
    return interactions


class Numbered(NamedTuple):
    """Interactions whose ids are numbers, and the tables that name them: ``number`` and ``user_id`` or ``item_id``."""

    interactions: ir.Table
    users: ir.Table
    items: ir.Table


def number_ids(workspace: Workspace, interactions: ir.Table, least: int = 1) -> Numbered:
    """Puts the row of its first appearance (int64) in the place of each id.

    Filtering, sorting and joining numbers takes a fraction of the time and memory that strings take; worth it where
    several steps follow. `name_ids` undoes it. Ids with fewer than ``least`` interactions are left out with these:
    no k-core of that size can hold them.
    """
    numbered, names = interactions, []
    for column in ("user_id", "item_id"):
        counted = interactions.group_by(column).agg(number=_.row.min(), times=_.count())
        names.append(workspace.checkpoint(counted.filter(_.times >= least).drop("times")))
        numbered = numbered.join(names[-1], column).drop(column).rename({column: "number"})
    return Numbered(workspace.checkpoint(numbered), *names)


def earliest_of_pairs(workspace: Workspace, interactions: ir.Table) -> ir.Table:
    """The earliest interaction (by timestamp, then row) of every user with every item."""
    pair = ["user_id", "item_id"]
    repeated = workspace.checkpoint(interactions.group_by(pair).agg(times=_.count()).filter(_.times > 1))
    place = ibis.row_number().over(group_by=pair, order_by=["timestamp", "row"])  # dear, so for the repeated ones only
    first = interactions.semi_join(repeated, pair).mutate(place=place).filter(_.place == 0).drop("place")
    return workspace.checkpoint(ibis.union(interactions.anti_join(repeated, pair), first))


def name_ids(workspace: Workspace, names: ir.Table, column: str, numbers: pa.ChunkedArray) -> pa.Array:
    """The ids (strings) behind numbers, in their order; ``names`` is a table of `Numbered`."""
    batch = pa.RecordBatch.from_pydict({"number": numbers.cast(pa.int64()).combine_chunks()})
    wanted = workspace.stage([batch], column)
    return wanted.join(names, "number").order_by("row").to_pyarrow()[column].combine_chunks()


def first_row_per_item(items: ir.Table) -> ir.Table:
    """Metadata files repeat items now and then; the first row of an item counts."""
    place = ibis.row_number().over(group_by="item_id", order_by="row")
    return items.mutate(place=place).filter(_.place == 0).drop("place")


def check_one_text(items: ir.Table, name: str) -> None:
    """Raises ValueError naming both rows where an item stands twice with different texts."""
    several = drop_duplicate_rows(items).group_by("item_id").agg(rows=_.count(), first=_.row.min(), last=_.row.max())
    twice = several.filter(_.rows > 1).order_by("last").limit(1).to_pyarrow().to_pylist()
    if twice:
        raise ValueError(
            f"{name}: item {twice[0]['item_id']!r} has different texts in rows {twice[0]['first'] + 1} and "
            f"{twice[0]['last'] + 1}; keep one of them, or set duplicate_items=first"
        )


def with_text(items: ir.Table, policy: str, name: str, labels: Mapping[str, str] | None = None) -> ir.Table:
    """Applies ``items_without_text``: "error" names the first one, "drop" leaves them out, "use_id" takes the id.

    ``labels`` says what errors call the attributes, where not by their columns' names.
    """
    attributes = [column for column in items.columns if column not in ("row", "item_id", "domain")]
    items = items.mutate(**{column: items[column].cast("string").fill_null("") for column in attributes})
    has_text = ibis.or_(*[items[column].translate(INVISIBLE, "").strip() != "" for column in attributes])
    if policy == "drop":
        return items.filter(has_text)
    if policy == "use_id":
        first = attributes[0]
        return items.mutate(**{first: ibis.ifelse(has_text, items[first], items.item_id)})
    if policy != "error":
        raise ValueError(f"items_without_text is {policy!r}; it may be {', '.join(ITEMS_WITHOUT_TEXT)}")
    without = items.filter(~has_text).order_by("row").limit(1).to_pyarrow().to_pylist()
    if without:
        raise ValueError(
            f"{name}: item {without[0]['item_id']!r} (row {without[0]['row'] + 1}) has no text in "
            f"{' or '.join((labels or {}).get(column, column) for column in attributes)}; give it text, or set "
            "items_without_text to drop or use_id"
        )
    return items


def build_tables(
    workspace: Workspace,
    interactions: ir.Table,
    items: ir.Table,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
    items_without_text: str = "error",
    all_items: bool = False,
    name: str = "items",
    labels: Mapping[str, str] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Interactions and items -> the ``items`` and ``sequences`` tables of the contract.

    The catalogue keeps the order of ``items.row`` and holds the items with an interaction left, or with ``all_items``
    every item that has text. Users come in the order of their first interaction, a user's interactions are sorted by
    (timestamp, row). ``name`` says in errors where the items came from, ``labels`` what their attributes are called
    there and in the result: no engine sees such names. Raises ValueError when an item has no text or is not in
    ``items`` (unless ``items_without_text`` is "drop"), and when nobody is left after filtering.
    """
    _check_minimum(min_user_interactions, min_item_interactions)
    wanted = first_row_per_item(items if all_items else items.semi_join(interactions, "item_id"))
    described = workspace.checkpoint(with_text(wanted, items_without_text, name, labels))
    known = interactions.semi_join(described, "item_id")
    if items_without_text != "drop":
        _check_all_known(interactions.anti_join(described, "item_id"), items, name)
    kept = k_core(workspace, known, min_user_interactions, min_item_interactions)
    _check_somebody_left(interactions, kept, min_user_interactions, min_item_interactions)
    catalogue = described.select("row", "item_id")
    catalogue = catalogue if all_items else catalogue.semi_join(kept, "item_id")
    places = workspace.checkpoint(catalogue.select("item_id", item_index=ibis.row_number().over(order_by="row")))
    users = workspace.checkpoint(users_by_first_row(kept))
    sequences = _sequences(ordered_rows(kept, places, users).to_pyarrow(), users.order_by("user_index").to_pyarrow())
    texts = described.semi_join(places, "item_id").order_by("row").drop("row").to_pyarrow()
    return texts.rename_columns([(labels or {}).get(column, column) for column in texts.column_names]), sequences


def _check_minimum(min_user: int, min_item: int) -> None:
    for option, value in (("min_user_interactions", min_user), ("min_item_interactions", min_item)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{option} is a whole number of at least 1, not {value!r}")


def _check_all_known(unknown: ir.Table, items: ir.Table, name: str) -> None:
    first = unknown.order_by("row").limit(1).to_pyarrow().to_pylist()
    if not first:
        return

    def bare(item: str) -> str:
        return item.lstrip("0").casefold()

    item = first[0]["item_id"]
    alike = next((other for other in items.item_id.to_pyarrow().to_pylist() if bare(other) == bare(item)), None)
    hint = f", but {alike!r} is: if they are one, write them alike in both files" if alike else ""
    raise ValueError(
        f"{name}: item {item!r} has no text because it is not there (interaction in row {first[0]['row'] + 1}){hint}; "
        "add it, or set items_without_text=drop to leave such interactions out"
    )


def _check_somebody_left(before: ir.Table, after: ir.Table, min_user: int, min_item: int) -> None:
    if _number_of_rows(after) == 0:
        raise ValueError(
            f"no user is left after filtering: of {_number_of_rows(before)} interactions none is with an item that "
            f"has text, by a user with {min_user} or more and of an item with {min_item} or more; lower "
            "min_user_interactions or min_item_interactions, and check that item ids match between the files"
        )


def _number_of_rows(table: ir.Table) -> int:
    return table.count().to_pyarrow().as_py()


def users_by_first_row(interactions: ir.Table) -> ir.Table:
    """``user_id`` and ``user_index``, counted from 0 in the order of each user's first row."""
    users = interactions.group_by("user_id").agg(first_row=_.row.min())
    users = users.mutate(user_index=ibis.row_number().over(order_by="first_row"))
    return users.select("user_id", "user_index")


def ordered_rows(interactions: ir.Table, items: ir.Table, users: ir.Table) -> ir.Table:
    """All interactions as indices, sorted by user, then time, then row: equal times keep the file's order."""
    time = [name for name in ("timestamp",) if name in interactions.columns]
    values = [name for name in ("timestamp", "rating") if name in interactions.columns]
    rows = interactions.join(items, "item_id").join(users, "user_id")
    return rows.order_by(["user_index", *time, "row"]).select("user_index", "item_index", *values)


def _sequences(rows: pa.Table, users: pa.Table) -> pa.Table:
    """Cuts sorted rows into one list a user."""
    lengths = np.bincount(rows["user_index"].to_numpy(), minlength=users.num_rows)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    columns = {"user_id": users["user_id"]}
    for column, source, kind in (
        ("items", "item_index", pa.int32()),
        ("timestamps", "timestamp", pa.int64()),
        ("ratings", "rating", pa.float32()),
    ):
        if source in rows.column_names:
            values = rows[source].cast(kind).combine_chunks()
            columns[column] = pa.ListArray.from_arrays(offsets, values)
    return pa.table(columns)
