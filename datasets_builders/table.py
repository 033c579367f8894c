"""Anybody's data: interactions and items, as CSV, TSV, JSON lines, Parquet, Excel or RecBole's atomic files.

    build("table", data_files=["sales.csv", "products.csv"], min_user_interactions=5)

Columns are found by what their names mean (`meaning`): a user, an item, and where they are there a time and a rating.
In the file of items every other column that holds text becomes an attribute, in the file's order. One file is enough
where it tells of the items, too: an item's text is then what most of its rows say. An Excel book counts as its sheets.
``info["report"]`` says what was taken for what, and what was left out; options decide otherwise.
"""

import codecs
import datetime
import functools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ibis import _

from .builder import SeqRecBuilder, table_configs
from .contract import SeqRecDataset, make_dataset, marked_as_text
from .meaning import TEXTS, TITLES, columns_for, item_columns, names_a_clock, names_a_time, plain
from .preparation import (
    Workspace,
    build_tables,
    check_one_text,
    drop_duplicate_rows,
    items_by_first_appearance,
    most_frequent_text,
    open_workspace,
)
from .reading import (
    DELIMITERS,
    TableFile,
    book_sheets,
    damage_named,
    ends_in_a_line,
    require_columns,
    whole_number_ids,
    with_quoting,
)
from .texts import as_text, is_text, open_nested
from .times import (
    CLOCK,
    DATE_ORDERS,
    TIMESTAMP_UNITS,
    TimeColumn,
    are_times,
    read_time_column,
    ticks_to_milliseconds,
    to_ratings,
)

NONE = "none"  # of a column that is there and not wanted
CHOICES = {
    "incomplete_rows": ("error", "drop"),
    "duplicate_items": ("error", "first"),
    "timestamp_unit": TIMESTAMP_UNITS,
    "date_order": DATE_ORDERS,
}
_ADDRESS = r"https?://\S+"
_COMMA = r"^-?\d+(,\d+)?$"  # prices where the comma is the decimal sign
_MISSING = r"^(NaT|NULL|null|None|<NA>|N/A|#N/A|\\N)$"  # what programs write where there is nothing
_MISSING_ID = r"^(nan|NaN|NaT|NULL|null|None|<NA>|N/A|#N/A|\\N)$"
_MIDNIGHT = r"[T ]0?0:00(:00(\.0+)?)?$"  # what a column of days gets where only moments can be written
_WHOLE_TIME = r"(\d{1,7}|\d{9,})([.,]\d*)?"  # a number that is no day as 20240301 is
# What spreadsheets and floats make of long numbers, Java's 1.7E12 too; a hexadecimal id has no point or sign: 1e10
_LOST_DIGITS = r"^\d(\.\d+[eE]\+?|[eE]\+)\d\d+$"


def prepare(
    files: list[Path] | dict[str, Path] | None,
    config: str = "default",
    *,
    user_id: str | None = None,
    item_id: str | None = None,
    timestamp: str | None = None,
    rating: str | None = None,
    items_item_id: str | None = None,
    attributes: Sequence[str] | str | None = None,
    timestamp_unit: str = "auto",
    date_order: str | None = None,
    rating_range: Sequence[float] = (0, 10),
    delimiter: str | None = None,
    encoding: str | None = None,
    sheets: Sequence[str] | None = None,
    interactions_columns: Sequence[str] | None = None,
    items_columns: Sequence[str] | None = None,
    incomplete_rows: str | None = None,
    duplicate_items: str = "error",
    drop_duplicates: bool = False,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
    items_without_text: str = "error",
    all_items: bool = False,
    name: str = "table",
    threads: int | None = None,
    engine: str = "duckdb",
) -> SeqRecDataset:
    """Builds a dataset from files in any order, or from {"interactions": file, "items": file}.

    Args:
        user_id, item_id, timestamp, rating: columns of the interactions; None = found by meaning. "none" leaves times
            or ratings out: without times the order of the file is the order of events.
        items_item_id: the id column of the items, where it is not called like ``item_id``.
        attributes: columns that tell what an item is, in the order wanted; None = all others that hold text.
        timestamp_unit: of numbers: "s", "ms", "us", "ns" (since 1970), "sheet_days" (a spreadsheet's, 45123.5 is noon
            of 2023-07-16), or "auto": by their size.
        date_order: of dates like 1/2/2024: "day_first" or "month_first"; None = as the column shows.
        rating_range: lowest and highest rating there may be.
        delimiter: of CSV files; None = each file's own.
        encoding: of CSV files, such as "shift_jis"; None = UTF-8 or UTF-16, and where a file is neither, cp1252.
        sheets: two sheets of an Excel book: interactions, items; None = found by their columns.
        interactions_columns, items_columns: the columns' names where a file begins without a line of them.
        incomplete_rows: interactions that lack a value: "error" or "drop"; None = "drop" where one file tells
            everything, since lists of sales have lines without a customer, else "error".
        duplicate_items: an item with two different texts: "error" or "first".
        drop_duplicates: drop interactions that repeat an earlier one in user, item, time and rating.
        min_user_interactions, min_item_interactions: iterative k-core, 1 = keep all.
        items_without_text: "error", "drop" or "use_id" (the id serves as text).
        all_items: keep items that nobody has bought yet in the catalogue.
        name: what dataset_info calls the dataset.
    """
    options = {
        key: value for key, value in locals().items() if key not in ("files", "config", "threads", "engine", "name")
    }
    if len(rating_range) != 2 or not rating_range[0] < rating_range[1]:
        raise ValueError(f"rating_range is {rating_range!r}: it is [LOWEST, HIGHEST]")
    for option, choices in CHOICES.items():
        if options[option] not in (None, *choices):
            raise ValueError(f"{option} is {options[option]!r}; it may be {', '.join(choices)}")
    given = {"user_id": user_id, "item_id": item_id, "timestamp": timestamp, "rating": rating}
    _check_encoding(encoding)
    headers = [names and tuple(names) for names in (interactions_columns, items_columns)]
    tables = _tables(files, delimiter and delimiter.replace("\\t", "\t"), encoding, headers)
    interactions_file, items_file = _by_name(tables, sheets) if sheets else _by_meaning(tables, given)
    with damage_named(interactions_file.path):
        interactions_file = with_quoting(interactions_file)
    if items_file:
        with damage_named(items_file.path):
            items_file = with_quoting(items_file)
    columns = _find_columns(interactions_file, items_file, given, items_item_id, _listed(attributes))
    time = _time_column(interactions_file, columns.roles, timestamp_unit, date_order)
    notes: dict[str, None] = {}  # a set in the order of arrival
    with open_workspace(threads, engine) as workspace:
        strict = incomplete_rows == "error" or (items_file is not None and incomplete_rows is None)
        rows = _interactions(interactions_file, columns, time, rating_range, strict, notes)
        staged = workspace.stage(rows, interactions_file.path.name)
        interactions = _complete(workspace, staged.drop(*columns.in_interactions), notes)
        if items_file:
            rows = _items(items_file, columns, incomplete_rows == "drop", notes)
            items = workspace.stage(rows, items_file.path.name)
            if duplicate_items == "error":
                used = items if all_items else items.semi_join(interactions, "item_id")
                check_one_text(used, items_file.path.name)
        else:
            items = workspace.checkpoint(_items_of_rows(staged.filter(_.item_id != ""), columns))
        catalogue, sequences = build_tables(
            workspace,
            drop_duplicate_rows(interactions) if drop_duplicates else interactions,
            items,
            min_user_interactions,
            min_item_interactions,
            items_without_text,
            all_items,
            (items_file or interactions_file).path.name,
            columns.labels,
        )
        left = items.item_id.nunique().to_pyarrow().as_py() - catalogue.num_rows
    if left:
        notes[
            f"{left:,} items that are in no interaction (left) are not in the catalogue; all_items=true keeps them"
        ] = None
    order = "time, then file order" if time else "file order (there are no timestamps)"
    about = {"name": name, "config": config, "source": interactions_file.path.name, "licence": "not stated"}
    about |= {"splits": f"leave_one_out; order: {order}", "options": options}
    sequences = _in_milliseconds(sequences, time)
    about["report"] = [*_report(interactions_file, items_file, columns, time), *_span(sequences), *notes]
    return make_dataset(marked_as_text(catalogue), sequences, about)


def _check_encoding(encoding: str | None) -> None:
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise ValueError(f"{error}; encoding is one that Python knows, such as cp1252, shift_jis or cp1251") from error


def _listed(value: Sequence | str | None) -> list | None:
    """A list as it is, a text split at commas."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value and list(value)


# Which file is which


def _tables(
    files: list[Path] | dict[str, Path] | None,
    delimiter: str | None,
    encoding: str | None,
    headers: list[tuple[str, ...] | None],
) -> list[TableFile]:
    """The given tables: interactions and items by name, or in any order; of Excel books the sheets."""
    if isinstance(files, dict):
        if not {"interactions"} <= set(files) <= {"interactions", "items"}:
            raise ValueError('table takes data_files as a list or as {"interactions": FILE, "items": FILE}')
        files = [files[name] for name in ("interactions", "items") if name in files]
        return [
            TableFile(path, delimiter, None, header, encoding) for path, header in zip(files, headers, strict=False)
        ]
    if not files:
        raise ValueError("table needs data_files: the interactions and the items, in one file or two")
    if len(set(files)) < len(files):
        raise ValueError(f"a file is given twice: {', '.join(map(str, files))}")
    headers = headers if len(files) <= 2 else [None] * len(files)
    tables = [TableFile(path, delimiter, None, header, encoding) for path, header in zip(files, headers, strict=False)]
    return [sheet for table in tables for sheet in (book_sheets(table) if _is_known(table) else [table])]


def _is_known(table: TableFile) -> bool:
    try:
        return bool(table.kind)
    except ValueError:
        return False


def _by_name(tables: list[TableFile], names: Sequence[str]) -> tuple[TableFile, TableFile | None]:
    sheets = {table.sheet: table for table in tables if table.sheet}
    names = _listed(names)
    if not set(names) <= set(sheets) or not 1 <= len(names) <= 2:
        raise ValueError(f"sheets is {', '.join(names)}: name one or two of {', '.join(sheets) or 'an Excel book'}")
    return sheets[names[0]], sheets[names[1]] if len(names) == 2 else None


def _by_meaning(tables: list[TableFile], given: Mapping[str, str | None]) -> tuple[TableFile, TableFile | None]:
    """The interactions are where a user meets an item, the items where there is an item and no user."""
    if len(tables) == 1:
        return tables[0], None
    roles = {table: _role(table, given) for table in tables}
    interactions = [table for table in tables if roles[table] == "interactions"]
    others = [table for table in tables if roles[table] != "interactions"]
    items = [table for table in others if roles[table] == "items"] if len(others) > 1 else others
    if len(interactions) == 1 and len(items) == 1:
        return interactions[0], items[0]
    # Two files with the same columns are two months of sales; otherwise they come in the order they are asked for.
    both = len(interactions) == 2 and set(tables[0].names) == set(tables[1].names)
    if len(tables) == 2 and not both and not any(table.sheet for table in tables):
        return tables[0], tables[1]
    seen = "; ".join(f"{table}: {role or 'neither'}" for table, role in roles.items())
    raise ValueError(
        "which are the interactions and which the items? Give these two alone, of an Excel book as "
        f"sheets=[INTERACTIONS, ITEMS], or say user_id=COLUMN, which the items do not have ({seen})"
    )


def _role(table: TableFile, given: Mapping[str, str | None]) -> str | None:
    """ "interactions" or "items", as far as the columns' names tell, or why it cannot be read."""
    try:
        names = table.names
    except ValueError as error:
        return str(error)
    has_item = given["item_id"] in names or columns_for("item_id", names, of_items=True)
    users = columns_for("user_id", names) if given["user_id"] is None else {given["user_id"]} & set(names)
    if users:
        has_id = any(plain(name).endswith("id") for name in names if name not in users)
        return "interactions" if has_item or has_id else None
    return "items" if has_item and len(names) > 1 else None


# Which column is what


@dataclass(frozen=True)
class _Columns:
    """What is read. Texts pass through the engines as text_0, text_1 ..., since their own names may be any."""

    roles: dict[str, str]  # of the interactions: our name -> theirs
    item_id: str | None  # of the items; None where the interactions tell of them
    texts: list[str]
    unused: dict[str, str] = field(default_factory=dict)  # of the items: name -> why

    @property
    def labels(self) -> dict[str, str]:
        return {f"text_{n}": "item id" if name == "item_id" else name for n, name in enumerate(self.texts)}

    @property
    def in_interactions(self) -> list[str]:
        return [] if self.item_id else list(self.labels)


def _find_columns(
    interactions: TableFile,
    items: TableFile | None,
    given: Mapping[str, str | None],
    items_item_id: str | None,
    attributes: list[str] | None,
) -> _Columns:
    """Raises ValueError that names all columns missing in both files, and the options that name them."""
    names, of_items = interactions.names, items.names if items else []
    theirs, ours = item_columns(names, of_items)
    if given["item_id"] in of_items:
        ours = given["item_id"]
    wanted = {"user_id": next(iter(columns_for("user_id", names)), None), "item_id": theirs}
    wanted |= {role: next(iter(columns_for(role, names)), None) for role in ("timestamp", "rating")}
    wanted |= {role: name for role, name in given.items() if name}
    wanted["timestamp"] = wanted["timestamp"] or _time_by_values(interactions, list(wanted.values()))
    roles = {role: name for role, name in wanted.items() if name and name != NONE}
    roles |= _clock(interactions, roles, given["timestamp"]) if roles.get("timestamp") in names else {}
    texts = attributes or []
    problems = _missing(interactions, [*roles.values(), *([] if items else texts)])
    problems += _nameless(interactions, {"user": "user_id", "item": "item_id"}, roles)
    if items:
        ours = items_item_id or ours
        problems += _missing(items, [*([ours] if ours else []), *texts])
        problems += _nameless(items, {"item": "items_item_id"}, {"items_item_id": ours} if ours else {})
    if problems:
        raise ValueError("; ".join(problems))
    for file, ids in ((interactions, (roles["user_id"], roles["item_id"])), (items, (ours,) if items else ())):
        _check_plain(file, ids)
    if attributes:
        return _Columns(roles, ours if items else None, texts)
    texts, unused = _texts(items or interactions, ours if items else roles["item_id"], () if items else roles.values())
    return _Columns(roles, ours if items else None, texts, unused)


def _time_by_values(file: TableFile, taken: Sequence[str | None]) -> str | None:
    """The one column whose values are times, where no name says so; ValueError where there are several."""
    found = []
    for name in file.names:
        is_named = names_a_time(name)
        if name in taken or is_named is None:
            continue
        found += [name] if are_times(_first_texts(file, name), numbers=is_named) else []
    if len(found) > 1:
        raise ValueError(
            f"{file}: {' and '.join(map(repr, found))} hold times: say timestamp=COLUMN for the one that counts, or "
            "timestamp=none"
        )
    return next(iter(found), None)


def _clock(file: TableFile, roles: Mapping[str, str], given: str | None) -> dict[str, str]:
    """The column with the time of day, beside one of dates without it; ValueError where that one holds whole times."""
    dates = _without(_MIDNIGHT, _first_texts(file, roles["timestamp"]))
    whole = rf":|^({_WHOLE_TIME})$"
    if not are_times(dates, numbers=True) or pc.any(pc.match_substring_regex(dates, whole)).as_py():
        return {}
    for name in filter(names_a_clock, file.names):
        texts = _first_texts(file, name)
        if name in roles.values() or not pc.any(pc.not_equal(texts, "")).as_py():
            continue
        if pc.all(pc.match_substring_regex(texts, f"^$|{CLOCK}")).as_py():
            return {"clock": name}
        if not given and are_times(texts, numbers=True):
            raise ValueError(
                f"{file}: {roles['timestamp']!r} holds days and {name!r} times: say timestamp=COLUMN for the "
                "one that counts"
            )
    return {}


def _first_texts(file: TableFile, name: str) -> pa.Array:
    return _without(_MISSING, pc.utf8_trim_whitespace(as_text(file.head[name].slice(0, 1000)).combine_chunks()))


def _moments(batch: pa.RecordBatch, roles: Mapping[str, str]) -> pa.Array:
    """The texts of the times, of two columns put together."""
    times = _without(_MISSING, pc.utf8_trim_whitespace(batch[roles["timestamp"]]))
    if "clock" not in roles:
        return times
    clocks = _without(_MISSING, pc.utf8_trim_whitespace(batch[roles["clock"]]))
    joined = pc.binary_join_element_wise(_without(_MIDNIGHT, times), clocks, " ")
    return pc.if_else(pc.or_(pc.equal(times, ""), pc.equal(clocks, "")), times, joined)


def _missing(file: TableFile, needed: list[str]) -> list[str]:
    try:
        require_columns(file, file.names, needed)
    except ValueError as error:
        return [str(error)]
    return []


def _nameless(file: TableFile, needed: dict[str, str], found: Mapping[str, str]) -> list[str]:
    """Which columns nothing was found for."""
    lacking = [f"the {what} (say {option}=COLUMN)" for what, option in needed.items() if option not in found]
    if not lacking:
        return []
    names = file.names
    lists = [name for name in names if _holds_lists(file, name)]
    hint = f"; {lists[0]!r} holds lists: write one row for each member (in pandas: DataFrame.explode)" if lists else ""
    if file.kind == "csv" and not file.header and sum(name[:1].isdigit() for name in names) > 0:
        hint += "; if its first line is no header, name its columns: interactions_columns=[...] or items_columns=[...]"
    if file.kind == "csv" and len(names) == 1:
        hint += "; if another sign parts its columns, say delimiter=SIGN"
    return [f"{file}: no column tells {' or '.join(lacking)}; the file has {', '.join(map(repr, names))}{hint}"]


def _holds_lists(file: TableFile, name: str) -> bool:
    if file.kind == "csv":
        texts = _first_texts(file, name)
        return pc.any(pc.match_substring_regex(texts, r"^\[.*\]$")).as_py() or False
    return pa.types.is_list(file.head.schema.field(name).type)


def _check_plain(file: TableFile, ids: Sequence[str]) -> None:
    for name in ids:
        if file.kind != "csv" and pa.types.is_nested(file.head.schema.field(name).type):
            raise ValueError(
                f"{file}: column {name!r} holds lists or objects where an id is needed; one row, or one JSON object a "
                "line, is one interaction or item"
            )


def _texts(file: TableFile, item: str, roles: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """The columns that tell what an item is, and why the others do not.

    In a file of interactions, which has ``roles``, only those whose name says so and that say the same of an item in
    most of its rows: the rest may be about the user or the order.
    """
    texts, unused, everything = [], {}, not roles
    for column in file.head.schema:
        if column.name in roles or column.name == item:
            continue
        if (
            plain(column.name) not in TEXTS
            if not everything
            else not (is_text(column.type) or plain(column.name) in TITLES)
        ):
            unused[column.name] = "no text" if everything else ""
        elif reason := _no_words(file, column.name) or (not everything and _varies(file, item, column.name)):
            unused[column.name] = reason
        else:
            texts.append(column.name)
    if not texts:
        where = "" if everything else ", or give a second file with the items"
        raise ValueError(
            f"{file}: no column tells in words what an item is; name some with attributes=[COLUMN]{where}"
        )
    return texts, unused


def _varies(file: TableFile, item: str, name: str) -> str | None:
    """Why a column tells nothing of the item: rows of one item, as far as there are several, seldom agree in it."""
    rows = pa.table({"item": as_text(file.head[item]), "text": as_text(file.head[name])})
    times = rows.group_by(["item", "text"]).aggregate([([], "count_all")]).group_by("item")
    times = times.aggregate([("count_all", "sum"), ("count_all", "max")])
    times = times.filter(pc.greater(times["count_all_sum"], 1))
    agreeing, all_rows = (pc.sum(times[f"count_all_{of}"]).as_py() or 0 for of in ("max", "sum"))
    return "differs within an item" if 2 * agreeing <= all_rows and all_rows else None


def _no_words(file: TableFile, name: str) -> str | None:
    """Why a column that looks like text tells nothing in words, judged by its first rows; None where it does."""
    texts = as_text(file.head[name].slice(0, 1000))
    filled = texts.filter(pc.not_equal(texts, ""))
    commas = file.kind == "csv" and file.form.delimiter != ","
    if (
        commas
        and len(filled)
        and plain(name) not in TITLES
        and pc.all(pc.match_substring_regex(filled, _COMMA)).as_py()
    ):
        return "no text"
    letters = pc.sum(pc.utf8_length(texts)).as_py() or 0
    others = pc.sum(pc.utf8_length(pc.replace_substring_regex(texts, _ADDRESS, ""))).as_py() or 0
    return "web addresses" if others < letters / 2 else None


# Rows


def _time_column(file: TableFile, roles: Mapping[str, str], unit: str, order: str | None) -> TimeColumn | None:
    if "timestamp" not in roles:
        return None
    column = roles["timestamp"]
    wanted = [roles[role] for role in ("timestamp", "clock") if role in roles]

    def read() -> Iterator[pa.Array]:
        return (_moments(batch, roles) for batch in file.read(wanted))

    where = f"{file}, column {column!r}"
    time = read_time_column(read, where, unit, order)
    if file.kind == "csv" and file.names[-1] == column and not ends_in_a_line(file):
        lengths = np.concatenate([pc.utf8_length(texts).to_numpy() for texts in read()])
        if len(lengths) > 1 and lengths[-1] < lengths[:-1].min():
            raise ValueError(
                f"{where}: the file ends inside its last value (row {len(lengths)}), which is shorter than all "
                "others: get the file whole, or end its last line"
            )
    return time


def _interactions(
    file: TableFile,
    columns: _Columns,
    time: TimeColumn | None,
    rating_range: Sequence[float],
    strict: bool,
    notes: dict[str, None],
) -> Iterator[pa.RecordBatch]:
    """Ids and texts as strings, ticks of time, ratings; no user where a row is not ``strict``ly complete."""
    row, roles, returned = 1, columns.roles, 0
    zeros: dict[str, set[int]] = defaultdict(set)
    own = columns.labels if columns.in_interactions else {}
    amounts = columns_for("quantity", file.names)[:1]
    for batch in file.read(list(dict.fromkeys([*roles.values(), *own.values(), *amounts]))):
        returned += sum(pc.sum(pc.starts_with(batch[name], "-")).as_py() or 0 for name in amounts)
        texts = {ours: pc.utf8_trim_whitespace(batch[theirs]) for ours, theirs in roles.items()}
        texts = {ours: _without(_MISSING_ID if "_id" in ours else _MISSING, texts[ours]) for ours in texts}
        texts.pop("clock", None)
        empty = {ours: pc.equal(column, "") for ours, column in texts.items()}
        if strict:
            for ours in texts:
                _check_filled(empty[ours], file, roles[ours], row)
        values = {ours: _ids(texts[ours], file, roles[ours], row, notes, zeros) for ours in ("user_id", "item_id")}
        if "timestamp" in roles:
            moments = _moments(batch, roles)
            values["timestamp"] = time.moments(moments)
            _check_times(moments, values["timestamp"], f"{file}, column {roles['timestamp']!r}", row)
        if "rating" in roles:
            values["rating"] = to_ratings(texts["rating"], f"{file}, column {roles['rating']!r}", rating_range, row)
        values["user_id"] = pc.if_else(functools.reduce(pc.or_, empty.values()), "", values["user_id"])
        row += batch.num_rows
        yield pa.RecordBatch.from_pydict(values | {ours: open_nested(batch[theirs]) for ours, theirs in own.items()})
    _check_spellings(file, zeros)
    if returned:
        notes[
            f"{returned:,} rows have a {amounts[0]!r} below 0 (returns?) and count as all others; leave "
            "them out of the file if they should not"
        ] = None


def _without(pattern: str, texts: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(texts, pattern, "")


def _check_filled(empty: pa.Array, file: TableFile, column: str, first_row: int) -> None:
    place = pc.index(empty, True).as_py()
    if place >= 0:
        raise ValueError(
            f"{file}: row {first_row + place} has no value in column {column!r}; fill it, or leave such rows out by "
            "incomplete_rows=drop"
        )


def _check_times(texts: pa.Array, moments: pa.Array, where: str, first_row: int) -> None:
    place = pc.index(pc.and_(pc.is_null(moments), pc.not_equal(texts, "")), True).as_py()
    if place >= 0:
        raise ValueError(
            f"{where}: {texts[place].as_py()!r} is not a date and time (row {first_row + place}); mend it"
        )


def _ids(
    texts: pa.Array, file: TableFile, column: str, first_row: int, notes: dict[str, None], zeros: dict[str, set[int]]
) -> pa.Array:
    """Ids as text. ``zeros`` is told in how many letters the column says that a number is whole, 2 in ``101.0``."""
    place = pc.index(pc.match_substring_regex(texts, _LOST_DIGITS), True).as_py()
    if place >= 0:
        raise ValueError(
            f"{file}: column {column!r}, row {first_row + place}: {texts[place].as_py()!r} is an id that lost its "
            "digits as a number; write the file again with ids as text"
        )
    unwrapped = _unwrapped(texts)
    ids = whole_number_ids(unwrapped)
    if not ids.equals(unwrapped):
        notes[f"{file.path.name}: ids of {column!r} like 101.0 are read as 101"] = None
        zeros[column].update(pc.unique(pc.subtract(pc.utf8_length(unwrapped), pc.utf8_length(ids))).to_pylist())
        zeros[column].discard(0)
    return ids


def _unwrapped(texts: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(texts, r'^="(.*)"$', r"\1")  # how exports keep a spreadsheet from numbers


def _check_spellings(file: TableFile, zeros: Mapping[str, set[int]]) -> None:
    """Raises ValueError where a column has both 1.0 and 1.00: no program writes one number so, they are two ids.

    1 beside 1.0 is one id: of two months' exports one may have become floats.
    """
    for column in (column for column, lengths in zeros.items() if len(lengths) > 1):
        spelt: dict[str, str] = {}
        for batch in file.read([column]):  # once more, since hardly any table comes here
            texts = _unwrapped(pc.utf8_trim_whitespace(batch[column]))
            for text in pc.unique(texts.filter(pc.not_equal(texts, whole_number_ids(texts)))).to_pylist():
                number = text.partition(".")[0]
                if spelt.setdefault(number, text) != text:
                    raise ValueError(
                        f"{file}: column {column!r} has the ids {spelt[number]!r} and {text!r}, which both read as "
                        f"{number}; write them alike if they are one, and with a letter in front if they are two"
                    )


def _complete(workspace: Workspace, rows: ir.Table, notes: dict[str, None]) -> ir.Table:
    """Without the rows that lack a value."""
    lacking = rows.filter(_.user_id == "").agg(times=_.count(), first=_.row.min()).to_pyarrow()
    times, first = (column[0].as_py() for column in lacking.columns)
    if not times:
        return rows
    everything = rows.count().to_pyarrow().as_py()
    notes[f"{times:,} of {everything:,} interactions lack a value and are left out, first row {first + 1:,}"] = None
    return workspace.checkpoint(rows.filter(_.user_id != ""))


def _items(file: TableFile, columns: _Columns, drop: bool, notes: dict[str, None]) -> Iterator[pa.RecordBatch]:
    row = 1
    zeros: dict[str, set[int]] = defaultdict(set)
    for batch in file.read([columns.item_id, *columns.texts]):
        ids = _without(_MISSING_ID, pc.utf8_trim_whitespace(batch[columns.item_id]))
        if drop:
            batch, ids = batch.filter(pc.not_equal(ids, "")), ids.filter(pc.not_equal(ids, ""))
        _check_filled(pc.equal(ids, ""), file, columns.item_id, row)
        values = {"item_id": _ids(ids, file, columns.item_id, row, notes, zeros)}
        row += batch.num_rows
        for ours, theirs in zip(columns.labels, columns.texts, strict=True):
            texts = _without(_MISSING_ID, batch[theirs])
            values[ours] = open_nested(texts)
            if not texts.equals(batch[theirs]):
                notes[f"{file.path.name}: words like NULL and nan in {theirs!r} are read as nothing"] = None
        yield pa.RecordBatch.from_pydict(values)
    _check_spellings(file, zeros)


def _items_of_rows(rows: ir.Table, columns: _Columns) -> ir.Table:
    """Each item of the interactions with the text that most of its rows have, column by column."""
    items = items_by_first_appearance(rows)
    for label in columns.labels:
        texts = most_frequent_text(rows.select("row", "item_id", label), label)
        items = items.left_join(texts, "item_id").drop("item_id_right")
    return items


def _in_milliseconds(sequences: pa.Table, time: TimeColumn | None) -> pa.Table:
    if time is None:
        return sequences
    ticks = sequences["timestamps"].combine_chunks()
    times = pa.ListArray.from_arrays(ticks.offsets, ticks_to_milliseconds(ticks.values, time))
    return sequences.set_column(sequences.column_names.index("timestamps"), "timestamps", times)


# The report


def _span(sequences: pa.Table) -> Iterator[str]:
    """From when to when, where impossible years show."""
    if "timestamps" in sequences.column_names:
        ends = pc.min_max(pc.list_flatten(sequences["timestamps"])).as_py().values()
        first, last = (datetime.date(1970, 1, 1) + datetime.timedelta(milliseconds=end) for end in ends)
        yield f"times run from {first} to {last}"


def _report(interactions: TableFile, items: TableFile | None, columns: _Columns, time: TimeColumn | None) -> list[str]:
    """What was taken for what, a line a file."""
    roles = dict(columns.roles)
    said = [f"{ours.removesuffix('_id')} from {roles[ours]!r}" for ours in ("user_id", "item_id")]
    clock = f" and {roles['clock']!r}" if "clock" in roles else ""
    said.append(
        f"timestamp from {roles['timestamp']!r}{clock}, {time}" if time else "no timestamp: the file's order counts"
    )
    if "rating" in roles:
        said.append(f"rating from {roles['rating']!r}")
    texts = "text from " + ", ".join(map(repr, columns.texts))
    if not items:
        said.append(f"{texts}, what most rows of an item say")
    taken = {*roles.values(), *([] if items else columns.texts)}
    lines = [_line("interactions", interactions, said, [name for name in interactions.names if name not in taken])]
    if items:
        unused = [name for name in items.names if name not in (columns.item_id, *columns.texts)]
        reasons = [f"{name!r} ({columns.unused[name]})" if columns.unused.get(name) else repr(name) for name in unused]
        lines.append(_line("items", items, [f"item from {columns.item_id!r}", texts], reasons, quoted=True))
    return lines


def _line(what: str, file: TableFile, said: list[str], unused: list[str], quoted: bool = False) -> str:
    form = f" ({_form(file)})" if file.kind == "csv" else ""
    place = f"{file.path.name}, sheet {file.sheet}" if file.sheet else file.path.name
    names = ", ".join(unused if quoted else map(repr, unused))
    return f"{what}: {place}{form}: {'; '.join(said)}" + (f"; not used: {names}" if unused else "")


def _form(file: TableFile) -> str:
    said = [DELIMITERS.get(file.form.delimiter, f"parted by {file.form.delimiter!r}")]
    if file.encoding != "utf8" and not file.stated_encoding:
        said.append(f"not UTF-8, read as {file.encoding}; encoding= says otherwise")
    said += {"raw": ["quotation marks are letters"], "backslash": ["backslashes before quotation marks"]}.get(
        file.quoting, []
    )
    if file.form.above:
        said.append(f"lines above the header left out: {file.form.above}")
    return ", ".join(said)


class Table(SeqRecBuilder):
    BUILDER_CONFIGS = table_configs("default")
    prepare = staticmethod(prepare)
