"""Checkpoints written before the files moved into rooms open as they did and give the vectors written beside them.

`fixtures/before_rooms` holds one of each kind, their code left out, and `vectors.json`: of the histories below, to
seven digits.
"""

import json

import pytest
import torch
from conftest import ROOT, TINY_ITEMS

from jepa4rec.baselines.sasrec import SasRec
from jepa4rec.hub.opening import is_fine_tuned, open_encoder, pretraining_class, read_config, recommendation_class
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

OLD = ROOT / "tests" / "fixtures" / "before_rooms"
HISTORIES = [[TINY_ITEMS[0], TINY_ITEMS[3]], [TINY_ITEMS[7]]]
HISTORY_IDS = torch.tensor([[3, 0], [7, -1]])  # newest first


@pytest.fixture(scope="module")
def vectors():
    written = json.loads((OLD / "vectors.json").read_text(encoding="utf-8"))
    return {name: torch.tensor(rows) for name, rows in written.items()}


def inputs(name: str) -> dict:
    return ItemSentTokenizer.from_pretrained(OLD / name)(HISTORIES, return_tensors="pt")


@pytest.mark.parametrize("name", ["pretrained", "finetuned", "st5"])
def test_the_encoder_of_an_old_checkpoint_gives_its_vectors(name, vectors):
    with torch.no_grad():
        torch.testing.assert_close(open_encoder(OLD / name)(**inputs(name)).pooler_output, vectors[name])


def test_an_old_pre_training_checkpoint_goes_on_with_all_its_heads(vectors):
    model, info = pretraining_class(OLD / "pretrained").from_pretrained(OLD / "pretrained", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(model.target_encoder.embed(**inputs("pretrained")), vectors["pretrained"])


def test_an_old_fine_tuned_checkpoint_recommends_as_it_did(vectors):
    model, info = recommendation_class(OLD / "finetuned").from_pretrained(OLD / "finetuned", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert is_fine_tuned(model) and is_fine_tuned(model.config) and is_fine_tuned(read_config(OLD / "finetuned"))
    with torch.no_grad():
        users = model.user_vectors(**inputs("finetuned"), history_item_ids=HISTORY_IDS)
    torch.testing.assert_close(torch.nn.functional.normalize(users), vectors["finetuned_users"])


def test_an_old_sentence_t5_saves_itself_as_a_new_one(tmp_path, vectors):
    open_encoder(OLD / "st5").save_pretrained(tmp_path)
    assert read_config(tmp_path)["auto_map"]["AutoConfig"] == "modeling_st5rec.St5RecConfig"
    with torch.no_grad():
        torch.testing.assert_close(open_encoder(tmp_path)(**inputs("st5")).pooler_output, vectors["st5"])


def test_an_old_baseline_gives_its_vectors(vectors):
    model = SasRec.from_pretrained(OLD / "sasrec").eval()
    with torch.no_grad():
        torch.testing.assert_close(model.user_vectors(torch.tensor([[0, 1], [3, -1]])), vectors["sasrec"])
