"""Packed, block-wise attention equals the attention one would write down from the definition."""

import itertools
import math

import pytest
import torch
from torch import nn

from jepa4rec import attention_jepa4rec as attention
from jepa4rec.attention_jepa4rec import (
    Dropout,
    PackedRows,
    block_attention,
    cls_attention,
    dropout_of,
    gather_tokens,
    plain_attention,
    plan_attention,
)

HEADS, WIDTH = 2, 8


def packed(lengths: list[int]) -> PackedRows:
    return PackedRows.from_lengths(torch.tensor(lengths), lengths)


def random_heads(tokens: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (tokens, HEADS, WIDTH)
    return [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(count)]


def attention_by_definition(query, key, value, lengths: list[int], window: int | None) -> torch.Tensor:
    """Row by row, one full score matrix: all keys, or those within the window and the first."""
    out, start = [], 0
    for length in lengths:
        q, k, v = (x[start : start + length].transpose(0, 1) for x in (query, key, value))
        scores = q @ k.transpose(1, 2) / math.sqrt(WIDTH)
        if window is not None:
            i = torch.arange(length)
            sees = ((i[:, None] - i).abs() <= window // 2) | (i == 0)
            scores = scores.masked_fill(~sees, -math.inf)
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
        start += length
    return torch.cat(out)


@pytest.mark.parametrize("window", [None, 8, 16])
@pytest.mark.parametrize("lengths", [[1], [5], [1, 5, 3], [8, 8], [24, 24], [48], [49, 1, 17], [64, 32], [7, 100, 33]])
def test_block_attention_is_attention(lengths, window):
    heads = random_heads(sum(lengths))
    out = block_attention(*heads, plan_attention(packed(lengths), window), dropout=0.0)
    expected = attention_by_definition(*heads, lengths, window)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((out * weights).sum(), heads)
    theirs = torch.autograd.grad((expected * weights).sum(), heads)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-6)


# ------------------------------------------------------------------------------------------------ the flash kernel


def pairs_of(start: int, end: int, halo: int | None) -> torch.Tensor:
    """Which of a row's tokens see which, as the kernel's windows have it."""
    place = torch.arange(end - start)
    far = (place[:, None] - place).abs()
    return far <= halo if halo is not None else far >= 0


def kernel_forward(query, key, value, ends, ends_k, longest, longest_k, dropout, causal, debug, *, scale, **window):
    """What aten::_flash_attention_forward is documented to give, row by row: output (T, H, D), log-sum-exp (H, T)."""
    assert window["window_size_left"] == window["window_size_right"]
    assert ends.dtype == torch.int32 and torch.equal(ends, ends_k) and longest == longest_k == ends.diff().max()
    out, log_sum = torch.empty_like(query), query.new_empty(query.shape[1], len(query))
    for start, end in itertools.pairwise(ends.tolist()):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(
            ~pairs_of(start, end, window["window_size_left"]), -math.inf
        )
        out[start:end] = (scores.softmax(-1) @ v).transpose(0, 1)
        log_sum[:, start:end] = scores.logsumexp(-1)
    return out, log_sum, torch.zeros(2), torch.zeros(0), torch.zeros(0)


def kernel_backward(
    grad, query, key, value, out, log_sum, ends, ends_k, longest, longest_k, dropout, causal, seed, unused, *, scale,
    **window,
):  # fmt: skip
    """What aten::_flash_attention_backward does with the log-sum-exp and the output it is handed."""
    grads = [torch.empty_like(x) for x in (query, key, value)]
    for start, end in itertools.pairwise(ends.tolist()):
        g, q, k, v, o = (x[start:end].transpose(0, 1) for x in (grad, query, key, value, out))
        scores = q @ k.transpose(1, 2) * scale
        weights = (scores - log_sum[:, start:end, None]).exp() * pairs_of(start, end, window["window_size_left"])
        inner = weights * (g @ v.transpose(1, 2) - (g * o).sum(-1, keepdim=True))
        parts = (scale * inner @ k, scale * inner.transpose(1, 2) @ q, weights.transpose(1, 2) @ g)
        for whole, part in zip(grads, parts, strict=True):
            whole[start:end] = part.transpose(0, 1)
    return tuple(grads)


@pytest.mark.parametrize("window", [None, 4, 8, 16])
@pytest.mark.parametrize("lengths", [[1], [1, 5, 3], [24, 24], [49, 1, 17], [7, 100, 33]])
def test_packed_rows_through_a_flash_kernel_are_the_same_attention(monkeypatch, lengths, window):
    """Row ends, windows, and the share of a `[CLS]` that lies outside a token's window, forward and backward."""
    monkeypatch.setattr(attention, "flash_forward", kernel_forward)
    monkeypatch.setattr(attention, "flash_backward", kernel_backward)
    heads = random_heads(sum(lengths))
    plan = plan_attention(packed(lengths), window, packed=True)
    out = block_attention(*heads, plan, dropout=0.0)
    expected = block_attention(*heads, plan_attention(packed(lengths), window), dropout=0.0)
    torch.testing.assert_close(out, expected, rtol=0, atol=3e-6)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((out * weights).sum(), heads)
    theirs = torch.autograd.grad((expected * weights).sum(), heads)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_kernel_is_called_as_this_version_of_torch_declares_it():
    """On the meta device: names, order and number of arguments and results, without a GPU."""
    heads = [torch.empty(9, HEADS, WIDTH, dtype=torch.bfloat16, device="meta") for _ in range(3)]
    place = (torch.empty(3, dtype=torch.int32, device="meta"),) * 2 + (6, 6)
    sides = {"window_size_left": 4, "window_size_right": 4}
    out, log_sum, *random, _ = attention.flash_forward(*heads, *place, 0.1, False, False, scale=0.5, **sides)
    assert out.shape == heads[0].shape and log_sum.shape == (HEADS, 9) and len(random) == 2
    grads = attention.flash_backward(out, *heads, out, log_sum, *place, 0.1, False, *random, scale=0.5, **sides)
    assert [grad.shape for grad in grads] == [out.shape] * 3


def test_packed_rows_are_for_half_precision_on_a_gpu():
    assert not attention.reads_packed_rows(torch.empty(1, 32, dtype=torch.bfloat16), 32)
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        assert attention.reads_packed_rows(torch.empty(1, 32, dtype=torch.bfloat16, device="cuda"), 32)
        assert not attention.reads_packed_rows(torch.empty(1, 32, device="cuda"), 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the flash kernel itself cannot be run")
@pytest.mark.parametrize("window", [None, 16])
def test_the_flash_kernel_equals_the_cpu(window):
    lengths = [49, 1, 17, 128]
    heads = [x.detach().repeat(1, 1, 4) for x in random_heads(sum(lengths))]  # heads 32 wide
    expected = [x.clone().requires_grad_() for x in heads]
    found = [x.cuda().bfloat16().requires_grad_() for x in heads]
    outs, grads = [], []
    for own, is_packed in ((expected, False), (found, True)):
        device = own[0].device
        rows = PackedRows.from_lengths(torch.tensor(lengths, device=device), lengths)
        out = block_attention(*own, plan_attention(rows, window, packed=is_packed), dropout=0.0)
        outs.append(out.float().cpu())
        out.float().square().sum().backward()
        grads.append([x.grad.float().cpu() for x in own])
    torch.testing.assert_close(outs[1], outs[0], rtol=0.03, atol=0.03)
    for one, other in zip(grads[1], grads[0], strict=True):
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


def test_short_rows_are_one_block_and_long_rows_are_cut():
    assert plan_attention(packed([20, 24]), 8).grid == (2, 24)
    assert plan_attention(packed([20, 25]), 8).grid == (3 + 4, 8)
    assert plan_attention(packed([20, 25]), None).grid == (2, 25)


def test_no_mask_where_nothing_is_hidden():
    assert plan_attention(packed([5, 5]), None).mask is None
    assert plan_attention(packed([5, 5]), 8).mask is None
    assert plan_attention(packed([6, 6]), 8).mask is not None


@pytest.mark.parametrize("lengths", [[4, 4], [1, 6, 3]])
def test_scatter_and_gather_are_inverse(lengths):
    rows = packed(lengths)
    tokens = torch.randn(sum(lengths), 3)
    padded = attention.scatter_tokens(tokens, rows.slots, (len(lengths), rows.longest))
    assert torch.equal(gather_tokens(padded, rows.slots), tokens)
    assert padded.abs().sum() == pytest.approx(tokens.abs().sum().item(), rel=1e-5), "padding is zero"


def test_cls_attention_equals_projecting_every_token():
    torch.manual_seed(0)
    batch, length, width = 3, 7, HEADS * WIDTH
    key, value = nn.Linear(width, width), nn.Linear(width, width)
    query, hidden = torch.randn(batch, HEADS, WIDTH), torch.randn(batch, length, width)
    valid = torch.arange(length) < torch.tensor([7, 1, 4])[:, None]
    keys, values = (project(hidden).view(batch, length, HEADS, WIDTH) for project in (key, value))
    scores = torch.einsum("bhe,blhe->bhl", query, keys) / math.sqrt(WIDTH)
    weights = scores.masked_fill(~valid[:, None], -math.inf).softmax(-1)
    expected = torch.einsum("bhl,blhe->bhe", weights, values).flatten(1)
    out = cls_attention(query, hidden, key, value, valid, dropout=0.0)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_dropout_drops_attention_weights_bias_included():
    """With values that are all bias, what is left is the share of weights that were kept."""
    torch.manual_seed(0)
    width = HEADS * WIDTH
    value = nn.Linear(width, width)
    nn.init.zeros_(value.weight)
    nn.init.ones_(value.bias)
    query, hidden = torch.zeros(4000, HEADS, WIDTH), torch.randn(4000, 2, width)
    out = cls_attention(query, hidden, nn.Linear(width, width), value, None, dropout=0.5)
    assert set(out.unique().tolist()) == {0.0, 1.0, 2.0}, "each of two weights 1/2 is dropped or doubled"
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)


def test_dropout_drops_weights_of_plain_attention_and_scales_the_rest():
    """With one-hot values what comes out are the weights themselves."""
    torch.manual_seed(0)
    query, key, dropout = torch.randn(1, HEADS, 3, WIDTH), torch.randn(1, HEADS, 5, WIDTH), 0.25
    whole = plain_attention(query, key, torch.eye(5))
    draws = plain_attention(query.expand(4000, -1, -1, -1), key, torch.eye(5), dropout_p=dropout)
    dropped = draws == 0
    assert dropped.float().mean().item() == pytest.approx(dropout, abs=0.01)
    torch.testing.assert_close(draws, whole / (1 - dropout) * ~dropped)
    torch.testing.assert_close(draws.mean(0), whole[0], rtol=0.05, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_each_element_by_itself_and_scales_the_rest(dtype):
    torch.manual_seed(0)
    rate, ones = 0.25, torch.ones(4001, 7, dtype=dtype, requires_grad=True)
    dropped = dropout_of(ones, rate)
    assert dropped.dtype == dtype and set(dropped.unique().tolist()) == {0.0, torch.tensor(4 / 3, dtype=dtype).item()}
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    # Four neighbours come out of one draw: each pair of them must still be independent.
    lost = (dropped.detach().flatten()[: 4 * 7001].view(-1, 4) == 0).float()
    torch.testing.assert_close(lost.T.cov(), rate * (1 - rate) * torch.eye(4), rtol=0, atol=0.01)
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped)
    torch.manual_seed(0)
    assert torch.equal(dropout_of(ones, rate), dropped), "the same seed drops the same"


def test_dropout_stops_when_a_model_is_evaluated_and_at_a_rate_of_zero():
    ones = torch.ones(5, 5)
    assert torch.equal(Dropout(0.5).eval()(ones), ones) and torch.equal(Dropout(0.0)(ones), ones)
    assert torch.equal(dropout_of(ones, 0.999999) != 0, dropout_of(ones, 0.999999) > 60000), "no division by zero"


@pytest.mark.parametrize("window", [None, 4])
def test_bfloat16_on_a_cpu_attends_as_float32_does(tiny_config, window):
    """Plain products instead of the fused kernel: values and gradients within what eight bits hold."""
    from jepa4rec.modeling_jepa4rec import Jepa4RecModel

    torch.manual_seed(0)
    tiny_config.attention_window = window
    tiny_config.hidden_dropout_prob = tiny_config.attention_probs_dropout_prob = 0.0
    model = Jepa4RecModel(tiny_config)
    ids = torch.randint(5, 100, (3, 17))
    mask = torch.ones_like(ids)
    mask[0, 6:] = mask[1, 12:] = 0
    direction = torch.randn(3, 17, 32)
    found = {}
    for low in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            vectors = model(ids, mask).last_hidden_state.float()
        (vectors * mask[..., None] * direction).sum().backward()
        weights = model.encoder.layer[0].attention.self.key.weight
        found[low] = (vectors.detach() * mask[..., None], weights.grad.clone())
    assert torch.allclose(found[True][0], found[False][0], atol=0.06)
    assert torch.isfinite(found[True][1]).all()
    cosine = torch.nn.functional.cosine_similarity(found[True][1].flatten(), found[False][1].flatten(), dim=0)
    assert cosine > 0.95
