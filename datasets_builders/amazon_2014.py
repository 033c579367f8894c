"""Amazon product data 2014 (He, McAuley, WWW 2016), as the sequence files that GRAM, LLM2Rec and others pass on.

One config, ``sequences``: a .txt with one user a line (``reviewerID asin asin ...``, oldest first) and a .csv with the
columns ``asin`` and ``title``; a folder holding both will do. The few items without a title have their id as text. The
classical Beauty 5-core gives 22,363 users, 12,101 items, 198,502 interactions.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from .builder import SeqRecBuilder, table_configs
from .contract import SeqRecDataset, make_dataset
from .preparation import build_tables, open_workspace
from .reading import damage_named, open_bytes, read_columns

ABOUT = {
    "name": "amazon_2014",
    "source": "Amazon product data (2014), R. He, J. McAuley, WWW 2016",
    "url": "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
    "licence": "none stated by the publisher: research use, cite the paper",
    "splits": "leave_one_out; order only, no timestamps",
}
LINES_PER_BATCH = 20_000


def prepare(
    files: list[Path] | dict[str, Path] | None,
    config: str = "sequences",
    *,
    items_without_text: str = "use_id",
    threads: int | None = None,
    engine: str = "duckdb",
) -> SeqRecDataset:
    """Builds one category. ``items_without_text``: "use_id", "drop" or "error"."""
    sequences, titles = _two_files(files)
    with open_workspace(threads, engine) as workspace:
        tables = build_tables(
            workspace,
            workspace.stage(_interactions(sequences), sequences.name),
            workspace.stage(_items(titles), titles.name),
            items_without_text=items_without_text,
            name=titles.name,
        )
    options = {"items_without_text": items_without_text}
    return make_dataset(*tables, {**ABOUT, "config": config, "options": options})


def _two_files(files: list[Path] | dict[str, Path] | None) -> tuple[Path, Path]:
    if isinstance(files, dict) and set(files) == {"interactions", "items"}:
        return files["interactions"], files["items"]
    texts = [path for path in files or [] if ".txt" in path.suffixes]
    tables = [path for path in files or [] if ".csv" in path.suffixes]
    if len(texts) != 1 or len(tables) != 1:
        raise ValueError("amazon_2014 needs two data_files: a .txt with one user a line and a .csv with asin,title")
    return texts[0], tables[0]


def _interactions(path: Path) -> Iterator[pa.RecordBatch]:
    with damage_named(path), open_bytes(path) as lines:
        while block := [line.decode().split() for line in islice(lines, LINES_PER_BATCH)]:
            users = [user for user, *items in filter(None, block) for _ in items]
            items = [item for _, *items in filter(None, block) for item in items]
            yield pa.RecordBatch.from_pydict({"user_id": users, "item_id": items})


def _items(path: Path) -> Iterator[pa.RecordBatch]:
    for batch in read_columns(path, ["asin", "title"]):
        yield batch.rename_columns(["item_id", "title"])


class Amazon2014(SeqRecBuilder):
    BUILDER_CONFIGS = table_configs("sequences")
    prepare = staticmethod(prepare)
