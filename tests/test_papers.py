"""What the code says of the three papers stands in them."""

import ast
import importlib
import re
import shlex
import subprocess
from functools import cache
from typing import NamedTuple

import pytest
from conftest import ROOT
from papers import citations, stands_in

from jepa4rec.baselines import BASELINE_MODELS
from jepa4rec.hub.opening import ENCODERS
from jepa4rec.training.recipe import read_recipe
from jepa4rec.training.start import check_config_overrides

# Logs of what was, not claims about the code; and the page whose rows are tested by paper below.
ELSEWHERE = ("CHANGELOG.md", "docs/training-log.md", "docs/papers.md", "results/", "tests/")


def citing_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md", "*.yaml"], cwd=ROOT, capture_output=True, text=True)
    return [name for name in listed.stdout.split() if not name.startswith(ELSEWHERE)]


def test_every_cited_section_stands_in_its_paper():
    lost = []
    for name in citing_files():
        cited = citations((ROOT / name).read_text(encoding="utf-8"))
        lost += [f"{name}: {paper}, {place}" for paper, place in cited if not stands_in(paper, place)]
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize(
    "paper, place, stands",
    [
        ("JEPA4Rec", "section 3.3.2", True),
        ("JEPA4Rec", "section 4.6", False),
        ("JEPA4Rec", "Appendix F", True),
        ("JEPA4Rec", "Figure 7b", True),
        ("JEPA4Rec", "Figure 9", False),
        ("RecFormer", "Table 4", True),
        ("RecFormer", "eq. 12", True),
        ("RecFormer", "eq. 13", False),
        ("ST5", "Tables A.1, A.3 and A.4", True),
        ("ST5", "section 4.4.1.2", True),
        ("ST5", "appendix B.3", True),
        ("ST5", "section 7.1", False),
    ],
)
def test_a_place_is_found_where_it_is_and_nowhere_else(paper, place, stands):
    assert stands_in(paper, place) is stands


def test_a_citation_belongs_to_the_paper_named_last():
    text = (
        '''"""As in section 3.3, and RecFormer's Algorithm 1; the ST5 thesis, section 4.4.1, and Longformer, §3."""'''
    )
    assert citations(text) == [
        ("JEPA4Rec", "section 3.3"), ("RecFormer", "Algorithm 1"), ("ST5", "section 4.4.1"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ docs/papers.md

WAYS = ("exact", "by setting", "differs")
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")


class Row(NamedTuple):
    """A statement of a paper as the page has it."""

    paper: str
    place: str
    says: str
    where: str
    how: str
    command: str


def rows_of(page: str) -> list[Row]:
    found, paper = [], None
    for line in page.splitlines():
        if line.startswith("## "):
            paper = line.split()[1]
        if line.startswith("| ") and not line.startswith(("| place", "| ---")):
            found.append(Row(paper, *(cell.strip() for cell in line.strip("|").split(" | "))))
    return found


ROWS = rows_of(PAGE)
COMMANDS = sorted({row.command.strip("`") for row in ROWS})


@cache
def names_in(path: str) -> set[str]:
    """Functions, classes, methods (`Class.method`), assigned names of a module, and the classes' own methods inherited
    inside it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def check_reference(reference: str) -> None:
    path, _, name = reference.partition(":")
    assert (ROOT / path).is_file(), f"{path} does not exist"
    assert not name or name in names_in(path), f"{path} has no {name}"


def test_the_page_counts_its_rows():
    counts = [sum(row.how == way for row in ROWS) for way in WAYS]
    assert sum(counts) == len(ROWS), {row.how for row in ROWS}
    assert f"{len(ROWS)} statements: {counts[0]} exact, {counts[1]} by setting, {counts[2]} differ." in PAGE
    assert {row.paper for row in ROWS} == {"JEPA4Rec", "RecFormer", "ST5"}


def test_every_statement_is_of_a_place_in_its_paper():
    lost = [f"{row.paper}, {row.place}" for row in ROWS if not stands_in(row.paper, row.place)]
    assert not lost, "\n".join(lost)


def test_every_name_on_the_page_exists():
    for row in ROWS:
        references = re.findall(r"`([^`]+)`", row.where)
        assert references, f"{row.says}: says no file"
        for reference in references:
            check_reference(reference)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_on_the_page_names_what_there_is(command):
    words = shlex.split(command)
    settings = [word for before, word in zip(words, words[1:], strict=False) if before == "--set"]
    if words[0] == "pytest":
        path, _, name = words[1].partition("::")
        check_reference(f"{path}:{name.replace('::', '.')}")
    elif words[0] == "accelerate":
        assert words[1:3] == ["launch", "train_accelerate.py"]
        recipe = read_recipe(ROOT / words[words.index("--recipe") + 1], settings)
        holder = BASELINE_MODELS.get(recipe.model.baseline) or ENCODERS[recipe.model.family]
        check_config_overrides(recipe.model.config, holder.config_class)
    elif words[1].startswith("benchmarks/"):
        check_reference(words[1])
    else:
        check_reference(words[1])
        parser = importlib.import_module("jepa4rec." + words[1].removesuffix(".py").replace("/", ".")).PARSER
        options = parser.parse_args(words[2:])
        if words[1].startswith("studies/"):
            study = options.recipe if options.recipe.is_absolute() else ROOT / options.recipe
            module = importlib.import_module("jepa4rec." + words[1].removesuffix(".py").replace("/", "."))
            read_recipe(study, settings, module.main.study_recipe)


def test_a_row_says_its_setting_where_it_goes_by_one():
    for row in ROWS:
        if row.how == "by setting":
            assert re.search(r"--set|--recipe|--config|studies/|campaign|import_checkpoint", row.command), row
