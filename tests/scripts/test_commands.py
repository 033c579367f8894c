"""Every command: help comes before torch, slips and errors are one sentence, and a wheel brings what they need."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from zipfile import ZipFile

import pytest
import torch
from conftest import ROOT
from processes import python

from jepa4rec.scripts.__main__ import COMMANDS
from jepa4rec.train_accelerate import PARSER
from jepa4rec.training.command_line import command, command_parser, parse_setting

NO_COMMANDS = ("__init__", "__main__", "measuring", "studying")
FILES = [path for room in ("scripts", "studies") for path in sorted((ROOT / room).glob("*.py"))]
FILES = [ROOT / "train_accelerate.py", *(path for path in FILES if path.stem not in NO_COMMANDS)]
TIMED = "encoder engines gpu length_grouping onnx_export primitive_cache ranking recformer_official softmax_memory"
TIMED = [*TIMED.split(), "step", "texts_once"]
FILES += [ROOT / "benchmarks" / f"{name}.py" for name in TIMED]
HEAVY = ("torch", "transformers", "datasets", "numpy")


# The line that answers a plea for help answers a slip: one command is enough to show it.
ASKED = [*((path, "--help", 0) for path in FILES), (FILES[0], "--slip", 2)]
# Each in a fork of an interpreter that has loaded nothing heavy: how it ended, what it told, what it has loaded.
ASK = """
import argparse, json, os, runpy, sys, yaml

for number, (path, argument) in enumerate(json.loads(sys.argv[1])):
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    told = os.open(f"{number}.told", os.O_CREAT | os.O_WRONLY)
    os.dup2(told, 1), os.dup2(told, 2)
    sys.argv[:], sys.path[0], code = [path, argument], os.path.dirname(path), None
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        code = end.code
    with open(f"{number}.json", "w") as file:
        json.dump([code, list(sys.modules)], file)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)
"""


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A folder with what every command told and had loaded when it had answered."""
    folder = tmp_path_factory.mktemp("answered")
    asked = json.dumps([[str(path), argument] for path, argument, _ in ASKED])
    subprocess.run([sys.executable, "-c", ASK, asked], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("number", range(len(ASKED)), ids=[f"{path.stem}{word}" for path, word, _ in ASKED])
def test_help_and_slips_come_before_anything_heavy_is_loaded(number, answered):
    path, _, expected = ASKED[number]
    told = (answered / f"{number}.told").read_text(encoding="utf-8")
    code, loaded = json.loads((answered / f"{number}.json").read_text(encoding="utf-8"))
    assert code == expected and told.startswith(f"usage: {path.stem} "), told
    assert "jepa4rec.training.command_line" in loaded and not set(HEAVY) & set(loaded)


def test_every_command_with_settings_takes_several_at_once(answered):
    told = [(answered / f"{number}.told").read_text(encoding="utf-8") for number in range(len(FILES))]
    of_settings = [re.search(r"^ +--set (\S+)(.*)", text, re.MULTILINE) for text in told if "--set" in text]
    assert len(of_settings) > 10 and all(found[2].startswith(f" [{found[1]} ...]") for found in of_settings)
    options = PARSER.parse_args("--recipe r.yaml --set a=1 b=2 --set c=3".split())
    assert options.settings == ["a=1", "b=2", "c=3"] and not PARSER.parse_args(["--recipe", "r.yaml"]).settings


def test_errors_and_interruptions_are_one_sentence():
    parser = command_parser("scripts/some_command.py", "What it does.")
    for error, told in (
        (ValueError("two\n  lines"), "some_command: two lines"),
        (FileNotFoundError("no file"), "some_command: no file"),
        (KeyboardInterrupt(), "some_command: stopped"),
    ):

        @command(parser, "stopped")
        def main(options, error=error):
            raise error

        with pytest.raises(SystemExit) as stop:
            main([])
        assert stop.value.code == told
    with pytest.raises(ZeroDivisionError):  # a fault of ours keeps its traceback
        command(parser)(lambda options: 1 / 0)([])


KEEP = """
import torch
from jepa4rec.training.command_line import command, command_parser

@command(command_parser("keep", ""))
def main(options):
    for length in [*range(1, 101)] * 2:
        torch.nn.functional.gelu(torch.zeros(length, 8))

main([])
"""


@pytest.mark.slow("starts processes that load torch")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("said, prepared", [({}, 200), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}, 100)])
def test_a_command_keeps_few_of_the_shapes_that_onednn_prepares(said, prepared):
    """Of a hundred shapes that come twice none is kept long enough, unless somebody says otherwise."""
    clean = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    environment = {**clean, "PYTHONPATH": str(ROOT), "ONEDNN_VERBOSE": "2", **said}
    done = subprocess.run([python(), "-c", KEEP], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("create:cache_miss,") == prepared


def test_settings_are_yaml():
    assert parse_setting("--option", "a=[1, x]") == ("a", [1, "x"])
    for value, read in {"[]": [], "{}": {}, "~": None, "''": "", "-1": -1, ".5": 0.5}.items():
        assert parse_setting("--option", f"a={value}") == ("a", read)
    for signs in ("::", "|", ";", ",", "#", "^"):
        assert parse_setting("--option", f"delimiter={signs}") == ("delimiter", signs)
    with pytest.raises(ValueError, match="--option takes KEY=VALUE, not 'a'"):
        parse_setting("--option", "a")


@pytest.mark.slow("starts every command in a process of its own")
def test_the_few_commands_are_listed_and_lead_to_their_scripts(tmp_path):
    def jepa4rec(*words):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from jepa4rec.scripts.__main__ import main; main()"
        return subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)

    listed = jepa4rec("--help")
    assert listed.returncode == 0 and all(f"\n  {name} " in listed.stdout for name in COMMANDS)
    assert jepa4rec().stdout == listed.stdout
    for name, (module, _) in COMMANDS.items():
        assert jepa4rec(name, "--help").stdout.startswith(f"usage: {module.rpartition('.')[2]} ")
    wrong = jepa4rec("trian")
    assert wrong.returncode == 1 and wrong.stderr.startswith("jepa4rec: there is no command trian; there are build, ")
    built = jepa4rec("build", "toy_shop", "--out", "x", "--option", "shoppers=30")
    assert built.returncode == 0, built.stderr
    assert '"users": 30' in built.stdout and (tmp_path / "x" / "items.parquet").is_file()


def test_the_page_of_both_ways_names_every_command():
    page = (ROOT / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `python (\S+)\.py …` \| `jepa4rec (\w+) …` \|$", page, re.MULTILINE)
    assert {name: path.replace("/", ".") for path, name in rows} == {n: module for n, (module, _) in COMMANDS.items()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel of this checkout installs."""
    home = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "runs", "data", "results", "tests", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, home / "source", ignore=left_out)
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(home)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=home / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ZipFile(home / done.stdout.split()[-1]).extractall(home / "installed")
    return home / "installed"


def test_a_wheel_brings_all_that_commands_need(installed):
    wanted = [*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("model_cards/*.jinja"), *ROOT.glob("serving/space/*.*")]
    missing = [path for path in wanted if not (installed / "jepa4rec" / path.relative_to(ROOT)).is_file()]
    assert wanted and not missing


@pytest.mark.slow("builds a wheel and trains from it")
def test_an_installed_package_has_its_version_and_runs_from_any_folder(installed, tmp_path):
    def run(*words):
        code = f"import runpy, sys; sys.path.insert(0, {str(installed)!r}); sys.argv[:] = {list(words)!r}\n"
        code += "import jepa4rec; print(jepa4rec.__version__); runpy.run_module(sys.argv[0], run_name='__main__')"
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert run("jepa4rec.scripts", "--help").stdout.startswith(f"{version}\nusage: jepa4rec COMMAND")
    # The recipe is the package's own, its data are to be made by whoever runs it.
    told = run("jepa4rec.train_accelerate", "--recipe", "recipes/sasrec.yaml")
    assert told.returncode == 1 and told.stderr.splitlines()[-1].startswith("train_accelerate: data/scientific ")


def test_static_tools_see_the_checkout_as_the_package():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    link = ROOT / pyproject["tool"]["pyright"]["stubPath"] / "jepa4rec"
    assert link.is_symlink() and link.resolve() == ROOT and not link.readlink().is_absolute()
    if shutil.which("pyright") is None:
        pytest.skip("pyright is not installed: pip install 'pyright[nodejs]'")
    files = ["train_accelerate.py", "scripts/results_table.py", "studies/ablations.py"]
    told = subprocess.run(["pyright", *files], cwd=ROOT, capture_output=True, text=True).stdout
    assert 'Import "jepa4rec' not in told
