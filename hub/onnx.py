"""A checkpoint for runtimes without torch: an ONNX graph of its text encoder.

The graph reads padded batches, as a runtime without Python has them, and computes what `Jepa4RecModel.embed` does. One
graph encodes items and histories: an item is a history of one. docs/serve.md shows how to use it.

Sizes: B rows of L slots, hidden width d, H heads.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attention_jepa4rec import Jepa4RecSelfAttention, cls_attention
from ..losses_seqrec import normalise
from ..modeling_jepa4rec import Jepa4RecLayer, Jepa4RecModel

GRAPH_FILE = "encoder.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "item_position_ids")
OUTPUT, OPSET = "vectors", 18


class PaddedEncoder(nn.Module):
    """`Jepa4RecModel.embed` on padded tensors alone, with the same weights: (B, L) ids, four times -> (B, d).

    Nothing in it depends on the values of a batch, so it can be traced. A window is a mask on full attention: equal
    numbers at the price of L² scores.
    """

    def __init__(self, model: Jepa4RecModel):
        super().__init__()
        self.embeddings, self.layers = model.embeddings, model.encoder.layer
        self.window, self.pooling = model.config.attention_window, model.config.pooling
        self.uncounted = None if model.config.count_pad_tokens else model.config.pad_token_id
        self.projection = model.projection

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, item_position_ids: Tensor
    ) -> Tensor:
        valid = attention_mask > 0
        columns = attention_mask.cumsum(1) - 1  # a token's place among those of its row, wherever padding stands
        first = ((columns == 0) & valid).long().argmax(1)
        places = columns.clamp(min=0)
        if self.uncounted is not None:
            words = (input_ids != self.uncounted) & valid
            places = torch.where(words, words.long().cumsum(1) - 1, -1)
        hidden = self.embeddings(input_ids, places, token_type_ids, item_position_ids)
        mask = self._mask(columns, valid)
        *most, last = self.layers
        for layer in most:
            hidden = self._layer(layer, hidden, mask, valid, first)
        if self.pooling == "cls":
            rows = _take(hidden, first)
            return self._project(_finish(last, _cls_row(last.attention.self, hidden, valid, first), rows))
        hidden = self._layer(last, hidden, mask, valid, first)
        kept = valid[..., None].to(hidden.dtype)
        return self._project((hidden * kept).sum(1) / kept.sum(1))

    def _project(self, pooled: Tensor) -> Tensor:
        return pooled if self.projection is None else self.projection(normalise(pooled))

    def _mask(self, columns: Tensor, valid: Tensor) -> Tensor:
        """What is added to the scores, (B, 1, 1 or L, L): 0 where a query sees a key."""
        sees = valid[:, None, None, :]
        if self.window is not None:
            near = (columns[:, :, None] - columns[:, None, :]).abs() <= self.window // 2
            sees = sees & (near | (columns == 0)[:, None, :])[:, None]
        return torch.where(sees, 0.0, torch.finfo(torch.float32).min)

    def _layer(self, layer: Jepa4RecLayer, hidden: Tensor, mask: Tensor, valid: Tensor, first: Tensor) -> Tensor:
        attention = layer.attention.self
        heads = (_heads(attention, project(hidden)) for project in (attention.query, attention.key, attention.value))
        query, key, value = (part.transpose(1, 2) for part in heads)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + mask
        attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        if attention.is_local:
            slots = torch.arange(hidden.shape[1], device=hidden.device)
            is_first = (slots == first[:, None])[..., None]
            attended = torch.where(is_first, _cls_row(attention, hidden, valid, first)[:, None], attended)
        return _finish(layer, attended, hidden)


def _heads(attention: Jepa4RecSelfAttention, projected: Tensor) -> Tensor:
    return projected.unflatten(-1, (attention.num_heads, -1))


def _take(hidden: Tensor, slots: Tensor) -> Tensor:
    """One slot of every row: (B, L, d), (B,) -> (B, d)."""
    return hidden.gather(1, slots[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


def _cls_row(attention: Jepa4RecSelfAttention, hidden: Tensor, valid: Tensor, first: Tensor) -> Tensor:
    """What `[CLS]` attends to, (B, d)."""
    project = (attention.query, attention.key, attention.value)
    if attention.is_local:
        project = (attention.query_global, attention.key_global, attention.value_global)
    query = _heads(attention, project[0](_take(hidden, first)))
    return cls_attention(query, hidden, project[1], project[2], valid, dropout=0.0)


def _finish(layer: Jepa4RecLayer, attended: Tensor, hidden: Tensor) -> Tensor:
    """A layer behind its attention."""
    attended = layer.attention.output(attended, hidden)
    return layer.output(layer.intermediate(attended), attended)


# ------------------------------------------------------------------------------------------------ ONNX


def export_graph(model: Jepa4RecModel, path: Path) -> None:
    """Write the encoder's graph, float32, for batches of any size and length."""
    rows = [torch.zeros(2, 8, dtype=torch.long) for _ in INPUTS]
    rows[INPUTS.index("attention_mask")] += 1
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.config.max_tokens)}
    torch.onnx.export(
        PaddedEncoder(model.float()).eval(),
        tuple(rows),
        path,
        input_names=list(INPUTS),
        output_names=[OUTPUT],
        dynamic_shapes=tuple(shape for _ in INPUTS),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
