"""FDSA (Zhang et al., 2019): one self-attention over the history's item ids, another over their features, joined.

The two user vectors are concatenated and brought to the width of the item embeddings by a linear map. Unlike in the
paper, an item's feature is one frozen vector of its text, as in UniSRec's comparison, not embeddings of its brand and
category weighed by attention; the loss is the softmax over the whole catalogue, not one negative; and both stacks are
the blocks of `item_sequences`.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .item_sequences import TransformerBody
from .text_vectors import TextSequenceConfig, TextSequenceModel


@strict
class FdsaConfig(TextSequenceConfig):
    """Shape of FDSA, the same for both stacks; arguments as `TextSequenceConfig`."""

    model_type = "fdsa"


class Fdsa(TextSequenceModel):
    """Two causal Transformers; users are compared with the item embeddings alone."""

    config_class = FdsaConfig

    def __init__(self, config: FdsaConfig):
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items, config.hidden_size)
        self.adaptor = nn.Linear(config.text_size, config.hidden_size)
        self.item_body = TransformerBody(config, config.max_length)
        self.text_body = TransformerBody(config, config.max_length)
        self.join = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.post_init()

    def read(self, item_ids: Tensor, items: Tensor) -> Tensor:
        """(B, L) -> hidden states (B, L, d). Padding comes last, so causal attention never looks at it."""
        rows, texts = item_ids.clamp_min(0), self.adaptor(self.text_vectors)
        return self.join(torch.cat([self.item_body(items[rows]), self.text_body(texts[rows])], dim=-1))
