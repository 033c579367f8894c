"""Self-attention over packed rows: Longformer, RoBERTa and BERT maths without the needless work.

Everything but attention itself runs on *packed* tokens: the valid tokens of all rows one after the other, `(T, d)`,
no padding. Attention sees them in *blocks*: one block a row when attention is full or rows are short, otherwise
blocks of consecutive tokens of one row that also see their neighbours' edges and the row's `[CLS]`. In half precision
on a GPU there are no blocks: a flash kernel reads the packed rows as they are (`PackedLayout`).

Sizes: B rows, T tokens in all, N blocks of S slots, K keys a block, H heads of width D, d = H * D.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Rows up to this many windows long are one block each: masking keys away is cheaper than cutting blocks (measured).
ONE_BLOCK_WINDOWS = 3


@dataclass(frozen=True)
class PackedRows:
    """Where the valid tokens of a padded batch sit once the padding is gone.

    Attributes:
        lengths: valid tokens of each row, (B,), and `sizes`, the same as Python integers.
        row, column: the row of each packed token and its place among that row's valid tokens, (T,) each.
        first: packed index of each row's first token, its `[CLS]`, (B,).
    """

    lengths: Tensor
    sizes: list[int]
    row: Tensor
    column: Tensor
    first: Tensor

    @classmethod
    def from_lengths(cls, lengths: Tensor, sizes: list[int]) -> "PackedRows":
        """`sizes` repeats `lengths` so that nothing here has to wait for the device."""
        index = torch.arange(len(sizes), device=lengths.device)
        row = torch.repeat_interleave(index, lengths, output_size=sum(sizes))
        first = lengths.cumsum(0) - lengths
        column = torch.arange(len(row), device=lengths.device) - first[row]
        return cls(lengths, sizes, row, column, first)

    @property
    def longest(self) -> int:
        return max(self.sizes)

    @property
    def slots(self) -> Tensor | None:
        """Flat slot of each token in the padded (B, longest) grid, (T,); None when nothing is padded."""
        return None if self.valid is None else self.row * self.longest + self.column

    @property
    def valid(self) -> Tensor | None:
        """True where the padded (B, longest) grid holds a token; None when it does everywhere."""
        if len(self.row) == len(self.sizes) * self.longest:
            return None
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]


@dataclass(frozen=True)
class AttentionPlan:
    """Which tokens see which, worked out once a batch and shared by all layers.

    Attributes:
        grid: (N, S), the blocks; `slots`: flat slot of each packed token in it, (T,), or None for its own index.
        mask: what a query sees, (N or 1, 1, S or 1, K), or None for everything.
        halo: tokens a block sees of the block before and of the one behind; 0 when a row is one block.
        block_first: packed index of the `[CLS]` that each block sees as an extra first key, (N,); None without halo.
        rows, row_slots, row_valid: the packed rows, and their padded (B, longest) grid, for the `[CLS]` queries.
        layout: the packed rows as a flash kernel reads them; the blocks above are then not used.
    """

    grid: tuple[int, int]
    slots: Tensor | None
    mask: Tensor | None
    halo: int
    block_first: Tensor | None
    rows: PackedRows
    row_slots: Tensor | None
    row_valid: Tensor | None
    layout: "PackedLayout | None" = None


@dataclass(frozen=True)
class PackedLayout:
    """Packed rows as a flash kernel takes them.

    Attributes:
        ends: where each row begins and the last one ends, (B + 1,) int32 (`cu_seqlens`).
        longest: tokens of the longest row.
        halo: tokens seen on either side; None for the whole row.
        cls: packed index of the row's `[CLS]` for each token, (T,), where some row is longer than `halo`; else None.
        far: tokens that do not find `[CLS]` within their `halo`, (T, 1) bool; None with `cls`.
    """

    ends: Tensor
    longest: int
    halo: int | None
    cls: Tensor | None
    far: Tensor | None

    @classmethod
    def from_rows(cls, rows: PackedRows, attention_window: int | None) -> "PackedLayout":
        ends = F.pad(rows.lengths.cumsum(0), (1, 0)).int()
        halo = None if attention_window is None else attention_window // 2
        if halo is None or rows.longest - 1 <= halo:
            return cls(ends, rows.longest, None, None, None)
        return cls(ends, rows.longest, halo, rows.first[rows.row], (rows.column > halo)[:, None])


def reads_packed_rows(hidden: Tensor, head_width: int) -> bool:
    """Whether a flash kernel takes rows with heads this wide as they are: half precision on a GPU since Ampere."""
    if hidden.device.type != "cuda" or torch.version.hip or not torch.backends.cuda.flash_sdp_enabled():
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype
    fits = head_width % 8 == 0 and head_width <= 256 and dtype in (torch.bfloat16, torch.float16)
    return fits and torch.cuda.get_device_capability(hidden.device) >= (8, 0)


def plan_attention(rows: PackedRows, attention_window: int | None, packed: bool = False) -> AttentionPlan:
    """Choose the blocks: one a row, or local blocks for long rows under an `attention_window` (two-sided, tokens).

    `packed`: no blocks, the kernel reads the rows themselves (`reads_packed_rows`).
    """
    if packed:
        layout = PackedLayout.from_rows(rows, attention_window)
        grid = (len(rows.sizes), rows.longest)
        return AttentionPlan(grid, None, None, 0, None, rows, rows.slots, rows.valid, layout)
    if attention_window is not None and rows.longest > ONE_BLOCK_WINDOWS * attention_window:
        return _local_plan(rows, attention_window)
    # Short rows stay whole under a mask: cutting them costs more than the products it saves. Longer ones are cut, so
    # that work grows with length times window and not with its square.
    valid, slots = rows.valid, rows.slots
    mask = None if valid is None else valid[:, None, None, :]
    if attention_window is not None and rows.longest - 1 > attention_window // 2:
        column = torch.arange(rows.longest, device=rows.row.device)
        sees = (column[:, None] - column).abs() <= attention_window // 2
        sees = (sees | (column == 0))[None, None]
        mask = sees if mask is None else sees & mask
    return AttentionPlan((len(rows.sizes), rows.longest), slots, mask, 0, None, rows, slots, valid)


def _local_plan(rows: PackedRows, attention_window: int) -> AttentionPlan:
    """Cut every row into blocks of `attention_window` tokens; a block never holds tokens of two rows."""
    size, halo, device = attention_window, attention_window // 2, rows.row.device
    blocks = (rows.lengths + size - 1) // size
    block_start = blocks.cumsum(0) - blocks
    count = sum(-(-length // size) for length in rows.sizes)
    index = torch.arange(len(rows.sizes), device=device)
    block_row = torch.repeat_interleave(index, blocks, output_size=count)
    # Column (place in its row) of every key slot: the block's own tokens with a halo on both sides.
    begin = (torch.arange(count, device=device) - block_start[block_row]) * size
    key_offset = torch.arange(-halo, size + halo, device=device)
    key_column = begin[:, None] + key_offset
    # Column 0 is left out here: [CLS] is every block's extra first key and must not count twice.
    exists = (key_column > 0) & (key_column < rows.lengths[block_row, None])
    near = (torch.arange(size, device=device)[:, None] - key_offset).abs() <= halo
    mask = F.pad(near & exists[:, None, :], (1, 0), value=True)[:, None]
    is_full = all(length % size == 0 for length in rows.sizes)
    slots = None if is_full else block_start[rows.row] * size + rows.column
    return AttentionPlan((count, size), slots, mask, halo, rows.first[block_row], rows, rows.slots, rows.valid)


def scatter_tokens(tokens: Tensor, slots: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """Packed (T, ...) -> `grid` (N, S, ...), zeros where no token goes. `slots` None: they fill the grid in order."""
    if slots is not None:
        empty = tokens.new_zeros(grid[0] * grid[1], *tokens.shape[1:])
        tokens = empty.index_copy_(0, slots, tokens)
    return tokens.view(*grid, *tokens.shape[1:])


def gather_tokens(padded: Tensor, slots: Tensor | None) -> Tensor:
    """`scatter_tokens` undone: (N, S, ...) -> packed (T, ...)."""
    tokens = padded.flatten(0, 1)
    return tokens if slots is None else tokens.index_select(0, slots)


def block_attention(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, dropout: float) -> Tensor:
    """Scaled dot-product attention of packed heads (T, H, D) -> (T, H, D) as `plan` lays it out."""
    if plan.layout is not None:
        return PackedAttention.apply(query, key, value, plan.layout, dropout)
    queries = scatter_tokens(query, plan.slots, plan.grid)
    keys, values = (_block_keys(heads, plan) for heads in (key, value))
    heads = (queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
    # In bfloat16 the backward of a CPU's fused attention takes a quarter of a training step; plain products do not.
    # With dropout there is nothing fused on a CPU.
    plain = query.device.type == "cpu" and (query.dtype == torch.bfloat16 or dropout > 0)
    attend = plain_attention if plain else F.scaled_dot_product_attention
    out = attend(*heads, attn_mask=plan.mask, dropout_p=dropout)
    return gather_tokens(out.transpose(1, 2), plan.slots)


# What torch.nn.attention.varlen calls; that itself has neither dropout nor a gradient of the log-sum-exp.
flash_forward = torch.ops.aten._flash_attention_forward
flash_backward = torch.ops.aten._flash_attention_backward


class PackedAttention(torch.autograd.Function):
    """Attention of packed rows (T, H, D) by a flash kernel, local where the layout says so, and to `[CLS]` always.

    The kernel knows windows but no global key. Tokens that do not find `[CLS]` in their window get it as one more key:
    the kernel's output and that key's value are weighted by their shares of the common softmax, which its log-sum-exp
    gives. Backward hands the kernel the common log-sum-exp and output, with which its formula
    dS = P (dO V^T - rowsum(dO * O)) is that of the common softmax.
    """

    @staticmethod
    def forward(ctx, query, key, value, layout, dropout):
        place = (layout.ends, layout.ends, layout.longest, layout.longest)
        sides = {"window_size_left": layout.halo, "window_size_right": layout.halo}
        out, log_sum, *random, _ = flash_forward(
            query, key, value, *place, dropout, False, False, scale=query.shape[-1] ** -0.5, **sides
        )
        kept = None
        if layout.cls is not None:
            scores = _cls_scores(query, key, layout)
            log_all = torch.logaddexp(log_sum.T, scores)
            share = (scores - log_all).exp()
            kept = F.dropout(torch.ones_like(share), dropout) if dropout else None
            weight = share if kept is None else share * kept
            near = (log_sum.T - log_all).exp()
            out = (near[..., None] * out + weight[..., None] * value[layout.cls]).to(query.dtype)
            log_sum = log_all.T.contiguous()
        ctx.save_for_backward(query, key, value, out, log_sum, kept, *random)
        ctx.layout, ctx.dropout, ctx.place, ctx.sides = layout, dropout, place, sides
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, out, log_sum, kept, *random = ctx.saved_tensors
        layout, scale, grad = ctx.layout, query.shape[-1] ** -0.5, grad.contiguous()
        grads = flash_backward(
            grad, query, key, value, out, log_sum, *ctx.place, ctx.dropout, False, *random, scale=scale, **ctx.sides
        )
        if layout.cls is None:
            return *grads, None, None
        share = (_cls_scores(query, key, layout) - log_sum.T).exp()
        weight = share if kept is None else share * kept
        grad_weight = (grad.float() * value[layout.cls]).sum(-1)
        grad_weight = grad_weight if kept is None else grad_weight * kept
        grad_scores = scale * share * (grad_weight - (grad.float() * out).sum(-1))
        to_query = grad_scores[..., None] * key[layout.cls]
        to_key, to_value = grad_scores[..., None] * query, weight[..., None] * grad
        parts = (to_query, _rows_to_cls(to_key, layout), _rows_to_cls(to_value, layout))
        return *(own.add(part.to(own.dtype)) for own, part in zip(grads, parts, strict=True)), None, None


def _cls_scores(query: Tensor, key: Tensor, layout: PackedLayout) -> Tensor:
    """What each token's query says of its `[CLS]`, float32 (T, H); -inf where its window holds `[CLS]` already."""
    scores = (query.float() * key[layout.cls]).sum(-1) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~layout.far, -math.inf)


def _rows_to_cls(tokens: Tensor, layout: PackedLayout) -> Tensor:
    """The sum of each row's tokens (T, H, D) in the place of its `[CLS]`, zeros elsewhere."""
    return torch.zeros_like(tokens).index_add_(0, layout.cls, tokens)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """`F.scaled_dot_product_attention` (…, S, D) x (…, K, D) as products."""
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    if attn_mask is not None:
        # Not -inf: a row whose every key is hidden is padding, never read, but must not be NaN in the gradient.
        hidden = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill_(
            ~attn_mask, torch.finfo(scores.dtype).min
        )
        scores = scores + hidden
    return dropout_of(scores.softmax(-1), dropout_p) @ value


def dropout_of(tensor: Tensor, rate: float) -> Tensor:
    """`F.dropout`; on a CPU in less than half its time, the rate rounded to a 65,536th."""
    if not rate or tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(tensor, rate)
    # torch draws every element by itself, which is a tenth of a training step; here one draw of 64 bits serves four.
    dropped = min(round(rate * 2**16), 2**16 - 1)
    draws = tensor.new_empty(-(-tensor.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = draws[: tensor.numel()].view(tensor.shape) >= dropped - 2**15
    return tensor * (kept.to(tensor.dtype) * (2**16 / (2**16 - dropped)))


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout_of`."""

    def forward(self, hidden: Tensor) -> Tensor:
        return dropout_of(hidden, self.p if self.training else 0.0)


def _block_keys(heads: Tensor, plan: AttentionPlan) -> Tensor:
    """Keys or values that each block sees: (T, H, D) -> (N, K, H, D)."""
    blocks = scatter_tokens(heads, plan.slots, plan.grid)
    if not plan.halo:
        return blocks
    # Neighbours across a row's end (and around the whole batch) come along too; the mask hides them.
    before = blocks[:, -plan.halo :].roll(1, dims=0)
    behind = blocks[:, : plan.halo].roll(-1, dims=0)
    return torch.cat([heads[plan.block_first, None], before, blocks, behind], dim=1)


def cls_attention(
    query: Tensor, hidden: Tensor, key: nn.Linear, value: nn.Linear, valid: Tensor | None, dropout: float
) -> Tensor:
    """Attention of one query a row over all its tokens, without projecting the tokens.

    `q . (W_k x + b) = (W_k^T q) . x + q . b` and `sum p (W_v x + b) = W_v (sum p x) + b`: two d x d products a token
    become two of width H.

    Args:
        query: (B, H, D), not yet scaled.
        hidden: the tokens before projection, (B, L, d).
        key, value: the projections, d -> H * D.
        valid: (B, L), true at tokens; None when nothing is padded.

    Returns:
        (B, d)
    """
    batch, heads, width = query.shape
    query = query / math.sqrt(width)
    probe = torch.einsum("bhe,hed->bhd", query, key.weight.view(heads, width, -1))
    constant = torch.einsum("bhe,he->bh", query, key.bias.view(heads, width))
    scores = probe @ hidden.transpose(1, 2) + constant[..., None]
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None], -math.inf)
    weights = dropout_of(scores.softmax(-1, dtype=torch.float32), dropout).to(hidden.dtype)
    pooled = weights @ hidden
    out = torch.einsum("bhd,hed->bhe", pooled, value.weight.view(heads, width, -1))
    # Dropout leaves weights that do not sum to one, so the bias is weighted like the rest of the value.
    return (out + weights.sum(-1, keepdim=True) * value.bias.view(heads, width)).reshape(batch, heads * width)


class Jepa4RecSelfAttention(nn.Module):
    """Multi-head self-attention; with an attention window, local plus one global token, `[CLS]` (Longformer, §3)."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.is_local = config.attention_window is not None
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        if self.is_local:
            self.query_global, self.key_global, self.value_global = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor, plan: AttentionPlan) -> Tensor:
        """Packed tokens (T, d) -> (T, d)."""
        query, key, value = (self._heads(project(hidden)) for project in (self.query, self.key, self.value))
        out = block_attention(query, key, value, plan, self._dropout).flatten(1)
        # Longformer's global token has projections of its own. Only the row of [CLS] reads them, so one query a row is
        # worked out and put in the place of what the local projections said there.
        if self.is_local:
            out = out.index_copy(0, plan.rows.first, self.cls_row(hidden, plan).to(out.dtype))
        return out

    def cls_row(self, hidden: Tensor, plan: AttentionPlan) -> Tensor:
        """The rows of `forward` that belong to `[CLS]`, (T, d) -> (B, d), at a fraction of its price."""
        project = (self.query, self.key, self.value)
        if self.is_local:
            project = (self.query_global, self.key_global, self.value_global)
        query = self._heads(project[0](hidden[plan.rows.first]))
        padded = scatter_tokens(hidden, plan.row_slots, (len(plan.rows.sizes), plan.rows.longest))
        return cls_attention(query, padded, project[1], project[2], plan.row_valid, self._dropout)

    def idle_in_cls_row(self) -> list[nn.Linear]:
        """Projections that `cls_row` does not touch."""
        return [self.query, self.key, self.value] if self.is_local else []

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(len(projected), self.num_heads, -1)
