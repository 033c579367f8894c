"""benchmarks/fuzz.py: its rule tells a sentence from a traceback, and a small part of it finds nothing."""

import json

import pytest

from jepa4rec.benchmarks import fuzz
from jepa4rec.benchmarks.fuzz import Case
from jepa4rec.training.typed_yaml import nearest, read_typed_yaml


def refused(attempt, *names: str) -> str | None:
    return fuzz.complaint(pytest.raises((ValueError, TypeError), attempt).value, names)


def test_the_rule_takes_a_sentence_of_ours_that_names_the_thing(tmp_path):
    missing = tmp_path / "r.yaml"
    missing.write_text("[]")
    assert refused(lambda: read_typed_yaml(missing, [], dict), "r.yaml") is None
    assert "names none of" in refused(lambda: read_typed_yaml(missing, [], dict), "another thing")


def test_the_rule_finds_what_a_library_or_an_expression_raised():
    assert "not raised by us: JSONDecodeError" in refused(lambda: json.loads("{"), "line")
    assert "not raised by us: TypeError" in refused(lambda: nearest(3, 5), "int")
    assert "KeyError" in fuzz.finding(Case(lambda: {}["a"], "", ("a",)))
    assert fuzz.finding(Case(lambda: 1, "", ())) is None


def test_a_case_can_be_had_again_alone(tmp_path):
    door = fuzz.recipes(type("Shop", (), {"folder": tmp_path}))
    first, again = (door(fuzz.random.Random("0/recipes/7")).shown for _ in range(2))
    assert first == again != door(fuzz.random.Random("0/recipes/8")).shown


@pytest.mark.slow("builds tables and opens checkpoints, ten of each kind")
def test_no_door_answers_with_a_traceback():
    report = fuzz.fuzz(list(fuzz.DOORS), seed=1, seconds=60, most=10)
    assert {kind: own["findings"] for kind, own in report.items()} == dict.fromkeys(fuzz.DOORS, [])
    assert all(own["cases"] == 10 for own in report.values())
