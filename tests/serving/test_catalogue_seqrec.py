"""The catalogue: exact search equals the slow way, the others re-rank, foreign and broken files are refused."""

import copy
import json
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa4rec.benchmarks.catalogue import measure_index, page
from jepa4rec.serving import catalogue_seqrec
from jepa4rec.serving.catalogue_seqrec import INDEXES, Catalogue, _digests, split_items
from jepa4rec.serving.whitening_seqrec import CATALOGUE_PRIOR, Whitening

WEIGHTS = "a" * 64


def filled(number=200, width=32, index="exact", rescore=4):
    torch.manual_seed(0)
    catalogue = Catalogue(WEIGHTS, width, index, rescore)
    ids = [f"i{n}" for n in range(number)]
    centres = torch.randn(8, width)
    vectors = centres[torch.arange(number) % 8] + 0.6 * torch.randn(number, width)
    catalogue.add(ids, [{"title": item_id} for item_id in ids], vectors, None)
    return catalogue


def test_a_whitening_is_learned_from_the_items_until_they_double_and_kept(tmp_path):
    torch.manual_seed(0)
    vectors = torch.randn(900, 8) + 2
    catalogue = Catalogue(WEIGHTS, 8, whitening=0.75)
    catalogue.add([f"i{n}" for n in range(800)], [{}] * 800, vectors[:800], None)
    first = catalogue.snapshot().whitening
    expected = Whitening.fit(vectors[:800], 0.75, CATALOGUE_PRIOR)
    torch.testing.assert_close(catalogue.vectors, expected(vectors[:800]))
    catalogue.add([f"j{n}" for n in range(100)], [{}] * 100, vectors[800:], None)
    assert catalogue.snapshot().whitening is first
    torch.testing.assert_close(catalogue.vectors[800:], expected(vectors[800:]))
    catalogue.save(tmp_path / "shop")
    again = Catalogue.load(tmp_path / "shop", WEIGHTS)
    assert all(map(torch.equal, again.snapshot().whitening, first))
    again.remove(again.ids)  # an empty catalogue learns anew
    for step, some in enumerate((vectors[:2], vectors[2:300], vectors[300:700])):
        again.add([f"k{step}-{n}" for n in range(len(some))], [{}] * len(some), some, None)
    expected = Whitening.fit(vectors[:700], 0.75, CATALOGUE_PRIOR)
    torch.testing.assert_close(again.vectors, expected(vectors[:700]), atol=1e-4, rtol=0)


def test_items_that_come_one_by_one_are_whitened_by_at_least_half_of_them(tmp_path):
    torch.manual_seed(0)
    vectors, catalogue = torch.randn(90, 8) + 2, Catalogue(WEIGHTS, 8, whitening=0.75)

    def add(number):
        catalogue.add([f"i{number}"], [{}], vectors[number : number + 1], None)

    for number in range(90):
        if number == 50:
            catalogue.save(tmp_path / "shop")
            catalogue = Catalogue.load(tmp_path / "shop", WEIGHTS)
        add(number)
    expected = Whitening.fit(vectors[:64], 0.75, CATALOGUE_PRIOR)
    torch.testing.assert_close(catalogue.vectors, expected(vectors), atol=1e-4, rtol=0)
    catalogue.remove([f"i{number}" for number in range(30)])  # of the 64, 34 are left, and 26 newer ones
    for number in range(8):
        assert catalogue.snapshot().learned_from == 34
        add(number)
    own = [*range(30, 90), *range(8)]
    expected = Whitening.fit(vectors[own], 0.75, CATALOGUE_PRIOR)
    torch.testing.assert_close(catalogue.vectors, expected(vectors[own]), atol=1e-4, rtol=0)


def test_a_catalogue_saved_before_learns_its_whitening_anew_with_the_next_items(tmp_path):
    catalogue = Catalogue(WEIGHTS, 4, whitening=0.75)
    catalogue.add(["a", "b", "c"], [{}] * 3, torch.randn(3, 4), None)
    catalogue.save(tmp_path / "shop")
    path = tmp_path / "shop" / "catalogue.json"
    about = json.loads(path.read_text())
    assert about.pop("learned_from") == 3
    path.write_text(json.dumps(about))
    catalogue = Catalogue.load(tmp_path / "shop", WEIGHTS)
    catalogue.add(["d"], [{}], torch.randn(1, 4), None)
    assert catalogue.snapshot().learned_from == 4


@pytest.mark.parametrize("told", ["three", -1, 3, True, 1.5])
def test_a_whitening_learned_from_items_that_are_not_there_is_damage(tmp_path, told):
    catalogue = Catalogue(WEIGHTS, 4, whitening=0.75)
    catalogue.add(["a", "b"], [{}, {}], torch.randn(2, 4), None)
    catalogue.save(tmp_path / "shop")
    path = tmp_path / "shop" / "catalogue.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learned_from": told}))
    with pytest.raises(ValueError, match="is damaged .*learned_from in catalogue.json"):
        Catalogue.load(tmp_path / "shop", WEIGHTS)


@pytest.mark.parametrize("told", ["much", 1, [0.75], True])
def test_a_whitening_that_was_never_written_is_damage(tmp_path, told):
    catalogue = Catalogue(WEIGHTS, 4, whitening=0.75)
    catalogue.add(["a", "b"], [{}, {}], torch.randn(2, 4), None)
    catalogue.save(tmp_path / "shop")
    path = tmp_path / "shop" / "catalogue.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"whitening": told}))
    with pytest.raises(ValueError, match="is damaged .*whitening in catalogue.json"):
        Catalogue.load(tmp_path / "shop", WEIGHTS)


def test_a_vector_with_nan_spoils_no_whitening():
    catalogue = Catalogue(WEIGHTS, 4, whitening=0.75)
    with pytest.raises(ValueError, match="Item 'b' has a vector with NaN"):
        catalogue.add(["a", "b"], [{}, {}], torch.tensor([[1.0, 0, 0, 0], [torch.nan] * 4]), None)
    assert not len(catalogue) and catalogue.snapshot().whitening is None


def needs(index):
    if index == "faiss":
        pytest.importorskip("faiss", reason=f"faiss-cpu is needed for the index {index}")


def test_exact_search_is_cosine_sorted_the_slow_way():
    catalogue, queries = filled(), torch.randn(5, 32)
    scores, rows = catalogue.search(queries, 7)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], catalogue.vectors[None], dim=2).numpy()
    for query in range(5):
        order = np.argsort(-cosines[query])[:7]
        assert rows[query].tolist() == order.tolist()
        np.testing.assert_allclose(scores[query], cosines[query][order], atol=1e-6)


@pytest.mark.parametrize("index", list(INDEXES)[1:])
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


def test_a_block_of_items_at_a_time_gives_the_best_of_all(monkeypatch):
    catalogue, queries, allowed = filled(200), torch.randn(9, 32), np.arange(200) % 3 > 0
    excluded, boosts = [[1, 50, 199]] * 9, np.linspace(-0.3, 0.3, 200)
    whole = catalogue.search(queries, 20, allowed, excluded, boosts)
    monkeypatch.setattr(catalogue_seqrec, "BLOCK_ITEMS", 7)
    monkeypatch.setattr(catalogue_seqrec, "BLOCK_SCORES", 14)
    parts = catalogue.search(queries, 20, allowed, excluded, boosts)
    assert (whole[1] == parts[1]).all()
    np.testing.assert_allclose(whole[0], parts[0], atol=1e-6)


@pytest.mark.parametrize("few_queries", (0, 12, 19))  # grouped, grouped, sorted whole
@pytest.mark.parametrize("block_items", (2**16, 1203))
def test_groups_of_a_large_catalogue_hide_none_of_the_best(block_items, few_queries, monkeypatch):
    monkeypatch.setattr(catalogue_seqrec, "BLOCK_ITEMS", block_items)  # 1,024 items are enough for k = 2
    monkeypatch.setattr(catalogue_seqrec, "FEW_QUERIES", few_queries)
    catalogue, queries, allowed = filled(3001), torch.randn(19, 32), np.arange(3001) % 3 > 0
    excluded = [[1, 50, 2999, 3000]] * 19
    cosines = (torch.nn.functional.normalize(queries, dim=1) @ catalogue.vectors.T).numpy()
    cosines[:, ~allowed] = cosines[:, excluded[0]] = -np.inf
    scores, rows = catalogue.search(queries, 2, allowed, excluded)
    assert (rows == np.argsort(-cosines, axis=1)[:, :2]).all()
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :2], atol=1e-6)
    few = np.arange(3001) < 2  # most groups hold nothing that may be given
    assert (np.sort(catalogue.search(queries, 2, few)[1], axis=1) == [0, 1]).all()


def test_boosts_are_added_to_the_cosine():
    catalogue, query = filled(50, index="binary"), torch.randn(1, 32)
    plain, boosts = catalogue.search(query, 50), np.zeros(50)
    last = plain[1][0, -1]
    boosts[last] = 5
    scores, rows = catalogue.search(query, 3, boosts=boosts)
    assert rows[0, 0] == last and scores[0, 0] == pytest.approx(plain[0][0, -1] + 5)
    assert rows[0, 1:].tolist() == plain[1][0, :2].tolist()


@pytest.mark.parametrize("index", INDEXES)
def test_where_less_is_left_less_is_found(index):
    needs(index)
    catalogue, query = filled(5, index=index), torch.randn(2, 32)
    assert catalogue.search(query, 9)[1].shape == (2, 5)
    assert catalogue.search(query, 9, np.arange(5) < 2)[1].shape == (2, 2)
    assert catalogue.search(query, 9, np.zeros(5, bool))[1].shape == (2, 0)
    scores, rows = catalogue.search(query, 4, None, [[0, 1], []])
    assert sorted(rows[0].tolist()) == [-1, 2, 3, 4] and rows[0, -1] == -1 and scores[0, -1] == -np.inf
    assert -1 not in rows[1]


@pytest.mark.parametrize("index", list(INDEXES)[1:])
def test_an_index_lives_on_while_few_items_come_and_go(index):
    needs(index)
    catalogue, target = filled(300, index=index), torch.full((1, 32), 0.5)
    catalogue.search(target, 3)
    built = catalogue.snapshot()._index._built[0]
    catalogue.add(["new"], [{}], target, None)
    assert catalogue.search(target, 3)[1][0][0] == 300
    catalogue.remove(["i7", "i0"])
    assert catalogue.ids[catalogue.search(target, 3)[1][0][0]] == "new"
    exact = replace(catalogue.snapshot(), index="exact")
    for query in catalogue.vectors[::40]:
        best = catalogue.search(query[None], 1), exact.search(query[None], 1)
        assert best[0][1] == best[1][1] and best[0][0] == pytest.approx(best[1][0], abs=1e-6)
    assert catalogue.snapshot()._index._built[0] is built
    catalogue.remove([f"i{row}" for row in range(100, 140)])
    assert catalogue.snapshot()._index._built[0] is not built
    assert catalogue.ids[catalogue.search(target, 3)[1][0][0]] == "new"


@pytest.mark.parametrize("index", INDEXES)
def test_readers_see_one_whole_catalogue_while_others_write(index):
    """Every id has one vector for ever, so each score must be the cosine with the vector of the id it came with."""
    needs(index)
    catalogue, stop, wrong, asked = filled(400, index=index), threading.Event(), [], []
    vectors = dict(zip(catalogue.ids, catalogue.vectors.clone(), strict=True))
    new = torch.nn.functional.normalize(torch.randn(2, 40, 32), dim=2)
    for writer in range(2):
        vectors |= {f"w{writer}-{row}": new[writer, row] for row in range(40)}

    def write(writer):
        ids = [f"w{writer}-{row}" for row in range(40)]
        while not stop.is_set():
            catalogue.add(ids, [{"title": item_id} for item_id in ids], new[writer], None)
            catalogue.remove(ids[::2])
            catalogue.remove(ids[1::2])

    def read(seed):
        queries = torch.nn.functional.normalize(
            torch.randn(8, 32, generator=torch.Generator().manual_seed(seed)), dim=1
        )
        while not stop.is_set():
            now = catalogue.snapshot()
            scores, rows = now.search(queries, 5)
            for query, own_scores, own_rows in zip(queries, scores, rows, strict=True):
                asked.append(len(own_rows))
                for score, row in zip(own_scores, own_rows, strict=True):
                    if abs(float(vectors[now.ids[row]] @ query) - score) > 1e-5 or len(set(own_rows)) != 5:
                        wrong.append((now.ids[row], score))
                    if now.items[row]["title"] != now.ids[row] or now.places[now.ids[row]] != row:
                        wrong.append(now.ids[row])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(2)]
    threads += [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(asked) > 100 and not wrong, (len(asked), wrong[:3])
    assert catalogue.ids == [f"i{row}" for row in range(400)]


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


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
def test_a_copy_is_a_catalogue_of_its_own(index, copied):
    if index == "faiss":
        pytest.importorskip("faiss")
    catalogue = filled(index=index)
    expected = catalogue.search(catalogue.vectors[:3], 5)
    twin = copied(catalogue)
    assert all(map(np.array_equal, twin.search(catalogue.vectors[:3], 5), expected))
    twin.remove(["i0"])
    twin.add(["new"], [{}], torch.randn(1, 32), None)
    assert "new" not in catalogue.ids and "i0" in catalogue.ids


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
    now = other.snapshot()
    other._now = replace(now, ids=now.ids[::-1], by_dimension=now.by_dimension.flip(1))
    other.save(tmp_path / "other")
    (tmp_path / "other" / name).replace(tmp_path / "c" / name)
    with pytest.raises(ValueError, match="not those that were saved together"):
        Catalogue.load(tmp_path / "c", WEIGHTS)


def test_a_saved_catalogue_is_searched_as_before_unless_told(tmp_path):
    filled(5, index="binary", rescore=9).save(tmp_path / "c")
    kept, told = Catalogue.load(tmp_path / "c", WEIGHTS), Catalogue.load(tmp_path / "c", WEIGHTS, "exact", 2)
    assert (kept.index, kept.rescore, told.index, told.rescore) == ("binary", 9, "exact", 2)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_saved_catalogue_is_readable_as_the_umask_says(tmp_path, umask, mode):
    catalogue, before = filled(5), os.umask(umask)
    try:
        catalogue.save(tmp_path / "c")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "c").iterdir()}
    assert modes == dict.fromkeys(["vectors.safetensors", "items.jsonl", "catalogue.json"], mode)


SAVER = """
import sys, torch
from jepa4rec.serving.catalogue_seqrec import _digests, Catalogue

number = 3
while True:
    catalogue = Catalogue("a" * 64, 8)
    number = 7 - number
    catalogue.add([f"i{n}" for n in range(number)], [{}] * number, torch.eye(8)[:number], None)
    catalogue.save(sys.argv[1])
    print(number, flush=True)
"""


@pytest.mark.slow("saves in a process of its own")
def test_a_folder_is_read_whole_while_another_process_saves_it(tmp_path):
    saver = subprocess.Popen([sys.executable, "-c", SAVER, tmp_path / "c"], stdout=subprocess.PIPE, text=True)
    try:
        saver.stdout.readline()
        sizes, given_up = [], time.monotonic() + 60  # until both were seen, also where the machine is busy
        while len(sizes) < 40 or (set(sizes) != {3, 4} and time.monotonic() < given_up):
            sizes.append(len(Catalogue.load(tmp_path / "c", WEIGHTS)))
    finally:
        saver.kill()
        saver.wait()
    assert set(sizes) == {3, 4}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux opens a file by its handle")
def test_a_folder_that_is_replaced_in_the_middle_of_every_reading_is_read(tmp_path, monkeypatch):
    filled(5).save(tmp_path / "c")
    digest = catalogue_seqrec.digest

    def and_meanwhile(path):
        if "/proc" in str(path):
            filled(6).save(tmp_path / "c")
        return digest(path)

    monkeypatch.setattr(catalogue_seqrec, "digest", and_meanwhile)
    assert len(Catalogue.load(tmp_path / "c", WEIGHTS)) == 5


def test_a_catalogue_saved_with_an_index_that_is_no_longer_offered_is_searched_exactly(tmp_path):
    filled(5).save(tmp_path / "c")
    change_about(tmp_path / "c", index="int8")
    assert Catalogue.load(tmp_path / "c", WEIGHTS).index == "exact"
    assert Catalogue.load(tmp_path / "c", WEIGHTS, index="binary").index == "binary"


def change_about(folder, **changes):
    path = folder / "catalogue.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [{"rescore": None}, {"rescore": True}, {"rescore": 0}, {"rescore": "4"}, {"index": None}, {"index": []},
     {"index": "hnsw"}, {"weights_hash": None}, {"weights_hash": 5}, {"sha256": None}, {"sha256": {}}],
)  # fmt: skip
def test_a_damaged_description_is_one_sentence(tmp_path, changes):
    filled(5).save(tmp_path / "c")
    change_about(tmp_path / "c", **changes)
    with pytest.raises(ValueError, match="c is damaged .*save the catalogue again"):
        Catalogue.load(tmp_path / "c", WEIGHTS)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a": 1}'])
def test_a_description_that_is_none_is_one_sentence(tmp_path, content):
    filled(5).save(tmp_path / "c")
    (tmp_path / "c" / "catalogue.json").write_bytes(content)
    with pytest.raises(ValueError, match="c is damaged .*save the catalogue again") as error:
        Catalogue.load(tmp_path / "c", WEIGHTS)
    assert "\n" not in str(error.value)


def test_broken_emoji_are_saved_and_what_json_does_not_know_is_refused(tmp_path):
    catalogue = filled(2)
    catalogue.add(["\ud83c"], [{"title": "Tea \ud83c"}], torch.ones(1, 32), None)
    catalogue.save(tmp_path / "c")
    again = Catalogue.load(tmp_path / "c", WEIGHTS)
    assert again.ids == catalogue.ids and again.items == [*catalogue.items[:2], {"title": "Tea ?"}]
    catalogue.add(["x"], [{"title": b"Tea"}], torch.ones(1, 32), None)
    with pytest.raises(ValueError, match="Item 'x' cannot be saved as JSON"):
        catalogue.save(tmp_path / "c")
    assert len(Catalogue.load(tmp_path / "c", WEIGHTS)) == 3


@pytest.mark.parametrize("name", ["vectors.safetensors", "items.jsonl", "catalogue.json"])
def test_a_damaged_catalogue_is_one_sentence(tmp_path, name):
    filled(5).save(tmp_path / "c")
    path = tmp_path / "c" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="is damaged .*save the catalogue again"):
        Catalogue.load(tmp_path / "c", WEIGHTS)


@pytest.mark.parametrize("popularity", ["[]", "1" + "0" * 400])
def test_a_catalogue_edited_by_hand_is_one_sentence(tmp_path, popularity):
    """The hashes fit, as somebody has written them anew."""
    filled(5).save(tmp_path / "c")
    lines = (tmp_path / "c" / "items.jsonl").read_text().splitlines()
    (tmp_path / "c" / "items.jsonl").write_text(
        "\n".join([*lines[:4], '{"item_id": "x", "item": {}, "popularity": ' + popularity + "}"])
    )
    about = json.loads((tmp_path / "c" / "catalogue.json").read_text())
    (tmp_path / "c" / "catalogue.json").write_text(json.dumps(about | {"sha256": _digests(tmp_path / "c")}))
    with pytest.raises(ValueError, match="/c is damaged .*save the catalogue again"):
        Catalogue.load(tmp_path / "c", WEIGHTS)


def test_the_name_of_other_weights_is_told_in_one_line(tmp_path):
    filled(5).save(tmp_path / "c")
    change_about(tmp_path / "c", weights_hash="\n")
    with pytest.raises(ValueError, match=r"holds vectors of other weights \('\\n', this"):
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
        (lambda c: c.search(torch.ones(1, 32), 0), "top_k is 0; at least 1"),
        (lambda c: c.rows([True]), "text or a whole number, not True"),
        (lambda c: c.remove([101.0]), "text or a whole number, not 101.0"),
        (lambda c: c.add(["x"], [{}], torch.ones(1, 32), ["many"]), "no number"),
        (lambda c: Catalogue("", 3, "hnsw"), "one of exact, faiss, binary"),
        (lambda c: Catalogue("", 3, rescore=0), "at least 1"),
        (lambda c: Catalogue("", 3, rescore=True), "at least 1"),
        (lambda c: split_items([{"title": "x"}]), "Item 0 has no item_id"),
        (lambda c: split_items([{"item_id": [1]}]), "text or a whole number, not .1. .list."),
        (lambda c: split_items([{"item_id": np.array([1, 2])}]), "text or a whole number"),
        (lambda c: split_items("items"), "items is 'items' .str.; it is a list"),
        (lambda c: split_items(None), "items is None"),
        (lambda c: split_items(iter([])), "it is a list"),
    ],
)
def test_what_cannot_be_is_one_sentence(call, sentence):
    catalogue = filled(5)
    with pytest.raises(ValueError, match=sentence) as error:
        call(catalogue)
    assert len(catalogue.ids) == len(catalogue.vectors) == len(catalogue.snapshot().places) == 5
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("index", INDEXES)
def test_the_benchmark_measures_every_index(index):
    needs(index)
    measured = measure_index(2000, index, rescore=20, queries=5)
    assert measured["recall@10"] > (0.7 if index == "binary" else 0.95)
    assert 0 < measured["p50_ms"] <= measured["p99_ms"]
    told = page({"width": 384, "threads": 1, "queries": 5, "searches": [measured]}).splitlines()[-1]
    assert told.startswith(f"| 2,000 | {index} | {measured['p50_ms']:.1f} |")
