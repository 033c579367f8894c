"""A hybrid of texts and ids, ours and no paper's: a recurrent network beside a weighted sum of the newest items.

An item is its frozen text vector and an offset that is learned by its id and begins at zero, so an item that training
never saw is its text. With `item_ids: false` a linear map of the texts, the same for all items, learns in their place,
and the hybrid is one of texts alone.

A history is the sum of what a GRU (as in GRU4Rec, Hidasi et al., 2016) makes of all its items and of its newest items
themselves, each with a learned weight for its age. Cosines of such sums are highest for what the history already
holds; so an item of the history gets a learned amount more or less, by how long ago it was (the question of RepeatNet,
Ren et al., 2019: is it bought again?).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .item_sequences import PADDING, Items, last_places, mean_over_blocks, on_device, pad_sequences, taken
from .text_vectors import TextSequenceConfig, TextSequenceModel

OWN_AGES = 8  # ages that have a weight each; older ones share one for every doubling


@strict
class HybridGruConfig(TextSequenceConfig):
    """Shape of the hybrid; other arguments as `TextSequenceConfig`.

    Args:
        hidden_size: as `text_size`, since items stay where their texts are.
        intermediate_size: width of the recurrent state.
        item_ids: learn an offset for each item; without, a linear map of the text vectors, the identity at first.
        newest_items: items whose weighted sum is part of the user's vector.
        num_candidates: best items to which a pipeline adds what the history says of buying again.
    """

    model_type = "hybrid_gru"
    hidden_size: int = 384
    num_hidden_layers: int = 1
    intermediate_size: int = 256
    temperature: float | None = 0.1
    item_ids: bool = True
    newest_items: int = 8
    num_candidates: int = 200
    reranks: bool = True

    def validate_width(self):
        """Items keep the width of their texts, and cosines are what is scored."""
        if self.hidden_size != self.text_size:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be the text vectors' width ({self.text_size}).")
        if self.temperature is None:
            raise ValueError("temperature must be a number above 0: the hybrid scores by cosines.")
        if self.newest_items < 1 or self.num_candidates < 1:
            raise ValueError("newest_items and num_candidates must be at least 1.")


class HybridGru(TextSequenceModel):
    """GRU over text vectors with learned offsets, beside the newest items themselves."""

    config_class = HybridGruConfig
    item_weights = ("item_offsets", "text_vectors", "seen")

    def __init__(self, config: HybridGruConfig):
        super().__init__(config)
        self.register_buffer("seen", torch.ones(config.num_items, dtype=torch.bool))
        if config.item_ids:
            self.item_offsets = nn.Parameter(torch.zeros(config.num_items, config.hidden_size))
        else:
            self.text_offsets = nn.Parameter(torch.zeros(config.text_size, config.hidden_size))
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(config.hidden_size, config.intermediate_size, config.num_hidden_layers, batch_first=True)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.log_age_weights = nn.Parameter(torch.zeros(config.newest_items))
        self.again = nn.Parameter(torch.zeros(age_group(config.max_length - 1) + 1))
        self.post_init()

    @classmethod
    def for_catalogue(cls, shape: dict, items: Items) -> "HybridGru":
        vectors = items.encode()
        model = cls(cls.config_class(**{"hidden_size": vectors.shape[1], **shape, "text_size": vectors.shape[1]}))
        model.set_text_vectors(vectors)
        if items.seen is not None:
            model.seen.copy_(items.seen)
        return model

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.ones_(self.seen)
            init.zeros_(self.item_offsets if self.config.item_ids else self.text_offsets)
            init.zeros_(self.again)
            init.copy_(self.log_age_weights, -0.7 * torch.arange(self.config.newest_items))  # halved with each age

    def take_weights(self, source: "HybridGru") -> None:
        """As of every baseline; raises ValueError where one has ids and the other has none."""
        if source.config.item_ids != self.config.item_ids:
            trained = str(source.config.item_ids).lower()
            raise ValueError(
                f"it was trained with item_ids: {trained}, "
                f"which all its weights depend on: set model.config.item_ids={trained}"
            )
        super().take_weights(source)

    def item_vectors(self) -> Tensor:
        texts = F.normalize(self.text_vectors, dim=1)
        if self.config.item_ids:
            return texts + self.item_offsets * self.seen[:, None]
        return texts + self.dropout(texts) @ self.text_offsets

    def read(self, item_ids: Tensor, items: Tensor) -> Tensor:
        """(B, L) -> (B, L, d). A state knows nothing of what comes after it, so padding at the end does no harm."""
        vectors = F.normalize(items, dim=1)[item_ids.clamp_min(0)]
        # Entries near 1/4: those of a vector of length one leave the gates where they are, those near 1 saturate them.
        states, _ = self.gru(self.dropout(vectors * (math.sqrt(vectors.shape[-1]) / 4)))
        users = self.out(self.dropout(states))
        for age, weight in enumerate(self.log_age_weights.exp()[: item_ids.shape[1]]):
            users = users + weight * F.pad(vectors, (0, 0, age, 0))[:, : item_ids.shape[1]]
        return users

    def losses(self, item_ids: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The softmax over the items that training has seen: as negatives the others could only be driven away."""
        vectors, targets, items = self.examples(item_ids, known)
        read = taken(by_age(item_ids[:, :-1], self.config.max_length), known[:, 1:])
        rows = (F.normalize(vectors, dim=1), targets, first_of_each(read))
        return {"softmax": mean_over_blocks(self._cross_entropy_sum, len(items), rows, F.normalize(items, dim=1))}

    def _cross_entropy_sum(self, users: Tensor, targets: Tensor, known: Tensor, items: Tensor) -> Tensor:
        scores = self._with_history(users @ items.T, known) / self.config.temperature
        return F.cross_entropy(scores.masked_fill(~self.seen, -torch.inf), targets, reduction="sum")

    def _with_history(self, scores: Tensor, known: Tensor) -> Tensor:
        """Scores (B, num_items) with the amounts of the items `known` (B, A) by age, each once, -1 where none is."""
        groups = torch.tensor([age_group(age) for age in range(known.shape[1])])
        amounts = self.again[on_device(groups, scores)] * (known != PADDING)
        return scores.scatter_add(1, known.clamp_min(0), amounts.to(scores.dtype))

    @property
    def num_candidates(self) -> int:
        return min(self.config.num_candidates, self.config.num_items)

    @torch.no_grad()
    def rerank(self, histories: Sequence, scores: Tensor) -> Tensor:
        return self._with_history(scores, self._known(histories).to(scores.device))

    @torch.no_grad()
    def order_candidates(self, histories: Sequence, candidates: Tensor) -> Tensor:
        """Places of the candidates (B, C), best first; histories as for `encode_histories`."""
        users, items = self.encode_histories(histories), self.item_vectors()
        scores = self.rerank(histories, F.normalize(users, dim=1) @ F.normalize(items, dim=1).T)
        return scores.gather(1, candidates.to(scores.device)).argsort(dim=1, descending=True)

    def _known(self, histories: Sequence) -> Tensor:
        rows = pad_sequences(histories, self.config.max_length).to(self.device)
        return first_of_each(last_places(by_age(rows, self.config.max_length), (rows != PADDING).sum(1)))


def age_group(age: int) -> int:
    """Which of the amounts is that of an age, 0 for the newest item."""
    return age if age < OWN_AGES else OWN_AGES + int(math.log2(age / OWN_AGES))


def by_age(item_ids: Tensor, most: int) -> Tensor:
    """(B, L) -> (B, L, A): at each place what was read up to it, newest first, -1 where there is nothing."""
    count = item_ids.shape[1]
    return torch.stack([F.pad(item_ids, (age, 0), value=PADDING)[:, :count] for age in range(min(count, most))], -1)


def first_of_each(known: Tensor) -> Tensor:
    """(B, A) with -1 in the place of every item that stands further ahead in its row already."""
    ordered, places = known.sort(dim=1, stable=True)
    again = torch.zeros_like(known, dtype=torch.bool)
    again.scatter_(1, places[:, 1:], ordered[:, 1:] == ordered[:, :-1])
    return known.masked_fill(again, PADDING)
