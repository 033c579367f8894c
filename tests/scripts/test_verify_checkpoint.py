"""scripts/verify_checkpoint.py: every kind of damage to a published checkpoint is named."""

import shutil

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.scripts import verify_checkpoint
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from jepa4rec.serving.whole_files_seqrec import SEAL, seal


@pytest.fixture
def checkpoint(tiny_config, tiny_tokenizer, tmp_path):
    save_checkpoint_files(Jepa4RecModel(tiny_config), tiny_tokenizer, tmp_path / "run" / "checkpoint")
    seal(tmp_path / "run" / "checkpoint")
    return tmp_path / "run" / "checkpoint"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change(path, how):
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({**tensors, name: how(tensors[name])}, path)


@pytest.mark.parametrize(
    "name, damage",
    [
        ("model.safetensors", flip),
        ("model.safetensors", lambda path: change(path, torch.zeros_like)),
        ("model.safetensors", lambda path: change(path, lambda tensor: tensor.to(torch.int32))),
        ("tokenizer.json", flip),
        ("modeling_jepa4rec.py", lambda path: path.write_text("print()")),
        ("config.json", lambda path: path.unlink()),
    ],
)
def test_the_file_that_is_not_what_was_published_is_named(checkpoint, capsys, name, damage):
    verify_checkpoint.main([str(checkpoint.parent)])
    assert "every file is what was published" in capsys.readouterr().out
    damage(checkpoint / name)
    with pytest.raises(SystemExit, match=f"verify_checkpoint: .*not what was published: {name}$"):
        verify_checkpoint.main([str(checkpoint)])


def test_the_released_model_is_what_was_released(capsys):
    verify_checkpoint.main([str(ROOT)])
    assert "every file is what was published" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_a_seal_that_is_none_is_one_sentence(checkpoint, content):
    (checkpoint / SEAL).write_text(content)
    with pytest.raises(SystemExit, match="sha256.json is damaged"):
        verify_checkpoint.main([str(checkpoint)])
    (checkpoint / SEAL).unlink()
    with pytest.raises(SystemExit, match="has no sha256.json"):
        verify_checkpoint.main([str(checkpoint)])
    shutil.rmtree(checkpoint)
