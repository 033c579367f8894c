"""eSASRec (Tikhonovich et al., 2025): SASRec's task, the blocks of LiGR (Borisyuk et al., 2025), a sampled softmax.

A LiGR block multiplies what attention and network add by a gate, sigmoid(W x + b) of the block's input; its network is
a SwiGLU without biases. Each place's target is told from items drawn evenly from the catalogue, as in the authors'
RecTools. Unlike there, a drawn item that is the target does not count, weights begin normal, and positions count from
the oldest item.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .item_sequences import ItemSequenceConfig, ItemSequenceModel, TransformerBlock, sampled_softmax


@strict
class ESasRecConfig(ItemSequenceConfig):
    """Shape of eSASRec; other arguments as `ItemSequenceConfig`.

    Args:
        num_negatives: items drawn for each place to learn from.
    """

    model_type = "esasrec"
    num_negatives: int = 256

    def validate_negatives(self):
        """Without negatives there is nothing to tell a target from."""
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives must be at least 1, got {self.num_negatives}.")


class LigrBlock(TransformerBlock):
    """Gated causal self-attention and a gated SwiGLU, each after a LayerNorm and inside a residual."""

    def __init__(self, config: ESasRecConfig):
        super().__init__(config)
        width = config.hidden_size
        self.attention_gate, self.network_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.grow = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.shrink = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, d) -> (B, L, d)."""
        attended = self.dropout(self.attend(self.attention_norm(hidden), None))
        hidden = hidden + torch.sigmoid(self.attention_gate(hidden)) * attended
        switch, value = self.grow(self.network_norm(hidden)).chunk(2, dim=-1)
        inner = self.shrink(self.dropout(F.silu(switch) * value))
        return hidden + torch.sigmoid(self.network_gate(hidden)) * self.dropout(inner)


class ESasRec(ItemSequenceModel):
    """Causal LiGR blocks whose item embeddings are read and predicted."""

    config_class = ESasRecConfig

    def __init__(self, config: ESasRecConfig):
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items, config.hidden_size)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(LigrBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def read(self, item_ids: Tensor, items: Tensor) -> Tensor:
        """(B, L) -> hidden states (B, L, d). Padding comes last, so causal attention never looks at it."""
        hidden = self.dropout(items[item_ids.clamp_min(0)] + self.positions.weight[: item_ids.shape[1]])
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def losses(self, item_ids: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The softmax over each target and its own drawn negatives, as "sampled_softmax"."""
        vectors, targets, items = self.examples(item_ids, known)
        shape = (len(targets), self.config.num_negatives)
        negatives = torch.randint(self.config.num_items, shape, device=targets.device)
        return {"sampled_softmax": sampled_softmax(vectors, targets, items, self.config.temperature, negatives)}
