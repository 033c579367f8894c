"""UniSRec (Hou et al., 2022): SASRec over frozen text vectors of the items, brought to its width by an adaptor.

The adaptor is a mixture of experts, each a parametric whitening (subtract a learned centre, then a linear map).
Inductive: an item is its text. Transductive: its text and an embedding of its id. The text vectors are part of the
checkpoint, so that nothing else is needed to rank.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .item_sequences import ItemSequenceConfig, ItemSequenceModel, TransformerBody


@strict
class UniSRecConfig(ItemSequenceConfig):
    """Shape of UniSRec; other arguments as `ItemSequenceConfig`.

    Args:
        text_size: width of the frozen text vectors.
        num_experts: experts of the adaptor.
        adaptor_dropout: on the text vectors, before the whitening.
        item_ids: also give every item an embedding of its own (transductive).
    """

    model_type = "unisrec"
    text_size: int = 384
    num_experts: int = 8
    adaptor_dropout: float | int = 0.2
    item_ids: bool = False
    temperature: float | None = 0.07


class MixtureOfWhitenings(nn.Module):
    """Text vectors (N, text_size) -> (N, hidden_size): experts mixed by a gate, which is noisy while training."""

    def __init__(self, config: UniSRecConfig):
        super().__init__()
        self.experts, self.width = config.num_experts, config.hidden_size
        self.centres = nn.Parameter(torch.zeros(config.num_experts, config.text_size))
        self.whiten = nn.Linear(config.text_size, config.num_experts * config.hidden_size, bias=False)
        self.gate = nn.Linear(config.text_size, config.num_experts, bias=False)
        self.gate_noise = nn.Linear(config.text_size, config.num_experts, bias=False)
        self.dropout = nn.Dropout(config.adaptor_dropout)

    def forward(self, texts: Tensor) -> Tensor:
        # (x - c) W = x W - c W: one product for all experts.
        maps = self.whiten.weight.unflatten(0, (self.experts, self.width))
        shifts = torch.einsum("eht,et->eh", maps, self.centres)
        outputs = self.whiten(self.dropout(texts)).unflatten(1, (self.experts, self.width)) - shifts
        return torch.einsum("ne,neh->nh", self.weights(texts), outputs)

    def weights(self, texts: Tensor) -> Tensor:
        """(N, experts), each row sums to 1."""
        logits = self.gate(texts)
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(self.gate_noise(texts)) + 0.01)
        return logits.softmax(dim=1)


class UniSRec(ItemSequenceModel):
    """Causal Transformer over adapted text vectors, with or without id embeddings."""

    config_class = UniSRecConfig
    reads_texts = True

    def __init__(self, config: UniSRecConfig):
        super().__init__(config)
        self.register_buffer("text_vectors", torch.zeros(config.num_items, config.text_size))
        self.adaptor = MixtureOfWhitenings(config)
        if config.item_ids:
            self.item_embeddings = nn.Embedding(config.num_items, config.hidden_size)
        self.body = TransformerBody(config, config.max_length)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MixtureOfWhitenings):
            init.zeros_(module.centres)
        if module is self:
            init.zeros_(self.text_vectors)

    @torch.no_grad()
    def set_text_vectors(self, vectors: Tensor) -> None:
        """Take the items' text vectors (num_items, text_size), centred and scaled to entries of size about 1.

        What all texts have in common tells no items apart, and is most of what an encoder's vectors hold.

        Raises:
            ValueError: another shape, or a vector that is not finite.
        """
        if vectors.shape != self.text_vectors.shape:
            raise ValueError(f"text vectors are {tuple(vectors.shape)}, expected {tuple(self.text_vectors.shape)}.")
        if not vectors.isfinite().all():
            raise ValueError("text vectors hold NaN or infinity: the encoder that made them is broken.")
        vectors = F.normalize(vectors, dim=1)
        vectors = vectors - vectors.mean(dim=0)
        self.text_vectors.copy_(vectors / vectors.std().clamp_min(1e-6))

    def item_vectors(self) -> Tensor:
        vectors = self.adaptor(self.text_vectors)
        return vectors + self.item_embeddings.weight if self.config.item_ids else vectors

    def read(self, item_ids: Tensor, items: Tensor) -> Tensor:
        """(B, L) -> hidden states (B, L, d). Padding comes last, so causal attention never looks at it."""
        return self.body(items[item_ids.clamp_min(0)])


UniSRecConfig.register_for_auto_class()
UniSRec.register_for_auto_class("AutoModel")
