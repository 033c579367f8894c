"""Sentence-T5: equal to sentence-transformers both ways, loadable by a stranger, and clear about broken folders."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import TINY_ITEMS
from processes import ask_stranger
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from jepa4rec.hub.importing import import_checkpoint
from jepa4rec.hub.sentence_t5 import write_sentence_t5
from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.modeling_st5rec import St5RecConfig, St5RecForPreTraining, St5RecModel
from jepa4rec.scripts import export_checkpoint
from jepa4rec.scripts.import_checkpoint import main
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from jepa4rec.tokenization_itemsent import ST5_SETTINGS, ItemSentTokenizer
from jepa4rec.training.batches import Example
from jepa4rec.training.phases.pretrain import PreTrainingCollator
from jepa4rec.training.start import train_t5_wordpiece
from tests.training.test_round_trip import STRANGER

SENTENCES = [
    "<extra_id_1>TITLE: Ceramic teapot<extra_id_2>",
    "<extra_id_0><extra_id_1>TITLE: Green tea, loose leaf<extra_id_2><extra_id_1>TITLE: Honey dipper<extra_id_2>"
    "<extra_id_3>",
    "tea",
]


@pytest.fixture(scope="module")
def vocabulary():
    return train_t5_wordpiece([text for item in TINY_ITEMS for text in item.values()] + ["TITLE:"], 300)


def tiny_shape(vocabulary, **changes) -> dict:
    shape = {"vocab_size": len(vocabulary), "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    return {**shape, "feed_forward_proj": "gated-gelu", **changes}


@pytest.fixture(scope="module")
def sentence_t5(vocabulary, tmp_path_factory):
    """A small random Sentence-T5, written by sentence-transformers: the folder, and its vectors of SENTENCES."""
    library = pytest.importorskip("sentence_transformers")
    parts, home = (
        importlib.import_module("sentence_transformers.sentence_transformer.modules"),
        tmp_path_factory.mktemp("st5"),
    )
    torch.manual_seed(0)
    T5EncoderModel(T5Config(**tiny_shape(vocabulary))).save_pretrained(home / "t5")
    vocabulary.save_pretrained(home / "t5")
    modules = [parts.Transformer(str(home / "t5")), parts.Pooling(16, "mean")]
    modules += [parts.Dense(16, 12, bias=False, activation_function=torch.nn.Identity()), parts.Normalize()]
    model = library.SentenceTransformer(modules=modules, device="cpu")
    model.save(str(home / "folder"))
    return home / "folder", torch.from_numpy(model.encode(SENTENCES))


@pytest.fixture
def broken(sentence_t5, tmp_path):
    """A copy of the folder, to break."""
    shutil.copytree(sentence_t5[0], tmp_path / "folder")
    return tmp_path / "folder"


@torch.no_grad()
def vectors_of(model, tokenizer, sentences=SENTENCES) -> torch.Tensor:
    """Texts as they are written, one at a time and so without padding."""
    return torch.cat([model.embed(**tokenizer(text, return_tensors="pt")) for text in sentences])


@pytest.mark.slow("loads sentence-transformers")
def test_an_imported_folder_equals_sentence_transformers(sentence_t5):
    folder, expected = sentence_t5
    model, tokenizer = import_checkpoint(str(folder))
    assert isinstance(model, St5RecModel) and model.config.vector_size == 12
    torch.testing.assert_close(vectors_of(model, tokenizer), expected, atol=1e-5, rtol=0)
    # Our own reading of items and histories is that of the sentences written out, padding or not.
    batch = tokenizer([TINY_ITEMS[2:3] + TINY_ITEMS[4:5], TINY_ITEMS[:1]], return_tensors="pt")
    with torch.no_grad():
        own = torch.cat([model(**tokenizer(TINY_ITEMS[0], return_tensors="pt")).pooler_output, model.embed(**batch)])
    torch.testing.assert_close(own[:2], expected[:2], atol=1e-5, rtol=0)
    torch.testing.assert_close(own.norm(dim=1), torch.ones(3))


@pytest.mark.slow("loads sentence-transformers")
def test_an_exported_folder_gives_sentence_transformers_our_vectors(vocabulary, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    torch.manual_seed(1)
    model = St5RecModel(St5RecConfig(**tiny_shape(vocabulary), projection_size=20)).eval()
    tokenizer = ItemSentTokenizer.wrap(vocabulary, **ST5_SETTINGS)
    write_sentence_t5(model, tokenizer, tmp_path / "folder")
    theirs = library.SentenceTransformer(str(tmp_path / "folder"), device="cpu")
    assert theirs.max_seq_length == 255 and not list(tmp_path.rglob("*.py"))
    given = torch.from_numpy(theirs.encode(SENTENCES))
    torch.testing.assert_close(given, vectors_of(model, tokenizer), atol=1e-5, rtol=0)
    again, _ = import_checkpoint(str(tmp_path / "folder"))
    assert {k: v.tolist() for k, v in again.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }


@pytest.mark.slow("loads sentence-transformers")
def test_a_source_that_reads_less_stays_so_and_an_export_that_reads_more_is_noticed(broken, tmp_path, monkeypatch):
    library = pytest.importorskip("sentence_transformers")
    (broken / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 120}))
    long = [" ".join(SENTENCES * 20)]
    expected = torch.from_numpy(library.SentenceTransformer(str(broken), device="cpu").encode(long))
    model, tokenizer = import_checkpoint(str(broken))
    assert tokenizer.max_tokens == 120
    save_checkpoint_files(model, tokenizer, tmp_path / "ours")
    command = [str(tmp_path / "ours"), str(tmp_path / "out"), "--format", "sentence-transformers"]
    export_checkpoint.main(command)
    for place in ("ours", "out"):
        opened = library.SentenceTransformer(str(tmp_path / place), device="cpu", trust_remote_code=True)
        torch.testing.assert_close(torch.from_numpy(opened.encode(long)), expected, atol=1e-5, rtol=0)

    def reads_more(model, tokenizer, folder):
        write_sentence_t5(model, tokenizer, folder)
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 255}))

    monkeypatch.setattr(export_checkpoint, "write_sentence_t5", reads_more)
    command[1] = str(tmp_path / "more")
    with pytest.raises(SystemExit, match="the export's vectors differ"):
        export_checkpoint.main(command)


@pytest.mark.slow("opens it in a process of a stranger")
def test_the_command_makes_a_checkpoint_that_a_stranger_opens(sentence_t5, tmp_path, monkeypatch, capsys):
    folder, expected = sentence_t5
    monkeypatch.setattr(sys, "argv", ["import_checkpoint.py", str(folder), str(tmp_path / "Checkpoint")])
    main()
    assert "St5RecModel, 2 layers of width 16, mean pooling, up to 255 tokens" in capsys.readouterr().out
    (tmp_path / "items.json").write_text(json.dumps([TINY_ITEMS[2], TINY_ITEMS[4]]))
    ask_stranger("-c", STRANGER, "Checkpoint", home=tmp_path, noise=False)
    answers = load_file(tmp_path / "Checkpoint.answers")
    torch.testing.assert_close(answers["pooler_output"][0], expected[1], atol=1e-5, rtol=0)
    assert {path.suffix for path in (tmp_path / "Checkpoint").iterdir()} == {".py", ".json", ".safetensors"}


@pytest.mark.slow("loads sentence-transformers")
def test_a_checkpoint_is_exported_and_opens_by_itself_too(sentence_t5, tmp_path, capsys):
    library = pytest.importorskip("sentence_transformers")
    model, tokenizer = import_checkpoint(str(sentence_t5[0]))
    save_checkpoint_files(model, tokenizer, tmp_path / "checkpoint")
    export_checkpoint.main([str(tmp_path / "checkpoint"), str(tmp_path / "out"), "--format", "sentence-transformers"])
    assert "sentence-transformers, vectors equal to" in capsys.readouterr().out
    plain = torch.from_numpy(library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(SENTENCES))
    torch.testing.assert_close(plain, sentence_t5[1], atol=1e-5, rtol=0)
    own = library.SentenceTransformer(str(tmp_path / "checkpoint"), device="cpu", trust_remote_code=True)
    vectors = torch.from_numpy(own.encode([TINY_ITEMS[0], [TINY_ITEMS[2], TINY_ITEMS[4]], "tea"]))
    torch.testing.assert_close(vectors, sentence_t5[1], atol=1e-5, rtol=0)
    with pytest.raises(SystemExit, match="a St5RecModel goes to sentence-transformers"):
        export_checkpoint.main([str(tmp_path / "checkpoint"), str(tmp_path / "onnx"), "--format", "onnx"])
    assert not (tmp_path / "onnx").exists()


def without_modules(folder):
    (folder / "modules.json").unlink()


def without_dense(folder):
    shutil.rmtree(folder / "2_Dense")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([m for m in modules if m["path"] != "2_Dense"]))


def without_dense_weights(folder):
    (folder / "2_Dense" / "model.safetensors").unlink()


def with_torn_dense(folder):
    path = folder / "2_Dense" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def with_bias(folder):
    path = folder / "2_Dense" / "config.json"
    path.write_text(path.read_text().replace("false", "true"))


def with_cls(folder):
    path = folder / "1_Pooling" / "config.json"
    path.write_text(path.read_text().replace("mean", "cls"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_modules, r"its dense layer \(2_Dense\) is missing"),
        (without_dense, "Dense is missing"),
        (without_dense_weights, "lacks the weights of its dense layer, 2_Dense/model.safetensors"),
        (with_torn_dense, "2_Dense/model.safetensors is truncated or corrupt"),
        (with_bias, "has no bias and no activation, this one has"),
        (with_cls, "takes the mean over tokens, this one cls"),
    ],
)
def test_a_broken_folder_is_one_clear_sentence(damage, message, broken, tmp_path, monkeypatch):
    damage(broken)
    monkeypatch.setattr(sys, "argv", ["import_checkpoint.py", str(broken), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=f"^import_checkpoint: .*{message}"):
        main()
    assert not (tmp_path / "out").exists()


def test_a_setting_that_it_does_not_have_is_named(sentence_t5):
    with pytest.raises(ValueError, match="max_item_embeddings is nothing that a Sentence-T5 has"):
        import_checkpoint(str(sentence_t5[0]), max_item_embeddings=5)


def test_padding_changes_nothing_and_gradients_reach_every_weight(vocabulary):
    model = St5RecModel(St5RecConfig(**tiny_shape(vocabulary), projection_size=8)).eval()
    tokenizer = ItemSentTokenizer.wrap(vocabulary, **ST5_SETTINGS)
    batch = tokenizer([TINY_ITEMS, TINY_ITEMS[:1]], return_tensors="pt")
    alone = model.embed(**tokenizer([TINY_ITEMS[:1]], return_tensors="pt"))
    both = model.embed(**batch)
    torch.testing.assert_close(both[1:], alone)
    both[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with pytest.raises(ValueError, match="Row 1 of the batch has no token"):
        model(torch.tensor([[5, 1], [0, 0]]))


def test_checkpoints_of_the_other_family_and_lost_weights_are_named(vocabulary, tmp_path):
    model = St5RecModel(St5RecConfig(**tiny_shape(vocabulary)))
    save_checkpoint_files(model, ItemSentTokenizer.wrap(vocabulary, **ST5_SETTINGS), tmp_path)
    with pytest.raises(ValueError, match='is a "st5rec" checkpoint, not a "jepa4rec" one'):
        Jepa4RecModel.from_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of the encoder, the first of them projection.weight"):
        St5RecModel.from_pretrained(tmp_path)


def test_t5s_own_sentinel_is_the_mask_of_jepa_pre_training(vocabulary, tmp_path):
    tokenizer = ItemSentTokenizer.wrap(vocabulary, **ST5_SETTINGS)
    tokenizer.add_tokens(["<extra_id_4>"], special_tokens=True)
    encoder = St5RecModel(St5RecConfig(**tiny_shape(tokenizer), projection_size=12)).eval()
    write_sentence_t5(encoder, tokenizer, tmp_path / "folder")
    encoder, tokenizer = import_checkpoint(str(tmp_path / "folder"))
    assert tokenizer.mask_token == "<extra_id_4>" and tokenizer.mask_token_id == len(tokenizer) - 1
    encoder.save_pretrained(tmp_path / "encoder")
    model = St5RecForPreTraining.from_pretrained(tmp_path / "encoder").train()
    collate = PreTrainingCollator(tokenizer, tokenizer.encode_items(TINY_ITEMS))
    batch = collate([Example(np.array([0, 3]), 4, 0, 0), Example(np.array([7]), 9, 1, 0)])
    assert (batch["next_input_ids"] == tokenizer.mask_token_id).any()
    out = model(**batch)
    assert list(out.loss_parts) == ["contrastive", "mlm", "map"]
    out.loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("target_encoder."))
