"""Preparation: each relational step against the slow, obvious way."""

from collections import Counter

import ibis
import numpy as np
import pyarrow as pa
import pytest

from jepa4rec.datasets_builders.contract import make_dataset
from jepa4rec.datasets_builders.preparation import (
    among,
    build_tables,
    drop_duplicate_rows,
    first_row_per_item,
    k_core,
    less_often,
    most_frequent_text,
    open_workspace,
    ordered_rows,
    users_by_first_row,
    with_text,
)


@pytest.fixture
def workspace():
    with open_workspace(threads=2) as opened:
        yield opened


def batches(columns: dict, size: int = 10**6):
    return pa.table(columns).to_batches(max_chunksize=size)


def items_of(ids):
    return {"item_id": ids, "title": [f"title of {item}" for item in ids]}


def random_interactions(rows=600, users=60, items=40, times=5, seed=0):
    random = np.random.default_rng(seed)
    return {
        "user_id": [f"u{number}" for number in random.integers(0, users, rows) ** 2 // users],
        "item_id": [f"i{number}" for number in random.integers(0, items, rows) ** 2 // items],
        "timestamp": random.integers(0, times, rows).tolist(),
    }


def test_rows_are_numbered_in_the_order_they_arrive(workspace):
    staged = workspace.stage(batches({"user_id": list("abcdefg")}, size=2), "letters").order_by("row").to_pyarrow()
    assert staged.to_pydict() == {"row": list(range(7)), "user_id": list("abcdefg")}


def test_duplicates_keep_the_first_row_and_null_equals_null(workspace):
    staged = workspace.stage(batches({"x": ["a", "b", "a", None, None], "y": [1.0, 1.0, 1.0, None, None]}), "pairs")
    assert sorted(drop_duplicate_rows(staged).to_pyarrow()["row"].to_pylist()) == [0, 1, 3]


@pytest.mark.parametrize(("least_users", "least_items"), [(8, 12), (8, 1), (1, 12)])
def test_k_core_is_the_fixed_point_of_dropping(workspace, least_users, least_items):
    interactions = random_interactions()
    pairs = list(enumerate(zip(interactions["user_id"], interactions["item_id"], strict=True)))
    while True:
        users, items = Counter(u for _, (u, _i) in pairs), Counter(i for _, (_u, i) in pairs)
        kept = [(row, (u, i)) for row, (u, i) in pairs if users[u] >= least_users and items[i] >= least_items]
        if kept == pairs:
            break
        pairs = kept
    assert 0 < len(pairs) < 600
    staged = workspace.stage(batches(interactions), "rows")
    result = k_core(workspace, staged, least_users, least_items).to_pyarrow()
    assert sorted(result["row"].to_pylist()) == [row for row, _ in pairs]


def test_most_frequent_text_ignores_empty_ones_and_ties_go_to_the_earliest(workspace):
    rows = {"item_id": ["p", "p", "p", "q", "q", "q", "r"], "title": ["", "", "pan", "old", "new", "", ""]}
    staged = workspace.stage(batches(rows), "rows")
    assert sorted(most_frequent_text(staged, "title").to_pyarrow().to_pylist(), key=str) == [
        {"item_id": "p", "title": "pan"},
        {"item_id": "q", "title": "old"},
    ]


def test_sequences_are_sorted_by_time_and_equal_times_keep_the_order_of_the_file(workspace):
    interactions = random_interactions(rows=5_000, times=3)
    ids = sorted(set(interactions["item_id"]), reverse=True)
    staged = workspace.stage(batches(interactions, size=97), "rows")
    items, sequences = build_tables(workspace, staged, workspace.stage(batches(items_of(ids)), "items"))
    by_user: dict[str, list] = {}
    for row, (user, item, time) in enumerate(zip(*interactions.values(), strict=True)):
        by_user.setdefault(user, []).append((time, row, ids.index(item)))
    assert items["item_id"].to_pylist() == ids  # the catalogue keeps the item table's order
    assert sequences["user_id"].to_pylist() == list(by_user)  # users in the order of their first row
    assert sequences["items"].to_pylist() == [[item for *_, item in sorted(rows)] for rows in by_user.values()]
    assert sequences["timestamps"].to_pylist() == [[time for time, *_ in sorted(rows)] for rows in by_user.values()]


def test_threads_and_batches_do_not_change_the_fingerprint():
    interactions, ids = random_interactions(rows=4_000, users=200, times=4), [f"i{number}" for number in range(40)]
    fingerprints = set()
    for threads, size in ((1, 10**6), (4, 10**6), (4, 101)):
        with open_workspace(threads) as workspace:
            staged = workspace.stage(batches(interactions, size), "rows")
            tables = build_tables(workspace, staged, workspace.stage(batches(items_of(ids)), "items"), 5, 5)
        fingerprints.add(make_dataset(*tables, {}).fingerprint)
    assert len(fingerprints) == 1


def build(workspace, items, **settings):
    interactions = {"user_id": ["u", "u", "v"], "item_id": ["a", "b", "b"]}
    staged = workspace.stage(batches(interactions), "sales.csv"), workspace.stage(batches(items), "items.csv")
    return build_tables(workspace, *staged, name="items.csv", **settings)


def test_items_without_text_are_an_error_that_names_item_and_row(workspace):
    items = {"item_id": ["a", "b"], "title": ["x", " \u200b\u00a0 "], "brand": ["", None]}
    with pytest.raises(ValueError, match=r"items.csv: item 'b' \(row 2\) has no text in title or brand"):
        build(workspace, items)
    kept, sequences = build(workspace, items, items_without_text="drop")
    assert kept["item_id"].to_pylist() == ["a"] and sequences["user_id"].to_pylist() == ["u"]
    kept, _ = build(workspace, items, items_without_text="use_id")
    assert kept["title"].to_pylist() == ["x", "b"]


def test_items_that_are_not_in_the_catalogue_are_an_error(workspace):
    with pytest.raises(ValueError, match=r"item 'b' has no text because it is not there \(interaction in row 2\)"):
        build(workspace, items_of(["a"]))
    assert build(workspace, items_of(["a"]), items_without_text="drop")[1]["items"].to_pylist() == [[0]]


def test_nobody_left_after_filtering_is_an_error(workspace):
    with pytest.raises(ValueError, match="no user is left after filtering.*lower min_user_interactions"):
        build(workspace, items_of(["a", "b"]), min_user_interactions=3)


def test_items_nobody_bought_stay_out_unless_asked_for(workspace):
    assert build(workspace, items_of(["new", "a", "b"]))[0]["item_id"].to_pylist() == ["a", "b"]
    items, sequences = build(workspace, items_of(["new", "a", "b"]), all_items=True)
    assert items["item_id"].to_pylist() == ["new", "a", "b"]
    assert sequences["items"].to_pylist() == [[1, 2], [2]]


@pytest.mark.parametrize("dialect", ["pyspark", "postgres"])
def test_the_plan_is_not_tied_to_one_engine(dialect):
    interactions = ibis.table({"row": "int64", "user_id": "string", "item_id": "string", "timestamp": "int64"}, "rows")
    items = ibis.table({"row": "int64", "item_id": "string", "title": "string"}, "items")
    places = first_row_per_item(with_text(items, "drop", "items")).select("item_id", item_index=ibis.row_number())
    times = interactions.group_by("user_id").agg(times=interactions.count())
    for step in (
        drop_duplicate_rows(interactions),
        most_frequent_text(items, "title"),
        among(interactions, {"user_id": less_often(times, interactions)}),
        ordered_rows(interactions, places, users_by_first_row(interactions)),
    ):
        assert ibis.to_sql(step, dialect=dialect).lstrip().startswith("SELECT")
