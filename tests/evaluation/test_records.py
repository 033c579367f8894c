"""Records are written whole or not at all, and say how they came about without naming a machine's paths."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from jepa4rec.evaluation.records import describe_benchmark, describe_run, write_evaluation

INF = float("inf")


def test_an_evaluation_is_two_files(tmp_path):
    write_evaluation(tmp_path / "run", {"metrics": {"mrr": 0.5}}, np.array([1.5, INF]), ["a", "b"], np.array([3, 4]))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == {"metrics": {"mrr": 0.5}}
    rows = pq.read_table(tmp_path / "run" / "ranks.parquet").to_pydict()
    assert rows == {"user_id": ["a", "b"], "target": [3, 4], "rank": [1.5, INF]}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.json", "ranks.parquet"]


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    write_evaluation(tmp_path, {"old": True}, np.ones(1), ["a"], np.zeros(1))

    def disk_full(table, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_evaluation(tmp_path, {"old": False}, np.ones(1), ["a"], np.zeros(1))
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"old": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "ranks.parquet"]


def test_a_record_holds_no_nan_and_its_columns_fit(tmp_path):
    with pytest.raises(ValueError):
        write_evaluation(tmp_path / "run", {"mrr": float("nan")}, np.ones(1), ["a"], np.zeros(1))
    with pytest.raises(ValueError, match="2 ranks, 1 users and 1 targets"):
        write_evaluation(tmp_path / "run", {}, np.ones(2), ["a"], np.zeros(1))
    with pytest.raises(ValueError, match="not one table"):
        write_evaluation(tmp_path / "run", {}, np.ones(1), ["a"], np.zeros(1), np.ones(2))
    assert not (tmp_path / "run").exists()


def test_optimistic_ranks_are_kept_beside_the_strict_ones(tmp_path):
    write_evaluation(tmp_path, {}, np.array([1.5]), ["a"], np.array([3]), np.array([1.0]))
    rows = pq.read_table(tmp_path / "ranks.parquet").to_pydict()
    assert rows == {"user_id": ["a"], "target": [3], "rank": [1.5], "official_rank": [1.0]}


def test_the_command_of_a_run_names_no_machine_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(tmp_path / "scripts" / "x.py"), "/elsewhere/data", f"--out={tmp_path}/runs/1", "two words"]
    monkeypatch.setattr("sys.argv", words)
    run = describe_run()
    assert run["command"] == "python scripts/x.py data --out=runs/1 'two words'"
    assert run["hardware"] and set(run) == {"commit", "command", "hardware"}
    assert set(describe_benchmark()) == {*run, "flags", "torch"}
