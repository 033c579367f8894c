"""Publishing over real HTTP: the real client, a Hub on loopback, strangers who pull; and all that must not go."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_ITEMS, WITHOUT_PACKAGE
from hub_server import TOKEN, empty_hub, run_client
from huggingface_hub import EvalResult, ModelCardData
from processes import python

from jepa4rec.baselines.sasrec import SasRec, SasRecConfig
from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecForSequentialRecommendation
from jepa4rec.scripts import push_to_hub
from jepa4rec.serving.pipeline_catalogue import save_item_ids
from jepa4rec.serving.pipeline_item_ids import ItemIdPipeline, save_item_checkpoint
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from jepa4rec.serving.whole_files_seqrec import SEAL, seal

pytestmark = pytest.mark.slow("opens checkpoints in processes of a stranger")


@pytest.fixture(autouse=True)
def _quick_strangers(monkeypatch):
    """What checks a checkpoint before it goes opens it in a process of its own, here a fork."""
    monkeypatch.setattr(sys, "executable", python())


@pytest.fixture(scope="module")
def hub():
    with empty_hub() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def ask(hub, home):
    """``ask(code or script, *arguments, token=True)`` runs a process whose Hub is the loopback one."""

    def run(what, *arguments, endpoint=None, **how):
        return run_client(endpoint or hub.url, home, what, *arguments, **how)

    return run


def write_checkpoint(folder: Path, backend, tokenizer, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    shape = {"vocab_size": len(backend), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 24, "max_position_embeddings": 256, "pad_token_id": backend.pad_token_id}
    save_checkpoint_files(Jepa4RecForPreTraining(Jepa4RecConfig(**shape)), tokenizer, folder)
    write_card(folder, f"tiny {seed}")
    seal(folder)
    return folder


def write_card(folder: Path, name: str) -> None:
    result = EvalResult(
        task_type="sequential-recommendation", dataset_type="toy_shop", dataset_name="toy_shop", metric_type="ndcg@10",
        metric_value=0.1,
    )  # fmt: skip
    told = {"license": "apache-2.0", "language": "en", "tags": ["custom_code"], "library_name": "transformers"}
    data = ModelCardData(model_name=name, eval_results=[result], **told)
    shutil.copy(ROOT / "LICENSE", folder)
    (folder / "recipe.yaml").write_text("model: {init: scratch}\n", encoding="utf-8")
    (folder / "README.md").write_text(f"---\n{data}\n---\n\n# {name}\n", encoding="utf-8")


def unsay(folder: Path, word: str) -> None:
    """Take what a card's header says of something out of it."""
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "README.md").write_text("".join(line for line in lines if word not in line), encoding="utf-8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_backend, tiny_tokenizer):
    return write_checkpoint(tmp_path_factory.mktemp("push") / "checkpoint", tiny_backend, tiny_tokenizer)


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy of the checkpoint to spoil, without the seal, which would be all that is found wrong."""
    return Path(shutil.copytree(checkpoint, tmp_path / "spoilt", ignore=shutil.ignore_patterns(SEAL)))


PULL = (
    WITHOUT_PACKAGE
    + """
import json, sys
from huggingface_hub import ModelCard, metadata_update
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer, pipeline

repo, items = "me/tiny", json.loads(sys.argv[1])
pinned = {"trust_remote_code": True, "revision": "v1"}
tokenizer, model = AutoTokenizer.from_pretrained(repo, **pinned), AutoModel.from_pretrained(repo, **pinned)
vectors = model(**tokenizer([items[:2], items[3:4]], return_tensors="pt")).pooler_output
whole = AutoModelForPreTraining.from_pretrained(repo, **pinned)
pipe = pipeline("sequential-recommendation", model=repo, trust_remote_code=True)
pipe.add_items([{"item_id": str(n), **item} for n, item in enumerate(items)])
found = pipe({"history": ["0", {"title": "Never seen"}]}, top_k=3, exclude_history=True)
metadata_update(repo, {"tags": ["checked"]}, overwrite=True)
card = ModelCard.load(repo).data
answers = [vectors.tolist(), type(whole).__name__, [row["item_id"] for row in found], card.tags, card.model_name]
print(json.dumps(answers))
"""
)


def test_what_is_pushed_is_what_a_stranger_pulls(ask, hub, checkpoint, tiny_tokenizer):
    pushed = ask(str(ROOT / "scripts" / "push_to_hub.py"), checkpoint, "me/tiny", "--tag", "v1")
    assert pushed.returncode == 0, pushed.stderr
    assert "model.safetensors" in pushed.stdout and "pipeline_seqrec.py" in pushed.stdout
    repository = hub.repositories["model", "me/tiny"]
    assert len(repository.commits) == 2  # the empty repository, then everything in one
    sent = {path: data for path, data in repository.commits[repository.tags["v1"]].items() if path != ".gitattributes"}
    assert SEAL in sent
    assert sent == {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    pulled = ask(PULL, json.dumps(TINY_ITEMS))
    assert pulled.returncode == 0, pulled.stderr
    vectors, kind, found, tags, name = json.loads(pulled.stdout.splitlines()[-1])
    model = Jepa4RecForPreTraining.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        batch = tiny_tokenizer([TINY_ITEMS[:2], TINY_ITEMS[3:4]], return_tensors="pt")
        torch.testing.assert_close(torch.tensor(vectors), model.base_model(**batch).pooler_output)
    assert kind == "Jepa4RecForPreTraining" and len(found) == 3 and "0" not in found
    assert "checked" in tags and name == "tiny 0"


def test_a_dry_run_checks_and_sends_nothing(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(push_to_hub, "push_folder", lambda *_, **__: pytest.fail("it pushed"))
    push_to_hub.main([str(checkpoint), "me/never", "--dry-run"])
    told = capsys.readouterr().out
    assert "all checks passed; nothing was pushed to me/never" in told
    size = (checkpoint / "model.safetensors").stat().st_size
    assert f"{size:,}  model.safetensors" in told


# Pushes without the checks before them, in one process: [[repository, folder], options] each -> "" or the error.
PUSHES = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jepa4rec.hub.publishing import push_folder

def one(repo_id, folder, **options):
    try:
        push_folder(Path(folder), repo_id, message="m", **options)
        return ""
    except (ValueError, OSError) as error:
        return str(error)

first, *rest = json.loads(sys.argv[1])
answers = [one(*first[0], **first[1])]
with ThreadPoolExecutor() as pool:
    answers += pool.map(lambda call: one(*call[0], **call[1]), rest)
print(json.dumps(answers))
"""
# Sending needs no model, so whoever only sends does not wait for torch; a quick program always has it.
LIGHT, FRESH = "assert 'torch' not in sys.modules", sys.executable


@pytest.fixture
def push(ask):
    """``push([repo, folder, {options}], ...)``: the first alone, then the others at once; their errors or "".
    `fresh`: in an interpreter that has loaded nothing."""

    def run(*calls, fresh=False, **how):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PUSHES}{LIGHT if fresh else ''}"
        done = ask(
            code,
            json.dumps([[[repo, str(folder)], options] for repo, folder, options in calls]),
            program=FRESH if fresh else None,
            **how,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def other(tmp_path_factory, tiny_backend, tiny_tokenizer):
    return write_checkpoint(tmp_path_factory.mktemp("other") / "checkpoint", tiny_backend, tiny_tokenizer, seed=1)


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory, tiny_backend, tiny_tokenizer):
    """A checkpoint of several parts: its learned items and their ids are fetched after the encoder."""
    shape = {"vocab_size": len(tiny_backend), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Jepa4RecForSequentialRecommendation(Jepa4RecConfig(num_items=3, history_items=2, **shape))
    folder = tmp_path_factory.mktemp("fine-tuned") / "checkpoint"
    save_checkpoint_files(model, tiny_tokenizer, folder)
    save_item_ids(folder, ["p0", "p1", "p2"], [1, 2, 0])
    return folder


def holds(repository, folder: Path) -> bool:
    """Whether the newest revision is just this checkpoint."""
    last = repository.commits[repository.refs["main"]]
    return all(last[path.name] == path.read_bytes() for path in folder.iterdir() if path.is_file())


# A stranger who is not logged in: without a token, then with one that he passes on.
PRIVATE = """
import json, sys
from transformers import pipeline

secret = {"model": "me/secret", "trust_remote_code": True}
try:
    pipeline("sequential-recommendation", **secret)
except OSError as error:
    refused = str(error)
pipe = pipeline("sequential-recommendation", token=sys.argv[1], **secret)
pipe.add_items([{"item_id": f"p{n}", "title": title} for n, title in enumerate(["Green tea", "Ceramic teapot"])])
assert sorted(pipe.known_items["rows"]) == ["p0", "p1", "p2"]
print(json.dumps([refused, [row["item_id"] for row in pipe({"history": []}, top_k=2)]]))
"""


def test_without_a_token_nothing_goes_and_a_private_repository_stays_hidden(ask, push, checkpoint, fine_tuned):
    (refused,) = push(["me/other", checkpoint, {}], token=False)
    assert "log in with `hf auth login` or set HF_TOKEN" in refused
    assert push(["me/secret", fine_tuned, {"private": True}]) == [""]
    told = ask(PRIVATE, TOKEN, token=False)
    assert told.returncode == 0, told.stderr
    refused, found = json.loads(told.stdout.splitlines()[-1])
    assert "me/secret is not a local folder and is not a valid model identifier" in refused and "token=" in refused
    assert found == ["p1", "p0"]


# The same of a model that reads no texts.
PRIVATE_ITEMS = """
import json, sys
from transformers import pipeline

pipe = pipeline("sequential-recommendation", model="me/secret-items", trust_remote_code=True, token=sys.argv[1])
pipe.add_items([{"item_id": item_id} for item_id in pipe.known_items["rows"]])
print(json.dumps([row["item_id"] for row in pipe({"history": ["p1", "p0"]}, top_k=2)]))
"""


def test_a_baseline_goes_the_same_way(ask, tmp_path):
    torch.manual_seed(0)
    save_item_checkpoint(SasRec(SasRecConfig(num_items=3, hidden_size=8, temperature=0.1)), tmp_path)
    save_item_ids(tmp_path, ["p0", "p1", "p2"], [1, 2, 0])
    write_card(tmp_path, "tiny SASRec")
    pushed = ask(str(ROOT / "scripts" / "push_to_hub.py"), tmp_path, "me/secret-items", "--private")
    assert pushed.returncode == 0, pushed.stderr
    assert "pipeline_item_ids.py" in pushed.stdout and "modeling_jepa4rec.py" not in pushed.stdout
    told = ask(PRIVATE_ITEMS, TOKEN, token=False)
    assert told.returncode == 0, told.stderr
    ours = ItemIdPipeline(SasRec.from_pretrained(tmp_path))
    ours.add_items([{"item_id": item_id} for item_id in ("p0", "p1", "p2")])
    expected = [row["item_id"] for row in ours({"history": ["p1", "p0"]}, top_k=2)]
    assert json.loads(told.stdout.splitlines()[-1]) == expected


DOWNLOAD = "import sys; from huggingface_hub import snapshot_download; print(snapshot_download(sys.argv[1]))"


@pytest.mark.parametrize("when", ["half-way", "at the end"])
def test_a_push_that_breaks_off_leaves_the_old_revision_whole(hub, ask, push, checkpoint, other, when):
    repo_id = f"me/breaks-{when.replace(' ', '-')}"
    assert push([repo_id, checkpoint, {}]) == [""]
    repository = hub.repositories["model", repo_id]
    before = repository.refs["main"]
    hub.broken = when
    try:
        (error,) = push([repo_id, other, {}])
        downloaded = ask(DOWNLOAD, repo_id)
    finally:
        hub.broken = ""
    assert "broke off" in error and repository.refs["main"] == before and holds(repository, checkpoint)
    folder = Path(downloaded.stdout.split()[-1])
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in checkpoint.iterdir())
    assert push([repo_id, other, {}]) == [""] and holds(repository, other)


def test_of_two_pushes_at_once_none_mixes_with_the_other(hub, push, checkpoint, other):
    options = {}
    errors = push(["me/twice", checkpoint, options], ["me/twice", checkpoint, options], ["me/twice", other, options])
    assert all(not error or "somebody pushed to me/twice at the same time" in error for error in errors)
    repository = hub.repositories["model", "me/twice"]
    assert holds(repository, checkpoint) or holds(repository, other)


def test_branches_and_tags_keep_versions_apart(hub, push, checkpoint, other):
    first = ["me/versions", checkpoint, {"tag": "v1"}]
    assert push(first, ["me/versions", other, {"revision": "next", "tag": "v2"}]) == ["", ""]
    repository = hub.repositories["model", "me/versions"]
    assert holds(repository, checkpoint) and repository.tags["v1"] == repository.refs["main"]
    assert repository.tags["v2"] == repository.refs["next"] != repository.refs["main"]
    before = dict(repository.refs)
    (taken,) = push(["me/versions", other, {"tag": "v1"}])
    assert "the tag v1 exists already in me/versions" in taken and repository.refs == before


def test_a_public_repository_is_not_pushed_to_as_a_private_one(hub, push, checkpoint, other):
    assert push(["me/public", checkpoint, {}]) == [""]
    (error,) = push(["me/public", other, {"private": True}])
    assert "me/public exists and is public" in error and holds(hub.repositories["model", "me/public"], checkpoint)


def test_no_network_is_one_sentence(push, checkpoint):
    (error,) = push(["me/tiny", checkpoint, {}], endpoint="http://me:secret@127.0.0.1:9", fresh=True)
    assert "secret" not in error
    assert "did not answer or broke off" in error and "\n" not in error


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda folder: (folder / "weights.bin").write_bytes(b"x"), "safetensors only"),
        (lambda folder: (folder / "README.md").unlink(), "has no README.md"),
        (lambda folder: (folder / "README.md").write_text("# card"), "has no model-index"),
        (lambda folder: (folder / "LICENSE").unlink(), "has no LICENSE"),
        (lambda folder: (folder / "recipe.yaml").unlink(), "has no recipe.yaml"),
        (lambda folder: (folder / "recipe.yaml").write_text("run: {output_dir: /home/me/x}"), "names /home/me"),
        (lambda folder: (folder / "recipe.yaml").write_text("model: {init: a/b}"), "does not say base_model"),
        (lambda folder: unsay(folder, "license"), "does not say license:"),
        (lambda folder: unsay(folder, "language"), "does not say language:"),
        (lambda folder: unsay(folder, "custom_code"), "does not say tags: custom_code:"),
        (lambda folder: (seal(folder), (folder / "config.json").write_text("{}")), "config.json is not what the run"),
        (lambda folder: (folder / "README.md").write_text("---\nmodel-index: 3\n---\n"), "README.md"),
        (lambda folder: (folder / "notes.md").write_text("see /home/anna/data"), "/home/anna, a path of one machine"),
        (lambda folder: (folder / "notes.md").write_text("hf_" + "a" * 30), "access token"),
        (lambda folder: (folder / "attention_jepa4rec.py").unlink(), "does not load without this repository"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "truncated or corrupt"),
    ],
)
def test_what_must_not_go_stays(broken, spoil, sentence, capsys):
    spoil(broken)
    with pytest.raises(SystemExit) as stop:
        push_to_hub.main([str(broken), "me/tiny", "--dry_run"])
    assert sentence in str(stop.value.code) and "\n" not in str(stop.value.code)


def test_code_that_computes_something_else_is_noticed(broken):
    code = broken / "modeling_jepa4rec.py"
    text = code.read_text(encoding="utf-8")
    line = "return self._project(hidden[rows.first])"
    assert line in text
    code.write_text(text.replace(line, line.replace("hidden", "2 * hidden")), encoding="utf-8")
    with pytest.raises(SystemExit, match="gives a stranger other vectors"):
        push_to_hub.main([str(broken), "me/tiny", "--dry_run"])


@pytest.mark.parametrize("repo_id", ["tiny", "me/ti ny", "a/b/c", "me/..", ""])
def test_a_malformed_repository_id_is_named(checkpoint, repo_id):
    with pytest.raises(SystemExit, match="is no repository id"):
        push_to_hub.main([str(checkpoint), repo_id, "--dry_run"])


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(SystemExit, match="has no config.json"):
        push_to_hub.main([str(tmp_path), "me/tiny", "--dry_run"])


def test_no_token_is_said_before_anything_is_checked(tmp_path):
    with pytest.raises(SystemExit, match="there is no token to push with: log in with"):
        push_to_hub.main([str(tmp_path), "me/tiny"])
