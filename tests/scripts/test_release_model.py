"""The repository as a model on the Hub: a bare clone, and its copy behind an id, open by every road."""

import json
import shutil

import pytest
import torch
from conftest import ROOT, WITHOUT_PACKAGE
from hub_server import Repository, empty_hub, run_client
from huggingface_hub import ModelCard

from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.scripts.release_model import release
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from jepa4rec.serving.whole_files_seqrec import changed_files

pytestmark = pytest.mark.slow("opens a repository in processes of a stranger")

STRANGER = (
    WITHOUT_PACKAGE
    + """
import json
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, pipeline

answers, tea = [], [{"title": "Green tea"}]
for place in sys.argv[1:]:
    model = AutoModel.from_pretrained(place, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=True)
    vectors = model(**tokenizer([tea], return_tensors="pt")).pooler_output
    pipe = pipeline("sequential-recommendation", model=place, trust_remote_code=True)
    pipe.add_items([{"item_id": "a", "title": "Ceramic teapot"}, {"item_id": "b", "title": "Head torch"}])
    sentences = SentenceTransformer(place, trust_remote_code=True).encode(tea)
    answers.append([str(model.dtype), vectors.tolist(), len(pipe({"history": tea}, top_k=2)), sentences.shape[1]])
json.dump(answers, sys.stdout)
"""
)

SAVES = (
    WITHOUT_PACKAGE
    + """
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, pipeline

for place, home in zip(sys.argv[1::2], sys.argv[2::2]):
    AutoModel.from_pretrained(place, trust_remote_code=True).save_pretrained(home + "/parts")
    AutoTokenizer.from_pretrained(place, trust_remote_code=True).save_pretrained(home + "/parts")
    pipeline("sequential-recommendation", model=place, trust_remote_code=True).save_pretrained(home + "/pipe")
    SentenceTransformer(place, trust_remote_code=True).save_pretrained(home + "/sentences", create_model_card=False)
"""
)
OPENS = (
    WITHOUT_PACKAGE
    + """
import json
from sentence_transformers import SentenceTransformer
from transformers import pipeline

texts, vectors = [{"title": "Green tea"}, [{"title": "Ceramic teapot"}, {"title": "Head torch"}], "tea"], []
for place in sys.argv[1:]:
    pipe = pipeline("sequential-recommendation", model=place, trust_remote_code=True)
    pipe.add_items([{"item_id": "a", "title": "Ceramic teapot"}, {"item_id": "b", "title": "Head torch"}])
    assert len(pipe({"history": ["a"]}, top_k=2)) == 2
    vectors.append(SentenceTransformer(place, trust_remote_code=True).encode(texts).tolist())
json.dump(vectors, sys.stdout)
"""
)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A published record, under the name of the model that is released here."""
    path = tmp_path_factory.mktemp("record") / "record.json"
    content = json.loads((ROOT / "results" / "scientific-minilm-zero-shot.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def clone(tmp_path_factory, tiny_tokenizer, record):
    """What a stranger's clone holds of code, with a tiny model released into it."""
    home = tmp_path_factory.mktemp("released")
    for name in ("README.md", *(path.name for path in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, home)
    shutil.copytree(ROOT / "serving", home / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), tiny_tokenizer)
    release(str(checkpoint), [record], "someone/start", home, replace=False)
    return home


def make_checkpoint(folder, tokenizer):
    from jepa4rec.configuration_jepa4rec import Jepa4RecConfig

    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Jepa4RecModel(Jepa4RecConfig(**shape, intermediate_size=16, pad_token_id=tokenizer.pad_token_id))
    save_checkpoint_files(model, tokenizer, folder)
    return folder


def opened(done) -> list:
    assert not done.returncode, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_bare_clone_and_the_same_behind_an_id_open(clone, tmp_path):
    with empty_hub() as hub:
        repository = hub.repositories["model", "someone/jepa4rec"] = Repository()
        files = [path for path in clone.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        repository.commit("main", {str(path.relative_to(clone)): path.read_bytes() for path in files})
        by_id, local = opened(run_client(hub.url, tmp_path, STRANGER, "someone/jepa4rec", str(clone)))
    assert by_id[0] == local[0] == "torch.float32" and by_id[2:] == local[2:] == [2, 16]
    torch.testing.assert_close(torch.tensor(by_id[1]), torch.tensor(local[1]))


def test_however_it_is_saved_it_opens_as_the_one_it_came_from(clone, tmp_path):
    """What is saved is flat: its code lies beside the weights and no longer in a room."""
    with empty_hub() as hub:
        repository = hub.repositories["model", "someone/jepa4rec"] = Repository()
        files = [path for path in clone.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        repository.commit("main", {str(path.relative_to(clone)): path.read_bytes() for path in files})
        homes = {str(clone): tmp_path / "local", "someone/jepa4rec": tmp_path / "by-id"}
        done = run_client(hub.url, tmp_path, SAVES, *(part for pair in homes.items() for part in pair))
        assert not done.returncode and "without the code" not in done.stderr, done.stderr[-3000:]
        saved = [home / way for home in homes.values() for way in ("parts", "pipe", "sentences")]
        expected, *found = opened(run_client(hub.url, tmp_path, OPENS, clone, *saved))
    for vectors in found:
        torch.testing.assert_close(torch.tensor(vectors), torch.tensor(expected), atol=1e-6, rtol=0)


def test_the_page_is_the_card_and_nothing_of_it_is_lost(clone, record):
    page = (clone / "README.md").read_text(encoding="utf-8")
    assert page.endswith((ROOT / "README.md").read_text(encoding="utf-8").partition("\n---\n")[2].lstrip("\n")[-500:])
    data = ModelCard.load(clone / "README.md").data
    assert data.license == "apache-2.0" and data.base_model == "someone/start" and "custom_code" in data.tags
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    wanted = json.loads(record.read_text(encoding="utf-8"))["metrics"]
    assert figures["ndcg@10"] == pytest.approx(wanted["ndcg@10"], abs=1e-6)


def test_weights_configuration_and_tokenizer_are_sealed_and_the_page_may_change(clone, tmp_path):
    copy = shutil.copytree(clone, tmp_path / "copy")
    for name in ("README.md", "modeling_jepa4rec.py"):
        (copy / name).write_text("another", encoding="utf-8")
    assert changed_files(copy) == []
    for name in (weights := ["config.json", "model.safetensors", "modules.json", "tokenizer.json"]):
        (copy / name).write_bytes(b"another")
    assert changed_files(copy) == weights


def test_what_is_released_is_not_replaced_by_accident(clone, record, tmp_path, tiny_tokenizer, monkeypatch):
    checkpoint = make_checkpoint(tmp_path / "other", tiny_tokenizer)
    before = (clone / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="a better one replaces it with --replace"):
        release(str(checkpoint), [record], "someone/start", clone, replace=False)
    monkeypatch.setattr("jepa4rec.scripts.release_model.MOST_BYTES", 100)
    with pytest.raises(ValueError, match="bytes of weights are more than the 100 to carry here"):
        release(str(checkpoint), [record], "someone/start", clone, replace=True)
    assert (clone / "config.json").read_bytes() == before
