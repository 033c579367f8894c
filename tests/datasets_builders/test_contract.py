"""The data contract: what is stored, how it is hashed, how it is split."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jepa4rec.datasets_builders.contract import (
    absolute_timestamp,
    fingerprint,
    leave_one_out,
    load_dataset_dir,
    make_dataset,
    save_dataset,
)

ITEMS = {
    "item_id": ["a", "b", "c"],
    "title": ["Tea pot", "Gruener Tee – 50 g", "Honig"],
    "brand": ["Kupfer", None, ""],
}
SEQUENCES = {"user_id": ["u", "v"], "items": [[0, 1, 2, 1], [2, 0]], "timestamps": [[10, 20, 30, 40], [5, 25]]}


@pytest.fixture
def dataset():
    return make_dataset(pa.table(ITEMS), pa.table(SEQUENCES), {"name": "tiny", "config": "default"})


def test_tables_are_brought_into_the_contracts_types(dataset):
    assert dataset.items.schema.types == [pa.string()] * 3
    assert dataset.sequences.schema.types == [pa.string(), pa.list_(pa.int32()), pa.list_(pa.int64())]
    counts = {key: dataset.info[key] for key in ("users", "items", "interactions", "average_length", "density")}
    assert counts == {"users": 2, "items": 3, "interactions": 6, "average_length": 3.0, "density": 1.0}


def test_item_texts_keep_the_attribute_order_and_leave_empty_values_out(dataset):
    texts = dataset.item_texts()
    assert texts == [{"title": "Tea pot", "brand": "Kupfer"}, {"title": "Gruener Tee – 50 g"}, {"title": "Honig"}]
    assert list(texts[0]) == ["title", "brand"]
    assert dataset.item_texts(empty=True)[2] == {"title": "Honig", "brand": ""}


def test_save_and_load_give_the_same_dataset(dataset, tmp_path):
    save_dataset(dataset, tmp_path / "built")
    loaded = load_dataset_dir(tmp_path / "built")
    assert loaded.items.equals(dataset.items) and loaded.sequences.equals(dataset.sequences)
    assert loaded.info == dataset.info and fingerprint(loaded.items, loaded.sequences) == dataset.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built"]


def test_fingerprint_does_not_see_chunks_offsets_or_parquet_settings(dataset, tmp_path):
    items, sequences = dataset.items, dataset.sequences
    chunked = [pa.concat_tables([table.slice(0, 1), table.slice(1)]) for table in (items, sequences)]
    assert chunked[0]["title"].num_chunks == 2
    assert fingerprint(*chunked) == dataset.fingerprint
    for table, name in ((items, "items"), (sequences, "sequences")):
        pq.write_table(table, tmp_path / name, row_group_size=1, use_dictionary=False, compression="none")
    assert fingerprint(pq.read_table(tmp_path / "items"), pq.read_table(tmp_path / "sequences")) == dataset.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"items": {"title": ["Tea pot", "Gruener Tee – 50 g", "Honey"]}},
        {"items": {"title": ["Tea potG", "ruener Tee – 50 g", "Honig"]}},
        {"sequences": {"items": [[0, 1, 2], [1, 2, 0]], "timestamps": [[10, 20, 30], [40, 5, 25]]}},
        {"sequences": {"timestamps": [[10, 20, 30, 41], [5, 25]]}},
        {"sequences": {"user_id": ["v", "u"]}},
    ],
)
def test_fingerprint_sees_every_value_and_where_one_ends(dataset, change):
    items = pa.table({**ITEMS, **change.get("items", {})})
    sequences = pa.table({**SEQUENCES, **change.get("sequences", {})})
    assert make_dataset(items, sequences, {}).fingerprint != dataset.fingerprint


def test_fingerprint_is_the_published_one(dataset):
    # A change of the serialisation would orphan every published number: raise it on purpose only.
    assert dataset.fingerprint == "43db10304c1958789cb13f1e17888e18c3b09bf3eccb276f55a662898c1c120a"


@pytest.mark.parametrize(
    ("items", "sequences", "message"),
    [
        (
            {"title": ["x", " ", "y"], "brand": ["", "", ""]},
            {},
            r"item 'b' \(row 1\) has no text in any of title, brand",
        ),
        ({}, {"items": [[0, 1, 2, 3], [2, 0]]}, "item index 3 is outside the catalogue of 3 items"),
        ({}, {"items": [[0, 1, 2, 1], []], "timestamps": [[1, 2, 3, 4], []]}, r"user 'v' \(row 1\) has no items"),
        ({}, {"timestamps": [[10, 20, 30], [5, 25]]}, "row 0 has not as many timestamps as items"),
    ],
)
def test_tables_that_break_the_contract_are_refused(items, sequences, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(pa.table({**ITEMS, **items}), pa.table({**SEQUENCES, **sequences}), {})


# On disk


def test_a_build_killed_while_writing_leaves_nothing_that_looks_finished(dataset, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jepa4rec.serving.whole_files_seqrec.os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_dataset(dataset, tmp_path / "built")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_replaced_only_when_asked(dataset, tmp_path):
    save_dataset(dataset, tmp_path / "built")
    with pytest.raises(FileExistsError, match="--overwrite"):
        save_dataset(dataset, tmp_path / "built")
    save_dataset(dataset, tmp_path / "built", overwrite=True)
    assert load_dataset_dir(tmp_path / "built").fingerprint == dataset.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["built"]


def test_overwriting_never_removes_a_folder_that_is_no_dataset(dataset, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(FileExistsError, match="not a dataset"):
        save_dataset(dataset, tmp_path, overwrite=True)


def test_an_unfinished_or_damaged_folder_is_named(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a built dataset"):
        load_dataset_dir(tmp_path)
    save_dataset(dataset, tmp_path / "cut")
    path = tmp_path / "cut" / "sequences.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut is damaged"):
        load_dataset_dir(tmp_path / "cut")
    save_dataset(dataset, tmp_path / "edited")
    info = tmp_path / "edited" / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fingerprint": "0"}))
    with pytest.raises(ValueError, match="do not match the fingerprint"):
        load_dataset_dir(tmp_path / "edited")


# Splits


def lists(arrays):
    return [array.tolist() for array in arrays]


def test_a_built_folder_opens_with_the_library_of_the_hub(tmp_path, dataset):
    save_dataset(dataset, tmp_path / "shop")
    for name, table in (("items", dataset.items), ("sequences", dataset.sequences)):
        opened = datasets.load_dataset(str(tmp_path / "shop"), name, cache_dir=str(tmp_path / "cache"))
        assert opened["train"].to_list() == table.to_pylist()


@pytest.mark.parametrize("about", ["[]", "{}", '"x"', "null", "{", "[" * 100_000])
def test_a_damaged_description_is_one_sentence(tmp_path, dataset, about):
    save_dataset(dataset, tmp_path / "shop")
    (tmp_path / "shop" / "dataset_info.json").write_text(about)
    with pytest.raises(ValueError, match="shop is damaged, build it again") as error:
        load_dataset_dir(tmp_path / "shop")
    assert "\n" not in str(error.value)


def test_leave_one_out_by_hand():
    sequences = pa.table({"user_id": ["long", "three", "two", "one"], "items": [[4, 5, 6, 7], [1, 2, 3], [8, 9], [0]]})
    train, validation, test = leave_one_out(sequences)
    assert lists(train) == [[4, 5], [1], [8, 9], [0]]
    assert validation.user_ids.tolist() == test.user_ids.tolist() == ["long", "three"]
    assert lists(validation.histories) == [[4, 5], [1]] and validation.targets.tolist() == [6, 2]
    assert lists(test.histories) == [[4, 5, 6], [1, 2]] and test.targets.tolist() == [7, 3]


def test_leave_one_out_of_a_slice_and_of_chunks_is_that_of_the_rows(dataset):
    random = np.random.default_rng(0)
    rows = [random.integers(0, 9, length).tolist() for length in random.integers(1, 8, 50)]
    table = pa.table({"user_id": [str(row) for row in range(50)], "items": rows})
    chunked = pa.concat_tables([table.slice(10, 7), table.slice(20, 25)])
    expected = [row for row in rows[10:17] + rows[20:45] if len(row) >= 3]
    splits = leave_one_out(chunked)
    assert splits.test.targets.tolist() == [row[-1] for row in expected]
    assert lists(splits.test.histories) == [row[:-1] for row in expected]


def test_absolute_timestamp_by_hand():
    sequences = pa.table(
        {
            "user_id": ["u", "v", "w"],
            "items": [[0, 1, 2, 3, 4], [5, 6], [7, 8]],
            "timestamps": [[1, 9, 10, 20, 30], [19, 20], [1, 2]],
        }
    )
    train, validation, test = absolute_timestamp(sequences, validation_start=10, test_start=20)
    assert lists(train) == [[0, 1], [7, 8]]
    assert validation.user_ids.tolist() == ["u"] and validation.targets.tolist() == [2]  # v's first has no history
    assert lists(validation.histories) == [[0, 1]]
    assert test.user_ids.tolist() == ["u", "u", "v"] and test.targets.tolist() == [3, 4, 6]
    assert lists(test.histories) == [[0, 1, 2], [0, 1, 2, 3], [5]]


def test_absolute_timestamp_needs_timestamps():
    with pytest.raises(ValueError, match="needs timestamps"):
        absolute_timestamp(pa.table({"user_id": ["u"], "items": [[0, 1]]}))
