"""LRURec (Yue et al., 2024): linear recurrent units over item ids, trained to predict every next item.

A unit keeps a complex state of twice the width, h_t = lambda * h_(t-1) + gamma * (W x_t + b), whose decay lambda is
learned element by element inside the unit circle (Orvieto et al., 2023); what is linear needs no step by step, and is
summed here in log2(L) steps. Unlike the published code, items have no bias in the score.
"""

import math

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .item_sequences import ItemSequenceConfig, ItemSequenceModel

SHORTEST, LONGEST = 0.8, 0.99  # ring in which |lambda| begins


@strict
class LruRecConfig(ItemSequenceConfig):
    """Shape of LRURec; arguments as `ItemSequenceConfig`."""

    model_type = "lrurec"


class LinearRecurrence(nn.Module):
    """(B, L, d) -> (B, L, d), each place a decaying sum of those up to it."""

    def __init__(self, width: int):
        super().__init__()
        self.size = 2 * width
        # Complex maps as real ones: real and imaginary parts side by side.
        self.grow, self.shrink = nn.Linear(width, 2 * self.size), nn.Linear(2 * self.size, width)
        self.log_decay = nn.Parameter(torch.zeros(self.size))  # log(-log |lambda|)
        self.log_angle = nn.Parameter(torch.zeros(self.size))
        self.log_gain = nn.Parameter(torch.zeros(self.size))

    def factor(self) -> Tensor:
        """lambda, complex (2 d,)."""
        return torch.exp(torch.complex(-self.log_decay.exp(), self.log_angle.exp()))

    def forward(self, vectors: Tensor) -> Tensor:
        real, imaginary = self.grow(vectors).float().chunk(2, dim=-1)
        states, factor, reach = torch.complex(real, imaginary) * self.log_gain.exp(), self.factor(), 1
        while reach < vectors.shape[1]:
            # Each place holds the sum of the `reach` newest; with those of `reach` places before it, twice as many.
            states = states + F.pad(factor * states[:, :-reach], (0, 0, reach, 0))
            factor, reach = factor * factor, 2 * reach
        return self.shrink(torch.cat([states.real, states.imag], dim=-1).to(vectors.dtype))


class LruBlock(nn.Module):
    """Recurrence and a position-wise network four times as wide, each inside a residual and before a LayerNorm."""

    def __init__(self, config: LruRecConfig):
        super().__init__()
        width = config.hidden_size
        self.recurrence = LinearRecurrence(width)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first_norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.first_norm(hidden + self.dropout(self.recurrence(hidden)))
        inner = self.dropout(F.gelu(self.grow(hidden)))
        return self.last_norm(hidden + self.dropout(self.shrink(inner)))


class LruRec(ItemSequenceModel):
    """Blocks of linear recurrent units whose item embeddings are read and predicted."""

    config_class = LruRecConfig

    def __init__(self, config: LruRecConfig):
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items, config.hidden_size)
        self.norm, self.dropout = nn.LayerNorm(config.hidden_size), nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(LruBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LinearRecurrence):
            share = torch.rand(module.size)
            radius = (share * (LONGEST**2 - SHORTEST**2) + SHORTEST**2).sqrt()
            init.copy_(module.log_decay, (-radius.log()).log())
            init.copy_(module.log_angle, (2 * math.pi * torch.rand(module.size)).log())
            init.copy_(module.log_gain, (1 - radius**2).sqrt().log())

    def read(self, item_ids: Tensor, items: Tensor) -> Tensor:
        """(B, L) -> (B, L, d). A state knows nothing of what comes after it, so padding at the end does no harm."""
        hidden = self.norm(self.dropout(items[item_ids.clamp_min(0)]))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden
