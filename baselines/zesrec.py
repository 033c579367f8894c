"""ZESRec (Ding et al., 2021): a recurrent network over items that are a linear map of their texts plus an offset.

The offset is what an item is beside its text: a vector with a Gaussian prior of mean zero, learned with the rest (the
paper's MAP estimate). On other items it is not known and left out, and the model ranks them without any training:
`model.pretrained` with `phases: []`. Of the paper's user networks this is the GRU; its own prior on user vectors is
left out, and the softmax is over the whole catalogue.
"""

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .text_vectors import TextSequenceConfig, TextSequenceModel


@strict
class ZesRecConfig(TextSequenceConfig):
    """Shape of ZESRec; other arguments as `TextSequenceConfig`, `intermediate_size` is the width of the GRU's state.

    Args:
        offset_l2: weight of the offsets' squared length, mean over items, in the loss.
    """

    model_type = "zesrec"
    num_hidden_layers: int = 1
    offset_l2: float | int = 1.0


class ZesRec(TextSequenceModel):
    """GRU over text vectors mapped to its width, each with its item's offset."""

    config_class = ZesRecConfig
    item_weights = ("item_offsets", "text_vectors")

    def __init__(self, config: ZesRecConfig):
        super().__init__(config)
        self.text_map = nn.Linear(config.text_size, config.hidden_size)
        self.item_offsets = nn.Embedding(config.num_items, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(config.hidden_size, config.intermediate_size, config.num_hidden_layers, batch_first=True)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.item_offsets:
            init.zeros_(module.weight)

    def item_vectors(self) -> Tensor:
        return self.text_map(self.text_vectors) + self.item_offsets.weight

    def read(self, item_ids: Tensor, items: Tensor) -> Tensor:
        """(B, L) -> (B, L, d). A state knows nothing of what comes after it, so padding at the end does no harm."""
        states, _ = self.gru(self.dropout(items[item_ids.clamp_min(0)]))
        return self.out(self.dropout(states))

    def losses(self, item_ids: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The softmax over the catalogue, and the prior as "offsets"."""
        prior = self.config.offset_l2 * self.item_offsets.weight.square().sum(dim=1).mean()
        return {**super().losses(item_ids, known), "offsets": prior}
