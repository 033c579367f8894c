"""docs/extend.md is true: its files, written into a checkout as they stand there, are found, train and publish."""

import os
import re
import shlex
import shutil
import subprocess

import pytest
from conftest import ROOT
from processes import python

pytestmark = pytest.mark.slow("trains in a copy of the checkout")

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
LOANS = "reader;day;title;author\n" + "".join(f"r{n % 5};{n};Volume {n % 7};A. Writer\n" for n in range(40))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the programs and their licence with the page's files in it, and its one registry line."""
    folder = tmp_path_factory.mktemp("extended")
    for path in ROOT.iterdir():
        if path.suffix == ".py" or path.name == "LICENSE" or path.name in rooms():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    for name, content in re.findall(r"^```(?:python|yaml)\n# (\S+/\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        assert not (folder / name).exists()
        (folder / name).write_text(content, encoding="utf-8")
    library, cells = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    register(
        folder / "datasets_builders" / "__init__.py", library, '    "online_retail"', "from .library import Library"
    )
    register(folder / "serving" / "catalogue_seqrec.py", cells, '    "binary"', "from .cells_seqrec import Cells")
    (folder / "loans.csv").write_text(LOANS, encoding="utf-8")
    return folder


def register(path, line: str, before: str, imported: str) -> None:
    """Write a registry's new line, and its import before the first one from beside it."""
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, line + before).replace("\nfrom .", f"\n{imported}\nfrom .", 1), "utf-8")


def rooms() -> set[str]:
    rooms = ("serving baselines datasets_builders evaluation hub model_cards training scripts recipes").split()
    assert all((ROOT / room).is_dir() for room in rooms)
    return set(rooms)


def run(folder, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python(), *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
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
        told = run(checkout, "scripts/push_to_hub.py", f"runs/{name}", "me/bag", "--dry_run")
        assert "all checks passed" in told and "pipeline_item_ids.py" in told and "item_ids.json" in told


SEARCH = """
import torch
from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.serving.catalogue_seqrec import Catalogue

vectors = torch.nn.functional.normalize(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)), dim=1)
for index in ("exact", "cells"):
    catalogue = Catalogue("hash", 16, index)
    catalogue.add([f"i{row}" for row in range(400)], [{}] * 400, vectors, None)
    catalogue.add(["late"], [{}], -vectors[:1], None)
    print([row[0] for row in catalogue.search(vectors[:3], 5)[1].tolist()], catalogue.search(-vectors[:1], 1)[1][0, 0])
shape = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
Jepa4RecModel(Jepa4RecConfig(**shape)).save_pretrained("indexed")
"""


def test_a_way_to_search_is_a_file_and_a_line(checkout):
    exact, cells = run(checkout, "-c", SEARCH).splitlines()
    assert exact == cells == "[0, 1, 2] 400"  # the item that came later too
    assert (checkout / "indexed" / "cells_seqrec.py").is_file()  # what a checkpoint is searched by travels with it
