"""The benchmark for a GPU runs from end to end at toy sizes where there is none, and says so of the real ones."""

import json
import subprocess

import pytest
import torch
from conftest import ROOT
from processes import python

from jepa4rec.benchmarks import gpu


def run(tmp_path, *options) -> dict:
    command = [python(), str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "gpu.json"), *options]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    return json.loads((tmp_path / "gpu.json").read_text())


@pytest.mark.slow  # a process that loads torch and compiles C++
def test_every_part_runs_at_toy_sizes(tmp_path):
    report = run(tmp_path, "--toy")
    assert report["toy"] and len(report["parts"]) == 6
    assert not [name for name, part in report["parts"].items() if isinstance(part, str)], report["parts"]
    assert report["parts"]["training, MiniLM"]["pre-training, ours"]["seconds"] > 0


def test_a_peer_that_does_not_fit_says_so_and_takes_nothing_else_along(monkeypatch):
    class Full(torch.nn.Linear):
        def forward(self, **batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.\nMore of it.")

    monkeypatch.setattr(gpu, "peers", lambda *_: [("transformers, SDPA", Full(1, 1))])
    monkeypatch.setattr(gpu, "compile_token_wise", lambda model: None)
    for measure, peer, others in (
        (gpu.measure_encoding, "items", ["items, ours", "histories, ours"]),
        (gpu.measure_training, "fine-tuning", ["pre-training, ours", "fine-tuning, ours"]),
    ):
        found = measure(gpu.TOY_SHAPE, gpu.TOY, "cpu")
        told = "not measured: CUDA out of memory. Tried to allocate 80.00 GiB."
        assert found[f"{peer}, transformers, SDPA"] == told
        assert all(found[name]["seconds"] > 0 for name in others)


@pytest.mark.slow  # a process that loads torch
def test_without_a_gpu_nothing_is_measured_and_the_file_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here: the parts are measured")
    assert set(run(tmp_path)["parts"].values()) == {"not measured: no GPU"}
