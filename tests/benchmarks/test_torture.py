"""benchmarks/torture.py: a few of each of its parts, and that it would see what did not survive."""

import json
import random
import subprocess
import sys

import pytest

from jepa4rec.benchmarks import torture

pytestmark = pytest.mark.slow("kills, resumes and crowds small real runs")


def small(part: str, tmp_path) -> dict:
    """The part in a process of its own, as forks of one with many threads may hang."""

    words = [sys.executable, torture.__file__, "--small", "--parts", part, "--out", str(tmp_path / "r.json")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "r.json").read_text())["parts"][part]


@pytest.mark.parametrize("part", ["kills", "signals", "disk", "damage", "catalogue", "crowds", "memory"])
def test_all_is_survived_refused_or_answered(part, tmp_path):
    found = small(part, tmp_path)
    assert found["failed"] == 0 and found["rows"]
    assert torture.TABLES[part][0] in torture.page({"machine": "2 cores.", "parts": {part: found}})


def test_a_wrong_answer_is_seen():
    ids, query = ["1", "2"], torture.vectors_of(["1"])[0]
    items = [{"title": f"item {own}"} for own in ids]
    scores = (torture.vectors_of(ids) @ query).numpy()
    assert not torture.wrong(ids, items, scores, query, {"1"})
    assert torture.wrong(ids, items[::-1], scores, query, {"1"})
    assert torture.wrong(ids, items, scores + 0.1, query, {"1"})
    assert torture.wrong(ids[::-1], items[::-1], scores[::-1], query, {"1"})
    assert torture.wrong(ids[1:], items[1:], scores[1:], query, {"1"})


def test_a_bit_is_flipped_and_no_more(tmp_path):
    (tmp_path / "f").write_bytes(bytes(100))
    torture.spoil(tmp_path / "f", "one bit flipped", random.Random(0))
    assert bin(int.from_bytes((tmp_path / "f").read_bytes())).count("1") == 1
