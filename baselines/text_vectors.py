"""Baselines that read item texts as frozen vectors, which an encoder made once.

The vectors are part of the checkpoint, so that nothing else is needed to rank.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .item_sequences import Items, ItemSequenceConfig, ItemSequenceModel


@strict
class TextSequenceConfig(ItemSequenceConfig):
    """Shape of such a baseline; `text_size` is the width of the text vectors, the rest as `ItemSequenceConfig`."""

    text_size: int = 384


class TextSequenceModel(ItemSequenceModel):
    """Keeps the items' text vectors as `text_vectors` (num_items, text_size), zeros until they are set."""

    config_class = TextSequenceConfig
    item_weights = ("item_embeddings", "text_vectors")
    reads_texts = True

    def __init__(self, config: TextSequenceConfig):
        super().__init__(config)
        self.register_buffer("text_vectors", torch.zeros(config.num_items, config.text_size))

    @classmethod
    def for_catalogue(cls, shape: dict, items: Items) -> "TextSequenceModel":
        vectors = items.encode()
        model = cls(cls.config_class(**{**shape, "text_size": vectors.shape[1]}))
        model.set_text_vectors(vectors)
        return model

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.text_vectors)

    @torch.no_grad()
    def set_text_vectors(self, vectors: Tensor) -> None:
        """Take the items' text vectors (num_items, text_size), `standardised`."""
        self.text_vectors.copy_(standardised(vectors, self.config))


def standardised(vectors: Tensor, config: TextSequenceConfig) -> Tensor:
    """Text vectors (num_items, text_size) of length one, centred, and scaled to entries of size about 1.

    What all texts have in common tells no items apart, and is most of what an encoder's vectors hold.

    Raises:
        ValueError: another shape, or a vector that is not finite.
    """
    if vectors.shape != (config.num_items, config.text_size):
        expected = (config.num_items, config.text_size)
        raise ValueError(f"text vectors are {tuple(vectors.shape)}, expected {expected}.")
    if not vectors.isfinite().all():
        raise ValueError("text vectors hold NaN or infinity: the encoder that made them is broken.")
    vectors = F.normalize(vectors, dim=1)
    vectors = vectors - vectors.mean(dim=0)
    return vectors / vectors.std().clamp_min(1e-6)
