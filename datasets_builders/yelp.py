"""Yelp Open Dataset: businesses as items, reviews as interactions.

Give ``yelp_academic_dataset_business.json`` and ``yelp_academic_dataset_review.json`` (JSON lines, also .gz) as
``data_files``: its terms want everybody to fetch it from Yelp, so nothing is downloaded here. Item text: ``title``
(the name), ``category``, ``address`` (street, city, state), as in the Sentence-T5 thesis, section 5.1.4.

Configs: ``five_core`` (every user and business with five reviews or more), ``all``.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from .builder import SeqRecBuilder, one_file, table_configs
from .contract import SeqRecDataset, make_dataset
from .preparation import build_tables, open_workspace, sample_users
from .reading import read_json_fields
from .times import to_milliseconds

ABOUT = {
    "name": "yelp",
    "source": "Yelp Open Dataset",
    "url": "https://business.yelp.com/data/resources/open-dataset",
    "licence": "Yelp Dataset Terms of Use: academic use, no redistribution",
    "splits": "leave_one_out",
}
CORES = {"five_core": 5, "all": 1}
BUSINESS_FIELDS = pa.schema(
    {name: pa.string() for name in ("business_id", "name", "categories", "address", "city", "state")}
)
REVIEW_FIELDS = pa.schema(
    {"user_id": pa.string(), "business_id": pa.string(), "stars": pa.float64(), "date": pa.string()}
)


def prepare(
    files: list[Path] | None,
    config: str = "five_core",
    *,
    users: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    engine: str = "duckdb",
) -> SeqRecDataset:
    """Builds one config; ``users``: a random sample of this many, by ``seed``, taken before the k-core."""
    if not files:
        raise ValueError("yelp needs --data_files: its terms want everybody to fetch the dataset from Yelp")
    business = one_file(files, _ending(files, "business"), "yelp")
    review = one_file(files, _ending(files, "review"), "yelp")
    with open_workspace(threads, engine) as workspace:
        interactions = workspace.stage(_reviews(review), "yelp reviews")
        items = workspace.stage(_businesses(business), "yelp businesses")
        tables = build_tables(
            workspace,
            sample_users(workspace, interactions, users, seed),
            items,
            min_user_interactions=CORES[config],
            min_item_interactions=CORES[config],
            items_without_text="drop",
        )
    return make_dataset(*tables, {**ABOUT, "config": config, "options": {"users": users, "seed": seed}})


def _ending(files: list[Path], kind: str) -> str:
    """The name's ending of the file of a kind, compressed or not."""
    found = [path.name for path in files if f"_{kind}.json" in path.name]
    return f"_{kind}.json" + (found[0].partition(f"_{kind}.json")[2] if found else "")


def _reviews(path: Path) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in read_json_fields(path, REVIEW_FIELDS):
        for name in REVIEW_FIELDS.names:
            if batch[name].null_count:
                row = batch[name].is_null().index(True).as_py()
                raise ValueError(f"{path}: line {done + row + 1} has no {name}; is this the file of reviews?")
        wrong = pc.or_(pc.less(batch["stars"], 1), pc.greater(batch["stars"], 5))
        if pc.any(wrong).as_py():
            row = pc.index(wrong, True).as_py()
            raise ValueError(f"{path}: line {done + row + 1} has {batch['stars'][row]} stars, outside 1 to 5")
        yield pa.RecordBatch.from_pydict(
            {
                "user_id": batch["user_id"],
                "item_id": batch["business_id"],
                "timestamp": to_milliseconds(batch["date"], f"{path}, column date"),
                "rating": batch["stars"],
            }
        )
        done += batch.num_rows


def _businesses(path: Path) -> Iterator[pa.RecordBatch]:
    for batch in read_json_fields(path, BUSINESS_FIELDS):
        if batch["business_id"].null_count:
            raise ValueError(f"{path}: a line has no business_id; is this the file of businesses?")
        columns = {name: pc.fill_null(batch[name], "") for name in BUSINESS_FIELDS.names}
        parts = [columns[name] for name in ("address", "city", "state")]
        address = pc.utf8_trim(pc.binary_join_element_wise(*parts, ", "), characters=", ")
        yield pa.RecordBatch.from_pydict(
            {
                "item_id": columns["business_id"],
                "title": columns["name"],
                "category": columns["categories"],
                "address": address,
            }
        )


class Yelp(SeqRecBuilder):
    BUILDER_CONFIGS = table_configs(*CORES)
    prepare = staticmethod(prepare)
