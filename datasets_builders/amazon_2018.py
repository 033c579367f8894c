"""Amazon Review Data 2018 (Ni, Li, McAuley, EMNLP 2019), in the three layouts it circulates in.

Configs, one a layout; give the folder, or its files, as ``data_files``:

- ``unisrec``: ``*.train.inter``, ``*.valid.inter``, ``*.test.inter``, ``*.text``, ``*.item2index``, ``*.user2index``
  (UniSRec, VQ-Rec and others). One attribute, ``title``: the published text as it stands (title, category path and
  brand in one string; where one ends and the next begins is not marked, so it is not guessed).
- ``recformer``: ``train.json``, ``val.json``, ``test.json``, ``smap.json``, ``umap.json``, ``meta_data.json``
  (RecFormer, JEPA4Rec). Attributes title, brand, category.
- ``raw``: the publisher's ``<Category>_5.json.gz`` and ``meta_<Category>.json.gz``, as files or, with the option
  ``category``, from the publisher's site. Reviews of items without any text are left out.

No layout is filtered again: interactions, repeats included, are those of the files.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from .builder import SeqRecBuilder, download, one_file, table_configs
from .contract import SeqRecDataset, make_dataset
from .preparation import build_tables, open_workspace
from .reading import damage_named, read_json_fields

URL = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
ABOUT = {
    "name": "amazon_2018",
    "source": "Amazon Review Data (2018), J. Ni, J. Li, J. McAuley, EMNLP 2019",
    "url": "https://nijianmo.github.io/amazon/index.html",
    "licence": "none stated by the publisher: research use, cite the paper",
    "splits": "leave_one_out",
}
ATTRIBUTES = ("title", "brand", "category")
ROWS_PER_BATCH = 100_000
REVIEW_FIELDS = pa.schema(
    {"reviewerID": pa.string(), "asin": pa.string(), "unixReviewTime": pa.int64(), "overall": pa.float64()}
)
META_FIELDS = pa.schema(
    {"asin": pa.string(), "title": pa.string(), "brand": pa.string(), "category": pa.list_(pa.string())}
)


def prepare(
    files: list[Path] | None,
    config: str = "unisrec",
    *,
    category: str | None = None,
    items_without_text: str | None = None,
    threads: int | None = None,
    engine: str = "duckdb",
) -> SeqRecDataset:
    """Builds one layout.

    ``category``: for ``raw`` without files, the publisher's name of the category, e.g. ``Gift_Cards``.
    ``items_without_text``: "error", "drop" or "use_id" (default: drop for ``raw``, error for the others).
    """
    files = files or _publisher_files(config, category)
    _check_layout(files, config)
    interactions, items = _LAYOUTS[config](files)
    policy = items_without_text or ("drop" if config == "raw" else "error")
    with open_workspace(threads, engine) as workspace:
        tables = build_tables(
            workspace,
            workspace.stage(interactions, f"{config} interactions"),
            workspace.stage(items, f"{config} items"),
            items_without_text=policy,
            name=f"amazon_2018 {config} items",
        )
    options = {"category": category, "items_without_text": policy}
    return make_dataset(*tables, {**ABOUT, "config": config, "options": options})


def _publisher_files(config: str, category: str | None) -> list[Path]:
    if config != "raw":
        raise ValueError(f"amazon_2018 {config} has no download address: pass its folder with --data_files")
    if not category:
        raise ValueError("amazon_2018 raw needs --data_files, or --option category=NAME, e.g. category=Gift_Cards")
    reviews, meta = f"categoryFilesSmall/{category}_5.json.gz", f"metaFiles2/meta_{category}.json.gz"
    return [download(f"{URL}/{meta}"), download(f"{URL}/{reviews}")]


def _check_layout(files: list[Path], config: str) -> None:
    """Raises ValueError naming the config that fits, where the files are of another layout."""
    fitting = [layout for layout, mark in _MARKS.items() if any(re.search(mark, path.name) for path in files)]
    if fitting and config not in fitting:
        raise ValueError(
            f"these files have the layout of config {fitting[0]!r}, not {config!r}: --config {fitting[0]}"
        )


# UniSRec layout


def _unisrec(files: list[Path]) -> tuple[Iterator[pa.RecordBatch], Iterator[pa.RecordBatch]]:
    users = _index_to_name(one_file(files, ".user2index", "the UniSRec layout"))
    items = _index_to_name(one_file(files, ".item2index", "the UniSRec layout"))
    return _pairs(_unisrec_histories(files), users, items), _unisrec_items(files, items)


def _index_to_name(path: Path) -> dict[str, str]:
    """``name <tab> index`` lines -> {index: name}, in the file's order."""
    return {index: name for name, index in _tab_separated(path, 2)}


def _unisrec_histories(files: list[Path]) -> Iterator[tuple[str, list[str]]]:
    """Each user with all visible interactions: test history + test item.

    ``valid`` and ``train`` hold prefixes of the same history; a user is taken from them only when the later files
    do not have it, with the longest prefix.
    """
    seen: set[str] = set()
    for part in ("test", "valid", "train"):
        path = one_file(files, f".{part}.inter", "the UniSRec layout")
        longest: dict[str, list[str]] = {}
        for user, history, item in _tab_separated(path, 3, header=True):
            sequence = [*history.split(), item]
            if user not in seen and len(sequence) > len(longest.get(user, ())):
                longest[user] = sequence
        yield from longest.items()
        seen.update(longest)


def _unisrec_items(files: list[Path], items: dict[str, str]) -> Iterator[pa.RecordBatch]:
    """Items in the published index order, so that published vectors keep their rows."""
    texts = dict(_tab_separated(one_file(files, ".text", "the UniSRec layout"), 2, header=True))
    asins = [items[index] for index in sorted(items, key=int)]
    yield pa.RecordBatch.from_pydict({"item_id": asins, "title": [texts.get(asin, "").strip() for asin in asins]})


def _tab_separated(path: Path, fields: int, header: bool = False) -> Iterator[list[str]]:
    with damage_named(path), path.open(encoding="utf-8", newline="\n") as lines:
        if header:
            next(lines, None)
        for number, line in enumerate(lines, start=1 + header):
            values = line.rstrip("\r\n").split("\t")
            if len(values) != fields:
                raise ValueError(f"{path}: line {number} has {len(values)} tab-separated fields, not {fields}")
            yield values


# RecFormer layout


def _recformer(files: list[Path]) -> tuple[Iterator[pa.RecordBatch], Iterator[pa.RecordBatch]]:
    users = {str(index): name for name, index in _json(files, "umap.json").items()}
    items = {str(index): name for name, index in _json(files, "smap.json").items()}
    return _pairs(_recformer_histories(files), users, items), _recformer_items(files, items)


def _recformer_histories(files: list[Path]) -> Iterator[tuple[str, list[str]]]:
    parts = [_json(files, name) for name in ("train.json", "val.json", "test.json")]
    for user in dict.fromkeys(user for part in parts for user in part):
        yield user, [str(item) for part in parts for item in part.get(user, [])]


def _recformer_items(files: list[Path], items: dict[str, str]) -> Iterator[pa.RecordBatch]:
    meta = _json(files, "meta_data.json")
    asins = [items[index] for index in sorted(items, key=int)]
    columns = {name: [str(meta.get(asin, {}).get(name) or "") for asin in asins] for name in ATTRIBUTES}
    yield pa.RecordBatch.from_pydict({"item_id": asins, **columns})


def _json(files: list[Path], name: str) -> dict:
    path = one_file(files, name, "the RecFormer layout")
    with damage_named(path):
        try:
            return json.loads(path.read_text("utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON, it seems cut off or of another format: {error}") from error


def _pairs(
    histories: Iterable[tuple[str, list[str]]], users: dict[str, str], items: dict[str, str]
) -> Iterator[pa.RecordBatch]:
    """Histories of indices -> one row an interaction with the raw ids, in batches."""
    user_ids: list[str] = []
    item_ids: list[str] = []
    for user, history in histories:
        try:
            item_ids += [items[item] for item in history]
            user_ids += [users[user]] * len(history)
        except KeyError as error:
            raise ValueError(f"user {user}: index {error} is in the interactions but not in the id tables") from error
        if len(item_ids) >= ROWS_PER_BATCH:
            yield pa.RecordBatch.from_pydict({"user_id": user_ids, "item_id": item_ids})
            user_ids, item_ids = [], []
    yield pa.RecordBatch.from_pydict(
        {"user_id": pa.array(user_ids, pa.string()), "item_id": pa.array(item_ids, pa.string())}
    )


# The publisher's files


def _raw(files: list[Path]) -> tuple[Iterator[pa.RecordBatch], Iterator[pa.RecordBatch]]:
    """Reviews and metadata, told apart by the publisher's ``meta_``."""
    if len(files) != 2:
        raise ValueError(f"amazon_2018 raw needs two files, reviews and metadata, but {len(files)} were given")
    meta, reviews = sorted(files, key=lambda path: not path.name.startswith("meta_"))
    return _reviews(reviews), _metadata(meta)


def _reviews(path: Path) -> Iterator[pa.RecordBatch]:
    for batch in read_json_fields(path, REVIEW_FIELDS):
        if batch["reviewerID"].null_count or batch["asin"].null_count or batch["unixReviewTime"].null_count:
            raise ValueError(f"{path}: a review lacks reviewerID, asin or unixReviewTime; are these 2018 reviews?")
        wrong = pc.or_(pc.less(batch["overall"], 1), pc.greater(batch["overall"], 5))
        if pc.any(wrong).as_py():
            row = pc.index(wrong, True).as_py()
            user, stars = batch["reviewerID"][row], batch["overall"][row]
            raise ValueError(f"{path}: a review by {user} has a rating of {stars}, outside 1 to 5")
        yield pa.RecordBatch.from_pydict(
            {
                "user_id": batch["reviewerID"],
                "item_id": batch["asin"],
                "timestamp": pc.multiply(batch["unixReviewTime"], 1000),
                "rating": batch["overall"],
            }
        )


def _metadata(path: Path) -> Iterator[pa.RecordBatch]:
    for batch in read_json_fields(path, META_FIELDS):
        columns = {name: batch[name] for name in ("title", "brand")}
        columns["category"] = pc.binary_join(batch["category"], " ")
        yield pa.RecordBatch.from_pydict({"item_id": batch["asin"], **columns})


_LAYOUTS = {"unisrec": _unisrec, "recformer": _recformer, "raw": _raw}
_MARKS = {  # names of files that only one layout has
    "unisrec": r"\.(inter|item2index|text)$",
    "recformer": r"^(smap|umap)\.json$",
    "raw": r"^meta_(?!data\.json).*\.json(\.gz)?$",
}


class Amazon2018(SeqRecBuilder):
    BUILDER_CONFIGS = table_configs("unisrec", "recformer", "raw")
    prepare = staticmethod(prepare)
