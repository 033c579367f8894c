"""benchmarks/torture.py: a few of each of its parts, and that it would see what did not survive."""

import json
import random
import subprocess

import pytest
from processes import python

from jepa4rec.benchmarks import torture

pytestmark = pytest.mark.slow("kills, resumes and crowds small real runs")


PARTS = [part for part in torture.PARTS if part != "fuzz"]  # which test_fuzz.py runs


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """All parts in one process of their own, as forks of one with many threads may hang."""
    path = tmp_path_factory.mktemp("torture") / "report.json"
    words = [python(), torture.__file__, "--small", "--parts", *PARTS, "--out", str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert path.is_file(), done.stdout + done.stderr
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", PARTS)
def test_all_is_survived_refused_or_answered(part, report):
    found = report["parts"][part]
    assert found["failed"] == 0 and found["rows"], found
    assert f"## {torture.TABLES[part][0]}\n" in torture.page(report)


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
