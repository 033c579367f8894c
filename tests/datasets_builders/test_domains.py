"""Several built datasets as one: the parts' users and texts, told apart by domain, sampled by seed."""

import pyarrow as pa
import pytest

from jepa4rec.datasets_builders import build, make_dataset, save_dataset


@pytest.fixture
def shops(tmp_path):
    """Two small shops with the same ids; only the first knows brands and ratings."""
    items = {"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]}
    sequences = {"user_id": [f"u{n}" for n in range(4)], "items": [[n % 3, 2, 1] for n in range(4)]}
    told = {"timestamps": [[1, 2, 3]] * 4}
    first = (items | {"brand": ["x", "", "y"]}, sequences | told | {"ratings": [[5, 4, 3]] * 4})
    second = ({name: values[:2] for name, values in items.items()}, {"user_id": ["u0"], "items": [[1, 0, 1]]})
    folders = []
    for name, (its, seqs), times in (("books", first, {}), ("tools", second, {"timestamps": [[7, 8, 9]]})):
        dataset = make_dataset(
            pa.table(its), pa.table(seqs | times), {"name": name, "source": "made up", "licence": "none"}
        )
        folders.append(tmp_path / name)
        save_dataset(dataset, folders[-1])
    return folders


def bought(dataset) -> dict[str, list[str]]:
    titles = dataset.items["item_id"].to_pylist()
    histories = dataset.histories()
    return {
        u: [titles[i] for i in h] for u, h in zip(dataset.sequences["user_id"].to_pylist(), histories, strict=True)
    }


def test_users_keep_their_items_and_everything_says_its_domain(shops):
    both = build("domains", data_files=shops)
    assert both.items["domain"].to_pylist() == ["books"] * 3 + ["tools"] * 2
    assert both.sequences["domain"].to_pylist() == ["books"] * 4 + ["tools"]
    assert bought(both)["u1 books"] == ["b books", "c books", "b books"]
    assert bought(both)["u0 tools"] == ["b tools", "a tools", "b tools"]
    assert both.item_texts()[0] == {"title": "A", "brand": "x"} and both.item_texts()[3] == {"title": "A"}
    assert both.sequences["timestamps"].to_pylist()[-1] == [7, 8, 9] and "ratings" not in both.sequences.column_names
    assert [part["name"] for part in both.info["domains"].values()] == ["books", "tools"]
    assert build("domains", data_files=shops[:1]).sequences["ratings"].to_pylist()[0] == [5, 4, 3]


def test_a_sample_is_of_each_domain_and_keeps_only_its_items(shops):
    whole, sampled = build("domains", data_files=shops), build("domains", data_files=shops, users=2, seed=3)
    assert sampled.sequences["domain"].to_pylist() == ["books", "books", "tools"]
    assert bought(sampled).items() <= bought(whole).items()
    assert set(sampled.items["item_id"].to_pylist()) == {item for items in bought(sampled).values() for item in items}
    assert sampled.fingerprint == build("domains", data_files=shops, users=2, seed=3).fingerprint


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda shops: None, {}, "give their folders as --data_files"),
        (lambda shops: shops, {"users": 0}, "users is 0: sample at least one"),
        (lambda shops: [shops[0], shops[1].rename(shops[1].parent / "x" / "books")], {}, "in a folder named books"),
        (lambda shops: [shops[0].parent], {}, "is not a built dataset"),
    ],
)
def test_bad_input_is_named(shops, change, options, message):
    (shops[0].parent / "x").mkdir()
    (shops[0].parent / "file").write_text("")
    with pytest.raises((ValueError, OSError), match=message):
        build("domains", data_files=change(shops), **options)
