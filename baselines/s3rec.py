"""S3-Rec (Zhou et al., 2020): SASRec whose Transformer first learns, both ways, what items, attributes and parts of a
sequence have to do with each other.

`objective: pretrain` is the paper's pre-training, of whole sequences: the attributes of each item seen (AAP) and of
each masked one (MAP), the masked item against one that the user has not (MIP), and a masked segment against a foreign
one (SP). As in the published code, attributes are told by hidden states, the last item is always masked, and the parts
are sums, here divided by the number of sequences. A second phase of `next_item` goes on as SASRec.

An attribute is a value of any attribute but the title, parted at commas, semicolons, bars and `>`; where items have
only titles, a word of them. Unlike in the paper, fine-tuning is by the softmax over the whole catalogue, not one
negative, and the foreign segment comes from the sequences of the batch.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .item_sequences import (
    PADDING,
    Items,
    ItemSequenceConfig,
    ItemSequenceModel,
    TransformerBody,
    last_places,
    on_device,
    taken,
)

DRAWS = 5  # of a negative item; the first that the user has not is taken
TASKS = ("attributes", "masked_attributes", "masked_items", "segments")


@strict
class S3RecConfig(ItemSequenceConfig):
    """Shape of S3-Rec and the weights of its pre-training; other arguments as `ItemSequenceConfig`.

    Args:
        num_attributes, attributes_per_item: counted from the items, `attributes_per_item` of the richest.
        least_items: items that must share an attribute for it to count.
        mask_rate: of the items of a sequence.
        attributes_weight, masked_attributes_weight, masked_items_weight, segments_weight: of AAP, MAP, MIP and SP.
    """

    model_type = "s3rec"
    num_attributes: int = 1
    attributes_per_item: int = 1
    least_items: int = 2
    mask_rate: float = 0.2
    attributes_weight: float | int = 0.2
    masked_attributes_weight: float | int = 1.0
    masked_items_weight: float | int = 1.0
    segments_weight: float | int = 0.5


class S3Rec(ItemSequenceModel):
    """Transformer that reads both ways in pre-training and from left to right afterwards; the row of the item
    embeddings after the items' is that of the mask."""

    config_class = S3RecConfig
    objectives = ("next_item", "pretrain")
    item_weights = ("item_embeddings", "attribute_embeddings", "item_attributes")

    def __init__(self, config: S3RecConfig):
        super().__init__(config)
        width = config.hidden_size
        # Rows of attributes, num_attributes where an item has no more.
        self.register_buffer(
            "item_attributes", torch.zeros(config.num_items, config.attributes_per_item, dtype=torch.int64)
        )
        self.item_embeddings = nn.Embedding(config.num_items + 1, width)
        self.attribute_embeddings = nn.Embedding(config.num_attributes, width)
        self.body = TransformerBody(config, config.max_length + 1)
        self.heads = nn.ModuleDict({task: nn.Linear(width, width) for task in TASKS})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.item_attributes, self.config.num_attributes)

    @classmethod
    def for_catalogue(cls, shape: dict, items: Items) -> "S3Rec":
        rows, count = number_attributes(items.texts, shape.get("least_items", S3RecConfig.least_items))
        counted = {"num_attributes": max(count, 1), "attributes_per_item": max(1, *map(len, rows))}
        model = cls(cls.config_class(**{**shape, **counted}))
        with torch.no_grad():
            model.item_attributes.fill_(counted["num_attributes"])
            for own, numbers in zip(model.item_attributes, rows, strict=True):
                own[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return model

    def start_phase(self, objective: str) -> None:
        super().start_phase(objective)
        for module in (self.attribute_embeddings, self.heads):
            module.requires_grad_(objective == "pretrain")

    def read_both_ways(self, item_ids: Tensor) -> Tensor:
        """(B, L), the mask written as num_items -> hidden states (B, L, d)."""
        visible = (item_ids != PADDING)[:, None, None, :]
        return self.body(self.item_embeddings(item_ids.clamp_min(0)), visible)

    def losses(self, item_ids: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The softmax over the catalogue; in pre-training the four of `TASKS`, weighted."""
        if self.objective != "pretrain":
            return super().losses(item_ids, known)
        chosen = self.choose_masked(known)
        parts = self.item_losses(item_ids, known, chosen, taken(self.draw_negatives(item_ids), chosen))
        parts["segments"] = self.segment_loss(item_ids, *draw_segments(item_ids, known))
        return {task: getattr(self.config, f"{task}_weight") * parts[task] / len(item_ids) for task in TASKS}

    def choose_masked(self, known: Tensor) -> Tensor:
        """Places to mask among the `known`, bool (B, L): at `mask_rate`, and the last of each row."""
        last = torch.arange(known.shape[1], device=known.device) == known.sum(1, keepdim=True) - 1
        return known & (last | (torch.rand(known.shape, device=known.device) < self.config.mask_rate))

    def draw_negatives(self, item_ids: Tensor) -> Tensor:
        """An item for each place (B, L) that is not in its row, where `DRAWS` tries find one."""
        shape = (*item_ids.shape, DRAWS)
        drawn = torch.randint(self.config.num_items, shape, device=item_ids.device)
        foreign = (drawn[..., None] != item_ids[:, None, None, :]).all(dim=-1)
        return drawn.gather(2, foreign.int().argmax(dim=2, keepdim=True))[..., 0]

    def item_losses(self, item_ids: Tensor, known: Tensor, chosen: Tensor, negatives: Tensor) -> dict[str, Tensor]:
        """AAP, MAP and MIP of sequences (B, L) masked where `chosen` of the `known` places (B, L), as sums.

        Args:
            negatives: (M,) an item for each masked place.
        """
        hidden = self.read_both_ways(item_ids.masked_fill(on_device(chosen, item_ids), self.config.num_items))
        asked = self.heads["masked_items"](taken(hidden, chosen))
        right, wrong = (self.item_embeddings(rows) for rows in (taken(item_ids, chosen), negatives))
        return {
            "attributes": self.attribute_loss("attributes", hidden, item_ids, known & ~chosen),
            "masked_attributes": self.attribute_loss("masked_attributes", hidden, item_ids, chosen),
            "masked_items": preference_loss(asked, right, wrong),
        }

    def attribute_loss(self, task: str, hidden: Tensor, item_ids: Tensor, places: Tensor) -> Tensor:
        """Binary cross-entropy of every attribute at the places (B, L), summed."""
        scores = self.heads[task](taken(hidden, places)) @ self.attribute_embeddings.weight.T
        has = scores.new_zeros(len(scores), self.config.num_attributes + 1)
        has.scatter_(1, self.item_attributes[taken(item_ids, places)], 1.0)
        return F.binary_cross_entropy_with_logits(scores, has[:, :-1], reduction="sum")

    def segment_loss(self, item_ids: Tensor, inside: Tensor, foreign: Tensor) -> Tensor:
        """SP, summed over the sequences (B, L).

        What is left without the segment `inside`, bool (B, L), finds it rather than `foreign` items (B, L) there.
        """
        mask, known = self.config.num_items, item_ids != PADDING
        around = item_ids.masked_fill(inside, mask)
        alone = [
            items.masked_fill(known & ~inside, mask) for items in (item_ids, torch.where(inside, foreign, item_ids))
        ]
        context, right, wrong = (last_places(self.read_both_ways(rows), known.sum(1)) for rows in (around, *alone))
        return preference_loss(self.heads["segments"](context), right, wrong)


def preference_loss(asked: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """-log sigmoid(f(right) - f(wrong)), f = sigmoid(asked . x), summed over rows; all (M, d)."""
    scores = [(asked * vectors).sum(dim=1).sigmoid() for vectors in (right, wrong)]
    return -F.logsigmoid(scores[0] - scores[1]).sum()


def draw_segments(item_ids: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Segments of the sequences (B, L), of at most half their items: bool (B, L), and others' items there, (B, L).

    The others are as many neighbours from anywhere in the batch.
    """
    lengths, every = (item_ids != PADDING).sum(1, keepdim=True), taken(item_ids, known)
    sizes = 1 + draw_below((lengths // 2).clamp_min(1))
    starts, others = draw_below(lengths - sizes + 1), draw_below(len(every) - sizes + 1)
    places = torch.arange(item_ids.shape[1], device=item_ids.device)
    inside = (places >= starts) & (places < starts + sizes)
    return inside, every[(others + places - starts).clamp(0, len(every) - 1)]


def draw_below(ends: Tensor) -> Tensor:
    """Whole numbers from 0 up to each of `ends`, without it."""
    return (torch.rand(ends.shape, device=ends.device) * ends).long().minimum(ends - 1)


def number_attributes(texts: Sequence[Mapping[str, str]], least_items: int) -> tuple[list[list[int]], int]:
    """Each item's attributes by number, and how many there are; the most common ones come first."""
    titles_alone = all(set(item) <= {"title"} for item in texts)
    owned = [_attributes(item, titles_alone) for item in texts]
    counts = Counter(attribute for own in owned for attribute in own)
    numbers = {name: n for n, (name, count) in enumerate(counts.most_common()) if count >= least_items}
    return [[numbers[name] for name in own if name in numbers] for own in owned], len(numbers)


def _attributes(item: Mapping[str, str], titles_alone: bool) -> list[tuple[str, str]]:
    """(name, value) of each, once."""
    separators = r"\W+" if titles_alone else r"[,;|>]"
    pairs = [(name, part) for name, text in item.items() for part in re.split(separators, text.lower())]
    return list(dict.fromkeys((n, p.strip()) for n, p in pairs if p.strip() and (titles_alone or n != "title")))
