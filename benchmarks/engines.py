"""Spark beside DuckDB: real datasets built on both, whether every fingerprint is the same, and the seconds.

    python benchmarks/engines.py DATA --out engines.json

DATA holds the files in their publishers' layouts, as `DATASETS` names them; --only builds some of these. Spark is what
its own settings say (spark-defaults.conf in SPARK_CONF_DIR), else all cores of this machine; the first build pays for
starting it. Ends with an error that names the datasets on which the engines differ.
"""

import json
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jepa4rec.training.command_line import command, command_parser

AMAZON = "amazon_reviews_2023"
METADATA = f"{AMAZON}/raw_partial/All_Beauty.5core.meta.jsonl.gz"
REVIEWS = [f"{AMAZON}/raw_partial/All_Beauty.5core.reviews.jsonl.gz", METADATA]
RATINGS = [f"{AMAZON}/benchmark/5core/rating_only/All_Beauty.csv", METADATA]
LAST_OUT = f"{AMAZON}/benchmark/5core/last_out_w_his/All_Beauty"
PARTS = [*(f"{LAST_OUT}.{part}.csv" for part in ("train", "valid", "test")), METADATA]
ALL_USERS = [*(f"{LAST_OUT.replace('5core', '0core')}.{part}.csv.gz" for part in ("train", "valid")), METADATA]
GIFT_CARDS = [
    f"{AMAZON}/raw/meta_categories/meta_Gift_Cards.jsonl.gz",
    f"{AMAZON}/raw/review_categories/Gift_Cards.first10.jsonl",
]
MOVIES = [f"movielens/ml-latest-small/{name}.csv.gz" for name in ("ratings", "movies")]
COLUMNS = {"user_id": "userId", "item_id": "movieId", "timestamp": "timestamp", "rating": "rating"}
FIVE_CORE = {"min_user_interactions": 5, "min_item_interactions": 5, "drop_duplicates": True}
# name -> dataset, config, files, options
DATASETS = {
    "Gift Cards 2018": ("amazon_2018", "raw", ["amazon_2018/raw_gift_cards"], {}),
    "Scientific 2018, UniSRec": ("amazon_2018", "unisrec", ["amazon_2018/scientific_unisrec"], {}),
    "Scientific 2018, RecFormer": ("amazon_2018", "recformer", ["amazon_2018/scientific_recformer_layout"], {}),
    "Beauty 2014": ("amazon_2014", "sequences", ["amazon_2014_beauty"], {}),
    "All_Beauty 2023, raw reviews": (AMAZON, "5core", REVIEWS, {}),
    "All_Beauty 2023, rating_only": (AMAZON, "5core", RATINGS, {}),
    "All_Beauty 2023, last_out": (AMAZON, "5core", PARTS, {}),
    "All_Beauty 2023, 0-core": (AMAZON, "0core", ALL_USERS, {}),
    "Gift_Cards 2023, raw": (AMAZON, "0core", GIFT_CARDS, {}),
    "two categories 2023, a sample": (AMAZON, "0core", RATINGS + GIFT_CARDS, {"merge_users": True, "users": 200}),
    "MovieLens": ("table", "default", MOVIES, COLUMNS),
    "MovieLens, 5-core": ("table", "default", MOVIES, COLUMNS | FIVE_CORE),
    "Online Retail, jepa4rec": ("online_retail", "jepa4rec", ["online_retail/OnlineRetail.csv.gz"], {}),
    "Online Retail, 5-core": ("online_retail", "five_core", ["online_retail/OnlineRetail.csv.gz"], {}),
}
ENGINES = ("duckdb", "spark")

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("data", type=Path, help="folder of the publishers' files")
PARSER.add_argument("--only", nargs="+", default=list(DATASETS), metavar="NAME", help="some of DATASETS")
PARSER.add_argument("--out", type=Path, help="JSON file for the result")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

from jepa4rec.datasets_builders import build
from jepa4rec.datasets_builders.builder import check_choice
from jepa4rec.evaluation.records import describe_run


def compare(folder: Path, name: str) -> dict:
    """One dataset on both engines: counts, and fingerprint and seconds of each."""
    dataset, config, files, options = DATASETS[name]
    row = {"dataset": dataset, "config": config, "files": files, "options": options}
    for engine in ENGINES:
        start = time.perf_counter()
        built = build(dataset, config, [folder / file for file in files], engine=engine, **options)
        row |= {key: built.info[key] for key in ("users", "items", "interactions")}
        row[engine] = {"fingerprint": built.fingerprint, "seconds": time.perf_counter() - start}
    row["same"] = len({row[engine]["fingerprint"] for engine in ENGINES}) == 1
    return row


def spark_settings() -> list[str]:
    """The lines of spark-defaults.conf in SPARK_CONF_DIR; none without one."""
    file = Path(os.environ.get("SPARK_CONF_DIR", "")) / "spark-defaults.conf"
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


@command(PARSER)
def main(args: Namespace) -> None:
    results = {}
    for name in args.only:
        check_choice("dataset", name, list(DATASETS))
        row = results[name] = compare(args.data, name)
        print(
            f"{name:30s} {row['users']:>6,} users {row['interactions']:>7,} interactions, "
            + ", ".join(f"{e} {row[e]['fingerprint'][:8]} {row[e]['seconds']:.1f} s" for e in ENGINES)
            + ("" if row["same"] else "  DIFFERENT"), flush=True
        )  # fmt: skip
    report = {**describe_run(), "spark_settings": spark_settings(), "datasets": results}
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    different = [name for name, row in results.items() if not row["same"]]
    if different:
        raise ValueError(f"the engines differ on {', '.join(different)}")


if __name__ == "__main__":
    main()
