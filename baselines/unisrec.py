"""UniSRec (Hou et al., 2022): SASRec over frozen text vectors of the items, brought to its width by an adaptor.

The adaptor is a mixture of experts, each a parametric whitening (subtract a learned centre, then a linear map).
Inductive: an item is its text. Transductive: its text and an embedding of its id.

`objective: pretrain` is the paper's pre-training: a sequence finds its next item and, times `sequence_weight`, itself
with some items left out, among those of the batch, of several domains where the dataset mixes them (`domains`). The
paper also leaves words out of the texts. `model.pretrained` goes on from there on other items.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .item_sequences import PADDING, TransformerBody, contrastive, last_places, split_last
from .text_vectors import TextSequenceConfig, TextSequenceModel


@strict
class UniSRecConfig(TextSequenceConfig):
    """Shape of UniSRec; other arguments as `TextSequenceConfig`.

    Args:
        num_experts: experts of the adaptor.
        adaptor_dropout: on the text vectors, before the whitening.
        item_ids: also give every item an embedding of its own (transductive).
        sequence_weight: of the loss between a sequence and the same with items left out, in pre-training.
        item_drop: share of items left out there.
    """

    model_type = "unisrec"
    num_experts: int = 8
    adaptor_dropout: float | int = 0.2
    item_ids: bool = False
    sequence_weight: float | int = 1e-3
    item_drop: float | int = 0.2
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


class UniSRec(TextSequenceModel):
    """Causal Transformer over adapted text vectors, with or without id embeddings."""

    config_class = UniSRecConfig
    objectives = ("next_item", "pretrain")

    def __init__(self, config: UniSRecConfig):
        super().__init__(config)
        self.adaptor = MixtureOfWhitenings(config)
        if config.item_ids:
            self.item_embeddings = nn.Embedding(config.num_items, config.hidden_size)
        self.body = TransformerBody(config, config.max_length)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MixtureOfWhitenings):
            init.zeros_(module.centres)

    def item_vectors(self) -> Tensor:
        vectors = self.adaptor(self.text_vectors)
        return vectors + self.item_embeddings.weight if self.config.item_ids else vectors

    def losses(self, item_ids: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The softmax over the catalogue; in pre-training "sequence_item" and "sequence_sequence"."""
        if self.objective != "pretrain":
            return super().losses(item_ids, known)
        histories, targets = split_last(item_ids)
        items, tau = self.item_vectors(), self.config.temperature
        users, others = (
            last_places(self.read(rows, items), (rows != PADDING).sum(1))
            for rows in (histories, self.thinned(histories))
        )
        parts = contrastive(users, items[targets], targets, tau), contrastive(users, others, targets, tau)
        return {"sequence_item": parts[0], "sequence_sequence": self.config.sequence_weight * parts[1]}

    def thinned(self, histories: Tensor) -> Tensor:
        """Histories (B, L), each item left out at `item_drop` but one at least, the others moved up to close gaps."""
        kept = (torch.rand(histories.shape, device=histories.device) >= self.config.item_drop) & (histories != PADDING)
        kept[:, 0] |= ~kept.any(dim=1)
        order = kept.int().argsort(dim=1, descending=True, stable=True)
        return histories.masked_fill(~kept, PADDING).gather(1, order)
