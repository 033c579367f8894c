"""README.md and docs/ tell the truth: every command and block in them runs, in order, on small made-up things."""

import gzip
import json
import random
import re
import shutil
import subprocess

import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, TINY_ITEMS
from documents import TINY, Desk, blocks, steps
from hub_server import Repository, empty_hub
from transformers import BertConfig, BertForMaskedLM
from transformers import logging as transformers_logging

from jepa4rec import train_accelerate
from jepa4rec.datasets_builders import build, save_dataset
from jepa4rec.training.recipe import read_recipe
from tests.datasets_builders.test_builders import write_invoices
from tests.hub.test_recformer import longformer_config, official_state, save_tokenizer

pytestmark = pytest.mark.slow("runs every command of every page")

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The columns of a document's two csv blocks, by what stands in them.
COLUMNS = {
    "user": ("user_id", "customer"),
    "item": ("item_id", "sku"),
    "time": ("timestamp", "ordered_at"),
    "stars": ("stars",),
    "title": ("title", "name"),
    "brand": ("brand", "maker"),
    "description": ("description",),
}
MEANING = {column: meaning for meaning, columns in COLUMNS.items() for column in columns}
ITEMS = [
    {"item": f"p{5 * row + no}", "title": f"{item['title']}, no. {no}", "brand": item["brand"], "description": ""}
    for row, item in enumerate(TINY_ITEMS)
    for no in range(5)
]  # fmt: skip


def purchases() -> list[dict]:
    """Forty people, eight purchases each: mostly the next item of a circle."""
    dice = random.Random(0)
    return [
        {"user": f"c{user}", "item": f"p{(3 * user + step * dice.choice([1, 1, 1, 7])) % len(ITEMS)}",
         "time": f"2024-03-{step + 1:02} 10:00", "stars": 1 + step % 5}
        for user in range(40)
        for step in range(8)
    ]  # fmt: skip


def write_csv(path, header: str, rows: list[dict]) -> None:
    names = header.split(",")
    lines = [",".join(f'"{row[MEANING[name]]}"' for name in names) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny_backend):
    """A Hub with small models under the names that the documents start from."""
    folder = tmp_path_factory.mktemp("hub")
    tiny_backend.save_pretrained(folder / "bert")
    special = {"vocab_size": len(tiny_backend), "pad_token_id": tiny_backend.pad_token_id}
    BertForMaskedLM(BertConfig(**special, **TINY)).save_pretrained(folder / "bert")
    save_tokenizer(folder / "bpe")
    longformer_config().save_pretrained(folder / "bpe")
    with empty_hub() as server:
        names = {"sentence-transformers/all-MiniLM-L6-v2": "bert", "allenai/longformer-base-4096": "bpe"}
        for name, source in names.items():
            repository = server.repositories["model", name] = Repository()
            repository.commit("main", {path.name: path.read_bytes() for path in (folder / source).iterdir()})
        yield server


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """What the documents take for granted: built datasets, a finished run, files of publishers, all made up."""
    folder = tmp_path_factory.mktemp("things")
    write_csv(folder / "orders.csv", "user_id,item_id,timestamp,stars", purchases())
    write_csv(folder / "products.csv", "item_id,title,brand", ITEMS)
    shop = build("table", data_files=[folder / "orders.csv", folder / "products.csv"])
    shops = ("scientific", "online_retail", "office", "beauty", "gift_cards", "walks")
    for name in (*shops, "clothing", "health", "books", "shops"):
        save_dataset(shop, folder / "data" / name)
    transformers_logging.set_verbosity_error()
    settings = [f"model.config.{name}={value}" for name, value in TINY.items()]
    settings += ["data.name=null", f"data.dir={folder}/data/walks", f"run.output_dir={folder}/runs/quickstart"]
    settings += [f"phases.{phase}.{name}" for phase in (0, 1) for name in ("steps=2", "batch_size=8")]
    train_accelerate.run(read_recipe(train_accelerate.QUICKSTART, [*settings, "tokenizer.vocab_size=400"]))
    for name in ("pretrained-seed1", "plain-seed1"):
        shutil.copytree(folder / "runs/quickstart", folder / "runs" / name)
    write_invoices(folder / "OnlineRetail.csv.gz", opener=gzip.open)
    write_unisrec(folder / "Scientific")
    write_amazon_2014(folder / "beauty")
    write_amazon_2018(folder / "gift_cards")
    torch.save(official_state(), folder / "recformer_seqrec_ckpt.bin")
    (folder / "loans.csv").write_text(
        "reader;day;title;author\n" + "".join(f"r{n % 5};{n};Volume {n % 7};A. Writer\n" for n in range(40)),
        encoding="utf-8",
    )
    shutil.copytree(ROOT / "results", folder / "results")
    shutil.copy(ROOT / "README.md", folder)
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "results.md", folder / "docs")
    return folder


def write_unisrec(folder) -> None:
    """Twenty walks round nine items in UniSRec's files: histories with their next item, one split a file."""
    folder.mkdir()
    walks = [[str((user + step) % 9) for step in range(6)] for user in range(20)]
    head = "user_id:token\titem_id_list:token_seq\titem_id:token"
    for ending, ends in {"train": range(1, 4), "valid": [4], "test": [5]}.items():
        lines = [f"{user}\t{' '.join(walk[:end])}\t{walk[end]}" for user, walk in enumerate(walks) for end in ends]
        (folder / f"Scientific.{ending}.inter").write_text("\n".join([head, *lines]) + "\n")
    texts = [f"B{item}\tBeaker no. {item}" for item in range(9)]
    (folder / "Scientific.text").write_text("\n".join(["item_id:token\ttext:token_seq", *texts]) + "\n")
    (folder / "Scientific.item2index").write_text("".join(f"B{item}\t{item}\n" for item in range(9)))
    (folder / "Scientific.user2index").write_text("".join(f"u{user}\t{user}\n" for user in range(20)))


def write_amazon_2014(folder) -> None:
    folder.mkdir()
    people = [f"u{user} " + " ".join(f"B{(user + step) % 9}" for step in range(5)) for user in range(9)]
    (folder / "beauty.txt").write_text("\n".join(people) + "\n", encoding="utf-8")
    titles = [f"B{item},Soap no. {item}" for item in range(9)]
    (folder / "beauty.csv").write_text("\n".join(["asin,title", *titles]) + "\n", encoding="utf-8")


def write_amazon_2018(folder) -> None:
    folder.mkdir()
    reviews = [
        {"reviewerID": f"u{user}", "asin": f"B{(user + step) % 9}", "unixReviewTime": 1_500_000_000 + step,
         "overall": 5.0}
        for user in range(9)
        for step in range(5)
    ]  # fmt: skip
    items = [{"asin": f"B{item}", "title": f"Gift card no. {item}", "brand": "", "category": []} for item in range(9)]
    for name, rows in (("Gift_Cards_5", reviews), ("meta_Gift_Cards", items)):
        with gzip.open(folder / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def has_steps(document) -> bool:
    return bool(steps(document.read_text(encoding="utf-8")))


@pytest.fixture
def desk(things, tmp_path, monkeypatch, hub):
    folder = shutil.copytree(things, tmp_path / "desk")
    return Desk(folder, monkeypatch, hub)


@pytest.mark.parametrize("document", filter(has_steps, DOCUMENTS), ids=lambda path: path.stem)
def test_every_command_and_block_runs(document, desk, capsys):
    text = document.read_text(encoding="utf-8")
    files = ("sales.csv", "products.csv") if document.stem == "README" else ("orders.csv", "products.csv")
    for name, table, rows in zip(files, blocks(text, "csv"), (purchases(), ITEMS), strict=False):
        write_csv(desk.folder / name, table.splitlines()[0], rows)
    names = {"__name__": document.stem}
    for language, step in steps(text):
        try:
            exec(step, names) if language == "python" else desk.run(step)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{document.name}: {step}\n{error!r}\n{capsys.readouterr().err[-2000:]}")
    CHECKS.get(document.stem, lambda *_: None)(desk, names)


def check_readme(desk, names):
    assert (desk.folder / "checkpoints/minilm/model.safetensors").is_file()
    assert names["vectors"].shape == (2, TINY["hidden_size"])
    assert {item["item_id"] for item in names["found"]} == {"infuser", "torch"}
    assert (desk.folder / "runs/shop-zero-shot/metrics.json").is_file()
    assert ("model", "me/jepa4rec-toy-shop") not in desk.hub.repositories  # a dry run


def check_your_own_data(desk, names):
    assert desk.hub.repositories["model", "me/shop-recommender"].private
    assert names["item"]["item_id"] not in ("p3", "p7")
    assert "new" in names["pipe"].catalogue.ids


def check_serve(desk, names):
    answers = pq.read_table(desk.folder / "recommendations").to_pylist()
    assert [row["user_id"] for row in answers] == ["anna", "ben"] and len(answers[0]["item_ids"]) == 2


def check_nightly(desk, names):
    assert len(names["old"]) == 40 and isinstance(names["switch"], bool)
    assert pq.read_table(desk.folder / "newsletter").num_rows == 40


def check_reproduce(desk, names):
    assert desk.hub.repositories["dataset", "me/toy-shop"].commits
    assert (desk.folder / "results/scientific-mine-seed1.json").is_file()
    assert (desk.folder / "results/comparisons/mine.json").is_file()


CHECKS = {
    "README": check_readme,
    "your-own-data": check_your_own_data,
    "serve": check_serve,
    "nightly": check_nightly,
    "reproduce": check_reproduce,
}


def test_a_command_that_is_wrong_is_found(desk):
    with pytest.raises(ValueError, match="did you mean"):
        desk.run("accelerate launch train_accelerate.py --set run.sed=1")
    with pytest.raises(AssertionError, match="does not exist"):
        desk.run("python scripts/nothing.py")
    with pytest.raises(AssertionError, match="nobody knows"):
        desk.run("rm -r everything")
    with pytest.raises(SystemExit):
        desk.run("python scripts/compare_runs.py runs/nothing runs/quickstart")


# What the README promises of itself.


def test_loading_takes_five_lines_and_own_data_ten():
    section = README.partition("## Load a checkpoint")[2].partition("\n## ")[0]
    load = [
        line for line in blocks(section, "python")[0].splitlines() if line.strip() and not line.startswith("from ")
    ]
    assert len(load) == 5
    own_data = README.partition("## Your own data")[2].partition("\n## ")[0]
    lines = [
        line for block in re.findall(r"```\w+\n(.*?)```", own_data, flags=re.DOTALL) for line in block.split("\n")
    ]
    assert len([line for line in lines if line.strip()]) == 10


def test_make_help_comes_first_and_lists_every_target():
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert shown == subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("quickstart", "test", "check", "bench"):
        assert f"make {target} " in shown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_named_files_links_and_targets_exist(document):
    text = document.read_text(encoding="utf-8")
    written_by_runs = (".venv/", "runs/", "data/", "results/", "checkpoint/", "recipe.yaml", "catalogue/")
    paths = re.findall(r"`((?:[\w.]+/)*[\w]+\.(?:py|yaml|cff|md)|[\w/]+/)`", text)
    kept = [path for path in paths if not path.startswith(written_by_runs) and "<" not in path]
    assert not [path for path in kept if not (ROOT / path).exists()]
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert not [link for link in links if not (document.parent / link).exists()]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
