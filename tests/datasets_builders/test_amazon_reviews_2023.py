"""Amazon Reviews 2023: the publisher's own 5-core split, one content from every file form, and what may be wrong."""

import gzip
import json
from functools import cache

import pyarrow.csv as pa_csv
import pytest

from jepa4rec.datasets_builders import absolute_timestamp, build, leave_one_out
from jepa4rec.datasets_builders.amazon_reviews_2023 import CATEGORIES, clean_text

HEADER = "user_id,parent_asin,rating,timestamp\n"


def meta(asin, title="A thing", **fields):
    return {"parent_asin": asin, "title": title, "details": {}, "categories": [], "description": [], **fields}


def review(user, item, time, rating=5.0):
    return {"user_id": user, "parent_asin": item, "rating": rating, "timestamp": time, "title": "t", "text": "x"}


@pytest.fixture
def write(tmp_path):
    """``write(name, rows)`` -> the path of a file of JSON lines, or of the text given."""

    def file(name, content):
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return file


def test_there_are_33_categories():
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 33


def test_benchmark_rows_become_sequences_in_time_order(write):
    csv = write("All_Beauty.csv", HEADER + "u,b,4.0,20\nu,a,5.0,10\nv,a,1.0,5\n")
    items = write("meta_All_Beauty.jsonl.gz", [meta("a", "Soap"), meta("b", "Brush", details={"Brand": "Oak"})])
    dataset = build("amazon_reviews_2023", data_files=[csv, items])
    assert dataset.sequences.to_pydict() == {
        "user_id": ["u", "v"], "items": [[0, 1], [0]], "timestamps": [[10, 20], [5]], "ratings": [[5.0, 4.0], [1.0]],
    }  # fmt: skip
    assert dataset.item_texts() == [{"title": "Soap"}, {"title": "Brush", "brand": "Oak"}]
    assert dataset.info["splits"] == "leave_one_out"
    assert build("amazon_reviews_2023", "0core_timestamp", [csv, items]).info["splits"] == "absolute_timestamp"


def test_raw_reviews_keep_the_first_of_a_pair_and_their_core(write):
    users, items = range(6), [f"i{n}" for n in range(5)]
    rows = [review(f"u{u}", item, 100 + n) for u in users for n, item in enumerate(items)]
    rows += [review("u0", "i0", 999, 1.0), review("lonely", "i0", 1)]
    files = [write("All_Beauty.jsonl", rows), write("meta_All_Beauty.jsonl", [meta(item) for item in items])]
    core = build("amazon_reviews_2023", "5core", files)
    assert core.num_users == 6 and core.info["interactions"] == 30
    assert core.sequences["ratings"][0].as_py() == [5.0] * 5
    assert build("amazon_reviews_2023", "0core", files).num_users == 7


def test_items_without_metadata_or_text_are_left_out_and_counted(write):
    csv = write("All_Beauty.csv", HEADER + "u,a,4.0,1\nu,gone,5.0,2\nv,a,3.0,3\nv,silent,3.0,4\nv,gone,3.0,5\n")
    items = write("meta_All_Beauty.jsonl", [meta("a"), meta("silent", "")])
    dataset = build("amazon_reviews_2023", "0core", [csv, items])
    assert dataset.items["item_id"].to_pylist() == ["a"]
    assert dataset.info["dropped"] == {"items": 2, "interactions": 3}


def test_several_categories_keep_the_domain_of_items_and_users(write):
    files = [
        write("All_Beauty.csv", HEADER + "u,a,4.0,1\nu,b,4.0,2\n"),
        write("meta_All_Beauty.jsonl", [meta("a"), meta("b")]),
        write("Books.csv", HEADER + "u,c,4.0,3\nw,c,4.0,4\n"),
        write("meta_Books.jsonl", [meta("c", "Novel")]),
    ]
    apart = build("amazon_reviews_2023", "0core", files)
    assert apart.items.select(["item_id", "domain"]).to_pydict() == {
        "item_id": ["a", "b", "c"], "domain": ["All_Beauty", "All_Beauty", "Books"],
    }  # fmt: skip
    assert apart.sequences["user_id"].to_pylist() == ["u All_Beauty", "u Books", "w Books"]
    assert apart.sequences["domain"].to_pylist() == ["All_Beauty", "Books", "Books"]
    assert "domain" not in apart.item_texts()[0]
    together = build("amazon_reviews_2023", "0core", files, merge_users=True)
    assert together.sequences["items"].to_pylist() == [[0, 1, 2], [2]]
    assert "domain" not in together.sequences.column_names


@pytest.mark.slow("builds a sample a seed")
def test_a_sample_of_users_depends_on_the_seed_alone(write):
    csv = write("All_Beauty.csv", HEADER + "".join(f"u{n},a,4.0,{n}\n" for n in range(40)))
    items = write("meta_All_Beauty.jsonl", [meta("a")])

    def drawn(seed, threads):
        options = {"users": 10, "seed": seed, "threads": threads}
        return build("amazon_reviews_2023", "0core", [csv, items], **options).sequences["user_id"].to_pylist()

    first = drawn(0, 1)
    assert len(first) == 10 and first == drawn(0, 4) != drawn(1, 1)


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("<b>Bold</b><br/>new   line\n", "Bold new line"),
        ("Café – naïve", "Caf nave"),
        ("5 < 7 and 8 > 3", "5 3"),
        ("", ""),
    ],
)
def test_texts_are_cleaned_as_in_the_thesis(text, cleaned):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ("u,a,4.0,\n", "number"),
        ("u,a,6.0,1\n", "rating of 6.0, outside 1 to 5"),
        ("u,a,4.0,1\nu,a,4.0,1\n", "2 times"),
    ],
)
def test_bad_benchmark_rows_are_named(write, rows, sentence):
    files = [write("All_Beauty.csv", HEADER + rows), write("meta_All_Beauty.jsonl", [meta("a")])]
    with pytest.raises(ValueError, match=sentence):
        build("amazon_reviews_2023", data_files=files)


def test_a_review_without_a_time_is_named_with_its_line(write):
    rows = [review("u", "a", 1), {"user_id": "u", "parent_asin": "a", "rating": 4.0}]
    files = [write("All_Beauty.jsonl", rows), write("meta_All_Beauty.jsonl", [meta("a")])]
    with pytest.raises(ValueError, match="All_Beauty.jsonl: line 2 has no timestamp"):
        build("amazon_reviews_2023", "0core", files)


def test_raw_ratings_outside_1_to_5_are_named_with_their_line(write):
    files = [write("All_Beauty.jsonl", [review("u", "a", 1), review("u", "a", 2, 0.0)])]
    with pytest.raises(ValueError, match="All_Beauty.jsonl: line 2 has a rating of 0.0, outside 1 to 5"):
        build("amazon_reviews_2023", "0core", [*files, write("meta_All_Beauty.jsonl", [meta("a")])])


def test_reviews_are_the_same_by_the_engines_reader_and_by_ours(write):
    """Compressed files and files with a line that DuckDB refuses go through the common reader."""
    rows = [review(f"ü{n % 40}", f"i{n % 7}", 5_000 - n // 3, 1.0 + n % 5) for n in range(4_000)]
    items = write("meta_All_Beauty.jsonl", [meta(f"i{n}") for n in range(7)])
    forms = [write(f"All_Beauty.jsonl{ending}", rows) for ending in ("", ".gz")]
    built = [build("amazon_reviews_2023", "5core", [form, items]) for form in forms]
    assert built[0].num_users == 40 and built[0].fingerprint == built[1].fingerprint
    forms[0].write_text(forms[0].read_text("utf-8") + "{broken\n", "utf-8")
    with pytest.raises(ValueError, match="All_Beauty.jsonl cannot be read, it seems damaged"):
        build("amazon_reviews_2023", "5core", [forms[0], items])


@pytest.mark.slow("builds a line of each oddity")
def test_one_odd_line_does_not_change_how_the_others_are_read(write):
    """Regular metadata are parsed by the block, a block with an odd line one by one."""
    rows = [
        meta("a", " Caf\u00e9  &amp; <b>tea</b>", store="Oak", details={"Brand": "", "Size": 3}),
        meta("b", None, details=None, categories=["x", "y"], description=["d  1", "d2"]),
        meta("c", "Plain", details={"Brand": "Ash"}, store="Oak", price=1.5),
    ]
    csv = write("All_Beauty.csv", HEADER + "".join(f"u,{item},4.0,{n}\n" for n, item in enumerate("abc")))

    def texts(clean, odd=()):
        files = [csv, write("meta_All_Beauty.jsonl", [*rows, *odd])]
        return build("amazon_reviews_2023", "0core", files, clean=clean).item_texts()

    cleaned = [
        {"title": "Caf & tea", "brand": "Oak"},
        {"category": "x y", "description": "d 1 d2"},
        {"title": "Plain", "brand": "Ash"},
    ]
    assert texts(True) == texts(True, [meta("z", 7)]) == cleaned
    assert texts(False) == texts(False, [meta("z", 7)])


def test_nested_lists_and_details_inside_a_text_are_opened(write):
    nested = meta("a", categories=[["Beauty", "Hair"]], details=json.dumps({"Brand": "Ash"}))
    files = [write("All_Beauty.csv", HEADER + "u,a,4.0,1\n"), write("meta_All_Beauty.jsonl", [nested])]
    (text,) = build("amazon_reviews_2023", "0core", files).item_texts()
    assert text["brand"] == "Ash" and text["category"] == "Beauty Hair"


def test_some_broken_metadata_is_counted_and_much_of_it_refused(write, capsys):
    csv = write("All_Beauty.csv", HEADER + "u,a,4.0,1\nu,b,4.0,2\n")
    good = "".join(json.dumps(meta(asin)) + "\n" for asin in ["a", "b", *map(str, range(200))])
    build("amazon_reviews_2023", "0core", [csv, write("meta_All_Beauty.jsonl", good + "{broken\n")])
    assert "left out 1 of 203 lines that are not JSON, first line 203" in capsys.readouterr().out
    with pytest.raises(ValueError, match="9 of 211 lines are no metadata in JSON, the first of them line 203"):
        build("amazon_reviews_2023", "0core", [csv, write("meta_All_Beauty.jsonl", good + "{broken\n" * 9)])


def test_a_half_downloaded_file_is_named(write):
    csv = write("All_Beauty.csv", HEADER + "u,a,4.0,1\n")
    whole = write("meta_All_Beauty.jsonl.gz", [meta(str(n), f"thing {n} {n * 7919 % 101}") for n in range(500)])
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ValueError, match="meta_All_Beauty.jsonl.gz cannot be read, it seems damaged"):
        build("amazon_reviews_2023", "0core", [csv, whole])
    reviews = write("All_Beauty.jsonl.gz", [review("u", f"a{n * 7919 % 101}", n) for n in range(500)])
    reviews.write_bytes(reviews.read_bytes()[:-200])
    with pytest.raises(ValueError, match="All_Beauty.jsonl.gz cannot be read, it seems damaged"):
        build("amazon_reviews_2023", "0core", [reviews, write("meta_All_Beauty.jsonl", [meta("a0")])])


def test_unknown_categories_and_missing_files_are_explained(write):
    csv = write("All_Beauty.csv", HEADER + "u,a,4.0,1\n")
    with pytest.raises(ValueError, match="did you mean 'All_Beauty'"):
        build("amazon_reviews_2023", category="All_Beuty")
    with pytest.raises(ValueError, match="category=NAME"):
        build("amazon_reviews_2023")
    with pytest.raises(FileNotFoundError, match="needs interactions .* and metadata"):
        build("amazon_reviews_2023", data_files=[csv])
    with pytest.raises(ValueError, match="no file of category Books"):
        build("amazon_reviews_2023", data_files=[csv, write("meta_All_Beauty.jsonl", [meta("a")])], category=["Books"])
    with pytest.raises(ValueError, match="give one of them"):
        files = [csv, write("All_Beauty.jsonl", [review("u", "a", 1)]), write("meta_All_Beauty.jsonl", [meta("a")])]
        build("amazon_reviews_2023", data_files=files)


# ---- the publisher's files

BENCHMARK = "amazon_reviews_2023/benchmark"
METADATA = "amazon_reviews_2023/raw_partial/All_Beauty.5core.meta.jsonl.gz"
FIVE_CORE = [
    (f"{BENCHMARK}/5core/rating_only/All_Beauty.csv",),
    tuple(f"{BENCHMARK}/5core/last_out_w_his/All_Beauty.{part}.csv" for part in ("train", "valid", "test")),
    ("amazon_reviews_2023/raw_partial/All_Beauty.5core.reviews.jsonl.gz",),
]


@pytest.fixture(scope="module")
def five_core(real_file):
    """``five_core(names)`` -> the dataset of these files, built once."""

    @cache
    def make(names):
        return build("amazon_reviews_2023", "5core", [real_file(name) for name in [*names, METADATA]])

    return make


def test_every_form_of_the_publishers_5_core_gives_one_content(five_core):
    datasets = [five_core(names) for names in FIVE_CORE]
    assert {dataset.fingerprint for dataset in datasets} == {datasets[0].fingerprint}
    assert (datasets[0].num_users, datasets[0].num_items, datasets[0].info["interactions"]) == (253, 356, 2535)
    assert datasets[0].info["dropped"] == {"items": 0, "interactions": 0}


@pytest.mark.parametrize("part", ["valid", "test"])
def test_leave_one_out_is_the_publishers_own_split(five_core, real_file, part):
    dataset = five_core(FIVE_CORE[0])
    ids = dataset.items["item_id"].to_pylist()
    splits = leave_one_out(dataset.sequences)
    split = splits.test if part == "test" else splits.validation
    ours = {
        user: (" ".join(ids[item] for item in history), ids[target])
        for user, history, target in zip(split.user_ids, split.histories, split.targets, strict=True)
    }
    table = pa_csv.read_csv(real_file(f"{BENCHMARK}/5core/last_out_w_his/All_Beauty.{part}.csv")).to_pydict()
    rows = zip(table["user_id"], table["history"], table["parent_asin"], strict=True)
    assert ours == {user: (history, item) for user, history, item in rows}


def test_0_core_reads_compressed_parts_and_counts_what_has_no_text(real_file):
    names = [f"{BENCHMARK}/0core/last_out_w_his/All_Beauty.{part}.csv.gz" for part in ("train", "valid")]
    dataset = build("amazon_reviews_2023", "0core", [real_file(name) for name in [*names, METADATA]])
    assert dataset.num_items == 356
    assert dataset.info["dropped"]["interactions"] + dataset.info["interactions"] == 19_120 + 42_823


def test_absolute_timestamps_split_the_real_5_core(five_core):
    splits = absolute_timestamp(five_core(FIVE_CORE[0]).sequences)
    assert len(splits.train) and len(splits.validation.targets) and len(splits.test.targets)


def test_raw_metadata_of_a_whole_category_is_read(real_file):
    folder = "amazon_reviews_2023/raw"
    names = [
        f"{folder}/meta_categories/meta_Gift_Cards.jsonl.gz",
        f"{folder}/review_categories/Gift_Cards.first10.jsonl",
    ]
    dataset = build("amazon_reviews_2023", "0core", [real_file(name) for name in names])
    assert dataset.info["interactions"] == 10 and all("title" in item for item in dataset.item_texts())
