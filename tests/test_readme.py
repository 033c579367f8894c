"""The README tells the truth: its blocks run on tiny things, its commands parse, its paths and targets exist."""

import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.pipeline_seqrec import save_checkpoint_files
from jepa4rec.recipe_seqrec import read_recipe
from jepa4rec.scripts import build_dataset, evaluate_checkpoint, push_to_hub, show_recommendations
from jepa4rec.studies import cold_items
from jepa4rec.studies.studying import RECIPES

README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKPOINT = "runs/quickstart/checkpoint"
RUN = "runs/quickstart"


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every shell command of the README, comments left out."""
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_backend):
    """A folder laid out like quickstart's, with an untrained checkpoint."""
    from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
    from jepa4rec.tokenization_itemsent import ItemSentTokenizer

    folder = tmp_path_factory.mktemp("readme") / "run"
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"vocab_size": len(tiny_backend), "pad_token_id": tiny_backend.pad_token_id}
    model, tokenizer = Jepa4RecModel(Jepa4RecConfig(**shape, **ids)), ItemSentTokenizer.wrap(tiny_backend)
    save_checkpoint_files(model, tokenizer, folder / "checkpoint")
    return folder


def test_the_loading_and_recommending_blocks_run(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(block.replace(CHECKPOINT, str(run_folder / "checkpoint")), names)
    assert names["vectors"].shape == (2, 16)
    assert {item["item_id"] for item in names["found"]} == {"dipper", "torch"}
    assert "dipper" in capsys.readouterr().out
    assert (tmp_path / "catalogue" / "vectors.safetensors").is_file()


def test_the_dry_run_of_publishing_is_understood():
    command = next(command for command in commands() if "push_to_hub.py" in command)
    options = push_to_hub.parse_arguments(shlex.split(command)[2:])
    assert options.dry_run and options.repo_id.count("/") == 1
    push_to_hub.check_repo_id(options.repo_id)


def test_studies_of_the_readme_exist_with_their_settings():
    command = next(command for command in commands() if command.startswith("python studies/"))
    words = shlex.split(command)
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    recipe = read_recipe(RECIPES / "cold_items.yaml", settings, cold_items.ColdItemsRecipe)
    assert (RECIPES / recipe.base).is_file()


def test_loading_takes_five_lines_and_own_data_ten():
    load = [line for line in blocks("python")[0].splitlines() if line.strip() and not line.startswith("from ")]
    assert len(load) == 5
    own_data = README.partition("## Your own data")[2].partition("\n## ")[0]
    lines = [
        line for block in re.findall(r"```\w+\n(.*?)```", own_data, flags=re.DOTALL) for line in block.split("\n")
    ]
    assert len([line for line in lines if line.strip()]) == 10


def test_own_data_goes_from_two_files_to_recommendations(run_folder, tmp_path, tiny_items, monkeypatch, capsys):
    interactions, items = blocks("csv")
    ids = [f"i{row}" for row in range(len(tiny_items))]
    sales = [f"{user},{ids[(user + step) % 12]},2024-03-{step + 1:02}" for user in range(6) for step in range(5)]
    products = [f'{name},"{item["title"]}",{item["brand"]}' for name, item in zip(ids, tiny_items, strict=True)]
    (tmp_path / "sales.csv").write_text("\n".join([interactions.splitlines()[0], *sales]), encoding="utf-8")
    (tmp_path / "products.csv").write_text("\n".join([items.splitlines()[0], *products]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for script in (build_dataset, evaluate_checkpoint):
        name = script.__name__.rpartition(".")[2]
        command = next(c for c in commands() if f"scripts/{name}.py" in c and "data/shop" in c)
        monkeypatch.setattr(sys, "argv", shlex.split(command.replace(RUN, str(run_folder)))[1:] + cutoffs(name))
        script.main()
    assert (tmp_path / "runs/shop-zero-shot/metrics.json").is_file()
    monkeypatch.setattr(sys, "argv", ["show_recommendations.py", str(run_folder), "data/shop", "--users", "2"])
    show_recommendations.main()
    shown = capsys.readouterr().out
    assert shown.count("would be shown:") == 2 and "Two-person tent" in shown


def cutoffs(name: str) -> list[str]:
    """Twelve items are too few for the usual recall at 50."""
    return ["--cutoffs", "5", "10"] if name == "evaluate_checkpoint" else []


def training_commands() -> list[str]:
    return [command for command in commands() if "train_accelerate.py" in command]


@pytest.mark.parametrize("command", training_commands())
def test_training_commands_name_a_recipe_and_keys_that_exist(command):
    words = shlex.split(command)
    launch, train = words[: words.index("train_accelerate.py")], words[words.index("train_accelerate.py") + 1 :]
    recipe = train[train.index("--recipe") + 1] if "--recipe" in train else "recipes/quickstart.yaml"
    settings = [train[place + 1] for place, word in enumerate(train) if word == "--set"]
    assert len(train) == 2 * (len(settings) + ("--recipe" in train))
    read_recipe(ROOT / recipe, settings)
    if "--config_file" in launch:
        assert (ROOT / launch[launch.index("--config_file") + 1]).is_file()


def test_settings_given_to_make_quickstart_exist():
    given = [re.search(r'SET="([^"]*)"', command) for command in commands() if command.startswith("make")]
    settings = [setting for match in given if match for setting in match.group(1).split()]
    assert settings
    read_recipe(ROOT / "recipes/quickstart.yaml", settings)


def test_make_targets_exist():
    named = set(re.findall(r"\bmake ([a-z]+)", README))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"quickstart", "test"} <= named <= targets


def test_make_help_comes_first_and_lists_every_target():
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert shown == subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("quickstart", "test", "check", "bench"):
        assert f"make {target} " in shown


def test_files_and_folders_exist():
    written_by_runs = (".venv/", "runs/", "data/", "results/", "checkpoint/", "recipe.yaml")
    paths = re.findall(r"`((?:[\w.]+/)*[\w]+\.(?:py|yaml|cff|md)|[\w/]+/)`", README)
    kept = [path for path in paths if not path.startswith(written_by_runs)]
    assert len(paths) > 20
    assert not [path for path in kept if not (ROOT / path).exists()]
