"""What the trained baselines share: a history of item ids in, a user vector out, softmax over the whole catalogue.

A batch is `item_ids` (B, L): each row a user's sequence, oldest item first, the item to predict last, padded at the
end with -1. How a model learns from it (every next item, or masked ones) is the model's own affair. `attention_mask`
(B, L) says where the items are: it stays on the host, where places are counted and drawn, so no step waits for a GPU.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import ModelOutput, cached_file, logging

logger = logging.get_logger(__name__)

PADDING = -1
IDS_FILE = "item_ids.json"  # what the rows of the item matrix are, see the pipeline
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
MOST_LAYERS = 1000
MOST_LOGITS = 2**26  # logits held at a time by the softmax over the catalogue


@strict
class ItemSequenceConfig(PreTrainedConfig):
    """Shape of a baseline.

    Args:
        num_items: rows of the item matrix.
        max_length: newest items of a history that are read.
        temperature: of the cosine between user and item vector in the softmax; `None` scores by the dot product.
        catalogue_fingerprint: of the dataset whose items the rows of the item matrix are.
    """

    _auto_class = "AutoConfig"

    num_items: int = 1
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 256
    dropout: float | int = 0.2
    max_length: int = 50
    temperature: float | None = None
    initializer_range: float = 0.02
    catalogue_fingerprint: str | None = None

    def validate_shape(self):
        """Heads share the width evenly, and there is something to read and to rank."""
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of "
                f"num_attention_heads ({self.num_attention_heads})."
            )
        for name in ("num_items", "max_length", "hidden_size", "num_hidden_layers", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_hidden_layers > MOST_LAYERS:
            raise ValueError(f"num_hidden_layers must be at most {MOST_LAYERS}, got more.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}.")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, or null for dot products, got {self.temperature}.")


class Items(NamedTuple):
    """What there is to know of the items of a catalogue, in the order of the item matrix.

    Attributes:
        texts: the attributes of each item.
        encode: gives their frozen text vectors, (num_items, text_size).
        domains: the domain of each item, where the dataset has several.
        init: `model.init` of the recipe.
        seen: which items occur in a training sequence, bool (num_items,).
    """

    texts: Sequence[Mapping[str, str]]
    encode: Callable[[], Tensor]
    domains: Sequence[str] | None = None
    init: str = "scratch"
    seen: Tensor | None = None


@dataclass
class ItemSequenceOutput(ModelOutput):
    """`loss` to call `backward` on; `loss_parts` by name, detached; `telemetry` is empty."""

    loss: Tensor | None = None
    loss_parts: dict[str, Tensor] | None = None
    telemetry: dict[str, Tensor] | None = None


class ItemSequenceModel(PreTrainedModel):
    """A model that reads items from left to right and predicts every next one; a subclass brings `body` or `read`.

    What else a subclass may say: `objectives` that a phase can train it by, `item_weights`, the modules and buffers
    that belong to its catalogue and mean nothing to another, and `reads_texts` where it needs frozen text vectors.
    """

    config_class = ItemSequenceConfig
    base_model_prefix = "model"
    _auto_class = "AutoModel"  # as `register_for_auto_class` would set it for each: the code travels with the weights
    trained_by, predicts_ratings = "sequence", False  # the kind of phase, None for what is counted
    reads_texts = False  # whether `for_catalogue` asks for text vectors of the items
    objectives: ClassVar[tuple[str, ...]] = ("next_item",)
    item_weights: ClassVar[tuple[str, ...]] = ("item_embeddings",)
    objective = "next_item"

    @classmethod
    def for_catalogue(cls, shape: dict, items: Items) -> "ItemSequenceModel":
        """An untrained model of a catalogue; `shape` has fields of the configuration, which a subclass may add to."""
        return cls(cls.config_class(**shape))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers; the model also keeps how its checkpoint was reached, for files that lie beside it."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.hub_options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the pipeline's code and the items' ids come along from where the model was loaded.

        Where they are not to be had, config.json names no pipeline."""
        waiting = [
            f"{own['impl'].partition('.')[0]}.py"
            for own in (getattr(self.config, "custom_pipelines", None) or {}).values()
        ]
        try:
            self._bring(Path(save_directory), waiting)
        except OSError as error:
            logger.warning(f"{save_directory} is saved without a pipeline: {str(error).splitlines()[0]}")
            self.config.custom_pipelines = {}
        super().save_pretrained(save_directory, *args, **kwargs)

    def _bring(self, folder: Path, waiting: list[str]) -> None:
        place, options = self.config.name_or_path, getattr(self, "hub_options", {})
        options = options | {"revision": getattr(self.config, "_commit_hash", None) or options.get("revision")}
        while waiting:
            if (folder / (name := waiting.pop())).is_file():
                continue
            path = Path(cached_file(place, name, **options))
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
            waiting += [f"{own}.py" for own in get_relative_imports(path)]
            ids = cached_file(place, IDS_FILE, _raise_exceptions_for_missing_entries=False, **options)
            if ids and not (folder / IDS_FILE).is_file():
                shutil.copyfile(ids, folder / IDS_FILE)

    def __getstate__(self) -> dict:
        """A copy or a pickle takes no access token along."""
        return {name: value for name, value in self.__dict__.items() if name != "hub_options"}

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, nn.GRU):
            for name, weight in module.named_parameters():
                (init.xavier_uniform_ if name.startswith("weight") else init.zeros_)(weight)

    def item_vectors(self) -> Tensor:
        """What users are compared with and, most often, what is read: (num_items, d)."""
        return self.item_embeddings.weight[: self.config.num_items]

    def read(self, item_ids: Tensor, items: Tensor) -> Tensor:
        """(B, L) rows of `items` (num_items, d) -> (B, L, d), each place knowing nothing of those after it.

        This is a causal `body`'s: padding comes last, so that no item looks at it.
        """
        return self.body(items[item_ids.clamp_min(0)])

    def user_vectors(self, histories: Tensor) -> Tensor:
        """Histories (B, L), oldest item first, padded at the end with -1 -> (B, d)."""
        return last_places(self.read(histories, self.item_vectors()), (histories != PADDING).sum(1))

    def encode_histories(self, histories: Sequence) -> Tensor:
        """Histories as arrays of rows of the item matrix, oldest first, none empty -> (B, d)."""
        return self.user_vectors(pad_sequences(histories, self.config.max_length).to(self.device))

    def rerank(self, histories: Sequence, scores: Tensor) -> Tensor:
        """Scores (B, num_items) of histories as for `encode_histories`, after a second look; most models take none."""
        return scores

    def examples(self, item_ids: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whole sequences (B, L) -> vectors (M, d) that predict, their targets (M,), and all item vectors.

        Args:
            known: where items are, bool (B, L), on any device.
        """
        items = self.item_vectors()
        return taken(self.read(item_ids[:, :-1], items), known[:, 1:]), taken(item_ids[:, 1:], known[:, 1:]), items

    def start_phase(self, objective: str) -> None:
        """Learn by one of `objectives` from now on. A subclass also freezes what the objective does not reach."""
        self.objective = objective

    def losses(self, item_ids: Tensor, known: Tensor) -> dict[str, Tensor]:
        """What adds up to the loss of whole sequences, arguments as for `examples`: the mean cross-entropy of the
        targets over the whole catalogue, as "softmax"."""
        return {"softmax": full_softmax(*self.examples(item_ids, known), self.config.temperature)}

    def forward(
        self, item_ids: Tensor, attention_mask: Tensor | None = None, telemetry: bool = False
    ) -> ItemSequenceOutput:
        """The sum of `losses`, and each as a part."""
        parts = self.losses(item_ids, item_ids != PADDING if attention_mask is None else attention_mask.bool())
        reported = {name: part.detach() for name, part in parts.items()}
        return ItemSequenceOutput(loss=sum(parts.values()), loss_parts=reported, telemetry={})

    @torch.no_grad()
    def take_weights(self, source: "ItemSequenceModel") -> None:
        """Take over all weights of a model of the same kind but another catalogue, except `item_weights`.

        Raises ValueError where a weight is missing or of another shape.
        """
        own, others = self.state_dict(), source.state_dict()
        for name in own:
            if name.split(".")[0] in self.item_weights:
                continue
            if name not in others or others[name].shape != own[name].shape:
                there = tuple(others[name].shape) if name in others else "missing"
                raise ValueError(f"{name} is {tuple(own[name].shape)} here and {there} in the pretrained checkpoint.")
            own[name].copy_(others[name])


# Also in modeling_seqrec.py, whose code a saved baseline does not carry along.
def on_device(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that was worked out on the host, beside `like`; nothing waits for the copy."""
    if tensor.device == like.device:
        return tensor
    return (tensor.pin_memory() if like.is_cuda else tensor).to(like.device, non_blocking=True)


def taken(values: Tensor, mask: Tensor) -> Tensor:
    """values (B, L, ...) where `mask` (B, L) is true: (M, ...). With a mask of the host nothing waits for a GPU."""
    return values.flatten(0, 1)[on_device(mask.flatten().nonzero().flatten(), values)]


def full_softmax(vectors: Tensor, targets: Tensor, items: Tensor, temperature: float | None) -> Tensor:
    """Mean of -log softmax(score)[target], scores by dot product or by cosine / temperature.

    Where (M, N) logits would be too many they are computed a block of rows at a time, and again for the gradient.
    """
    vectors, items = _scaled(vectors, items, temperature)
    return mean_over_blocks(_cross_entropy_sum, len(items), (vectors, targets), items)


def sampled_softmax(
    vectors: Tensor, targets: Tensor, items: Tensor, temperature: float | None, negatives: Tensor
) -> Tensor:
    """As `full_softmax`, but each row's target (M,) is told only from its own `negatives` (M, n), rows of `items`.

    A negative that happens to be the target does not count.
    """
    vectors, items = _scaled(vectors, items, temperature)
    size = min(len(items), negatives.shape[1] * items.shape[1])
    return mean_over_blocks(_sampled_cross_entropy_sum, size, (vectors, targets, negatives), items)


def contrastive(
    vectors: Tensor, positives: Tensor, ids: Tensor, temperature: float, own_negatives: Tensor | None = None
) -> Tensor:
    """Mean of -log softmax(cosine / temperature) with which each vector (B, d) finds its positive among the batch's.

    Args:
        ids: (B,) rows of the same id are no negatives of each other.
        own_negatives: (B, d) one more negative for each row alone.
    """
    vectors, positives = _scaled(vectors, positives, temperature)
    same = (ids[:, None] == ids[None, :]).fill_diagonal_(False)
    logits = (vectors @ positives.T).masked_fill(same, -torch.inf)
    if own_negatives is not None:
        logits = torch.cat([logits, (vectors * F.normalize(own_negatives, dim=1)).sum(dim=1, keepdim=True)], dim=1)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def split_last(item_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences (B, L) -> histories (B, L - 1) and the last item of each (B,)."""
    last = (item_ids != PADDING).sum(1, keepdim=True) - 1
    return item_ids.scatter(1, last, PADDING)[:, :-1], item_ids.gather(1, last)[:, 0]


def _scaled(vectors: Tensor, items: Tensor, temperature: float | None) -> tuple[Tensor, Tensor]:
    if temperature is None:
        return vectors, items
    return F.normalize(vectors, dim=1) / temperature, F.normalize(items, dim=1)


def mean_over_blocks(loss_sum: Callable, numbers: int, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
    """`loss_sum(*rows, items)` over the number of rows, in blocks where a row of `numbers` would make it too many."""
    count, most = len(rows[0]), max(1, MOST_LOGITS // numbers)
    if count <= most:
        return loss_sum(*rows, items) / count
    blocks = zip(*(part.split(most) for part in rows), strict=True)
    sums = [checkpoint(loss_sum, *block, items, use_reentrant=False) for block in blocks]
    return torch.stack(sums).sum() / count


def _cross_entropy_sum(vectors: Tensor, targets: Tensor, items: Tensor) -> Tensor:
    return F.cross_entropy(vectors @ items.T, targets, reduction="sum")


def _sampled_cross_entropy_sum(vectors: Tensor, targets: Tensor, negatives: Tensor, items: Tensor) -> Tensor:
    positive = (vectors * items[targets]).sum(dim=1, keepdim=True)
    # Scores of a small catalogue are fewer numbers than the vectors of the negatives.
    if len(items) <= negatives.shape[1] * items.shape[1]:
        others = (vectors @ items.T).gather(1, negatives)
    else:
        others = torch.einsum("md,mnd->mn", vectors, F.embedding(negatives, items))
    others = others.masked_fill(negatives == targets[:, None], -torch.inf)
    return (torch.cat([positive, others], dim=1).logsumexp(dim=1) - positive[:, 0]).sum()


def pad_sequences(sequences: Sequence, max_length: int) -> Tensor:
    """The `max_length` newest items of every sequence, oldest first: (B, longest) int64, padded at the end with -1."""
    newest = [torch.as_tensor(sequence[-max_length:], dtype=torch.int64) for sequence in sequences]
    return nn.utils.rnn.pad_sequence(newest, batch_first=True, padding_value=PADDING)


def last_places(hidden: Tensor, lengths: Tensor) -> Tensor:
    """hidden (B, L, d) at the last of each row's `lengths` (B,): (B, d)."""
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]


class TransformerBlock(nn.Module):
    """Self-attention and a position-wise network, each after a LayerNorm and inside a residual."""

    def __init__(self, config: ItemSequenceConfig):
        super().__init__()
        width, self.heads, self.dropout_rate = config.hidden_size, config.num_attention_heads, config.dropout
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grow = nn.Linear(width, config.intermediate_size)
        self.shrink = nn.Linear(config.intermediate_size, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        """(B, L, d) -> (B, L, d); `visible` (B, 1, 1, L) marks the places to attend to, None is causal attention."""
        hidden = hidden + self.dropout(self.attend(self.attention_norm(hidden), visible))
        inner = self.dropout(F.gelu(self.grow(self.network_norm(hidden))))
        return hidden + self.dropout(self.shrink(inner))

    def attend(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        parts = self.query_key_value(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.dropout_rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*parts, attn_mask=visible, dropout_p=rate, is_causal=visible is None)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TransformerBody(nn.Module):
    """Learned positions, dropout, blocks, LayerNorm: vectors (B, L, d) -> hidden states (B, L, d)."""

    def __init__(self, config: ItemSequenceConfig, places: int):
        super().__init__()
        self.positions = nn.Embedding(places, config.hidden_size)
        self.first_norm, self.last_norm = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_hidden_layers))

    def forward(self, vectors: Tensor, visible: Tensor | None = None) -> Tensor:
        hidden = vectors + self.positions.weight[: vectors.shape[1]]
        hidden = self.dropout(self.first_norm(hidden))
        for block in self.blocks:
            hidden = block(hidden, visible)
        return self.last_norm(hidden)
