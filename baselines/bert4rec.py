"""BERT4Rec (Sun et al., 2019): bidirectional self-attention over item ids, trained to fill in masked items.

A next item is predicted by a mask behind the history. With probability `last_rate` a training sequence is masked at
its last place alone, which is the task of the test; otherwise each place is masked with probability `mask_rate`.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .item_sequences import (
    PADDING,
    ItemSequenceConfig,
    ItemSequenceModel,
    TransformerBody,
    last_places,
    on_device,
    taken,
)


@strict
class Bert4RecConfig(ItemSequenceConfig):
    """Shape of BERT4Rec and how it masks; other arguments as `ItemSequenceConfig`."""

    model_type = "bert4rec"
    mask_rate: float = 0.3
    last_rate: float = 0.3

    def validate_rates(self):
        """Both are probabilities; without masks there is nothing to learn."""
        if not 0 < self.mask_rate <= 1 or not 0 <= self.last_rate <= 1:
            raise ValueError(
                f"mask_rate ({self.mask_rate}) must be in (0, 1] and last_rate ({self.last_rate}) in [0, 1]."
            )


class Bert4Rec(ItemSequenceModel):
    """Bidirectional Transformer; the row after the items' embeddings is that of the mask."""

    config_class = Bert4RecConfig

    def __init__(self, config: Bert4RecConfig):
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items + 1, config.hidden_size)
        self.body = TransformerBody(config, config.max_length + 1)
        self.post_init()

    def read(self, item_ids: Tensor) -> Tensor:
        """(B, L), the mask written as num_items -> hidden states (B, L, d)."""
        visible = (item_ids != PADDING)[:, None, None, :]
        return self.body(self.item_embeddings(item_ids.clamp_min(0)), visible)

    def examples(self, item_ids: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen = self.choose_masked(known)
        hidden = self.read(item_ids.masked_fill(on_device(chosen, item_ids), self.config.num_items))
        return taken(hidden, chosen), taken(item_ids, chosen), self.item_vectors()

    def choose_masked(self, known: Tensor) -> Tensor:
        """Places to predict among the `known`, bool (B, L): where chance takes none of a row, its last one."""
        places = torch.arange(known.shape[1], device=known.device)
        last = places == known.sum(1, keepdim=True) - 1
        chosen = (torch.rand(known.shape, device=known.device) < self.config.mask_rate) & known
        only_last = torch.rand(len(known), 1, device=known.device) < self.config.last_rate
        return torch.where(only_last | ~chosen.any(1, keepdim=True), last, chosen)

    def user_vectors(self, histories: Tensor) -> Tensor:
        lengths = (histories != PADDING).sum(1)
        asked = torch.cat([histories, histories.new_full((len(histories), 1), PADDING)], dim=1)
        asked[torch.arange(len(asked), device=asked.device), lengths] = self.config.num_items
        return last_places(self.read(asked), lengths + 1)
