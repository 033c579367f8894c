"""Amazon Reviews 2023 (Hou et al., arXiv:2403.03952): all 33 categories, one or several in one dataset.

Configs say which interactions, and by which protocol they are meant to be split (the tables are the same):

- ``5core``, ``0core``: leave-one-out, the publisher's ``last_out``;
- ``5core_timestamp``, ``0core_timestamp``: absolute timestamps, the publisher's ``timestamp``.

Give files as ``data_files``, or ``category=NAME`` (or a list) to fetch them from the publisher (``source=hub``: from
the Hub repository). Interactions come as the publisher's benchmark CSV (``rating_only``, or the parts of ``last_out``
or ``timestamp``, whose rows are the same), which is taken as filtered, or as raw reviews (JSON lines), of which the
first of a (user, item) counts and which are filtered to the config's k-core, as the publisher does. Metadata is the
publisher's JSON lines. Which file is which is seen from its first line.

Item text: ``title``, ``brand`` (brand among the details, else the store), ``category``, ``description``; entities,
tags, non-ASCII letters and repeated white space are cleaned away (Sentence-T5 thesis, §3.4; ``clean=false`` keeps
them). Items without metadata or text are left out with their interactions, and counted.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import hf_hub_download
from ibis import _

from .builder import SeqRecBuilder, check_choice, download, table_configs
from .contract import SeqRecDataset, make_dataset
from .preparation import (
    Numbered,
    Workspace,
    build_tables,
    earliest_of_pairs,
    k_core,
    name_ids,
    number_ids,
    open_workspace,
    sample_users,
)
from .reading import damage_named, line_blocks, open_bytes, parse_json_lines, read_columns
from .texts import nested_value, words

URL = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023"
HUB_REPOSITORY = "McAuley-Lab/Amazon-Reviews-2023"
SOURCES = ("publisher", "hub")
ABOUT = {
    "name": "amazon_reviews_2023",
    "source": "Amazon Reviews 2023, Y. Hou, J. Li, Z. He, A. Yan, X. Chen, J. McAuley, arXiv:2403.03952",
    "url": "https://amazon-reviews-2023.github.io",
    "licence": "none stated by the publisher: research use, cite the paper",
}
CATEGORIES = tuple(
    """All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products Beauty_and_Personal_Care
    Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards
    Grocery_and_Gourmet_Food Handmade_Products Health_and_Household Health_and_Personal_Care Home_and_Kitchen
    Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products
    Patio_Lawn_and_Garden Pet_Supplies Software Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement
    Toys_and_Games Video_Games""".split()
)
CORES = {"5core": 5, "0core": 1, "5core_timestamp": 5, "0core_timestamp": 1}
REVIEW_FIELDS = pa.schema(
    {"user_id": pa.string(), "parent_asin": pa.string(), "rating": pa.float64(), "timestamp": pa.int64()}
)
ATTRIBUTES = ("title", "brand", "category", "description")
ITEM_FIELDS = pa.schema({name: pa.string() for name in ("item_id", *ATTRIBUTES)})
METADATA_FIELDS = pa.schema(
    {
        **{name: pa.string() for name in ("parent_asin", "title", "store")},
        **{name: pa.list_(pa.string()) for name in ("categories", "description")},
        "details": pa.struct({"Brand": pa.string()}),
    }
)
BROKEN_LINES = 0.01  # share of metadata lines that may be damaged before the file is refused
Files = list[Path] | Mapping[str, Path | list[Path]] | None


def prepare(
    files: Files,
    config: str = "5core",
    *,
    category: str | list[str] | None = None,
    source: str = "publisher",
    clean: bool = True,
    merge_users: bool = False,
    users: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    engine: str = "duckdb",
) -> SeqRecDataset:
    """Builds one or several categories.

    ``category``: which to fetch, or what the given files are; several without files, or with files named
    ``Category.…`` or ``meta_Category.…``. Several make a dataset with a ``domain`` per item; a user of two categories
    is then two users, each with a domain, or with ``merge_users`` one without. ``users``: a random sample of this
    many, by ``seed``.
    """
    categories = [category] if isinstance(category, str) else list(category or [])
    for name in categories:
        check_choice("category", name, CATEGORIES)
    check_choice("source", source, SOURCES)
    domains = _by_category(files, categories) if files else _fetch(categories, config, source)
    several = len(domains) > 1
    with open_workspace(threads, engine) as workspace:
        parts = [_stage_domain(workspace, name, paths, clean, several) for name, paths in domains.items()]
        raw = any(part.is_raw for part in parts)
        rows = _stack(workspace, [part.interactions for part in parts])
        numbered = number_ids(workspace, rows, CORES[config] if raw else 1)
        if raw:
            numbered = _as_published(workspace, numbered, CORES[config])
        else:
            _refuse_repeats(workspace, numbered)
        if several and merge_users:
            numbered = _across_domains(workspace, numbered)
        rows = sample_users(workspace, numbered.interactions, users, seed)
        items = _stack(workspace, [part.items for part in parts]).join(numbered.items, "item_id")
        items = workspace.checkpoint(items.drop("item_id").rename(item_id="number"))
        dropped = _without_text(rows, items)
        item_table, sequences = build_tables(workspace, rows, items, items_without_text="drop")
        item_table = _named(workspace, item_table, "item_id", numbered.items)
        sequences = _named(workspace, sequences, "user_id", numbered.users)
    if several and not merge_users:
        domain = pc.replace_substring_regex(sequences["user_id"], r"^.* ", "")
        sequences = sequences.append_column("domain", domain)
    options = {"category": list(domains), "clean": clean, "merge_users": merge_users, "users": users, "seed": seed}
    splits = "absolute_timestamp" if config.endswith("_timestamp") else "leave_one_out"
    info = {**ABOUT, "config": config, "splits": splits, "options": options, "dropped": dropped}
    return make_dataset(item_table, sequences, info)


# Files


def _fetch(categories: list[str], config: str, source: str) -> dict[str, list[Path]]:
    if not categories:
        raise ValueError("amazon_reviews_2023 needs --data_files, or --option category=NAME, e.g. category=All_Beauty")
    core = config.removesuffix("_timestamp")
    names = {c: (f"benchmark/{core}/rating_only/{c}.csv", f"raw/meta_categories/meta_{c}.jsonl") for c in categories}
    if source == "publisher":
        return {c: [download(f"{URL}/{name}.gz") for name in pair] for c, pair in names.items()}
    return {c: [_from_hub(name) for name in pair] for c, pair in names.items()}


def _from_hub(name: str) -> Path:
    return Path(hf_hub_download(HUB_REPOSITORY, name, repo_type="dataset"))


def _by_category(files: Files, categories: list[str]) -> dict[str, list[Path]]:
    """The files of each category: by name where several are asked for or named, else all of them are one's."""
    if isinstance(files, Mapping):
        files = [path for given in files.values() for path in (given if isinstance(given, list) else [given])]
    found = {}
    for path in files:
        found.setdefault(_category_of(path), []).append(path)
    if None in found:
        if len(found) > 1 or len(categories) > 1:
            raise ValueError(f"{found[None][0]}: its name does not begin with a category, as it must among several")
        return {categories[0] if categories else "unknown": found[None]}
    missing = [name for name in categories if name not in found]
    if missing:
        raise ValueError(f"amazon_reviews_2023: no file of category {missing[0]} was given")
    return {name: found[name] for name in categories or sorted(found)}


def _category_of(path: Path) -> str | None:
    name = path.name.removeprefix("meta_").partition(".")[0]
    return name if name in CATEGORIES else None


class _Domain(NamedTuple):
    """One category as staged: its interactions (raw reviews or as published) and its items."""

    interactions: ir.Table
    items: ir.Table
    is_raw: bool


def _stage_domain(workspace: Workspace, name: str, paths: list[Path], clean: bool, several: bool) -> _Domain:
    """Stages the files of a category; among several a user's id ends in the category, and items say theirs."""
    kinds = {"benchmark": [], "reviews": [], "metadata": []}
    for path in paths:
        kinds[_kind(path)].append(path)
    if not kinds["metadata"] or not (kinds["benchmark"] or kinds["reviews"]):
        raise FileNotFoundError(
            f"amazon_reviews_2023 {name} needs interactions (benchmark CSV or raw reviews) and metadata (JSON lines), "
            f"but was given {', '.join(path.name for path in paths)}"
        )
    if kinds["benchmark"] and kinds["reviews"]:
        raise ValueError(f"amazon_reviews_2023 {name} was given benchmark CSV and raw reviews: give one of them")
    read = _benchmark if kinds["benchmark"] else _reviews
    rows = _stack(workspace, [read(workspace, path) for path in kinds["benchmark"] or kinds["reviews"]])
    items = workspace.stage(chain(*(_metadata(path, clean) for path in kinds["metadata"])), f"{name} metadata")
    if several:
        rows, items = rows.mutate(user_id=_.user_id + f" {name}"), items.mutate(domain=ibis.literal(name))
    return _Domain(rows, items, bool(kinds["reviews"]))


def _kind(path: Path) -> str:
    """ "benchmark", "reviews" or "metadata", by the first line."""
    with damage_named(path), open_bytes(path) as file:
        line = file.readline().decode("utf-8", "replace").strip()
    if line.startswith("user_id,"):
        return "benchmark"
    try:
        first = json.loads(line)
    except ValueError:
        first = None
    if not isinstance(first, dict):
        raise ValueError(f"{path}: its first line is neither the header of a benchmark CSV nor JSON")
    return "reviews" if "user_id" in first else "metadata"


# Interactions


def _benchmark(workspace: Workspace, path: Path) -> ir.Table:
    rows = workspace.stage(_benchmark_batches(path), path.name)
    return _checked(rows, path, first_line=2)  # after the header


def _benchmark_batches(path: Path) -> Iterator[pa.RecordBatch]:
    done = 1  # the header
    for batch in read_columns(path, REVIEW_FIELDS.names):
        columns = [batch[name] for name in REVIEW_FIELDS.names]
        try:
            typed = [column.cast(kind) for column, kind in zip(columns, REVIEW_FIELDS.types, strict=True)]
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: rows {done + 1} and after hold a value that is no number: {error}") from error
        yield pa.RecordBatch.from_arrays(typed, schema=REVIEW_FIELDS)
        done += batch.num_rows


def _reviews(workspace: Workspace, path: Path) -> ir.Table:
    return _checked(workspace.stage_json(path, REVIEW_FIELDS, path.name), path, first_line=1)


def _checked(rows: ir.Table, path: Path, first_line: int) -> ir.Table:
    """The rows in the names of the plan. Raises ValueError naming the first line that lacks a value or is absurd."""
    absurd = ibis.or_(*[rows[name].isnull() for name in REVIEW_FIELDS.names], ~rows.rating.between(1, 5))
    for bad in rows.filter(absurd).order_by("row").limit(1).to_pyarrow().to_pylist():
        missing = [name for name in REVIEW_FIELDS.names if bad[name] is None]
        fault = f"no {missing[0]}" if missing else f"a rating of {bad['rating']}, outside 1 to 5"
        raise ValueError(f"{path}: line {first_line + bad['row']} has {fault}")
    return rows.rename(item_id="parent_asin")


def _as_published(workspace: Workspace, numbered: Numbered, core: int) -> Numbered:
    """Raw reviews as the publisher's benchmark has them: the earliest of every (user, item), then the k-core."""
    first = earliest_of_pairs(workspace, numbered.interactions)
    return numbered._replace(interactions=k_core(workspace, first, core, core))


def _refuse_repeats(workspace: Workspace, numbered: Numbered) -> None:
    counted = numbered.interactions.group_by(["user_id", "item_id", "timestamp"])
    repeated = counted.agg(times=_.row.count(), first=_.row.min()).filter(_.times > 1)
    twice = repeated.order_by("first").limit(1).to_pyarrow()
    if twice.num_rows:
        names = {"user_id": numbered.users, "item_id": numbered.items}
        user, item = (name_ids(workspace, table, column, twice[column])[0] for column, table in names.items())
        raise ValueError(
            f"amazon_reviews_2023: user {user} has item {item} at time {twice['timestamp'][0]} "
            f"{twice['times'][0]} times; give each benchmark file once"
        )


def _across_domains(workspace: Workspace, numbered: Numbered) -> Numbered:
    """The users of all categories as one each: ids without the category, numbered anew."""
    bare = numbered.users.mutate(user_id=_.user_id.re_replace(r" [^ ]*$", ""))
    first = bare.group_by("user_id").agg(one=_.number.min())
    renumbered = workspace.checkpoint(bare.join(first, "user_id").select("number", "one"))
    rows = numbered.interactions.join(renumbered, [("user_id", "number")]).drop("user_id")
    rows = rows.select("row", "item_id", "rating", "timestamp", user_id="one")
    users = workspace.checkpoint(first.rename(number="one"))
    return Numbered(workspace.checkpoint(rows), users, numbered.items)


def _without_text(interactions: ir.Table, items: ir.Table) -> dict[str, int]:
    """Items, and interactions with them, that have no metadata or no text in it."""
    described = items.filter(ibis.or_(*[items[name] != "" for name in ATTRIBUTES]))
    lost = interactions.anti_join(described, "item_id")
    counts = lost.agg(items=lost.item_id.nunique(), interactions=lost.count()).to_pyarrow().to_pylist()[0]
    return {name: int(value) for name, value in counts.items()}


def _stack(workspace: Workspace, tables: list[ir.Table]) -> ir.Table:
    """One table after the other; rows are numbered on."""
    if len(tables) == 1:
        return tables[0]
    shifted, start = [], 0
    for table in tables:
        shifted.append(table.mutate(row=table.row + start))
        start += int(table.row.max().to_pyarrow().as_py()) + 1
    return workspace.checkpoint(ibis.union(*shifted))


def _named(workspace: Workspace, table: pa.Table, column: str, names: ir.Table) -> pa.Table:
    """The table with ids in the place of their numbers."""
    place = table.column_names.index(column)
    return table.set_column(place, column, name_ids(workspace, names, column, table[column]))


# Metadata


def _metadata(path: Path, clean: bool) -> Iterator[pa.RecordBatch]:
    """Title, brand, category and description of every line; damaged lines are counted, and many of them refused."""
    number, broken = 0, []
    with damage_named(path):
        for lines in line_blocks(path):
            items = _regular_items(lines)
            if items is None:
                items, damaged = _irregular_items(lines)
                broken += [number + place for place in damaged]
            number += lines.count(b"\n") + 1
            if clean:
                items = pa.table([items["item_id"], *(_cleaned(items[name]) for name in ATTRIBUTES)], items.schema)
            yield from items.to_batches()
    if len(broken) > BROKEN_LINES * number:
        raise ValueError(
            f"{path}: {len(broken)} of {number} lines are no metadata in JSON, the first of them line {broken[0]}; "
            "it seems damaged or of another format"
        )
    if broken:
        print(f"{path.name}: left out {len(broken)} of {number} lines that are not JSON, first line {broken[0]}")


def _regular_items(lines: bytes) -> pa.Table | None:
    """Lines that all have the publisher's types, parsed at once; None where one has not."""
    try:
        lines.decode()
        table = parse_json_lines(lines, METADATA_FIELDS).combine_chunks()
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    lists = [table[name] for name in ("categories", "description")]
    nulls = table["parent_asin"].null_count + sum(pc.list_flatten(column).null_count for column in lists)
    if nulls or table.num_rows != lines.count(b"\n") + 1:
        return None
    brand = pc.struct_field(table["details"], "Brand")
    brand = pc.if_else(pc.equal(pc.fill_null(brand, ""), ""), table["store"], brand)
    texts = [table["title"], brand, *(pc.binary_join(column, " ") for column in lists)]
    return pa.table([table["parent_asin"], *(pc.fill_null(text, "") for text in texts)], ITEM_FIELDS)


def _irregular_items(lines: bytes) -> tuple[pa.Table, list[int]]:
    """Lines one by one, and which of them (counted from 1) are no metadata in JSON."""
    rows, broken = [], []
    for place, line in enumerate(lines.split(b"\n"), start=1):
        try:
            rows.append(_item(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError):
            broken.append(place)
    columns = list(zip(*rows, strict=True)) or [()] * len(ITEM_FIELDS)
    return pa.table([pa.array(column, pa.string()) for column in columns], ITEM_FIELDS), broken


def _item(line: dict) -> tuple[str, ...]:
    details = line.get("details") or {}
    details = nested_value(details) if isinstance(details, str) else details
    brand = details.get("Brand") if isinstance(details, dict) else None
    values = (line.get("title"), brand or line.get("store"), line.get("categories"), line.get("description"))
    if not isinstance(line["parent_asin"], str):
        raise ValueError("parent_asin is no text")
    return line["parent_asin"], *map(_text, values)


def _text(value) -> str:
    return " ".join(map(words, value)) if isinstance(value, list) else words(value)


def _cleaned(texts: pa.ChunkedArray) -> pa.Array:
    """`clean_text` of every text; most have nothing to clean and are only looked at."""
    texts = texts.combine_chunks()
    dirty = pc.match_substring_regex(texts, r"[&<]|[^ -~]|  |^ | $")
    return pc.replace_with_mask(texts, dirty, pa.array(map(clean_text, texts.filter(dirty).to_pylist()), pa.string()))


def clean_text(text: str) -> str:
    """Entities resolved, tags and non-ASCII letters removed, white space made single (Sentence-T5 thesis, §3.4)."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = re.sub(r"<[^<>]*>", " ", text)
    if not text.isascii():
        text = text.encode("ascii", "ignore").decode("ascii")
    return " ".join(text.split())


class AmazonReviews2023(SeqRecBuilder):
    BUILDER_CONFIGS = table_configs(*CORES)
    prepare = staticmethod(prepare)
