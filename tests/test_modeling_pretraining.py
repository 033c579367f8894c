"""The pre-training head does what section 3.3 says, once, and its target encoder only ever follows."""

import itertools

import pytest
import torch
from tiny_batches import ITEM_LENGTHS, pretraining_batch, tiny_config
from torch.nn import functional as F

from jepa4rec import modeling_seqrec
from jepa4rec.losses_seqrec import PreTrainingObjective
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecModel


@pytest.fixture
def model():
    """Weights large enough that users differ, and a target encoder that has fallen behind."""
    torch.manual_seed(0)
    model = Jepa4RecForPreTraining(tiny_config(initializer_range=0.4))
    with torch.no_grad():
        for parameter in model.target_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.predictor.unmasked_item.normal_()
    return model


@pytest.fixture
def batch():
    return pretraining_batch()


def _encode(encoder, batch, prefix, ids):
    """(token states, h_CLS) of each row alone, without padding."""
    states = []
    for row in range(len(batch[f"{prefix}attention_mask"])):
        kept = batch[f"{prefix}attention_mask"][row].bool()
        names = ("token_type_ids", "item_position_ids")
        rest = {name: batch[prefix + name][row][kept][None] for name in names}
        states.append(encoder(batch[ids][row][kept][None], **rest).last_hidden_state[0])
    return states, torch.stack([state[0] for state in states])


def _token_losses(model, states, batch, prefix):
    for state, labels in zip(states, batch[f"{prefix}labels"], strict=True):
        for hidden, label in zip(state, labels, strict=False):
            if label != -100:
                hidden = model.lm_head.layer_norm(F.gelu(model.lm_head.dense(hidden)))
                logits = model.jepa4rec.embeddings.word_embeddings.weight @ hidden + model.lm_head.bias
                yield -logits.log_softmax(0)[label]


def _slow_parts(model, batch):
    """The three losses of section 3.3.2 from encoder and predictor, row by row."""
    history_states, history = _encode(model.jepa4rec, batch, "", "input_ids")
    next_states, masked_next = _encode(model.jepa4rec, batch, "next_", "next_input_ids")
    _, positives = _encode(model.jepa4rec, batch, "next_", "clean_next_input_ids")
    _, next_targets = _encode(model.target_encoder, batch, "next_", "clean_next_input_ids")
    _, item_targets = _encode(model.target_encoder, batch, "item_", "item_input_ids")
    tokens = [*_token_losses(model, history_states, batch, ""), *_token_losses(model, next_states, batch, "next_")]
    contrastive, mapping = [], []
    for i, position in enumerate(batch["masked_item_positions"].tolist()):
        table = model.jepa4rec.embeddings.item_position_embeddings.weight
        hint = table[position] if position else model.predictor.unmasked_item
        item = model.predictor.history(torch.cat([history[i], hint]))
        following = model.predictor.next(torch.cat([history[i], masked_next[i]]))
        mapping.append((item - item_targets[i]).square().sum() + (following - next_targets[i]).square().sum())
        same = batch["next_item_ids"] == batch["next_item_ids"][i]
        kept = [j for j in range(len(history)) if j == i or not same[j]]
        logits = torch.stack([F.cosine_similarity(history[i], positives[j], dim=0) / 0.05 for j in kept])
        contrastive.append(-logits.log_softmax(0)[kept.index(i)])
    return {"contrastive": contrastive, "mlm": tokens, "map": mapping}


@pytest.mark.parametrize("window", [None, 4])
def test_the_forward_is_section_3_3_computed_row_by_row(batch, window):
    torch.manual_seed(0)
    model = Jepa4RecForPreTraining(tiny_config(initializer_range=0.4, attention_window=window))
    model.update_target_encoder(0.7)
    out = model(**batch)
    slow = {name: torch.stack(terms).mean() for name, terms in _slow_parts(model, batch).items()}
    assert list(out.loss_parts) == ["contrastive", "mlm", "map"]
    torch.testing.assert_close(dict(out.loss_parts), {k: v.detach() for k, v in slow.items()}, rtol=1e-4, atol=1e-5)
    total = slow["contrastive"] + 0.1 * slow["mlm"] + 0.1 * slow["map"]
    torch.testing.assert_close(out.loss, total, rtol=1e-4, atol=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fast_gradients = torch.autograd.grad(out.loss, trained)
    torch.testing.assert_close(fast_gradients, torch.autograd.grad(total, trained), rtol=1e-3, atol=1e-4)


OBJECTIVES = {
    "JEPA4Rec": {},
    "RecFormer": {"contrastive_history": "clean", "mlm_average": "sides", "map_weight": 0.0},
    "target positives": {"positive": "target"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("slices", [2, 4, 6])
def test_a_batch_read_in_slices_has_the_loss_and_gradients_of_the_whole(model, batch, name, slices):
    model.objective = PreTrainingObjective(**OBJECTIVES[name])
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = model(**batch)
    expected = torch.autograd.grad(whole.loss, list(trained.values()))
    model.slices = slices
    cut = model(**batch)
    torch.testing.assert_close(dict(cut.loss_parts), dict(whole.loss_parts), rtol=1e-5, atol=1e-6)
    cut.loss.backward()
    for (key, parameter), gradient in zip(trained.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5, msg=key)


def test_every_parameter_but_the_target_encoders_gets_a_gradient(model, batch):
    model(**batch).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"target_encoder.{name}" for name, _ in model.target_encoder.named_parameters()}


def test_the_learnable_vector_takes_the_slot_where_no_item_was_masked(model, batch):
    batch["masked_item_positions"] = torch.tensor([1, 1, 1, 1, 1, 1])
    model(**batch).loss.backward()
    assert not model.predictor.unmasked_item.grad.any()
    batch["masked_item_positions"][2] = 0
    model(**batch).loss.backward()
    assert model.predictor.unmasked_item.grad.any()


def test_the_learnable_vector_starts_at_zero():
    assert not Jepa4RecForPreTraining(tiny_config()).predictor.unmasked_item.any()


def _parts(model, batch, **settings):
    model.objective = PreTrainingObjective(**settings)
    return {name: part.item() for name, part in model(**batch).loss_parts.items()}


def test_settings_change_what_they_name_and_nothing_else(model, batch):
    changes = {
        "contrastive": [{"positive": "target"}, {"contrastive_history": "clean"}, {"mask_duplicates": False}],
        "mlm": [{"mlm_average": "sides"}],
        "map": [{"map_distance": "smooth_l1"}, {"normalise_targets": True}],
    }
    default = _parts(model, batch)
    for changed, settings in itertools.chain.from_iterable([(k, s) for s in v] for k, v in changes.items()):
        parts = _parts(model, batch, **settings)
        assert [name for name in parts if parts[name] != pytest.approx(default[name])] == [changed], settings


def test_positive_and_history_come_from_where_the_settings_say(model, batch):
    _, clean = _encode(model.jepa4rec, batch, "", "clean_input_ids")
    _, targets = _encode(model.target_encoder, batch, "next_", "clean_next_input_ids")
    cosines = F.normalize(clean, dim=-1) @ F.normalize(targets, dim=-1).T
    wanted = F.cross_entropy(cosines / 0.05, torch.arange(len(clean))).item()
    settings = {"positive": "target", "contrastive_history": "clean", "mask_duplicates": False}
    assert _parts(model, batch, **settings)["contrastive"] == pytest.approx(wanted, rel=1e-4)


def test_recformers_objective_is_its_four_forwards_and_nothing_else(model, batch, monkeypatch):
    _, users = _encode(model.jepa4rec, batch, "", "clean_input_ids")
    _, positives = _encode(model.jepa4rec, batch, "next_", "clean_next_input_ids")
    cosines = F.normalize(users, dim=-1) @ F.normalize(positives, dim=-1).T
    wanted = F.cross_entropy(cosines / 0.05, torch.arange(len(users)))
    for prefix, ids in (("", "input_ids"), ("next_", "next_input_ids")):
        states, _ = _encode(model.jepa4rec, batch, prefix, ids)
        wanted = wanted + 0.1 * torch.stack([*_token_losses(model, states, batch, prefix)]).mean()
    settings = {"contrastive_history": "clean", "mlm_average": "sides", "map_weight": 0.0, "mask_duplicates": False}
    model.objective = PreTrainingObjective(**settings)
    for module in (model.target_encoder, model.predictor.history, model.predictor.next):
        monkeypatch.setattr(module, "forward", None)  # calling it would fail
    monkeypatch.setattr(model.target_encoder, "embed", None)
    out = model(**batch, telemetry=True)
    assert out.loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert list(out.loss_parts) == ["contrastive", "mlm"] and out.telemetry["target_variance"] > 0
    out.loss.backward()
    idle = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == {"target_encoder", "predictor"}
    model.objective = PreTrainingObjective()
    assert all(parameter.requires_grad for parameter in model.predictor.parameters())


def test_positives_of_the_target_encoder_do_not_need_the_mapping_loss(model, batch):
    parts = _parts(model, batch, positive="target")
    assert _parts(model, batch, positive="target", map_weight=0.0)["contrastive"] == pytest.approx(
        float(parts["contrastive"])
    )


def test_a_clean_history_must_be_in_the_batch(model, batch):
    del batch["clean_input_ids"]
    assert model(**batch).loss.isfinite()
    with pytest.raises(ValueError, match="needs clean_input_ids"):
        _parts(model, batch, contrastive_history="clean")


def test_a_batch_in_which_no_token_is_predicted_still_trains(model, batch):
    batch["labels"], batch["next_labels"] = (torch.full_like(batch[k], -100) for k in ("labels", "next_labels"))
    out = model(**batch)
    out.loss.backward()
    assert out.loss_parts["mlm"].item() == 0.0 and not model.lm_head.dense.weight.grad.any()


def test_the_target_encoder_moves_by_the_momentum_and_by_nothing_else(model, batch):
    before = {name: value.clone() for name, value in model.target_encoder.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch).loss.backward()
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in model.target_encoder.state_dict().items())
    model.update_target_encoder(0.9)
    for name, value in model.target_encoder.state_dict().items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * model.jepa4rec.state_dict()[name])


def test_the_target_encoder_never_drops_out(batch):
    model = Jepa4RecForPreTraining(tiny_config(hidden_dropout_prob=0.5)).train()
    assert model.jepa4rec.training and not any(module.training for module in model.target_encoder.modules())
    clean = [batch[f"item_{name}"] for name in ("input_ids", "attention_mask", "token_type_ids", "item_position_ids")]
    assert torch.equal(*(model._target_vectors(clean, clean)))


def test_a_new_model_begins_with_the_target_encoder_equal_to_the_context_encoder():
    assert _encoders_agree(Jepa4RecForPreTraining(tiny_config()))


def _encoders_agree(model):
    pairs = zip(model.jepa4rec.parameters(), model.target_encoder.parameters(), strict=True)
    return all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)


def _frozen(encoder):
    return not any(parameter.requires_grad for parameter in encoder.parameters())


def test_save_and_load_keep_the_loss_the_lag_and_the_freezing(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = Jepa4RecForPreTraining.from_pretrained(tmp_path)
    assert loaded(**batch).loss.item() == model(**batch).loss.item()
    assert not _encoders_agree(loaded)
    for mode in (False, True):
        loaded.train(mode)
        assert _frozen(loaded.target_encoder) and not loaded.target_encoder.training
    assert all(parameter.requires_grad for parameter in loaded.jepa4rec.parameters())


def test_a_plain_encoder_gives_the_target_encoder_its_weights(model, tmp_path):
    model.jepa4rec.save_pretrained(tmp_path)
    loaded = Jepa4RecForPreTraining.from_pretrained(tmp_path)
    assert _encoders_agree(loaded) and _frozen(loaded.target_encoder) and not loaded.training
    word_embeddings = model.jepa4rec.embeddings.word_embeddings.weight
    assert torch.equal(loaded.lm_head.decoder.weight, word_embeddings)
    assert loaded.lm_head.decoder.weight is loaded.jepa4rec.embeddings.word_embeddings.weight
    assert not loaded.predictor.unmasked_item.any() and not loaded.lm_head.bias.any()


def test_the_checkpoint_opens_as_the_plain_encoder(model, batch, tmp_path, capfd):
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    encoder = Jepa4RecModel.from_pretrained(tmp_path)
    assert "UNEXPECTED" not in "".join(capfd.readouterr())
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, model.jepa4rec.state_dict()[name])


def test_telemetry_is_measured_only_when_asked(model, batch):
    assert model(**batch).telemetry == {}
    gauges = model(**batch, telemetry=True).telemetry
    assert set(gauges) == {"target_variance", "effective_rank", "alignment", "uniformity", "ema_distance"}
    assert all(value.isfinite() and not value.requires_grad for value in gauges.values())
    assert gauges["ema_distance"] > 0 and 1 < gauges["effective_rank"] <= len(ITEM_LENGTHS)


def test_bfloat16_autocast_trains(model, batch):
    full = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(**batch)
    half.loss.backward()
    assert half.loss.dtype == torch.float32
    assert half.loss.item() == pytest.approx(full.loss.item(), rel=0.05)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_some_steps_make_the_loss_smaller(batch):
    torch.manual_seed(0)
    model = Jepa4RecForPreTraining(tiny_config())
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(15):
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        model.update_target_encoder(0.99)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_token_losses_in_blocks_are_those_of_the_whole(monkeypatch):
    config = tiny_config()
    model = Jepa4RecForPreTraining(config)
    states = torch.randn(2, 9, config.hidden_size, requires_grad=True)
    labels = torch.full((2, 9), -100)
    labels[0, 1:8] = labels[1, 2:6] = 7
    whole = model._token_losses(states, labels)
    monkeypatch.setattr(modeling_seqrec, "MOST_LOGITS", 3 * config.vocab_size)
    blocks = model._token_losses(states, labels)
    torch.testing.assert_close(blocks, whole)
    grads = [torch.autograd.grad(losses.sum(), states)[0] for losses in (whole, blocks)]
    torch.testing.assert_close(*grads)
