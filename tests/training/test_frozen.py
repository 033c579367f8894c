"""Frozen layers read each item once, and what is made of that is what reading it anew gives."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_ITEMS

from jepa4rec.modeling_jepa4rec import Jepa4RecForSequentialRecommendation, Jepa4RecModel
from jepa4rec.training.frozen import FrozenStates
from jepa4rec.training.optimisation import freeze
from jepa4rec.training.phases.finetune import FinetunePhase
from jepa4rec.training.phases.item_sequence import ItemSequenceEncoder

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "item_position_ids")
BATCHES = ([0, 3, 5, 11], [3, 5, 7, 8, 11], [0, 7, 3, 8])


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    model = ItemSequenceEncoder(tiny_config).train()
    freeze(model, False, 1)
    return model


@pytest.fixture
def batches(tiny_tokenizer):
    tokens = tiny_tokenizer.encode_items(TINY_ITEMS)
    places = torch.tensor([[0, 1, 2], [3, 1, -1]])
    pointers = {"sequences": places, "next_places": torch.tensor([0, 1, 2])}
    return [
        dict(tiny_tokenizer.batch_items(tokens, items)) | pointers | {"item_ids": torch.tensor(items)}
        for items in BATCHES
    ]


def losses_and_gradients(model, batches) -> list:
    torch.manual_seed(1)
    found = []
    for batch in batches:
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    return found


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("most_bytes", [2**20, 20_000, 0])
def test_losses_and_gradients_are_those_of_reading_anew(tiny_config, batches, pooling, slices, most_bytes):
    torch.manual_seed(0)
    tiny_config.pooling, tiny_config.hidden_dropout_prob, tiny_config.attention_probs_dropout_prob = pooling, 0.0, 0.0
    model = ItemSequenceEncoder(tiny_config).train()
    freeze(model, False, 1)
    model.slices, anew = slices, losses_and_gradients(model, batches)
    model.frozen = FrozenStates(model.encoder, 1, most_bytes)
    for (loss, gradients), (other, others) in zip(anew, losses_and_gradients(model, batches), strict=True):
        assert loss == pytest.approx(other, abs=1e-6)
        assert any(name.startswith("encoder.encoder.layer.1") for name in gradients)
        for name in gradients:
            torch.testing.assert_close(others[name], gradients[name], atol=1e-6, rtol=1e-4)


def test_each_item_is_read_once_and_without_dropout(model, batches, monkeypatch):
    read, below = [], Jepa4RecModel.embed_below
    monkeypatch.setattr(
        Jepa4RecModel, "embed_below", lambda *given: read.append(len(given[2])) or below(*given), raising=True
    )
    model.encoder.embeddings.dropout.p = 0.5
    model.frozen = FrozenStates(model.encoder, 1)
    model(**batches[0]), model(**batches[1]), model(**batches[2])
    assert read == [4, 2]  # 7 and 8 are new in the second batch, none in the third
    kept = dict(model.frozen._kept)
    model.frozen = FrozenStates(model.encoder, 1)
    for batch in batches:
        model.train()(**batch)
    for item, states in model.frozen._kept.items():
        torch.testing.assert_close(states, kept[item])


def test_a_copy_whose_weights_may_change_begins_without(model):
    model.frozen = FrozenStates(model.encoder, 1)
    assert copy.deepcopy(model).frozen is None


def test_fine_tuning_on_texts_of_one_item_keeps_them_and_evaluation_does_not(tiny_config, batches):
    tiny_config.hidden_dropout_prob = tiny_config.attention_probs_dropout_prob = 0.0
    tiny_config.num_items = len(TINY_ITEMS)
    model = Jepa4RecForSequentialRecommendation(tiny_config).train()
    freeze(model, False, 1)
    texts = [{name: batch[name] for name in TEXT_INPUTS} for batch in batches]
    anew = [model.user_vectors(**batch) for batch in texts]
    model.frozen = FrozenStates(model.base_model, 1)
    with torch.inference_mode():
        model.eval().user_vectors(**texts[0])
    assert not model.frozen._kept, "made without gradients, they could not be learned from"
    for batch, vectors in zip(texts, anew, strict=True):
        kept = model.train().user_vectors(**batch)
        torch.testing.assert_close(kept, vectors)
        kept.sum().backward()
    assert len(model.frozen._kept) == 6


def test_what_else_goes_through_frozen_layers_keeps_its_dropout(model, batches):
    model.frozen = FrozenStates(model.encoder, 1)
    model.train()(**batches[0])
    assert all(module.training for module in model.encoder.stages())
    model.eval()(**batches[1])
    assert not any(module.training for module in model.encoder.stages())


@pytest.mark.parametrize("max_items, freeze_layers, keeps", [(1, 1, True), (2, 1, False), (1, 0, False)])
def test_which_fine_tuning_keeps_texts(tmp_path, tiny_config, max_items, freeze_layers, keeps):
    Jepa4RecModel(tiny_config).save_pretrained(tmp_path)
    phase = FinetunePhase(kind="finetune", max_items=max_items, freeze_layers=freeze_layers)
    data = SimpleNamespace(
        num_items=5, dataset=SimpleNamespace(fingerprint=""), seen_items=lambda: torch.ones(5, dtype=torch.bool)
    )
    assert (phase.open_model(tmp_path, data).frozen is not None) == keeps
