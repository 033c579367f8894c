"""Cached gradients are the gradients, with dropout too, and hold one chunk at a time; what is saved is the encoder."""

import pytest
import torch
from conftest import TINY_ITEMS
from torch.multiprocessing.reductions import StorageWeakRef

from jepa4rec.hub.opening import open_encoder
from jepa4rec.losses_seqrec import SentencePairObjective
from jepa4rec.modeling_st5rec import St5RecConfig, St5RecModel
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from jepa4rec.tokenization_itemsent import ST5_SETTINGS, ItemSentTokenizer
from jepa4rec.training.optimisation import freeze
from jepa4rec.training.phases.pairs import SentencePairModel, as_pair
from jepa4rec.training.start import train_t5_wordpiece


@pytest.fixture(scope="module")
def tokenizer():
    words = [text for item in TINY_ITEMS for text in item.values()] + ["TITLE:"]
    return ItemSentTokenizer.wrap(train_t5_wordpiece(words, 300), **ST5_SETTINGS)


@pytest.fixture(scope="module")
def batch(tokenizer):
    """Twelve pairs: histories of one to twelve items, and the item that follows."""
    tokens = tokenizer.encode_items(TINY_ITEMS)
    histories = tokenizer.batch_histories(tokens, [range(n + 1) for n in range(12)])
    return as_pair(histories, tokenizer.batch_items(tokens, [(n + 1) % 12 for n in range(12)]))


def model_of(tokenizer, dropout: float = 0.0) -> SentencePairModel:
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    return SentencePairModel(St5RecConfig(**shape, projection_size=8, dropout_rate=dropout)).double().train()


def gradients(model, batch, slices) -> tuple[float, dict]:
    model.zero_grad()
    model.slices = slices
    torch.manual_seed(7)
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("slices", [2, 4, 12])
def test_cached_gradients_are_those_of_the_whole_batch(slices, tokenizer, batch):
    model = model_of(tokenizer)
    loss, expected = gradients(model, batch, 1)
    cached_loss, cached = gradients(model, batch, slices)
    assert cached_loss == pytest.approx(loss, abs=1e-6)
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(cached[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_the_second_pass_has_the_dropout_of_the_first(tokenizer, batch, monkeypatch):
    model = model_of(tokenizer, dropout=0.3)
    loss, cached = gradients(model, batch, 3)
    monkeypatch.setattr("jepa4rec.modeling_seqrec.checkpoint", lambda read, *rows, use_reentrant: read(*rows))
    kept_loss, kept = gradients(model, batch, 3)  # the same slices, activations kept
    assert loss == kept_loss
    for name, gradient in kept.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-9, rtol=1e-7, msg=name)
    torch.manual_seed(8)
    assert model(**batch).loss.item() != loss  # dropout does something here


def test_activations_of_one_slice_at_a_time_are_kept(tokenizer, batch):
    model, alive, most = model_of(tokenizer), [], []

    def remember(module, inputs):
        alive[:] = [kept for kept in alive if not kept[0].expired()]
        alive.append((StorageWeakRef(inputs[0].untyped_storage()), len(inputs[0])))
        most.append(sum(rows for _, rows in alive))

    for block in model.encoder.t5.encoder.block:
        block.layer[1].DenseReluDense.wo.register_forward_pre_hook(remember)
    rows = {}
    for slices in (1, 4):
        most.clear()
        gradients(model, batch, slices)
        rows[slices] = max(most)
    assert rows == {1: 2 * 2 * 12, 4: 2 * 3}  # two layers; in one slice both sides of the batch at once


def test_what_is_saved_is_the_encoder(tokenizer, tmp_path):
    model = model_of(tokenizer).float()
    save_checkpoint_files(model, tokenizer, tmp_path / "saved")
    assert isinstance(open_encoder(tmp_path / "saved"), St5RecModel)
    again = SentencePairModel.from_encoder(tmp_path / "saved")
    for name, weights in model.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], weights), name
    assert again.base_model is again.encoder and again.config.vector_size == 8


def test_duplicates_are_no_negatives_and_telemetry_tells_of_collapse(tokenizer, batch):
    model = model_of(tokenizer).eval()
    ids = torch.arange(12) % 6
    masked = model(**batch, pair_ids=ids, telemetry=True)
    model.objective = SentencePairObjective(mask_duplicates=False)
    assert masked.loss < model(**batch, pair_ids=ids).loss
    assert set(masked.loss_parts) == {"ranking"} and masked.telemetry["effective_rank"] > 1


def test_embeddings_and_lowest_layers_can_be_frozen(tokenizer):
    model = model_of(tokenizer)
    freeze(model, word_embeddings=False, layers=1)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("block.0." in name or "shared" in name for name in learning)
    assert any("block.1." in name for name in learning) and "encoder.projection.weight" in learning
    with pytest.raises(ValueError, match="freeze_layers is 3, the encoder has 2 layers"):
        freeze(model, word_embeddings=False, layers=3)
