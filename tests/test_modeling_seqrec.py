"""The fine-tuned model: text and remembered items make a user, cosines over the whole catalogue make the loss."""

import math
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import ask_stranger
from tiny_batches import finetuning_batch, pretraining_batch, tiny_config
from torch.nn import functional as F

from jepa4rec.evaluation.scorers import make_scorer
from jepa4rec.losses_seqrec import FineTuningObjective
from jepa4rec.modeling_jepa4rec import Jepa4RecForSequentialRecommendation, Jepa4RecModel
from jepa4rec.serving.encoding_seqrec import encode_histories

ITEMS = 9


def _model(history_items=3, **changes):
    torch.manual_seed(0)
    config = tiny_config(num_items=ITEMS, history_items=history_items, initializer_range=0.4, **changes)
    model = Jepa4RecForSequentialRecommendation(config)
    model.initialise_items(torch.randn(ITEMS, 16))
    return model


@pytest.fixture
def model():
    return _model()


@pytest.fixture
def batch():
    return finetuning_batch(ITEMS)


def _history(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "item_position_ids")}


def test_a_user_is_the_gated_text_and_the_decayed_sum_of_the_newest_items(model, batch):
    with torch.no_grad():
        model.log_text_gate.fill_(math.log(0.3))
    text = model.jepa4rec(**_history(batch)).pooler_output
    users = model.user_vectors(**_history(batch), history_item_ids=batch["history_item_ids"])
    for row, ids in enumerate(batch["history_item_ids"].tolist()):
        slow = 0.3 * text[row] / text[row].norm()
        for age, item in enumerate(ids):
            if item >= 0:
                slow = slow + 0.5**age * model.history_item_vectors.weight[item]
        torch.testing.assert_close(users[row], slow, rtol=1e-4, atol=1e-5)


def test_without_history_items_a_user_is_the_text_alone(batch):
    model = _model(history_items=0)
    text = model.jepa4rec(**_history(batch)).pooler_output
    torch.testing.assert_close(model.user_vectors(**_history(batch)), text, rtol=1e-4, atol=1e-5)
    assert not any("history" in name or "recency" in name for name in model.state_dict())


def test_a_model_that_reads_items_compares_their_projected_mean(tmp_path):
    model = _model(history_items=0, history_reading="items", history_decay=0.5)
    items, rows = model.item_matrix.weight, torch.tensor([[2, 0, -1], [1, -1, -1]])
    means = F.normalize(torch.stack([items[2] + 0.5 * items[0], items[1]]), dim=1)
    plain = model.user_vectors(history_item_ids=rows)
    torch.testing.assert_close(plain, means, rtol=1e-4, atol=1e-5)  # the identity at first
    with torch.no_grad():
        model.history_projection.weight.normal_()
        model.history_projection.bias.normal_()
    model.save_pretrained(tmp_path)
    opened = Jepa4RecForSequentialRecommendation.from_pretrained(tmp_path)
    projected = F.linear(means, model.history_projection.weight, model.history_projection.bias)
    torch.testing.assert_close(opened.user_vectors(history_item_ids=rows), projected, rtol=1e-4, atol=1e-5)
    assert Jepa4RecModel.from_pretrained(tmp_path).config.history_decay == 0.5  # an encoder, which has no projection
    model(history_item_ids=rows, target_item_ids=torch.tensor([3, 4])).loss.backward()
    assert model.history_projection.weight.grad.abs().max() > 0
    encoded = encode_histories(opened, None, SimpleNamespace(num_items=ITEMS), [[0, 2], [1]])
    torch.testing.assert_close(encoded, projected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="reads histories by their items: pass history_item_ids"):
        opened.user_vectors()
    opened.replace_items(torch.randn(ITEMS + 4, 16))
    assert len(opened.item_vectors()) == opened.config.num_items == ITEMS + 4
    with pytest.raises(ValueError, match="has learned its items one by one"):
        _model().replace_items(torch.randn(ITEMS, 16))


def test_a_matrix_for_all_items_is_folded_into_what_is_saved_and_ranked(tmp_path):
    model = _model(history_items=0, history_reading="items", history_decay=0.5, item_projection=True, projection=True)
    with torch.no_grad():
        model.item_projection.weight.normal_()
        model.base_model.projection.bias.normal_()
    model.save_pretrained(tmp_path)
    opened = Jepa4RecForSequentialRecommendation.from_pretrained(tmp_path).eval()
    assert model.config.item_projection and not opened.config.item_projection
    torch.testing.assert_close(opened.item_vectors(), model.item_vectors(), rtol=1e-4, atol=1e-5)
    text = {"input_ids": torch.tensor([[2, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    before, after = (F.normalize(one.eval().base_model(**text).pooler_output, dim=1) for one in (model, opened))
    learned = F.normalize(F.linear(before, model.item_projection.weight), dim=1)
    torch.testing.assert_close(after, learned, rtol=1e-4, atol=1e-5)
    scorers = [make_scorer(one, object(), SimpleNamespace(num_items=ITEMS)) for one in (model, opened)]
    first, second = (scorer.score([np.array([0, 2])]) for scorer in scorers)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_a_projection_may_come_later_and_is_the_identity_at_first():
    model = _model()
    text = {"input_ids": torch.tensor([[2, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    before = model.eval().base_model.embed(**text)
    model.base_model.add_projection()
    assert model.config.projection
    torch.testing.assert_close(model.base_model.embed(**text), F.normalize(before, dim=1), rtol=1e-4, atol=1e-5)


def test_gauges_of_repeats_are_of_their_step(batch):
    model = _model(repeat_items=2)
    told = model(
        **_history(batch),
        history_item_ids=batch["history_item_ids"],
        target_item_ids=batch["target_item_ids"],
        telemetry=True,
    )
    with torch.no_grad():
        model.repeat_bias += 1
    assert told.telemetry["repeat_1"] == 0


def test_without_history_text_a_user_is_the_items_alone_and_the_encoder_learns_nothing(batch):
    model = _model(history_text=False)
    users = model.user_vectors(**_history(batch), history_item_ids=batch["history_item_ids"])
    torch.testing.assert_close(users, model._remembered_items(batch["history_item_ids"]))
    model(**batch).loss.backward()
    assert all(parameter.grad is None for parameter in model.jepa4rec.parameters())
    assert model.history_item_vectors.weight.grad.abs().sum() > 0


def test_the_loss_is_cross_entropy_of_cosines_over_all_items(model, batch):
    users = model.user_vectors(**_history(batch), history_item_ids=batch["history_item_ids"])
    logits = F.cosine_similarity(users[:, None], model.item_matrix.weight[None], dim=-1) / 0.05
    out = model(**batch)
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, batch["target_item_ids"]), rtol=1e-4, atol=1e-5)
    assert out.loss_parts.keys() == {"softmax"} and out.loss_parts["softmax"].item() == out.loss.item()


@pytest.mark.parametrize("way", ["negatives", "fixed", "left_out"])
def test_unseen_items_are_pushed_away_stay_or_are_no_candidates(model, batch, way):
    seen = torch.zeros(ITEMS, dtype=torch.bool)
    seen[batch["target_item_ids"]] = True
    assert 0 < (~seen).sum() < ITEMS
    model.objective = FineTuningObjective(unseen_items=way)
    model.mark_seen_items(seen)
    users = model.user_vectors(**_history(batch), history_item_ids=batch["history_item_ids"])
    logits = F.cosine_similarity(users[:, None], model.item_matrix.weight[None], dim=-1) / 0.05
    logits = logits.masked_fill(~seen, -torch.inf) if way == "left_out" else logits
    loss = model(**batch).loss
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch["target_item_ids"]), rtol=1e-4, atol=1e-5)
    loss.backward()
    moved = model.item_matrix.weight.grad.abs().sum(1) > 0
    assert (
        moved[seen].all() and moved[~seen].all() == (way == "negatives") and moved[~seen].any() == moved[~seen].all()
    )


def test_the_chunked_loss_is_the_same(model, batch, monkeypatch):
    plain = model(**batch).loss
    monkeypatch.setattr("jepa4rec.losses_seqrec.PLAIN_SOFTMAX_ITEMS", 0)
    torch.testing.assert_close(model(**batch).loss, plain)


def test_initialise_items_normalises_copies_and_leaves_the_padding_zero(model):
    vectors = 7 * torch.randn(ITEMS, 16)
    model.initialise_items(vectors)
    torch.testing.assert_close(model.item_matrix.weight.data, F.normalize(vectors, dim=-1))
    assert torch.equal(model.history_item_vectors.weight[:ITEMS], model.item_matrix.weight)
    assert model.history_item_vectors.weight.data_ptr() != model.item_matrix.weight.data_ptr()
    torch.testing.assert_close(model.item_vectors(), model.item_matrix.weight)
    assert not model.history_item_vectors.weight[ITEMS].any()


def test_initialise_items_refuses_another_catalogue_and_broken_vectors(model):
    with pytest.raises(ValueError, match=r"\(8, 16\), the model's catalogue is \(9, 16\)"):
        model.initialise_items(torch.randn(8, 16))
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.initialise_items(torch.full((ITEMS, 16), math.nan))


def test_training_moves_everything_but_the_padding_row(model, batch):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        model(**batch).loss.backward()
        optimiser.step()
    after = model.state_dict()
    assert not after["history_item_vectors.weight"][ITEMS].any()
    for name in ("item_matrix.weight", "history_item_vectors.weight", "log_recency", "log_text_gate", "log_scale"):
        assert not torch.equal(after[name], before[name]), name
    assert (model.recency > 0).all() and model.text_gate > 0


def test_a_frozen_item_matrix_and_a_fixed_temperature_get_no_gradient(model, batch):
    model.objective = FineTuningObjective(item_matrix="frozen", learn_temperature=False, temperature=0.1)
    model(**batch).loss.backward()
    assert model.item_matrix.weight.grad is None and model.log_scale.grad is None
    assert model.scale.item() == pytest.approx(10.0)
    assert model.history_item_vectors.weight.grad.any()
    model.objective = FineTuningObjective()
    assert model.item_matrix.weight.requires_grad and model.log_scale.requires_grad


def test_a_second_phase_goes_on_from_the_learned_temperature(model):
    with torch.no_grad():
        model.log_scale.fill_(3.5)
    model.objective = FineTuningObjective(item_matrix="frozen")
    assert model.log_scale.item() == 3.5
    model.objective = FineTuningObjective(temperature=0.2)
    assert model.scale.item() == pytest.approx(5.0)


def test_more_or_fewer_history_items_than_the_model_reads_are_taken(model, batch):
    history, ids = _history(batch), batch["history_item_ids"]
    wider = torch.cat([ids, torch.zeros_like(ids)], dim=1)
    users = model.user_vectors(**history, history_item_ids=ids)
    torch.testing.assert_close(model.user_vectors(**history, history_item_ids=wider), users)
    only_newest = torch.where(torch.arange(3) == 0, ids, -1)
    narrower = model.user_vectors(**history, history_item_ids=ids[:, :1])
    torch.testing.assert_close(model.user_vectors(**history, history_item_ids=only_newest), narrower)


def test_missing_inputs_are_named(model, batch):
    history = _history(batch)
    with pytest.raises(ValueError, match="pass history_item_ids"):
        model.user_vectors(**history)
    with pytest.raises(ValueError, match="target_item_ids"):
        model(**history, history_item_ids=batch["history_item_ids"])
    with pytest.raises(ValueError, match="pass num_items"):
        Jepa4RecForSequentialRecommendation(tiny_config())


def test_telemetry_shows_temperature_gate_and_recency(model, batch):
    assert model(**batch).telemetry == {}
    gauges = {name: value.item() for name, value in model(**batch, telemetry=True).telemetry.items()}
    wanted = {"temperature": 0.05, "text_gate": 1.0, "recency_1": 1.0, "recency_2": 0.5, "recency_3": 0.25}
    assert gauges == pytest.approx(wanted)


def test_save_and_load_keep_the_loss(model, batch, tmp_path):
    with torch.no_grad():
        model.log_scale.fill_(3.5)
    model.save_pretrained(tmp_path)
    loaded = Jepa4RecForSequentialRecommendation.from_pretrained(tmp_path)
    assert loaded(**batch).loss.item() == model.eval()(**batch).loss.item()


def test_an_encoder_checkpoint_begins_a_fine_tuned_model(tmp_path):
    encoder = Jepa4RecModel(tiny_config())
    encoder.save_pretrained(tmp_path)
    model = Jepa4RecForSequentialRecommendation.from_pretrained(tmp_path, num_items=ITEMS, history_items=2)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, model.jepa4rec.state_dict()[name])
    assert model.item_matrix.weight.shape == (ITEMS, 16)
    assert model.recency.tolist() == pytest.approx([1.0, 0.5]) and model.scale.item() == pytest.approx(20.0)
    assert not model.history_item_vectors.weight[ITEMS].any() and model.text_gate.item() == 1.0


STRANGER = """
    import sys, torch
    from transformers import AutoModel
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    path = sys.argv[1]
    encoder = AutoModel.from_pretrained(path, trust_remote_code=True)
    assert type(encoder).__name__ == "Jepa4RecModel", type(encoder)
    cls = get_class_from_dynamic_module("modeling_jepa4rec.Jepa4RecForSequentialRecommendation", path)
    model = cls.from_pretrained(path)
    ids = torch.tensor([[2, 7, 8]])
    users = model.user_vectors(ids, history_item_ids=torch.tensor([[4, -1]]))
    torch.save((encoder(ids).pooler_output, users, model.item_vectors()), sys.argv[2])
"""


@pytest.mark.slow("opens it in a process of a stranger")
def test_a_stranger_opens_the_checkpoint_as_encoder_and_as_fine_tuned_model(model, tmp_path):
    checkpoint, answers = tmp_path / "checkpoint", tmp_path / "answers.pt"
    model.eval().save_pretrained(checkpoint)
    ask_stranger("-c", textwrap.dedent(STRANGER), checkpoint, answers, home=tmp_path, noise=False)
    ids = torch.tensor([[2, 7, 8]])
    users = model.user_vectors(ids, history_item_ids=torch.tensor([[4, -1]]))
    wanted = (model.jepa4rec(ids).pooler_output, users, model.item_vectors())
    torch.testing.assert_close(torch.load(answers), wanted, rtol=1e-6, atol=1e-6)


def test_bfloat16_autocast_trains(model, batch):
    full = model(**batch).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(full, rel=0.05)


def test_some_steps_learn_the_targets_by_heart(model, batch):
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.03)
    for _ in range(20):
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss.item() < 0.1


def test_masked_tokens_are_learned_beside_the_catalogue_where_the_objective_says_so(batch):
    model = _model(token_head=True)
    masked = pretraining_batch()
    masked = {name: masked[name] for name in (*_history(batch), "labels")}
    plain = model(**batch)
    assert set(plain.loss_parts) == {"softmax"}
    model.objective = FineTuningObjective(mlm_weight=0.5)
    both = model(**batch, masked=masked)
    states = model.jepa4rec(**_history(masked)).last_hidden_state
    chosen = masked["labels"] != -100
    slow = F.cross_entropy(model.lm_head(states[chosen]), masked["labels"][chosen])
    torch.testing.assert_close(both.loss, plain.loss + 0.5 * slow, rtol=1e-5, atol=1e-6)
    both.loss.backward()
    assert model.lm_head.dense.weight.grad.abs().sum() > 0
    words = model.jepa4rec.embeddings.word_embeddings
    assert model.lm_head.decoder.weight is words.weight and not hasattr(_model(), "lm_head")
