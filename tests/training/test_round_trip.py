"""A stranger: another folder, another process, nothing of ours importable, no network; identical outputs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_ITEMS, WITHOUT_PACKAGE
from processes import ask_stranger
from safetensors.torch import load_file, save_file
from tiny_batches import pretraining_batch

from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecForSequentialRecommendation, Jepa4RecModel

pytestmark = pytest.mark.slow("opens checkpoints in processes of a stranger")

STRANGER = (
    WITHOUT_PACKAGE
    + """
import json, sys
try:
    import jepa4rec
    sys.exit("jepa4rec is importable")
except ModuleNotFoundError:
    pass
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer

items = json.load(open("items.json"))
for checkpoint in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
    batch = tokenizer([items, items[:1]], return_tensors="pt")
    answers = {**batch, **model(**batch)}
    if "PreTraining" in checkpoint:
        whole = AutoModelForPreTraining.from_pretrained(checkpoint, trust_remote_code=True).eval()
        answers["loss"] = whole(**load_file("batch.safetensors")).loss[None]
    save_file({name: value.detach().contiguous() for name, value in answers.items()}, checkpoint + ".answers")
"""
)
MODELS = {
    "Encoder": (Jepa4RecModel, {"pooling": "mean"}),
    "PreTraining": (Jepa4RecForPreTraining, {"attention_window": 8}),
    "FineTuned": (Jepa4RecForSequentialRecommendation, {"num_items": 5, "history_items": 2}),
}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, tiny_backend, tiny_tokenizer):
    """Folder in which a stranger has answered, and the models and items he was asked about."""
    home, items = tmp_path_factory.mktemp("stranger"), TINY_ITEMS
    models = {name: _save(name, home, tiny_backend, tiny_tokenizer) for name in MODELS}
    (home / "items.json").write_text(json.dumps(items))
    save_file(
        {name: value.contiguous().clone() for name, value in pretraining_batch().items()}, home / "batch.safetensors"
    )
    _ask(home)
    return home, models, items


def _save(name: str, home: Path, backend, tokenizer) -> torch.nn.Module:
    """A random model saved with its tokenizer, then moved: nothing may depend on where it was written."""
    model_class, changes = MODELS[name]
    shape = {"vocab_size": len(backend), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 24, "max_position_embeddings": 256, "pad_token_id": backend.pad_token_id}
    model = model_class(Jepa4RecConfig(**shape, **changes)).eval()
    for part in (model, tokenizer):
        part.save_pretrained(home / "written" / name)
    shutil.move(home / "written" / name, home / name)
    return model


def _ask(home: Path) -> None:
    """Run STRANGER in `home` with an environment in which only site-packages can be imported."""
    (home / "stranger.py").write_text(STRANGER)
    ask_stranger("stranger.py", *MODELS, home=home, noise=False)


@pytest.mark.parametrize("name", MODELS)
def test_a_stranger_gets_identical_outputs(name, stranger, tiny_tokenizer):
    home, models, items = stranger
    model, answers = models[name], load_file(home / f"{name}.answers")
    batch = tiny_tokenizer([items, items[:1]], return_tensors="pt")
    for key, value in batch.items():
        assert torch.equal(answers[key], value), key
    with torch.no_grad():
        expected = model.base_model(**batch)
        assert torch.equal(answers["last_hidden_state"], expected.last_hidden_state)
        assert torch.equal(answers["pooler_output"], expected.pooler_output)
        if name == "PreTraining":
            assert torch.equal(answers["loss"][0], model(**pretraining_batch()).loss)


def test_nothing_is_pickled(stranger):
    home, _, _ = stranger
    suffixes = {path.suffix for name in MODELS for path in (home / name).iterdir()}
    assert suffixes == {".py", ".json", ".safetensors"}
