"""Exports opened by strangers: an ONNX folder without torch, sentence-transformers without this repository."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_ITEMS
from processes import python

from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.hub.opening import open_encoder
from jepa4rec.modeling_jepa4rec import Jepa4RecForSequentialRecommendation, Jepa4RecModel
from jepa4rec.scripts import export_checkpoint
from jepa4rec.serving.pipeline_catalogue import save_item_ids
from jepa4rec.serving.pipeline_seqrec import SequentialRecommendationPipeline, save_checkpoint_files
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

pytestmark = pytest.mark.slow("opens exports in processes of a stranger")

# Items the model was trained on (by id), a stranger with a known text, and one of a single word.
ITEMS = [{"item_id": f"p{n}", **item} for n, item in enumerate(TINY_ITEMS)]
ASKED = [ITEMS[3], {**TINY_ITEMS[3], "item_id": "new"}, {"title": "Umbrella, red", "sizes": [38, 39.5], "left": None}]
HISTORIES = [ASKED[:1], [ITEMS[0], *ASKED], ITEMS + ASKED, ASKED[::-1]]
STRANGER = """
import json, sys

sys.modules.update(dict.fromkeys(sys.argv[1].split()))  # None: as if they were not installed
asked = json.load(open("asked.json"))
"""
SENTENCES = """
from sentence_transformers import SentenceTransformer

answers = {}
for name in ("encoder", "fine-tuned", "saved"):
    model = SentenceTransformer(name, trust_remote_code=True)
    parts = [asked["items"], asked["histories"], asked["items"][:1] + ["Green tea"] + asked["histories"][1:2]]
    answers[name] = [model.encode(part, batch_size=2).tolist() for part in parts]
    if name == "fine-tuned":
        model.save_pretrained("saved", create_model_card=False)
import torch
model = SentenceTransformer("encoder", trust_remote_code=True, model_kwargs={"dtype": torch.bfloat16})
assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
long, short = [{"title": "red " * 50}], [{"title": "red " * 6}]  # beside the attribute's name and [CLS]
assert (model.encode(long) != model.encode(short)).any()
model.max_seq_length = 8
assert model.max_seq_length == 8 and (model.encode(long) == model.encode(short)).all()
json.dump(answers, open("answers.json", "w"))
"""


def make_model(backend, **changes):
    torch.manual_seed(0)
    shape = {"vocab_size": len(backend), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 24, "max_position_embeddings": 256, "pad_token_id": backend.pad_token_id}
    fine_tuned = {"num_items": 12, "history_items": 3}
    fits = Jepa4RecForSequentialRecommendation if "num_items" in changes else Jepa4RecModel
    model = fits(Jepa4RecConfig(initializer_range=0.5, **shape, **(changes and fine_tuned | changes))).eval()
    if fits is Jepa4RecForSequentialRecommendation:
        model.initialise_items(torch.randn(12, 16))
        torch.nn.init.normal_(model.history_item_vectors.weight)
    return model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, tiny_backend, tiny_tokenizer):
    """A folder with an encoder (mean pooling, full attention) and a fine-tuned Longformer that knows twelve items."""
    home = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint_files(make_model(tiny_backend, pooling="mean"), tiny_tokenizer, home / "encoder")
    means = make_model(tiny_backend, pooling="mean", history_decay=0.5, catalogue_whitening=0.75)
    save_checkpoint_files(means, tiny_tokenizer, home / "means")
    fine_tuned = make_model(tiny_backend, num_items=12, attention_window=8)
    save_checkpoint_files(fine_tuned, tiny_tokenizer, home / "fine-tuned")
    save_item_ids(home / "fine-tuned", [item["item_id"] for item in ITEMS], range(12))
    return home


def open_pipe(folder):
    """The pipeline, whose vectors every export must give."""
    model = Jepa4RecModel.from_pretrained(folder).eval()
    return SequentialRecommendationPipeline(model, ItemSentTokenizer.from_pretrained(folder))


def ask(home, blocked: str, code: str):
    """The answers of a process in `home` that has neither the packages `blocked` nor a network."""
    (home / "asked.json").write_text(json.dumps({"items": ASKED, "histories": HISTORIES}))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable if "torch" in blocked else python(), "-c", STRANGER + code, blocked]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads((home / "answers.json").read_text())


# ------------------------------------------------------------------------------------------------ ONNX


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("window", [None, 8])
@torch.no_grad()
def test_the_padded_encoder_is_the_packed_one(tiny_backend, pooling, window):
    pytest.importorskip("onnxruntime")
    from jepa4rec.hub.onnx import PaddedEncoder

    model = make_model(tiny_backend, pooling=pooling, attention_window=window).base_model
    generator = torch.Generator().manual_seed(1)
    for rows, length in ((1, 1), (1, 7), (5, 40), (3, 200)):
        ids = torch.randint(5, len(tiny_backend), (rows, length), generator=generator)
        types = torch.randint(0, 4, (rows, length), generator=generator)
        items = torch.randint(0, 51, (rows, length), generator=generator)
        mask = torch.zeros(rows, length, dtype=torch.long)
        for row in mask:  # padding on either side
            begin, end = sorted(torch.randint(0, length + 1, (2,), generator=generator).tolist())
            row[min(begin, length - 1) : max(end, begin + 1)] = 1
        batch = ids, mask, types, items
        torch.testing.assert_close(PaddedEncoder(model)(*batch), model.embed(*batch), rtol=1e-4, atol=1e-5)


# A graph takes seconds to make; that of "encoder" would be that of "means", which differ in how histories are read.
NAMES = ("means", "fine-tuned")
WITHOUT_IDS = [[{n: v for n, v in item.items() if n != "item_id"} for item in history] for history in HISTORIES]
ASKED_ALONE = [[{n: v for n, v in item.items() if n != "item_id"}] for item in ASKED]


@pytest.fixture(scope="module")
def answers_without_torch(checkpoints, tmp_path_factory):
    """What the very lines of docs/serve.md give for each export, in one process that has transformers but neither
    torch nor this package."""
    for package in export_checkpoint.NEEDS["onnx"]:
        pytest.importorskip(package)
    home = tmp_path_factory.mktemp("without-torch")
    for name in NAMES:
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            export_checkpoint.main([str(checkpoints / name), str(home / name / "exported"), "--format", "onnx"])
        assert "onnx, vectors equal to" in told.getvalue()
    [lines] = re.findall(r"```python\n(import numpy[^`]*onnxruntime[^`]*)```", (ROOT / "docs/serve.md").read_text())
    each = f"""
import os

answers, home = {{}}, os.getcwd()
for name in {NAMES}:
    os.chdir(f"{{home}}/{{name}}")
    exec({lines!r})
    answers[name] = [vectors(part).tolist() for part in {[ASKED_ALONE, WITHOUT_IDS]}]
json.dump(answers, open(f"{{home}}/answers.json", "w"))
"""
    return ask(home, "torch jepa4rec", each)


@pytest.mark.parametrize("name", NAMES)
def test_a_stranger_without_torch_gets_the_text_encoders_vectors(checkpoints, answers_without_torch, name):
    model, tokenizer = open_encoder(checkpoints / name).eval(), ItemSentTokenizer.from_pretrained(checkpoints / name)
    for found, histories in zip(answers_without_torch[name], [ASKED_ALONE, WITHOUT_IDS], strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(histories, return_tensors="pt")).pooler_output
        np.testing.assert_allclose(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-4)


# ----------------------------------------------------------------------------------------------- sentence-transformers


def test_sentence_transformers_opens_a_checkpoint_as_it_is(checkpoints, tmp_path):
    pytest.importorskip("sentence_transformers")
    home = shutil.copytree(checkpoints, tmp_path / "home")
    answers = ask(home, "jepa4rec", SENTENCES)
    for name in ("encoder", "fine-tuned"):
        pipe = open_pipe(checkpoints / name)
        items, users, mixed = map(np.array, answers[name])
        np.testing.assert_allclose(items, pipe.item_vectors(ASKED), atol=1e-5)
        np.testing.assert_allclose(users, pipe.user_vectors(HISTORIES), atol=1e-5)
        with torch.no_grad():
            text = pipe.model.base_model(**pipe.tokenizer("Green tea", return_tensors="pt")).pooler_output[0]
        text = torch.nn.functional.normalize(text, dim=0)
        np.testing.assert_allclose(mixed, np.stack([items[0], text, users[1]]), atol=1e-5)
    for kept, saved in zip(answers["fine-tuned"], answers["saved"], strict=True):
        np.testing.assert_array_equal(kept, saved)


def test_an_older_checkpoint_is_brought_up_to_date(checkpoints, tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    old = shutil.copytree(checkpoints / "fine-tuned", tmp_path / "run" / "checkpoint")
    for name in ("modules.json", "embedding_seqrec.py", "pipeline_seqrec.py"):
        (old / name).unlink()
    export_checkpoint.main([str(tmp_path / "run"), str(tmp_path / "new"), "--format", "sentence-transformers"])
    assert "sentence-transformers, vectors equal to" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        path.name for path in (checkpoints / "fine-tuned").iterdir()
    }


def test_what_is_no_item_is_refused(checkpoints):
    pytest.importorskip("sentence_transformers")
    from jepa4rec.serving.embedding_seqrec import ItemSentEmbedding

    module = ItemSentEmbedding.load(str(checkpoints / "encoder"))
    for value in (3, [], ["p1", "p2"], [ITEMS[0], "p2"]):
        with pytest.raises(ValueError, match="Input 1 is .*give an item"):
            module.preprocess([ITEMS[0], value])
    with pytest.raises(ValueError, match="no prompt"):
        module.preprocess([ITEMS[0]], prompt="query: ")


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "form, spoil, sentence",
    [
        ("onnx", lambda folder: shutil.rmtree(folder), "is neither a folder nor the id of a checkpoint"),
        ("onnx", lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        ("onnx", lambda folder: (folder / "config.json").write_text('{"model_type": "sasrec"}'), 'is a "sasrec"'),
        ("onnx", lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "truncated or corrupt"),
        ("onnx", lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer that loads"),
        ("sentence-transformers", lambda folder: (folder.parent / "out").mkdir(), "out already exists"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(checkpoints, tmp_path, form, spoil, sentence):
    for package in export_checkpoint.NEEDS[form]:
        pytest.importorskip(package)
    folder = shutil.copytree(checkpoints / "fine-tuned", tmp_path / "spoilt")
    spoil(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        export_checkpoint.main([str(folder), str(tmp_path / "out"), "--format", form])
    assert sentence in stop.value.code and "\n" not in stop.value.code
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form, package", [("onnx", "onnxscript"), ("sentence-transformers", "sentence_transformers")])
def test_a_missing_extra_is_named(checkpoints, tmp_path, monkeypatch, form, package):
    find_spec = export_checkpoint.importlib.util.find_spec
    hide = lambda name, *rest: None if name == package else find_spec(name, *rest)  # noqa: E731
    monkeypatch.setattr(export_checkpoint.importlib.util, "find_spec", hide)
    with pytest.raises(SystemExit, match=rf"{package} is not installed: pip install .*\.\[{form}\]"):
        export_checkpoint.main([str(checkpoints / "encoder"), str(tmp_path / "out"), "--format", form])
    assert not list(tmp_path.iterdir())
