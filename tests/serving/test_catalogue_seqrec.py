"""The catalogue: exact search equals the slow way, the others re-rank, foreign and broken files are refused."""

import json

import numpy as np
import pytest
import torch

from jepa4rec.benchmarks.catalogue import measure_index, page
from jepa4rec.serving.catalogue_seqrec import INDEXES, Catalogue, split_items

WEIGHTS = "a" * 64


def filled(number=200, width=32, index="exact", rescore=4):
    torch.manual_seed(0)
    catalogue = Catalogue(WEIGHTS, width, index, rescore)
    ids = [f"i{n}" for n in range(number)]
    centres = torch.randn(8, width)
    vectors = centres[torch.arange(number) % 8] + 0.6 * torch.randn(number, width)
    catalogue.add(ids, [{"title": item_id} for item_id in ids], vectors, None)
    return catalogue


def needs(index):
    if index in ("faiss", "int8"):
        pytest.importorskip("faiss", reason=f"faiss-cpu is needed for the index {index}")


def test_exact_search_is_cosine_sorted_the_slow_way():
    catalogue, queries = filled(), torch.randn(5, 32)
    scores, rows = catalogue.search(queries, 7)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], catalogue.vectors[None], dim=2).numpy()
    for query in range(5):
        order = np.argsort(-cosines[query])[:7]
        assert rows[query].tolist() == order.tolist()
        np.testing.assert_allclose(scores[query], cosines[query][order], atol=1e-6)


@pytest.mark.parametrize("index", INDEXES[1:])
def test_an_index_finds_nearly_everything_and_gives_exact_scores(index):
    needs(index)
    exact, approximate = filled(2000), filled(2000, index=index, rescore=20)
    queries = exact.vectors[::100] + 0.05 * torch.randn(20, 32)
    best, found = exact.search(queries, 10), approximate.search(queries, 10)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best[1], found[1], strict=True)])
    assert overlap > (0.7 if index == "binary" else 0.95), overlap
    for query, rows in enumerate(found[1]):
        vector = torch.nn.functional.normalize(queries[query], dim=0)
        np.testing.assert_allclose(found[0][query], (approximate.vectors[rows] @ vector).numpy(), atol=1e-6)
        assert (np.diff(found[0][query]) <= 0).all()


@pytest.mark.parametrize("index", INDEXES)
def test_filters_and_exclusions_hold_in_every_index(index):
    needs(index)
    catalogue, queries = filled(index=index), torch.randn(3, 32)
    allowed = np.zeros(200, bool)
    allowed[:12] = True
    _, rows = catalogue.search(queries, 5, allowed, [[0, 1], [], [3]])
    assert (rows < 12).all()
    assert not {0, 1} & set(rows[0]) and 3 not in rows[2]


@pytest.mark.parametrize("index", INDEXES[1:])
def test_new_items_join_the_index_that_is_there(index):
    needs(index)
    catalogue, target = filled(300, index=index), torch.full((1, 32), 0.5)
    catalogue.search(target, 3)
    before = catalogue._candidates
    catalogue.add(["new"], [{}], target, None)
    _, rows = catalogue.search(target, 3)
    assert rows[0][0] == 300 and catalogue._candidates is before


@pytest.mark.parametrize("index", INDEXES)
def test_items_come_and_go(index):
    needs(index)
    catalogue = filled(50, index=index)
    target = torch.full((1, 32), 0.5)
    assert "new" not in [catalogue.ids[row] for row in catalogue.search(target, 3)[1][0]]
    catalogue.add(["new"], [{"title": "New"}], target * 7, [3.0])
    scores, rows = catalogue.search(target, 3)
    assert catalogue.ids[rows[0][0]] == "new" and scores[0][0] == pytest.approx(1)
    catalogue.remove(["new", "i0"])
    assert len(catalogue) == 49 and catalogue.rows(["i1"]) == [0]
    assert "new" not in [catalogue.ids[row] for row in catalogue.search(target, 3)[1][0]]


def test_a_saved_catalogue_comes_back_the_same(tmp_path):
    catalogue = filled(20)
    catalogue.add(["p"], [{"title": "Café"}], torch.ones(1, 32), [5])
    catalogue.save(tmp_path / "c")
    catalogue.save(tmp_path / "c")  # replaces itself
    again = Catalogue.load(tmp_path / "c", WEIGHTS)
    assert again.ids == catalogue.ids and again.items == catalogue.items
    assert torch.equal(again.vectors, catalogue.vectors)
    np.testing.assert_equal(again.popularity, catalogue.popularity)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_vectors_of_other_weights_are_refused(tmp_path):
    filled(5).save(tmp_path / "c")
    with pytest.raises(ValueError, match="vectors of other weights .*add the items again"):
        Catalogue.load(tmp_path / "c", "b" * 64)


@pytest.mark.parametrize("name", ["vectors.safetensors", "items.jsonl"])
def test_files_of_two_catalogues_are_not_mixed(tmp_path, name):
    filled(5).save(tmp_path / "c")
    other = filled(5)
    other.vectors, other.ids = other.vectors.flip(0), other.ids[::-1]
    other.save(tmp_path / "other")
    (tmp_path / "other" / name).replace(tmp_path / "c" / name)
    with pytest.raises(ValueError, match="not those that were saved together"):
        Catalogue.load(tmp_path / "c", WEIGHTS)


def test_a_saved_catalogue_is_searched_as_before_unless_told(tmp_path):
    filled(5, index="binary", rescore=9).save(tmp_path / "c")
    kept, told = Catalogue.load(tmp_path / "c", WEIGHTS), Catalogue.load(tmp_path / "c", WEIGHTS, "exact", 2)
    assert (kept.index, kept.rescore, told.index, told.rescore) == ("binary", 9, "exact", 2)


@pytest.mark.parametrize("name", ["vectors.safetensors", "items.jsonl", "catalogue.json"])
def test_a_damaged_catalogue_is_one_sentence(tmp_path, name):
    filled(5).save(tmp_path / "c")
    path = tmp_path / "c" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="is damaged .*save the catalogue again"):
        Catalogue.load(tmp_path / "c", WEIGHTS)


def test_what_is_no_catalogue_is_neither_read_nor_overwritten(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileNotFoundError, match="catalogue.json is missing"):
        Catalogue.load(tmp_path, WEIGHTS)
    with pytest.raises(FileExistsError, match="is no catalogue"):
        filled(5).save(tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_failed_save_leaves_the_old_catalogue(tmp_path, monkeypatch):
    filled(5).save(tmp_path / "c")
    monkeypatch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        filled(7).save(tmp_path / "c")
    monkeypatch.undo()
    assert len(Catalogue.load(tmp_path / "c", WEIGHTS)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda c: c.add(["i3"], [{}], torch.ones(1, 32), None), "'i3' is in the catalogue already"),
        (lambda c: c.add(["x", "x"], [{}, {}], torch.ones(2, 32), None), "'x' is given twice"),
        (lambda c: c.add(["x"], [{}], torch.full((1, 32), torch.nan), None), "'x' has a vector with NaN"),
        (lambda c: c.rows(["i1", "i1x"]), "'i1x' is not in the catalogue; did you mean 'i1'"),
        (lambda c: c.search(torch.ones(1, 32), 6), "top_k is 6, but the catalogue has 5 items"),
        (lambda c: c.search(torch.ones(1, 32), 0), "choose 1 to 5"),
        (lambda c: c.search(torch.ones(1, 32), 3, np.arange(5) < 2), "has, after the filter, 2 items"),
        (lambda c: c.search(torch.ones(1, 32), 4, None, [[0, 1]]), "row 0 has 3 items left"),
        (lambda c: c.search(torch.ones(1, 32), 1, np.zeros(5, bool)), "filter leaves no item"),
        (lambda c: c.add(["x"], [{}], torch.ones(1, 32), ["many"]), "no number"),
        (lambda c: Catalogue("", 3, "hnsw"), "one of exact, faiss, int8, binary"),
        (lambda c: Catalogue("", 3, rescore=0), "at least 1"),
        (lambda c: split_items([{"title": "x"}]), "Item 0 has no item_id"),
    ],
)
def test_what_cannot_be_is_one_sentence(call, sentence):
    catalogue = filled(5)
    with pytest.raises(ValueError, match=sentence) as error:
        call(catalogue)
    assert len(catalogue.ids) == len(catalogue.vectors) == len(catalogue._rows) == 5
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("index", INDEXES)
def test_the_benchmark_measures_every_index(index):
    needs(index)
    measured = measure_index(2000, index, rescore=20, queries=5)
    assert measured["recall@10"] > (0.7 if index == "binary" else 0.95)
    assert 0 < measured["p50_ms"] <= measured["p99_ms"]
    told = page({"width": 384, "threads": 1, "queries": 5, "searches": [measured]}).splitlines()[-1]
    assert told.startswith(f"| 2,000 | {index} | {measured['p50_ms']:.1f} |")
