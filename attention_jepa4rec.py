"""Self-attention over packed rows: Longformer, RoBERTa and BERT maths without the needless work.

Everything but attention itself runs on *packed* tokens: the valid tokens of all rows one after the other, `(T, d)`,
no padding. Attention sees them in *blocks*: one block a row when attention is full or rows are short, otherwise
blocks of consecutive tokens of one row that also see their neighbours' edges and the row's `[CLS]`.

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
    """

    grid: tuple[int, int]
    slots: Tensor | None
    mask: Tensor | None
    halo: int
    block_first: Tensor | None
    rows: PackedRows
    row_slots: Tensor | None
    row_valid: Tensor | None


def plan_attention(rows: PackedRows, attention_window: int | None) -> AttentionPlan:
    """Choose the blocks: one a row, or local blocks for long rows under an `attention_window` (two-sided, tokens)."""
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
    queries = scatter_tokens(query, plan.slots, plan.grid)
    keys, values = (_block_keys(heads, plan) for heads in (key, value))
    heads = (queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
    # In bfloat16 the backward of a CPU's fused attention takes a quarter of a training step; plain products do not.
    plain = query.device.type == "cpu" and query.dtype == torch.bfloat16
    attend = plain_attention if plain else F.scaled_dot_product_attention
    out = attend(*heads, attn_mask=plan.mask, dropout_p=dropout)
    return gather_tokens(out.transpose(1, 2), plan.slots)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """`F.scaled_dot_product_attention` (…, S, D) x (…, K, D) as three products, the softmax in float32."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    # A row whose every key is hidden is padding: its numbers are never read, but must not be NaN in the gradient.
    weights = scores.softmax(-1, dtype=torch.float32).nan_to_num().to(value.dtype)
    return F.dropout(weights, dropout_p) @ value


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
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32), dropout).to(hidden.dtype)
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
