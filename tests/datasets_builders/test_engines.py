"""Engines: Spark gives what DuckDB gives, from every builder, and says in one sentence why it cannot start."""

import csv
import json
import os
import random
import shutil
import sys

import pytest

from jepa4rec.benchmarks.engines import DATASETS
from jepa4rec.datasets_builders import build, load_dataset_dir
from jepa4rec.datasets_builders.online_retail import COLUMNS
from jepa4rec.scripts import build_dataset

pytestmark = pytest.mark.slow("starts Spark")

# Small and without compilers, which cost more than they save on a few rows; a time zone that may not matter.
SETTINGS = {
    "spark.master": "local[2]", "spark.ui.enabled": "false", "spark.sql.session.timeZone": "Asia/Tokyo",
    "spark.driver.memory": "1g", "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.shuffle.partitions": "2", "spark.default.parallelism": "2", "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}  # fmt: skip


@pytest.fixture(scope="module")
def spark():
    """One small local Spark for the whole file."""
    pytest.importorskip("pyspark", reason="pyspark is not installed (make spark)")
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        pytest.skip("Java is not installed (make spark)")
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


# Made-up rows, full of what engines may see differently: ties, repeats, missing values, blanks, both zeros, accents


def events(count=150, users=9, items=7, times=4):
    """``count`` tuples of user, item, time and rating, drawn by a seed; few times, so that most are ties."""
    dice = random.Random(5)
    return [
        (
            f"ü{dice.randrange(users) ** 2 // users}",
            f"i{dice.randrange(items)}",
            dice.randrange(times),
            dice.choice([3, 5]),
        )
        for _ in range(count)
    ]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_csv(path, header, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def table(folder):
    every = [(user, item, time, dice) for user, item, time, _ in events() for dice in ("-0", "0", "4")]
    rows = [(user, item, f"160000000{time}.5", dice) for user, item, time, dice in every[::2]]
    titles = [
        ("i0", "\t", "é"),
        ("i1", " \n", ""),
        ("i2", "", " "),
        *((f"i{n}", f"Item {n}", "") for n in range(3, 7)),
    ]
    files = [
        write_csv(folder / "sales.csv", ["user_id", "item_id", "timestamp", "rating"], rows),
        write_csv(folder / "items.csv", ["item_id", "title", "brand"], titles),
    ]
    options = {"drop_duplicates": True, "items_without_text": "use_id", "min_user_interactions": 5}
    return "table", None, files, options


def online_retail(folder):
    rows = [
        (
            time,
            item,
            f"THING {item} {time % 2}" if rating == 3 else "",
            6,
            f"2010-12-0{time + 1} 08:26:00",
            2,
            user,
            "UK",
        )
        for user, item, time, rating in events(400)
    ]
    return "online_retail", "five_core", write_csv(folder / "OnlineRetail.csv", COLUMNS, [*rows, *rows[::3]]), {}


def amazon_2014(folder):
    histories = {}
    for user, item, *_ in events():
        histories.setdefault(user, [user]).append(item)
    (folder / "beauty.txt").write_text("".join(" ".join(line) + "\n" for line in histories.values()), "utf-8")
    titles = write_csv(folder / "titles.csv", ["asin", "title"], [(f"i{n}", "Soap" if n else "") for n in range(7)])
    return "amazon_2014", None, [folder / "beauty.txt", titles], {}


def amazon_2018(folder):
    reviews = [
        {"reviewerID": user, "asin": item, "unixReviewTime": time, "overall": rating}
        for user, item, time, rating in events()
    ]
    metadata = [{"asin": f"i{n}", "title": f"Gift {n}" if n else "", "category": ["Cards", "é"]} for n in range(7)]
    names = ("Gift_Cards_5.json", reviews), ("meta_Gift_Cards.json", [*metadata, *metadata[:2]])
    return "amazon_2018", "raw", [write_lines(folder / name, rows) for name, rows in names], {}


def amazon_reviews_2023(folder):
    files = []
    for category, rows in (("All_Beauty", events()), ("Books", events(90, users=5))):
        reviews = [
            {"user_id": user, "parent_asin": category[0] + item, "timestamp": time, "rating": rating}
            for user, item, time, rating in rows
        ]
        metadata = [{"parent_asin": f"{category[0]}i{n}", "title": f"Thing {n}" if n else ""} for n in range(6)]
        files += [
            write_lines(folder / f"{category}.jsonl", reviews),
            write_lines(folder / f"meta_{category}.jsonl", metadata),
        ]
    return "amazon_reviews_2023", "5core", files, {"merge_users": True, "users": 4}


def yelp(folder):
    reviews = [
        {"user_id": user, "business_id": item, "stars": rating, "date": f"2019-01-0{time + 1} 10:00:00"}
        for user, item, time, rating in events()
    ]
    places = [{"business_id": f"i{n}", "name": f"Café {n}", "city": "Tampa"} for n in range(7)]
    names = ("yelp_academic_dataset_review.json", reviews), ("yelp_academic_dataset_business.json", places)
    return "yelp", "five_core", [write_lines(folder / name, rows) for name, rows in names], {"users": 5}


REAL = [
    "Gift Cards 2018",
    "Scientific 2018, UniSRec",
    "Scientific 2018, RecFormer",
]
CASES = [table, online_retail, amazon_2014, amazon_2018, amazon_reviews_2023, yelp]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_spark_gives_what_duckdb_gives(spark, tmp_path, case):
    name, config, files, options = case(tmp_path)
    ours = build(name, config, files, engine="duckdb", **options)
    if case is online_retail:  # by the command of docs/many-machines.md
        words = [name, "--config", config, "--data_files", str(files), "--out", str(tmp_path / "built")]
        build_dataset.main([*words, "--engine", "spark"])
        theirs = load_dataset_dir(tmp_path / "built")
    else:
        theirs = build(name, config, files, engine="spark", **options)
    assert ours.items.equals(theirs.items)
    assert ours.sequences.equals(theirs.sequences)
    assert ours.info == theirs.info and ours.num_users > 2


@pytest.mark.parametrize("name", REAL)
def test_spark_gives_what_duckdb_gives_on_real_files(spark, real_file, name):
    """The others of `DATASETS` cost minutes: `python benchmarks/engines.py` builds them all."""
    dataset, config, files, options = DATASETS[name]
    files = [real_file(file) for file in files]
    ours, theirs = (build(dataset, config, files, engine=engine, **options) for engine in ("duckdb", "spark"))
    assert ours.fingerprint == theirs.fingerprint and ours.info == theirs.info


def test_the_session_of_others_is_left_as_it_was(spark):
    assert spark.conf.get("spark.sql.session.timeZone") == "Asia/Tokyo"
    assert not spark.catalog.listTables()


# Starting


def test_without_java_or_pyspark_one_sentence_says_so(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyspark.sql", None)
        with pytest.raises(ValueError, match="needs pyspark: pip install"):
            build("toy_shop", engine="spark")
    pytest.importorskip("pyspark", reason="pyspark is not installed (make spark)")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ValueError, match="needs Java 17 or newer"):
        build("toy_shop", engine="spark")


def test_unknown_engines_and_settings_of_the_other_engine_are_refused():
    with pytest.raises(ValueError, match="unknown engine 'sprak': it may be duckdb, spark"):
        build("toy_shop", engine="sprak")
    with pytest.raises(ValueError, match="threads is a setting of DuckDB"):
        build("toy_shop", engine="spark", threads=2)
