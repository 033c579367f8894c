"""Yelp, on rows made up in its schema: its terms forbid shipping real ones."""

import gzip
import json

import numpy as np
import pytest

from jepa4rec.datasets_builders import build

BUSINESS = {
    "business_id": "b0", "name": "Café Anker", "address": "1 Quay", "city": "Tampa", "state": "FL", "postal_code": "1",
    "latitude": 27.9, "longitude": -82.4, "stars": 4.5, "review_count": 9, "is_open": 1,
    "attributes": {"BikeParking": "True"}, "categories": "Coffee & Tea, Food", "hours": None,
}  # fmt: skip


def review(user, business, date, stars=4.0):
    return {
        "review_id": f"{user}{business}{date}", "user_id": user, "business_id": business, "stars": stars, "useful": 0,
        "funny": 0, "cool": 0, "text": "Made up.", "date": date,
    }  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """``files(reviews, businesses)`` -> both files in the layout of the academic dataset."""

    def write(reviews, businesses=(BUSINESS,), ending=""):
        paths = []
        for kind, rows in (("business", businesses), ("review", reviews)):
            path = tmp_path / f"yelp_academic_dataset_{kind}.json{ending}"
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(text) if ending else text)
            paths.append(path)
        return paths

    return write


@pytest.fixture
def seeded(files):
    """30 users, 12 businesses, drawn by a seed."""
    rng = np.random.default_rng(0)
    businesses = [{**BUSINESS, "business_id": f"b{n}", "name": f"Place {n}"} for n in range(12)]
    rows = [
        review(f"u{rng.integers(30)}", f"b{rng.integers(12)}", f"20{10 + n % 12}-03-{1 + n % 27:02d} 10:00:00")
        for n in range(400)
    ]
    return files(rows, businesses, ".gz")


def test_name_categories_and_address_are_the_text(files):
    empty = {**BUSINESS, "business_id": "b1", "categories": None, "address": ""}
    reviews = [review("u", "b1", "2019-01-02 00:00:01", 2.0), review("u", "b0", "2018-01-01 10:00:00")]
    dataset = build("yelp", "all", files(reviews, [BUSINESS, empty]))
    assert dataset.item_texts() == [
        {"title": "Café Anker", "category": "Coffee & Tea, Food", "address": "1 Quay, Tampa, FL"},
        {"title": "Café Anker", "address": "Tampa, FL"},
    ]
    assert dataset.sequences.to_pydict() == {
        "user_id": ["u"], "items": [[0, 1]], "timestamps": [[1514800800000, 1546387201000]], "ratings": [[4.0, 2.0]],
    }  # fmt: skip


def test_five_core_leaves_five_reviews_to_everybody(seeded):
    dataset = build("yelp", "five_core", seeded)
    lengths = [len(items) for items in dataset.sequences["items"].to_pylist()]
    counts = np.bincount(np.concatenate(dataset.sequences["items"].to_pylist()))
    assert min(lengths) >= 5 and counts.min() >= 5 and dataset.num_users > 20


def test_a_sample_of_users_is_smaller_and_repeatable(seeded):
    sample = [build("yelp", "all", seeded, users=7, seed=3) for _ in range(2)]
    assert sample[0].num_users == 7 and sample[0].fingerprint == sample[1].fingerprint


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"stars": 7.0}, "line 2 has 7.0 stars, outside 1 to 5"),
        ({"date": None}, "line 2 has no date"),
        ({"date": "yesterday"}, "'yesterday' is not a date"),
    ],
)
def test_bad_reviews_are_named(files, change, sentence):
    reviews = [review("u", "b0", "2018-01-01 10:00:00"), {**review("v", "b0", "2018-01-01 10:00:00"), **change}]
    with pytest.raises(ValueError, match=sentence):
        build("yelp", "all", files(reviews))


def test_missing_files_are_explained(files):
    with pytest.raises(ValueError, match="fetch the dataset from Yelp"):
        build("yelp")
    with pytest.raises(FileNotFoundError, match="_review.json"):
        build("yelp", data_files=files([review("u", "b0", "2018-01-01 10:00:00")])[:1])
