"""scripts/recommend.py: everybody's recommendations are the pipeline's, whole, in order, and go on after a kill."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_ITEMS

from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.scripts import recommend
from jepa4rec.serving.pipeline_seqrec import SequentialRecommendationPipeline, save_checkpoint_files

IDS = [str(100 + row) for row in range(12)]


@pytest.fixture
def pipe(tiny_config, tiny_tokenizer, tmp_path):
    """A pipeline whose checkpoint and catalogue are in folders."""
    torch.manual_seed(0)
    tiny_config.initializer_range = 0.3
    model = Jepa4RecModel(tiny_config).eval()
    save_checkpoint_files(model, tiny_tokenizer, tmp_path / "checkpoint")
    made = SequentialRecommendationPipeline(model, tiny_tokenizer)
    items = [{"item_id": item_id, **item} for item_id, item in zip(IDS, TINY_ITEMS, strict=True)]
    made.add_items(items, popularity=range(12))
    made.save_catalogue(tmp_path / "catalogue")
    return made


@pytest.fixture
def histories():
    draw = np.random.default_rng(0)
    return [draw.choice(IDS, draw.integers(1, 6)).tolist() for _ in range(50)]


def write(path, histories, kind=None):
    users = pa.array([f"u{row}" for row in range(len(histories))])
    pq.write_table(pa.table({"user_id": users, "history": pa.array(histories, kind)}), path, row_group_size=7)


def run(folder, *options):
    fixed = [folder / "checkpoint", folder / "catalogue", folder / "histories.parquet", "--out", folder / "out"]
    recommend.main([*map(str, fixed), *options])
    return pq.read_table(folder / "out").to_pylist()


def same(rows, answers):
    for row, answer in zip(rows, answers, strict=True):
        assert row["item_ids"] == [own["item_id"] for own in answer] and row["error"] is None
        assert row["scores"] == pytest.approx([own["score"] for own in answer], abs=1e-5)


def test_everybody_gets_what_the_pipeline_gives(pipe, histories, tmp_path, capsys):
    write(tmp_path / "histories.parquet", histories)
    wishes = {"top_k": 3, "exclude_history": True, "most_per": {"brand": 1}, "diversity": 0.3}
    options = ["--top_k", "3", "--exclude_history", "--most_per", "brand=1", "--diversity", "0.3", "--part", "8"]
    rows = run(tmp_path, *options)
    assert [row["user_id"] for row in rows] == [f"u{row}" for row in range(50)]
    same(rows, pipe([{"history": history} for history in histories], **wishes))
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 7
    assert not (tmp_path / "out.unfinished").exists()
    told = capsys.readouterr()
    assert "50 users, 0 of these 50 without an answer" in told.out and "users/s" in told.out
    assert "16 of 50 users" in told.err


def test_a_run_that_was_killed_goes_on(pipe, histories, tmp_path, capsys):
    write(tmp_path / "histories.parquet", histories)
    rows = run(tmp_path, "--part", "10")
    unfinished = (tmp_path / "out").rename(tmp_path / "out.unfinished")
    (unfinished / "part-000003.parquet").unlink()
    (unfinished / ".77.part-000003.parquet").write_bytes(b"PAR1")
    before = {path.name: path.stat().st_mtime_ns for path in unfinished.glob("part-*")}
    capsys.readouterr()
    assert run(tmp_path, "--part", "10") == rows
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    assert before.items() < after.items() and len(after) == 5
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "out").glob(".*")) == []


def test_another_run_does_not_go_on_from_it(pipe, histories, tmp_path):
    write(tmp_path / "histories.parquet", histories)
    run(tmp_path)
    (tmp_path / "out").rename(tmp_path / "out.unfinished")
    with pytest.raises(SystemExit, match="out.unfinished was begun with other wishes"):
        run(tmp_path, "--top_k", "4")
    write(tmp_path / "histories.parquet", histories[::-1])
    with pytest.raises(SystemExit, match="out.unfinished was begun with other histories"):
        run(tmp_path)


def test_ids_keep_their_type_and_bad_rows_lose_nobody(pipe, tmp_path, capsys):
    numbers = [[100, 101], [], [999], None, [102]]
    write(tmp_path / "histories.parquet", numbers, pa.list_(pa.int64()))
    rows = run(tmp_path, "--top_k", "2")
    assert rows[1]["item_ids"] == rows[2]["item_ids"] == [111, 110]  # unknown ids are ignored: the most popular
    assert rows[3]["item_ids"] == [] and "is not {" in rows[3]["error"]
    same_history = pipe({"history": ["100", "101"]}, top_k=2)
    assert rows[0]["item_ids"] == [int(own["item_id"]) for own in same_history]
    assert "1 of these 5 without an answer" in capsys.readouterr().out
    rows = run(tmp_path, "--overwrite", "--unknown", "error")
    assert rows[2]["error"].startswith("Item '999' is not in the catalogue") and rows[4]["error"] is None


@pytest.mark.parametrize(
    ("other", "kind"),
    [("70000", pa.int64()), ("007", pa.string()), ("-0", pa.string()), ("9223372036854775808", pa.string())],
)
def test_an_id_never_turns_into_another(pipe, tmp_path, other, kind):
    pipe.add_items([{"item_id": other, "title": "torch"}], popularity=[99])
    pipe.save_catalogue(tmp_path / "catalogue")
    write(tmp_path / "histories.parquet", [[], [100]], pa.list_(pa.int16()))
    rows = run(tmp_path, "--top_k", "13")
    assert pq.read_schema(tmp_path / "out" / "part-000000.parquet").field("item_ids").type.value_type == kind
    assert str(rows[0]["item_ids"][0]) == other
    assert {str(item_id) for item_id in rows[1]["item_ids"]} == {*IDS, other}


def test_what_cannot_be_is_one_sentence(pipe, histories, tmp_path):
    write(tmp_path / "histories.parquet", histories)
    for options, told in (
        (["--top_k", "0"], "top_k is 0"),
        (["--part", "0"], "--part 0"),
        (["--most_per", "brnad=1"], "did you mean 'brand'"),
        (["--most_per", "brand=x"], "most_per of 'brand' is 'x'"),
        (["--index", "int8"], 'index is "int8"; it is one of'),
    ):
        with pytest.raises(SystemExit, match=told):
            run(tmp_path, *options)
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.unfinished").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match="this command did not write it"):
        run(tmp_path, "--overwrite")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    (tmp_path / "out" / "thesis.txt").unlink()
    (tmp_path / "out").rmdir()
    pq.write_table(pa.table({"user_id": ["u"], "history": ["100"]}), tmp_path / "histories.parquet")
    with pytest.raises(SystemExit, match="history in .* is string: a list of item ids is needed"):
        run(tmp_path)
    pq.write_table(pa.table({"user_id": ["u"], "items": [[1]]}), tmp_path / "histories.parquet")
    with pytest.raises(SystemExit, match="has no column 'history': it has user_id, items"):
        run(tmp_path)
    (tmp_path / "histories.parquet").write_bytes(b"user_id,history")
    with pytest.raises(SystemExit, match="histories.parquet cannot be read, it seems damaged"):
        run(tmp_path)
    write(tmp_path / "histories.parquet", [], pa.list_(pa.string()))
    with pytest.raises(SystemExit, match="has no rows"):
        run(tmp_path)
    pipe.remove_items(IDS[:6])
    pipe.catalogue.weights_hash = "b" * 64
    pipe.save_catalogue(tmp_path / "catalogue")
    with pytest.raises(SystemExit, match="holds vectors of other weights"):
        run(tmp_path)


def test_a_finished_run_is_kept_unless_told(pipe, histories, tmp_path):
    write(tmp_path / "histories.parquet", histories)
    run(tmp_path)
    with pytest.raises(SystemExit, match="is finished: choose another --out"):
        run(tmp_path)
    assert len(run(tmp_path, "--overwrite", "--top_k", "1")[0]["item_ids"]) == 1
    assert json.loads((tmp_path / "out" / "_recommend.json").read_text())["wishes"]["top_k"] == 1
