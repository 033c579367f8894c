"""docs/extend.md is true: its files, written into a checkout as they stand there, are found, train and publish."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow("trains in a copy of the checkout")

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
LOANS = "reader;day;title;author\n" + "".join(f"r{n % 5};{n};Volume {n % 7};A. Writer\n" for n in range(40))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the programs with the page's files in it, and its one registry line."""
    folder = tmp_path_factory.mktemp("extended")
    for path in ROOT.iterdir():
        if path.suffix == ".py" or path.name in rooms():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    for name, content in re.findall(r"^```(?:python|yaml)\n# (\S+/\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        assert not (folder / name).exists()
        (folder / name).write_text(content, encoding="utf-8")
    registry = folder / "datasets_builders" / "__init__.py"
    line = re.search(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1]
    text = registry.read_text(encoding="utf-8").replace('    "online_retail"', f'{line}    "online_retail"', 1)
    registry.write_text(f"{text}\nfrom .library import Library\n".replace(
        "from .online_retail", "from .library import Library\nfrom .online_retail", 1
    ), encoding="utf-8")  # fmt: skip
    (folder / "loans.csv").write_text(LOANS, encoding="utf-8")
    return folder


def rooms() -> set[str]:
    rooms = ("serving baselines datasets_builders evaluation hub model_cards training scripts recipes").split()
    assert all((ROOT / room).is_dir() for room in rooms)
    return set(rooms)


def run(folder, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def commands(section: str) -> list[list[str]]:
    text = PAGE.partition(f"\n## {section}")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_a_dataset_is_a_file_and_a_line(checkout):
    for _, *words in commands("A dataset"):
        assert '"users": 5' in run(checkout, *words)


@pytest.mark.parametrize(("section", "name"), [("A loss", "bpr"), ("A baseline", "bag_of_items")])
def test_a_kind_of_phase_and_a_baseline_are_a_file_and_a_recipe(checkout, section, name):
    for _, _, *words in commands(section):
        assert "item_transition" in run(checkout, *words)
    assert (checkout / "runs" / name / "checkpoint" / "README.md").is_file()
    log = (checkout / "runs" / name / "log.jsonl").read_text(encoding="utf-8")
    assert ('"bpr"' in log) == (name == "bpr")
    if name == "bag_of_items":  # a stranger's process opens it before it is pushed
        run(checkout, "scripts/push_to_hub.py", f"runs/{name}", "me/bag", "--dry_run")
