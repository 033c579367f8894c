"""Claims about the repository itself: what must be there, what may not, which imports and versions are allowed."""

import ast
import json
import re
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

from jepa4rec.training.recipe import read_recipe

REQUIRED = (
    "modeling_jepa4rec.py configuration_jepa4rec.py tokenization_itemsent.py train_accelerate.py datasets_builders "
    "model_cards tests README.md jepa4rec.py pyproject.toml constraints.txt Makefile .ci/run LICENSE CITATION.cff "
    "CHANGELOG.md docs/CONTRIBUTING.md"
).split()
# A root file or folder of these names would shadow the library it is named after.
SHADOWING = ("evaluate", "datasets", "accelerate", "tokenizers", "transformers", "torch", "huggingface_hub")
JUNK_DRAWERS = ("utils", "helpers", "common", "misc")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def source_files() -> list[Path]:
    folders = ("", *(path.name for path in sorted(ROOT.iterdir()) if path.is_dir() and path.name[0] != "."))
    return [path for folder in folders for path in sorted((ROOT / folder).glob("**/*.py" if folder else "*.py"))]


def test_required_names_are_there():
    assert not [name for name in REQUIRED if not (ROOT / name).exists()]


def test_no_name_shadows_a_library_or_says_nothing():
    names = {path.stem for path in ROOT.iterdir()} | {path.stem for path in source_files()}
    assert not names & {*SHADOWING, *JUNK_DRAWERS}


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_is_python_311(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 11))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_parses(path):
    assert read_recipe(path).run.output_dir


def requirement_name(line: str) -> str:
    return re.match(r"[\w.-]+", line).group().lower().replace("_", "-")


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {requirement_name(name): Version(version) for name, version in pins.items()}
    asked = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    allowed = {
        requirement_name(one.name): next(s.version for s in one.specifier if s.operator == ">=") for one in asked
    }
    assert {name: Version(version) for name, version in allowed.items()} == pins


def test_constraints_pin_every_dependency_exactly_and_by_public_version():
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+(; python_version (<|>=) "3\.11")?', pin) for pin in pins)
    assert {requirement_name(line) for line in wanted} <= {requirement_name(line) for line in pins}


def test_every_folder_of_code_is_packaged():
    """A folder that is imported as `jepa4rec.x` must be in the wheel as well."""
    packages = PYPROJECT["tool"]["setuptools"]["packages"]
    folders = {str(path.parent.relative_to(ROOT)) for path in source_files()}
    folders = {folder for folder in folders if folder.partition("/")[0] not in (".", "benchmarks", "tests")}
    assert {f"jepa4rec.{folder.replace('/', '.')}" for folder in folders} <= set(packages)


def test_version_is_said_the_same_everywhere():
    import jepa4rec

    version = PYPROJECT["project"]["version"]
    assert jepa4rec.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_continuous_integration_runs_the_readmes_target():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text(encoding="utf-8").rstrip().endswith("make test")


def test_the_page_of_studies_has_a_verdict_a_picture_and_the_command_of_each_record():
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    for section in page.split("\n## ")[1:]:
        verdicts = re.search(r"\*\*(Reproduced|Not reproduced|Contradicted|Not run here)", section, re.IGNORECASE)
        assert verdicts and "\n- Ours: " in section and "`python studies/" in section, section.partition("\n")[0]
    shown = {ROOT / "docs" / path for path in re.findall(r"\]\((\S+)\.png\)", page)}
    shown = {Path(f"{path.resolve()}.json") for path in shown}
    records = {path for path in (ROOT / "results" / "studies").rglob("*.json") if path.parent.name != "finished"}
    real = {path for path in records if "toy_shop" not in path.name}
    assert shown <= records and real <= shown
    for path in real:
        assert json.loads(path.read_text(encoding="utf-8"))["command"] in page, path.name


def test_the_page_of_results_says_which_ranks_lack_official_ties():
    files = sorted((ROOT / "results" / "ranks").glob("*.parquet"))
    older = [path for path in files if "official_rank" not in pq.read_schema(path).names]
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"{len(older)} of the {len(files)}\n" in page
    hybrids = [path for path in older if not re.search(r"zero-shot|unisrec", path.stem)]
    assert f"all {len(hybrids)} of the older hybrids" in page
    most = max(int((pq.read_table(path)["rank"].to_numpy() % 1 > 0).sum()) for path in hybrids)
    assert f"at most {most} users" in page
