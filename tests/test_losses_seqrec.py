"""Each loss equals itself computed the slow, obvious way; chunking changes memory, never values or gradients."""

import math
from contextlib import nullcontext

import pytest
import torch

from jepa4rec import losses_seqrec
from jepa4rec.losses_seqrec import (
    FineTuningObjective,
    PreTrainingObjective,
    alignment,
    collapse_telemetry,
    contrastive_loss,
    effective_rank,
    ema_distance,
    ema_momentum,
    full_softmax_loss,
    item_sequence_loss,
    mapping_loss,
    normalise,
    symmetric_ranking_loss,
    token_losses,
    uniformity,
    weighted_total,
    whole_batch_mean,
)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def _cosine(a, b):
    dot = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return dot / math.sqrt(sum(x * x for x in a.tolist()) * sum(y * y for y in b.tolist()))


def _cross_entropy(logits, target):
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[target]


def _slow_contrastive(users, items, temperature, ids=None):
    total = 0.0
    for i, user in enumerate(users):
        kept = [j for j in range(len(items)) if j == i or ids is None or ids[j] != ids[i]]
        total += _cross_entropy([_cosine(user, items[j]) / temperature for j in kept], kept.index(i))
    return total / len(users)


def test_contrastive_loss_is_the_papers_formula(rng):
    users, items = torch.randn(5, 8, generator=rng), 3 * torch.randn(5, 8, generator=rng)
    assert contrastive_loss(users, items, 0.05).item() == pytest.approx(
        _slow_contrastive(users, items, 0.05), rel=1e-5
    )


def test_symmetric_ranking_loss_is_the_mean_of_both_directions(rng):
    anchors, positives, ids = torch.randn(4, 8, generator=rng), torch.randn(4, 8, generator=rng), [1, 2, 1, 3]
    for kept in (None, ids):
        both = [_slow_contrastive(*sides, 0.05, kept) for sides in ((anchors, positives), (positives, anchors))]
        loss = symmetric_ranking_loss(anchors, positives, 0.05, None if kept is None else torch.tensor(kept))
        assert loss.item() == pytest.approx(sum(both) / 2, rel=1e-5)


@pytest.mark.slow("loads sentence-transformers")
def test_symmetric_ranking_loss_is_that_of_sentence_transformers(rng):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    anchors, positives = torch.randn(6, 8, generator=rng), torch.randn(6, 8, generator=rng)
    theirs = losses.MultipleNegativesSymmetricRankingLoss(torch.nn.Module())
    expected = theirs.compute_loss_from_embeddings([anchors, positives], None)
    torch.testing.assert_close(symmetric_ranking_loss(anchors, positives, 0.05), expected)


def test_item_sequence_loss_finds_each_next_item_among_those_of_other_sequences(rng):
    items, sequences = torch.randn(6, 8, generator=rng), [[0, 1, 2, 1], [3, 0], [4, 5, 3]]
    losses = []
    for sequence in sequences:
        for place in range(1, len(sequence)):
            read = sequence[:place]
            user = sum(0.5 ** (place - 1 - n) * items[item] / items[item].norm() for n, item in enumerate(read))
            others = [item for item in range(6) if item not in sequence]
            logits = [_cosine(user, items[item]) / 0.1 for item in [sequence[place], *others]]
            losses.append(_cross_entropy(logits, 0))
    rows = torch.tensor([row + [-1] * (4 - len(row)) for row in sequences])
    places = torch.tensor([0, 1, 2, 3, 6, 7])  # of (3, 3) next items
    loss = item_sequence_loss(7 * items, torch.arange(6) + 40, rows, places, 0.1, 0.5).item()
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_in_batch_losses_ask_for_no_number_of_the_device(monkeypatch):
    """The meta device has no numbers to tell (and no autocast): what a GPU would have to be waited for fails there."""
    monkeypatch.setattr(losses_seqrec, "_full_precision", nullcontext)
    with torch.device("meta"):
        items, ids, rows = torch.randn(6, 8).requires_grad_(), torch.arange(6), torch.zeros(3, 4, dtype=torch.int64)
        loss = item_sequence_loss(items, ids, rows, torch.arange(6), 0.1, 0.5)
        (loss + contrastive_loss(items, items, 0.1, ids)).backward()


def test_contrastive_loss_leaves_the_same_item_out_of_the_negatives(rng):
    users, items, ids = torch.randn(4, 8, generator=rng), torch.randn(4, 8, generator=rng), torch.tensor([7, 3, 7, 5])
    items[2] = items[0]
    masked = contrastive_loss(users, items, 0.1, ids).item()
    assert masked == pytest.approx(_slow_contrastive(users, items, 0.1, ids.tolist()), rel=1e-5)
    assert masked < contrastive_loss(users, items, 0.1).item()


def test_contrastive_loss_sends_gradients_to_users_positives_and_negatives(rng):
    users, items = (torch.randn(3, 4, generator=rng).requires_grad_() for _ in range(2))
    contrastive_loss(users, items, 0.5).backward()
    logits = torch.nn.functional.cosine_similarity(users[:, None], items[None], dim=-1) / 0.5
    slow = torch.autograd.grad(-logits.log_softmax(dim=1).diagonal().mean(), (users, items))
    torch.testing.assert_close((users.grad, items.grad), slow)


def test_mlm_loss_is_the_mean_over_predicted_tokens(rng):
    logits, labels = torch.randn(6, 11, generator=rng), torch.tensor([0, 10, 3, 3, 5, 1])
    slow = sum(_cross_entropy(row.tolist(), label) for row, label in zip(logits, labels.tolist(), strict=True)) / 6
    assert whole_batch_mean(token_losses(logits, labels)).item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_losses_by_blocks_have_the_gradient_of_the_cross_entropy(rng, monkeypatch, dtype):
    monkeypatch.setitem(losses_seqrec.CHUNK_LOGITS, "cpu", 2 * 11)  # blocks of two rows, and one of one
    logits, labels = 3 * torch.randn(7, 11, generator=rng), torch.tensor([0, 10, 3, 3, 5, 1, 0])
    weights, found = torch.randn(7, generator=rng), []
    for losses in (
        token_losses,
        lambda *given: torch.nn.functional.cross_entropy(given[0].float(), given[1], reduction="none"),
    ):
        own = logits.to(dtype).requires_grad_()
        values = losses(own, labels)
        assert values.dtype == torch.float32
        (values * weights).sum().backward()
        assert torch.equal(own.detach(), logits.to(dtype)), "what was given is left as it was"
        found.append((values, own.grad))
    torch.testing.assert_close(*found)


def test_mlm_loss_without_a_predicted_token_is_zero_and_differentiable():
    logits = torch.zeros(0, 11, requires_grad=True)
    loss = whole_batch_mean(token_losses(logits, torch.zeros(0, dtype=torch.long)))
    loss.backward()
    assert loss.item() == 0.0


def _slow_smooth_l1(gap):
    return 0.5 * gap * gap if abs(gap) < 1 else abs(gap) - 0.5


@pytest.mark.parametrize("distance, term", [("l2", lambda gap: gap * gap), ("smooth_l1", _slow_smooth_l1)])
def test_mapping_loss_sums_over_dimensions_and_averages_over_rows(rng, distance, term):
    predictions, targets = 2 * torch.randn(3, 4, generator=rng), torch.randn(3, 4, generator=rng)
    slow = sum(term(gap) for gap in (predictions - targets).flatten().tolist()) / 3
    assert mapping_loss(predictions, targets, distance).item() == pytest.approx(slow, rel=1e-5)


def test_mapping_loss_normalises_targets_when_asked(rng):
    predictions, targets = torch.randn(2, 6, generator=rng), 9 + 4 * torch.randn(2, 6, generator=rng)
    slow = 0.0
    for prediction, target in zip(predictions.tolist(), targets.tolist(), strict=True):
        mean = sum(target) / 6
        spread = math.sqrt(sum((value - mean) ** 2 for value in target) / 6)
        slow += sum((p - (t - mean) / spread) ** 2 for p, t in zip(prediction, target, strict=True)) / 2
    assert mapping_loss(predictions, targets, normalise_targets=True).item() == pytest.approx(slow, rel=1e-4)


def test_mapping_loss_gives_targets_no_gradient(rng):
    predictions, targets = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    mapping_loss(predictions, targets).backward()
    assert targets.grad is None and predictions.grad is not None


def test_weighted_total_adds_up_and_reports_unweighted_parts():
    loss, parts = weighted_total({"a": torch.tensor(2.0), "b": torch.tensor(30.0)}, {"b": 0.1})
    assert loss.item() == pytest.approx(5.0) and {k: v.item() for k, v in parts.items()} == {"a": 2.0, "b": 30.0}


def test_full_softmax_loss_is_cross_entropy_over_the_catalogue(rng):
    users, items, targets = torch.randn(3, 5, generator=rng), torch.randn(7, 5, generator=rng), [6, 0, 3]
    slow = 0.0
    for user, target in zip(users, targets, strict=True):
        slow += _cross_entropy([20 * _cosine(user, item) for item in items], target) / 3
    assert full_softmax_loss(users, items, torch.tensor(targets), 20.0).item() == pytest.approx(slow, rel=1e-5)


def _softmax_and_gradients(chunk_items, dtype=torch.float32, frozen_items=False):
    rng = torch.Generator().manual_seed(1)
    users = torch.randn(6, 16, generator=rng).requires_grad_()
    items = (5 * torch.randn(103, 16, generator=rng)).to(dtype).requires_grad_(not frozen_items)
    scale = torch.tensor(14.0, requires_grad=True)
    targets = torch.tensor([0, 102, 9, 10, 11, 10])  # ends of the catalogue, ends of chunks, one twice
    loss = full_softmax_loss(users, items, targets, scale, chunk_items)
    (3 * loss).backward()
    return loss, users.grad, items.grad, scale.grad


@pytest.mark.parametrize("chunk_items", [1, 10, 103, 1000])
def test_chunked_softmax_equals_the_plain_one_with_gradients(chunk_items):
    for chunked, plain in zip(_softmax_and_gradients(chunk_items), _softmax_and_gradients(None), strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_items", [None, 1, 10, 103, 1000])
def test_what_a_history_holds_gets_what_is_learned_of_its_age(chunk_items):
    generator = torch.Generator().manual_seed(5)
    users = torch.randn(6, 8, generator=generator, requires_grad=True)
    items = torch.randn(103, 8, generator=generator, requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    bias = torch.tensor([-0.5, 0.25, 2.0], requires_grad=True)
    targets = torch.tensor([0, 102, 9, 10, 11, 10])
    repeats = torch.tensor([[0, 1, 2], [5, 102, -1], [-1, -1, -1], [10, 9, 11], [99, 10, -1], [3, -1, 10]])
    values = (users, items, scale, bias)

    def gradients(loss):
        return [loss, *torch.autograd.grad(loss, values)]

    scores = normalise(users) @ normalise(items).T
    slow = torch.zeros(6, 103)
    for row, own in enumerate(repeats.tolist()):
        for age, item in enumerate(own):
            if item >= 0:
                slow = slow + bias[age] * torch.nn.functional.one_hot(torch.tensor(row * 103 + item), 618).view(6, 103)
    wanted = gradients(torch.nn.functional.cross_entropy(scale * (scores + slow), targets))
    found = gradients(full_softmax_loss(users, items, targets, scale, chunk_items, repeats, bias))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_chunked_softmax_takes_half_precision_and_frozen_items():
    half, plain = _softmax_and_gradients(10, torch.bfloat16), _softmax_and_gradients(None, torch.bfloat16)
    assert half[2].dtype == torch.bfloat16
    torch.testing.assert_close(half, plain, rtol=1e-2, atol=1e-3)
    assert _softmax_and_gradients(10, frozen_items=True)[2] is None


def test_large_catalogues_take_the_chunked_road_by_themselves(rng):
    users, items = torch.randn(2, 4, generator=rng), torch.randn(40_000, 4, generator=rng).requires_grad_()
    targets = torch.tensor([39_999, 5])
    loss = full_softmax_loss(users, items, targets, 5.0)
    assert "ChunkedSoftmax" in str(loss.grad_fn.next_functions[0][0].next_functions[0][0])
    logits = 5.0 * torch.nn.functional.cosine_similarity(users[:, None], items[None], dim=-1)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, targets))


def test_ema_momentum_is_linear_and_ends_where_told():
    assert [ema_momentum(step, 4, 0.9, 1.0) for step in (0, 1, 4, 9)] == pytest.approx([0.9, 0.925, 1.0, 1.0])
    with pytest.raises(ValueError, match="number of training steps"):
        ema_momentum(0, 0, 0.9, 1.0)


def test_ema_distance_is_relative_to_the_size_of_the_weights():
    weights, target = (
        [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])],
        [torch.tensor([3.0, 4.0]), torch.tensor([[0.0]])],
    )
    assert ema_distance(weights, weights).item() == 0.0
    assert ema_distance(weights, target).item() == pytest.approx(12 / 13)


def test_effective_rank_counts_directions_in_use():
    assert effective_rank(torch.ones(8, 5)).item() == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.eye(5)).item() == pytest.approx(5.0, rel=1e-5)
    singular = [3.0, 1.0]
    entropy = -sum(s / 4 * math.log(s / 4) for s in singular)
    assert effective_rank(torch.diag(torch.tensor(singular))).item() == pytest.approx(math.exp(entropy), rel=1e-5)


def test_alignment_and_uniformity_are_wang_and_isolas(rng):
    a, b = torch.randn(4, 6, generator=rng), torch.randn(4, 6, generator=rng)
    unit = [row / row.norm() for row in a]
    pairs = [(unit[i] - unit[j]).square().sum().item() for i in range(4) for j in range(i)]
    slow_uniformity = math.log(sum(math.exp(-2 * pair) for pair in pairs) / len(pairs))
    slow_alignment = sum(2 - 2 * _cosine(x, y) for x, y in zip(a, b, strict=True)) / 4
    assert uniformity(a).item() == pytest.approx(slow_uniformity, rel=1e-4)
    assert alignment(a, b).item() == pytest.approx(slow_alignment, rel=1e-4)


def test_telemetry_tells_a_collapsed_target_from_a_healthy_one(rng):
    healthy = torch.randn(16, 8, generator=rng)
    collapsed = healthy[:1].expand(16, 8)
    good, bad = collapse_telemetry(healthy, healthy, healthy), collapse_telemetry(healthy, healthy, collapsed)
    assert bad["target_variance"].item() == pytest.approx(0.0, abs=1e-10) and good["target_variance"] > 0.5
    assert bad["effective_rank"].item() == pytest.approx(1.0, abs=1e-3) and good["effective_rank"] > 5
    assert bad["uniformity"].item() == pytest.approx(0.0, abs=1e-5) and good["uniformity"] < -1
    assert good["alignment"].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": 0}, "objective.temperature is 0"),
        ({"temperature": "0.05"}, "objective.temperature is '0.05'"),
        ({"mlm_weight": -1}, "objective.mlm_weight is -1"),
        ({"map_weight": float("nan")}, "objective.map_weight is nan"),
        ({"positive": "teacher"}, "choose one of context, target"),
        ({"contrastive_history": "both"}, "choose one of masked, clean"),
        ({"map_distance": "l1"}, "choose one of l2, smooth_l1"),
        ({"mask_duplicates": 1}, "objective.mask_duplicates is 1"),
        ({"ema_end": 1.5}, "at most 1"),
    ],
)
def test_a_pre_training_objective_refuses_nonsense(settings, message):
    with pytest.raises(ValueError, match=message):
        PreTrainingObjective(**settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -0.1}, "above 0"),
        ({"learn_temperature": "yes"}, "true or false"),
        ({"item_matrix": "fixed"}, "choose one of learnable, frozen"),
    ],
)
def test_a_fine_tuning_objective_refuses_nonsense(settings, message):
    with pytest.raises(ValueError, match=message):
        FineTuningObjective(**settings)
