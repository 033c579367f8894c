"""Datasets over real HTTP: `build_dataset.py --push`, the loopback Hub, and a stranger's `load_dataset`."""

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hub_server import empty_hub, run_client
from huggingface_hub import DatasetCard

from jepa4rec.datasets_builders import load_dataset_dir
from jepa4rec.model_cards.dataset_card import check_licence, dataset_card
from jepa4rec.scripts import build_dataset

TOY = ["toy_shop", "--option", "shoppers=40", "--out"]
PULL = """
import json, sys
from datasets import get_dataset_config_names, load_dataset
from huggingface_hub import snapshot_download

repo = "me/shop"
whole = {name: load_dataset(repo, name, split=name) for name in get_dataset_config_names(repo)}
streamed = {name: list(load_dataset(repo, name, split=name, streaming=True)) for name in whole}
assert all(streamed[name] == table.to_list() for name, table in whole.items())
print(json.dumps([snapshot_download(repo, repo_type="dataset"), {name: table[0] for name, table in whole.items()}]))
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The Hub, the folder, and what building and pushing the toy shop printed."""
    home = tmp_path_factory.mktemp("datasets")
    with empty_hub() as hub:
        done = run_client(
            hub.url, home, str(ROOT / "scripts" / "build_dataset.py"), *TOY, home / "toy", "--push", "me/shop"
        )
        assert done.returncode == 0, done.stderr
        yield hub, home, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow("opens it in a process of a stranger")
def test_a_stranger_loads_and_streams_both_tables(pushed):
    hub, home, printed = pushed
    repository = hub.repositories["dataset", "me/shop"]
    assert len(repository.commits) == 2 and printed["published"].endswith(repository.refs["main"])
    done = run_client(hub.url, home, PULL, token=False)
    assert done.returncode == 0, done.stderr
    snapshot, first = json.loads(done.stdout.splitlines()[-1])
    dataset = load_dataset_dir(snapshot)
    assert dataset.fingerprint == printed["fingerprint"]
    assert first == {"items": dataset.items.slice(0, 1).to_pylist()[0],
                     "sequences": dataset.sequences.slice(0, 1).to_pylist()[0]}  # fmt: skip


@pytest.mark.slow("builds and pushes in a process of its own")
def test_the_card_says_what_the_dataset_is(pushed):
    _, home, printed = pushed
    card = DatasetCard.load(home / "toy" / "README.md", ignore_metadata_errors=False)
    assert card.data.license == "apache-2.0" and [c["config_name"] for c in card.data.configs] == [
        "sequences",
        "items",
    ]
    audited = json.loads((home / "toy" / "audit.json").read_text(encoding="utf-8"))
    assert audited["fingerprint"] == printed["fingerprint"] and audited["figures"]["repeat_targets"] == 0
    assert "| test targets that are in the user's history | 0.0 % |" in card.text
    for words in ("are invented", "Apache-2.0", "leave_one_out", printed["fingerprint"], f"{printed['users']:,}"):
        assert words in card.text


INFO = {"name": "yelp", "config": "all", "source": "Yelp", "licence": "academic use, no redistribution", "splits": "x"}


@pytest.mark.parametrize("licence", ["academic use, no redistribution", "none stated by the publisher", "not stated"])
def test_data_nobody_allowed_to_pass_on_stay_private(licence):
    info = {**INFO, "licence": licence}
    check_licence(info, private=True)
    with pytest.raises(ValueError, match=f"the licence of yelp .{licence}. .* with --private"):
        check_licence(info, private=False)


def test_a_licence_the_hub_has_no_name_for_is_called_other():
    counts = {"users": 1, "items": 2, "interactions": 3, "average_length": 3.0, "density": 1.5, "fingerprint": "f"}
    card = DatasetCard(dataset_card({**INFO, **counts}, "me/yelp"))
    assert card.data.license == "other" and "academic use, no redistribution" in card.text


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--push", "me/sh op"], "me/sh op is no repository id"),
        (["--push", "me/shop"], "there is no token to push with"),
        (["--private"], "give --push REPO_ID too"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_building(options, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build_dataset.py", *TOY, str(tmp_path / "toy"), *options])
    with pytest.raises(SystemExit) as stop:
        build_dataset.main()
    assert sentence in str(stop.value.code) and "\n" not in str(stop.value.code)
    assert not (tmp_path / "toy").exists()


def test_a_built_dataset_stays_when_its_push_is_refused(tmp_path, monkeypatch):
    sales, products = tmp_path / "sales.csv", tmp_path / "products.csv"
    sales.write_text("user_id,item_id\nanna,pot\nanna,tea\nanna,cup\n", encoding="utf-8")
    products.write_text("item_id,title\npot,Pot\ntea,Tea\ncup,Cup\n", encoding="utf-8")
    command = ["build_dataset.py", "table", "--data_files", str(sales), str(products), "--push", "me/mine", "--out"]
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "built")])
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    with pytest.raises(SystemExit, match="the licence of table .not stated."):
        build_dataset.main()
    assert load_dataset_dir(Path(tmp_path / "built")).num_items == 3
