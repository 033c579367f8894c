"""The Space: what it answers, what it refuses and how it says so, and the page itself in a real Chromium.

The page is served by a process that knows nothing of this repository: a copy of the app's folder, and a checkpoint and
a dataset that come from a Hub on loopback.
"""

import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from conftest import ROOT, TINY_ITEMS, WITHOUT_PACKAGE
from hub_server import Repository, client_environment, empty_hub
from processes import python

import drawing
from attribution_seqrec import words_of
from jepa4rec.baselines.sasrec import SasRec, SasRecConfig
from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.datasets_builders.contract import make_dataset, save_dataset
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecModel
from jepa4rec.serving.pipeline_catalogue import save_item_ids
from jepa4rec.serving.pipeline_item_ids import save_item_checkpoint
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from reading import add_catalogue, open_checkpoint, read_csv, read_dataset
from recommender import NO_WISH, Recommendation, Recommender, Wish, mixed, ranks, standard

pytestmark = pytest.mark.slow("drives a page in a browser")

APP = ROOT / "serving" / "space"
CHROMIUM = shutil.which("chromium")
ITEMS = [{"item_id": f"p{place}", **item} for place, item in enumerate(TINY_ITEMS)]
HISTORIES = [[0, 3, 8, 11], [1, 2, 4], [5, 6, 7], [0, 1, 2], [9, 8]]
GOOD = "item_id,title,brand\na1,Two-person tent,Northpath\na2,Camping stove,Lumo\na3,Green tea,Leafwell\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_backend, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("space") / "checkpoint"
    ids = {"vocab_size": len(tiny_backend)}
    ids |= {name: getattr(tiny_backend, name) for name in ("pad_token_id", "cls_token_id")}
    save_checkpoint_files(words_counted(ids), tiny_tokenizer, folder)
    return folder


def words_counted(ids: dict[str, int]) -> Jepa4RecModel:
    """A model whose vector of a text is the mean of its words' random vectors: texts are near that share words.

    What random weights make of a text is chance; of this one it can be said which item must win.
    """
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = Jepa4RecModel(Jepa4RecConfig(**shape, **ids, max_position_embeddings=256))
    attention, embeddings = model.encoder.layer[0].attention, model.embeddings
    with torch.no_grad():
        for parameter in (
            *attention.self.query.parameters(),  # equal weights for all words
            *model.encoder.layer[0].output.dense.parameters(),
            embeddings.position_embeddings.weight,
            embeddings.token_type_embeddings.weight,
            embeddings.item_position_embeddings.weight,
            embeddings.word_embeddings.weight[ids["cls_token_id"]],
        ):
            parameter.zero_()
        attention.self.value.weight.copy_(torch.eye(64))
        attention.output.dense.weight.copy_(torch.eye(64))
    return model


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    users = [f"u{place}" for place in range(len(HISTORIES))]
    made = make_dataset(
        pa.Table.from_pylist(ITEMS),
        pa.table({"user_id": users, "items": pa.array(HISTORIES, pa.list_(pa.int32()))}),
        {"name": "tiny", "config": "default", "source": "made up", "licence": "Apache-2.0", "splits": "leave_one_out"},
    )
    folder = tmp_path_factory.mktemp("space") / "tiny_shop"
    save_dataset(made, folder)
    return folder


@pytest.fixture(scope="module")
def shop(checkpoint, dataset_dir):
    return Recommender.open(str(checkpoint), str(dataset_dir))


# ---- the Space's own files


def test_the_space_names_the_versions_the_project_is_run_with():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    asked = re.findall(r"^([\w-]+)==(\S+)$", (APP / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _ in asked} >= {"torch", "transformers", "huggingface_hub", "pyarrow", "numpy"}
    assert all(pins[name] == version for name, version in asked)
    header = yaml.safe_load((APP / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert header["sdk"] == "gradio" and header["sdk_version"] == pins["gradio"]
    assert (APP / header["app_file"]).is_file() and len(header["short_description"]) <= 60
    assert set(header["colorFrom"].split() + header["colorTo"].split()) <= {
        "red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray",
    }  # fmt: skip


def test_the_space_imports_nothing_of_the_project():
    for path in APP.glob("*.py"):
        assert not re.search(r"^\s*(from|import) jepa4rec", path.read_text(encoding="utf-8"), re.MULTILINE), path.name


# ---- recommending


def test_without_a_wish_the_answers_are_the_pipelines(shop):
    found = shop.recommend(["p0", "p3"], top_k=5)
    answers = shop.pipe({"history": ["p0", "p3"]}, top_k=5, exclude_history=True)
    assert [one.item_id for one in found] == [answer["item_id"] for answer in answers]
    assert [one.score for one in found] == pytest.approx([answer["score"] for answer in answers], abs=1e-5)


def test_what_was_learned_of_buying_again_counts_as_in_the_pipeline(shop, monkeypatch):
    monkeypatch.setattr(shop.pipe.model, "repeat_bias", torch.tensor([-1.0, -0.5]), raising=False)
    history = ["p0", "p3", "p1"]
    answers = shop.pipe({"history": history}, top_k=len(shop.catalogue))
    scores = shop.scores([history])[0]
    rows = shop.catalogue.rows([answer["item_id"] for answer in answers])
    np.testing.assert_allclose(scores[rows], [answer["score"] for answer in answers], atol=1e-5)
    assert {answer["item_id"] for answer in answers[-2:]} == {"p1", "p3"}


def test_a_wish_moves_what_is_recommended_towards_its_words(shop):
    stove = shop.catalogue.rows(["p9"])[0]
    places = [ranks(shop.scores([["p0", "p2"]], Wish("Camping stove", weight)), stove)[0] for weight in (0, 0.5, 1)]
    assert places[0] > max(places[1:])
    assert shop.recommend(["p0", "p2"], Wish("Camping stove", 0.0), 5) == shop.recommend(["p0", "p2"], NO_WISH, 5)


def test_a_wish_can_restrict_without_being_mixed_in(shop):
    wish = Wish("Camping stove", 0.0, only=True)
    near = set(shop.near("Camping stove", 3, shop.catalogue.rows(["p0"])))
    found = shop.recommend(["p0"], wish, 3)
    assert {one.row for one in found} == near
    scores = shop.scores([["p0"]])[0]
    assert [one.score for one in found] == pytest.approx(sorted((float(scores[row]) for row in near), reverse=True))


def test_mixing_takes_standard_scores_and_equal_scores_count_nothing():
    history, text = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[300.0, 100.0, 200.0]])
    assert standard(history).std(correction=0) == pytest.approx(1.0)
    assert torch.allclose(mixed(history, text, 0.5), 0.5 * (standard(history) + standard(text)))
    assert not standard(torch.zeros(2, 3)).any()


def test_ties_take_the_mean_rank_and_hidden_items_none():
    scores = torch.tensor([[5.0, 1.0, 1.0, 4.0], [0.0, 2.0, 1.0, 1.0]])
    assert ranks(scores, 1) == [3.5, 1.0]
    assert ranks(scores, 1, [0, 1]) == [2.5, 1.0]


def test_an_empty_history_gets_the_most_popular_of_training(shop):
    found = shop.recommend([], top_k=3)
    assert found[0].item_id == "p0" and [one.score for one in found] == [2.0, 1.0, 1.0]
    strange = shop.with_items(read_csv(GOOD.encode(), "own.csv").items, "own.csv")
    with pytest.raises(ValueError, match="Nothing is known of what is popular here"):
        strange.recommend([], top_k=1)


@pytest.mark.parametrize("top_k", [0, 13, 12])
def test_more_than_there_is_cannot_be_asked_for(shop, top_k):
    with pytest.raises(ValueError, match="11 items can be recommended here: ask for 1 to 11"):
        shop.recommend(["p0"], NO_WISH, top_k)


# ---- why, and revealing


@pytest.mark.parametrize("wish", [NO_WISH, Wish("Camping stove", 0.4)])
def test_reasons_are_differences_of_scores(shop, wish):
    history = ["p0", "p3", "p8"]
    why = shop.explain(history, "p9", wish)
    row = shop.catalogue.rows(["p9"])[0]
    assert why.score == pytest.approx(float(shop.scores([history], wish)[0, row]), abs=1e-5)
    for place, lost in enumerate(why.items):
        rest = history[:place] + history[place + 1 :]
        assert lost == pytest.approx(why.score - float(shop.scores([rest], wish)[0, row]), abs=1e-5)
    assert len(why.words) == sum(len(words_of(item)) for item in why.history) > 6
    assert why.wish is None if wish is NO_WISH else why.wish is not None
    strongest = int(np.argmax(why.items))
    rest = history[:strongest] + history[strongest + 1 :]
    hidden = shop.catalogue.rows(history)
    assert why.checks[0].rank == ranks(shop.scores([rest], wish), row, hidden)[0]
    assert TINY_ITEMS[int(history[strongest][1:])]["title"] in why.checks[0].what


@pytest.fixture
def pretrained(tmp_path, tiny_backend, tiny_tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    ids = {"vocab_size": len(tiny_backend), "pad_token_id": tiny_backend.pad_token_id}
    model = Jepa4RecForPreTraining(Jepa4RecConfig(**shape, **ids, initializer_range=0.3)).eval()
    for parameter in model.target_encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, tmp_path / "checkpoint"


@torch.no_grad()
def test_a_predictor_is_told_the_words_in_place_of_masks(pretrained, tiny_tokenizer, dataset_dir):
    model, folder = pretrained
    save_checkpoint_files(model, tiny_tokenizer, folder)
    assert Recommender.open(str(folder), str(dataset_dir))._pretrained is None  # it never learned
    torch.nn.init.normal_(model.predictor.next[0].bias)
    save_checkpoint_files(model, tiny_tokenizer, folder)
    shop = Recommender.open(str(folder), str(dataset_dir))
    reveal = shop.reveal(["p0", "p2"], "p9")

    def rank_of(target: dict) -> float:
        user, seen = (
            model.base_model.embed(**tiny_tokenizer([history], return_tensors="pt"))
            for history in ([TINY_ITEMS[0], TINY_ITEMS[2]], [target])
        )
        predicted = model.predictor.next_item(user, seen)
        items = model.target_encoder.embed(**tiny_tokenizer([[item] for item in TINY_ITEMS], return_tensors="pt"))
        return ranks(torch.cosine_similarity(predicted, items)[None], 9)[0]

    masks = {name: " ".join("[MASK]" for _ in tiny_tokenizer.tokenize(text)) for name, text in TINY_ITEMS[9].items()}
    assert reveal.counts[0] == 0 and reveal.ranks[0] == rank_of(masks)
    assert reveal.ranks[-1] == rank_of(TINY_ITEMS[9])
    assert (
        len(shop.reveal([], "p9").ranks) == len(reveal.ranks) - 1
    )  # without a history there is nothing to predict from


def test_told_words_stay_told_and_all_of_them_bring_the_target_up(shop):
    for history in (["p0", "p2"], []):
        reveal = shop.reveal(history, "p9")
        assert reveal.counts[0] == (0 if history else 1) and reveal.counts[-1] == len(reveal.order)
        assert len(reveal.ranks) == len(reveal.counts)
        assert reveal.ranks[-1] <= reveal.ranks[0] and reveal.ranks[-1] <= 2
        assert reveal.step(0) == 0 and reveal.step(100) == len(reveal.counts) - 1
    assert shop.reveal(["p0"], "p9").order == shop.reveal(["p5"], "p9").order


def test_colours_are_for_words_that_matter(shop):
    why = shop.explain(["p0", "p3"], "p9")
    assert drawing.explanation(why, "").count("<mark") == len(why.places)
    faint = replace(why, words=why.words * 1e-3)
    assert "<mark" not in drawing.explanation(faint, "") and "None matters by itself" in drawing.explanation(faint, "")


def test_what_a_catalogue_says_is_text_and_no_markup(shop):
    evil = '<img src=x onerror="alert(1)">'
    own = shop.with_items([{"item_id": evil, "title": f"Tent {evil}"}, {"item_id": "b", "title": "Stove"}], evil)
    pages = [
        drawing.header(own),
        drawing.history_list(own, [evil]),
        drawing.results(own, [evil], False, evil, "add"),
        drawing.recommendations(own, own.recommend(["b"], top_k=1), ["b"], False, None, ""),
        drawing.explanation(own.explain(["b", evil], "b", Wish(evil)), evil),
        drawing.reveal_panel(own.reveal(["b"], evil), 100),
    ]
    assert not [page for page in pages if "<img" in page]


# ---- opening


def test_examples_end_with_an_item_that_is_new_and_popularity_is_of_training(dataset_dir):
    found = read_dataset(dataset_dir)
    assert {tuple(history) for history in found.examples} == {
        tuple(f"p{row}" for row in history) for history in HISTORIES if len(history) > 2
    }
    counts = dict(zip([item["item_id"] for item in found.items], found.popularity, strict=True))
    assert counts["p0"] == 2 and counts["p11"] == 0 and counts["p9"] == 1 and sum(counts.values()) == 7


def test_a_saved_catalogue_and_a_csv_open_too(shop, checkpoint, tmp_path):
    shop.pipe.save_catalogue(tmp_path / "saved")
    (tmp_path / "own.csv").write_text(GOOD, encoding="utf-8")
    for place, size in (("saved", 12), ("own.csv", 3)):
        pipe = open_checkpoint(str(checkpoint))
        assert add_catalogue(pipe, str(tmp_path / place)) == () and len(pipe.catalogue) == size


def test_lists_and_objects_of_a_saved_catalogue_are_shown_in_the_words_that_are_read(checkpoint, tmp_path):
    pipe = open_checkpoint(str(checkpoint))
    item = {"title": "Teapot", "maker": {"id": 1, "name": "Hearth"}, "tags": ["tea", "pot"], "lid": None}
    pipe.add_items([{"item_id": "a", **item}, *ITEMS])
    pipe.save_catalogue(tmp_path / "saved")
    shop = Recommender.open(str(checkpoint), str(tmp_path / "saved"))
    told = {"title": "Teapot", "maker": "id 1 name Hearth", "tags": "tea pot"}
    assert shop.item("a") == shop.read_item("a") == told and shop.search("id 1 name hearth") == (["a"], True)
    assert shop.explain(["a"], "p0").history == [told]
    found = [Recommendation("a", 0, 1.0)]
    assert "id 1 name Hearth · tea pot" in drawing.recommendations(shop, found, [], False, None, "")


def test_what_does_not_open_is_said_in_one_sentence(shop, tmp_path):
    with pytest.raises(ValueError, match="nowhere does not open as a checkpoint .*make quickstart"):
        open_checkpoint(str(tmp_path / "nowhere"))
    save_item_checkpoint(SasRec(SasRecConfig(num_items=2, hidden_size=8)), tmp_path / "sasrec")
    save_item_ids(tmp_path / "sasrec", ["p0", "p1"], [1, 2])
    with pytest.raises(ValueError, match="sasrec knows items by their ids and reads no texts"):
        open_checkpoint(str(tmp_path / "sasrec"))
    with pytest.raises(ValueError, match="is no built dataset"):
        add_catalogue(shop.pipe, str(tmp_path))
    with pytest.raises(ValueError, match="is no catalogue, folder, CSV file or dataset on the Hub"):
        add_catalogue(shop.pipe, "no/such/place")


# ---- CSV


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("item_id,title\na,Crème brûlée\n".encode(), "UTF-8"),
        ("item_id,title\na,Crème brûlée\n".encode("utf-8-sig"), "UTF-8"),
        ("item_id;title\na;Crème brûlée\n".encode("utf-16"), "UTF-16"),
        ("item_id\ttitle\na\tCrème brûlée\n".encode("cp1252"), "Windows-1252"),
        ("item_id,title\r\na,Crème brûlée\r\n\r\n".encode(), "UTF-8"),
    ],
)
def test_csv_is_read_in_the_encodings_people_have(content, encoding):
    found = read_csv(content, "own.csv")
    assert found.items == [{"item_id": "a", "title": "Crème brûlée"}]
    assert found.encoding == encoding and found.popularity is None


def test_popularity_and_empty_cells_of_a_csv():
    found = read_csv(b"item_id,title,brand,popularity\na,Tent,,7\nb,Stove,Lumo,\n", "own.csv")
    assert found.items == [{"item_id": "a", "title": "Tent"}, {"item_id": "b", "title": "Stove", "brand": "Lumo"}]
    assert found.popularity == [7.0, 0.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "own.csv is empty"),
        (b"title,brand\nTent,Lumo\n", "no column 'item_id': its first line has 'title', 'brand'"),
        (b"item_id,popularity\na,3\n", "no column of text beside 'item_id'"),
        (b"item_id,title,title\na,b,c\n", "the column 'title' twice"),
        (b"item_id,title\n", "a header but no items"),
        (b"item_id,title\na,Tent\nb,Stove\na,Lamp\n", "lines 2 and 4 have the same item_id 'a'"),
        (b"item_id,title\na,Tent\nb,\n", "line 3: item 'b' has no text"),
        (b"item_id,title\n,Tent\n", "line 2 has no item_id"),
        (b"item_id,title\na,Tent, red\n", "line 2 has 3 values for 2 columns"),
        (b'item_id,title\na,"Tent\n', "line 2 is not CSV"),
        (b"item_id,title,popularity\na,Tent,many\n", "line 2: popularity is 'many', which is no number"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is no text file"),
        ("item_id,title\na,Палатка на двоих\nb,Походная плита\n".encode("cp1251"), "encoding that was not recognised"),
        ("item_id,title\na,二人用テント\nb,緑茶の葉\n".encode("shift-jis"), "encoding that was not recognised"),
    ],
)  # fmt: skip
def test_a_csv_that_cannot_be_read_is_refused_in_one_sentence(content, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        read_csv(content, "own.csv")
    assert str(error.value).startswith("own.csv") and "\n" not in str(error.value)


# ---- the page

STRANGER = (
    WITHOUT_PACKAGE
    + """
import runpy
runpy.run_path("app.py", run_name="__main__")
"""
)


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


# ---- what a page may be sent


@pytest.fixture(scope="module")
def page(shop):
    return pytest.importorskip("app", reason="gradio is missing: pip install -e '.[demo]'").Page(shop)


def test_the_sessions_of_visitors_who_left_do_not_pile_up(page, monkeypatch):
    import app

    monkeypatch.setattr(app, "MOST_SESSIONS", 5)
    page.launch(prevent_thread_lock=True, quiet=True)
    try:
        for visitor in range(12):
            page.blocks.state_holder[f"visitor-{visitor}"]
        assert list(page.blocks.state_holder.session_data) == [f"visitor-{visitor}" for visitor in range(7, 12)]
    finally:
        page.blocks.close()


@pytest.mark.parametrize(
    "data",
    [None, "add", 5, [], {}, {"action": "add"}, {"action": "fly", "id": "p1"}, {"action": "add", "id": "nothing"},
     {"action": "remove", "id": "p1"}, {"action": "earlier", "id": "p1"}, {"action": ["add"], "id": "p1"},
     {"action": "why", "id": {}}, {"action": "aim", "id": None}, {"action": "aim", "id": "<b>"}],
)  # fmt: skip
def test_a_forged_click_is_answered_by_a_sentence(page, data, monkeypatch):
    import gradio

    said = []
    monkeypatch.setattr(gradio, "Info", said.append)
    visit, *_ = page._click(None, gradio.EventData(None, data))
    assert visit == page.start and len(said) == 1
    assert said[0][0].isupper() and "Error" not in said[0]


@pytest.mark.parametrize(
    "fields, fine",
    [
        ((None, 50, False, 3, True), True),
        (("x" * 10**6, 50, "yes", 3, None), True),
        (("tent", 5000, True, 3, True), True),
        (("tent", None, True, 3, True), False),
        (("tent", "50", True, 3, True), False),
        (("tent", 50, True, float("nan"), True), False),
        (("tent", 50, True, None, True), False),
        (("tent", float("inf"), True, 3, True), False),
    ],
)
def test_forged_fields_are_answered_by_a_sentence(page, fields, fine, monkeypatch):
    import gradio

    said = []
    monkeypatch.setattr(gradio, "Info", said.append)
    visit, *_ = page._settings(None, *fields)
    assert bool(said) != fine and len(visit.wish.text) <= 500 and 0 <= visit.wish.weight <= 1
    assert page._reveal(None, fields[1])[0].percent == (min(fields[1], 100) if fields[1] in (50, 5000) else 0)
    assert page._search(None, None) == ""


def test_an_uploaded_file_is_deleted_as_soon_as_it_is_read(page, tmp_path):
    for content in (GOOD, "no table"):
        (tmp_path / "own.csv").write_text(content)
        page._upload(None, str(tmp_path / "own.csv"))
        assert not (tmp_path / "own.csv").exists()
    for path in (str(tmp_path / "own.csv"), None, 5, str(tmp_path), "a" * 5000, "\0"):
        assert "upload it again" in page._upload(None, path)[5]
    assert page.blocks.delete_cache == (600, 3600)


def test_an_upload_waits_in_a_line_of_its_own(page):
    lines = {own.fn.__name__: own.concurrency_id for own in page.blocks.fns.values()}
    clicks = {line for name, line in lines.items() if name != "_upload"}
    assert lines["_upload"] == "upload" and "upload" not in clicks and lines["_click"] == "visit"


@pytest.fixture(scope="module")
def address(tmp_path_factory, checkpoint, dataset_dir):
    """Where the Space is served, as on the Hub: its folder alone, told by the environment what to show."""
    pytest.importorskip("gradio", reason="gradio is missing: pip install -e '.[demo]'")
    home = tmp_path_factory.mktemp("served")
    shutil.copytree(APP, home / "space", ignore=shutil.ignore_patterns("__pycache__"))
    with empty_hub() as hub:
        for kind, name, folder in (("model", "me/tiny", checkpoint), ("dataset", "me/tiny_shop", dataset_dir)):
            hub.repositories[kind, name] = Repository()
            hub.repositories[kind, name].commit("main", files_of(folder))
        environment = client_environment(hub.url)
        environment |= {"SEQREC_CHECKPOINT": "me/tiny", "SEQREC_CATALOGUE": "me/tiny_shop", "SEQREC_REVISION": "main"}
        port = free_port()
        environment["GRADIO_SERVER_PORT"] = str(port)
        with open(home / "log", "w") as log:
            served = subprocess.Popen(
                [python(), "-c", STRANGER], cwd=home / "space", env=environment, stdout=log, stderr=log
            )
        try:
            yield wait_for(f"http://127.0.0.1:{port}", served, home / "log")
        finally:
            served.terminate()
            served.wait(30)


def wait_for(address: str, served: subprocess.Popen, log, seconds: int = 400) -> str:
    """The address once it answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and served.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return address
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the Space did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is missing: make browser installs it")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[dev]'")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, address):
    """``open_page(width)`` -> the Space in a new window, which must neither fail nor fetch from elsewhere."""
    contexts, faults = [], []

    def open_at(width: int):
        contexts.append(browser.new_context(viewport={"width": width, "height": 844}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: faults.append(request.url) if elsewhere(request.url) else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.locator("#found li").first.wait_for()
        return page

    def elsewhere(url: str) -> bool:
        return not url.startswith((address, "data:", "blob:"))

    yield open_at
    for context in contexts:
        context.close()
    assert not faults


def search_and_add(page, words: str, title: str) -> None:
    page.get_by_label("Search the catalogue").fill(words)
    page.get_by_role("button", name=f"Add {title}", exact=True).click()
    page.locator("#history li", has_text=title).wait_for()


def test_from_a_history_to_reasons_and_a_wish(open_page):
    page = open_page(1200)
    assert "most popular" in page.locator("#found").inner_text()
    assert "tiny_shop · 12 items" in page.locator("#header").inner_text()
    search_and_add(page, "teapot cast", "Cast iron teapot")
    search_and_add(page, "SOCKS", "Running socks, pair")
    page.get_by_role("button", name="Move Running socks, pair earlier").click()
    page.locator("#history li").first.filter(has_text="Running socks").wait_for()
    assert page.locator("#found li").count() == 10
    assert page.locator("#found li", has_text="Cast iron teapot").count() == 0
    page.locator("#found button[data-action=why]").first.click()
    why = page.locator("#found .why")
    why.wait_for()
    assert why.locator(".cause").count() == 2 and why.locator("mark").count() > 6
    assert re.search(r"Number 1 of all items here\. Without “.+”: number \d", why.inner_text())

    page.get_by_label("A wish in words").fill("Camping stove")
    page.locator("#found .why", has_text="Your wish “Camping stove”").wait_for()
    page.locator("#only input").check()
    page.locator("#weight input[type=number]").fill("100")
    page.keyboard.press("Enter")
    page.locator("#found li").first.filter(has_text="Camping stove").wait_for()

    page.get_by_role("button", name="Start again").click()
    page.locator("#found", has_text="most popular").wait_for()
    assert page.get_by_label("A wish in words").input_value() == ""


def test_revealing_words_moves_the_rank(open_page):
    page = open_page(1200)
    page.get_by_role("button", name="Show me an example").click()
    page.locator("#history li").first.wait_for()
    page.get_by_role("tab", name="Reveal a target").click()
    page.get_by_label("Search a target").fill("camping stove")
    page.get_by_role("button", name="Choose Camping stove").click()
    shown = page.locator("#revealed")
    shown.filter(has_text="0 of 4 words told").wait_for()
    assert shown.locator(".untold").count() == 4
    page.locator("#percent input[type=number]").fill("100")
    page.keyboard.press("Enter")
    shown.filter(has_text="4 of 4 words told").wait_for()
    assert re.search(r"Rank [12] of 12", shown.inner_text()) and "Lumo" in shown.inner_text()
    assert shown.locator("svg polyline").count() == 1


def test_own_catalogues_on_a_phone(open_page, tmp_path):
    page = open_page(390)
    assert width_beyond(page) <= 0
    page.get_by_role("button", name="Show me an example").click()
    page.locator("#found button[data-action=why]").first.click()
    page.locator("#found .why").wait_for()
    assert width_beyond(page) <= 0
    page.get_by_role("tab", name="Your catalogue").click()
    for content, said in (
        ("item_id,title\na,Tent\na,Stove\n", "own.csv: lines 2 and 3 have the same item_id 'a'."),
        ("item_id,title\na,Tent\nb,\n", "own.csv: line 3: item 'b' has no text"),
    ):
        upload(page, tmp_path, content.encode())
        page.locator("#catalogue", has_text=said).wait_for()
        assert page.locator("#catalogue [role=alert]").count() == 1
        assert "tiny_shop" in page.locator("#header").inner_text()
    upload(page, tmp_path, GOOD.encode("utf-8-sig"))
    page.locator("#catalogue", has_text="own.csv: 3 items, read as UTF-8.").wait_for()
    assert "own.csv · 3 items" in page.locator("#header").inner_text()
    assert width_beyond(page) <= 0
    page.get_by_role("tab", name="For you").click()
    page.locator("#found", has_text="Nothing is known of what is popular here").wait_for()
    search_and_add(page, "tent", "Two-person tent")
    page.locator("#found", has_text="2 items can be recommended here").wait_for()
    page.get_by_role("button", name="Settings").click()
    page.locator("#top_k input").fill("2")
    page.locator("#found li", has_text="Green tea").wait_for()
    assert width_beyond(page) <= 0


@pytest.mark.parametrize("width", [320, 360, 375, 390])
def test_results_come_first_and_buttons_fit_on_a_phone(open_page, width):
    page = open_page(width)
    found, search = (page.locator(place).bounding_box() for place in ("#found", "#search"))
    assert found["y"] < search["y"] < 844
    page.get_by_role("button", name="Show me an example").click()
    page.locator("#history li").first.wait_for()
    page.locator("#found button[data-action=why]").first.click()
    page.locator("#found .why").wait_for()
    assert width_beyond(page) <= 0
    beyond = page.evaluate(
        """[...document.querySelectorAll('.shop button, #example, #clear')].filter((button) => {
          if (button.offsetParent === null) return false;
          const box = button.getBoundingClientRect();
          return button.scrollWidth > button.clientWidth + 1 || box.left < 0 || box.right > window.innerWidth;
        }).map((button) => button.outerHTML.slice(0, 120))"""
    )
    assert not beyond


def test_nobody_waits_for_another_visitors_upload(open_page, tmp_path):
    uploading, clicking = open_page(1200), open_page(1200)
    rows = [f"a{row},Two-person tent for camping no. {row}" for row in range(15_000)]
    uploading.get_by_role("tab", name="Your catalogue").click()
    upload(uploading, tmp_path, "\n".join(["item_id,title", *rows]).encode())
    clicking.get_by_role("button", name="Show me an example").click()
    clicking.locator("#history li").first.wait_for()
    assert "15,000 items, read as" not in uploading.locator("#catalogue").inner_text()
    uploading.locator("#catalogue", has_text="own.csv: 15,000 items").wait_for()


def upload(page, folder, content: bytes) -> None:
    (folder / "own.csv").write_bytes(content)
    page.locator("#file input[type=file]").set_input_files(folder / "own.csv")


def width_beyond(page) -> int:
    """Pixels that would have to be scrolled sideways."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def test_a_page_without_a_checkpoint_says_what_to_give(tmp_path):
    pytest.importorskip("gradio", reason="gradio is missing: pip install -e '.[demo]'")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SEQREC_")}
    done = subprocess.run(
        [python(), str(APP / "app.py")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.strip().endswith("give --checkpoint or set SEQREC_CHECKPOINT.")
