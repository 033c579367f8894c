"""GRU4Rec (Hidasi et al., 2016): a recurrent network over item ids, trained to predict every next item.

With the softmax over the whole catalogue instead of the paper's sampled ranking losses.
"""

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .item_sequences import ItemSequenceConfig, ItemSequenceModel


@strict
class Gru4RecConfig(ItemSequenceConfig):
    """Shape of GRU4Rec; arguments as `ItemSequenceConfig`: `intermediate_size` is the width of the recurrent state."""

    model_type = "gru4rec"
    num_hidden_layers: int = 1


class Gru4Rec(ItemSequenceModel):
    """GRU whose states, brought to the width of the items, are compared with the item embeddings."""

    config_class = Gru4RecConfig

    def __init__(self, config: Gru4RecConfig):
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(config.hidden_size, config.intermediate_size, config.num_hidden_layers, batch_first=True)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.post_init()

    def read(self, item_ids: Tensor, items: Tensor) -> Tensor:
        """(B, L) -> (B, L, d). A state knows nothing of what comes after it, so padding at the end does no harm."""
        states, _ = self.gru(self.dropout(items[item_ids.clamp_min(0)]))
        return self.out(self.dropout(states))
