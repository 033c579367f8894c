"""What all text models share: strict loading, and the heads that are trained around an encoder of any family.

An encoder is a plug. Its class, a `SeqRecPreTrainedModel`, has

    forward(input_ids, attention_mask, token_type_ids, item_position_ids)   `last_hidden_state` (B, L, hidden width),
                                           `pooler_output` (B, d), one vector a row
    embed(...)                             the same arguments, the vectors alone, without needless work
    stages()                               modules in the order a text goes through them: embeddings, then each layer
    get_input_embeddings()                 the word embeddings, which the token head decodes through
    get_item_position_embeddings()         its table of item positions (rows, d), or None
    table_sizes()                          rows of the table that the ids of each input index
    config.vector_size                     d; `config` is a `SeqRecConfig`
    pretraining_class, recommendation_class    its heads: subclasses of the two below, in the encoder's own module

and a head finds it as `base_model`, under the name `base_model_prefix`. Nothing here names a family.

Sizes: B rows of L slots, T predicted tokens, vectors of width d, catalogue of N items, vocabulary of V tokens.
"""

import copy
import importlib
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import ModelOutput

from .configuration_jepa4rec import PIPELINE, TASK, SeqRecConfig
from .losses_seqrec import (
    FineTuningObjective,
    PreTrainingObjective,
    add_repeats,
    collapse_telemetry,
    contrastive_loss,
    ema_distance,
    full_softmax_loss,
    mapping_loss,
    normalise,
    token_losses,
    weighted_total,
    whole_batch_mean,
)

# Token types of an input that names none.
CLS_TYPE, VALUE_TYPE = 0, 2
# What `from_pretrained` is told about reaching a checkpoint.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# What checkpoints with heads hold besides the encoder.
HEAD_WEIGHTS = [
    r"^(target_encoder|predictor|lm_head)\.",
    r"^(unmasked_item|item_matrix|history_item_vectors|log_recency|log_text_gate|log_scale)\b",
    r"^(history_projection|item_projection|repeat_bias)\b",
]
# Weight of a history item beside the next newer one, before training.
RECENCY_DECAY = 0.5
# Spread of new layers beside an encoder whose configuration names none.
INITIALIZER_RANGE = 0.02
# Rows of the predictor's own table of item positions; older items share the last one.
PREDICTED_POSITIONS = 51
# Logits over the vocabulary that the token losses hold at a time.
MOST_LOGITS = 2**26


def on_device(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that was worked out on the host, beside `like`; nothing waits for the copy."""
    if tensor.device == like.device:
        return tensor
    return (tensor.pin_memory() if like.is_cuda else tensor).to(like.device, non_blocking=True)


class Projection(nn.Linear):
    """A linear layer of vectors, d to d; the identity at first."""


class SeqRecPreTrainedModel(PreTrainedModel):
    """Loading that is strict about what it loads; a subclass names its encoder's weights."""

    _auto_class = "AutoModel"  # as `register_for_auto_class` would set it for each family
    encoder_class = None  # of the family, for its heads
    pretraining_class = recommendation_class = None  # of the family, for its encoder
    _encoder_weights: tuple[str, ...] = ()  # how their names begin inside the encoder
    token_wise: tuple[type, ...] = ()  # modules that can be compiled for any number of tokens

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, but a checkpoint of another kind or with broken or missing weights is an error.

        Raises:
            ValueError: a checkpoint of another family, an unreadable weights file, weights of another shape, or
                encoder weights that are not there (transformers would go on with random ones).
            OSError: no such checkpoint.
        """
        if (beside := _class_beside(cls, pretrained_model_name_or_path)) is not cls:
            return beside.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        name, wants_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        if kwargs.get("config") is None:
            _check_model_type(name, cls.config_class.model_type, kwargs)
        try:
            model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"{name}: the safetensors file is truncated or corrupt ({error}); fetch or save the checkpoint again."
            ) from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"{name}: weights have other shapes than its config.json (and what was changed in it) says; "
                "the report above lists them."
            ) from error
        _check_encoder_is_complete(name, model, info["missing_keys"])
        model.hub_options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}  # to fetch what lies beside
        return (model, info) if wants_info else model

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Projection):
            init.eye_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)

    def get_item_position_embeddings(self) -> nn.Embedding | None:
        """The encoder's table of item positions, row k the k-th most recent item; None where it has none."""
        return None

    def table_sizes(self) -> dict[str, int]:
        """Rows of the table that each input's ids index, `input_ids` first."""
        return {"input_ids": self.config.vocab_size}

    def embed(self, *inputs: Tensor | None, **named: Tensor | None) -> Tensor:
        """`forward(...).pooler_output` (B, d), arguments as there; a family that can leave work out has its own."""
        return self(*inputs, **named).pooler_output

    def __getstate__(self) -> dict:
        """A copy or a pickle takes no access token along."""
        return {name: value for name, value in self.__dict__.items() if name != "hub_options"}


def _class_beside(cls: type, name) -> type:
    """The class of the code that lies beside weights, where `cls` is of such code, else `cls`.

    Transformers remembers a model's class by its configuration's, which folders with different models may share.
    """
    module = cls.__module__.rpartition(".")[2]
    if not cls.__module__.startswith("transformers_modules.") or not Path(name, f"{module}.py").is_file():
        return cls
    return get_class_from_dynamic_module(f"{module}.{cls.__name__}", name)


def _check_model_type(name, wanted: str, kwargs: dict) -> None:
    """Transformers only warns about another model's config, then starts from random weights."""
    options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
    try:
        model_type = PreTrainedConfig.get_config_dict(name, **options)[0].get("model_type")
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"{name} is no checkpoint folder, and the Hub does not give it: {reason}") from error
    if model_type != wanted:
        raise ValueError(
            f'{name} is a "{model_type}" checkpoint, not a "{wanted}" one; scripts/import_checkpoint.py makes '
            '"jepa4rec" ones from Longformer, RoBERTa and BERT, "st5rec" ones from Sentence-T5, "textrec" ones from '
            "other text models."
        )


def _check_encoder_is_complete(name, model: SeqRecPreTrainedModel, missing_keys) -> None:
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    beginnings = tuple(f"{prefix}{part}" for part in model._encoder_weights)
    missing = sorted(key for key in missing_keys if key.startswith(beginnings))
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} weights of the encoder, the first of them {missing[0]}.")


def check_batch(
    valid: Tensor, tables: dict[str, tuple[Tensor | None, int]], max_tokens: int | None
) -> tuple[Tensor, list[int]]:
    """Row lengths of a batch, (B,) and as Python integers, after checking every id; the device is waited for once.

    Where `valid` lies on the host beside ids on a device, nothing is waited for, and the ids are taken on trust:
    whoever made them has looked (`training.batches.checked`).

    Args:
        valid: (B, L), true at tokens.
        tables: by name the ids (B, L), None where they are not given, and the rows of the table they index;
            `input_ids` come first.

    Raises:
        ValueError: inputs of other shapes, an empty or too long row, or an id outside its table.
    """
    given = {name: (ids, size) for name, (ids, size) in tables.items() if ids is not None}
    input_ids = given["input_ids"][0]
    if input_ids.dim() != 2 or not input_ids.numel():
        raise ValueError(f"input_ids must be (batch, length) and not empty, got shape {tuple(input_ids.shape)}.")
    for other in (valid, *(ids for ids, _ in given.values())):
        if other.shape != input_ids.shape:
            raise ValueError(f"input_ids are {tuple(input_ids.shape)}, but another input is {tuple(other.shape)}.")
    lengths = valid.sum(1)
    on_trust = valid.device != input_ids.device
    tables = {} if on_trust else given
    extremes = [end for ids, _ in tables.values() for end in torch.where(valid, ids, 0).aminmax()]
    # All numbers in one copy: each one asked for by itself would stop the device once more, every step.
    sizes = torch.cat([lengths, torch.stack(extremes)] if extremes else [lengths]).tolist()
    sizes, extremes = sizes[: len(lengths)], sizes[len(lengths) :]
    if min(sizes) == 0:
        raise ValueError(f"Row {sizes.index(0)} of the batch has no token; an empty history is [CLS] alone.")
    if max_tokens is not None and max(sizes) > max_tokens:
        raise ValueError(
            f"Row {sizes.index(max(sizes))} has {max(sizes)} tokens, the model reads at most {max_tokens}: "
            "lower the tokenizer's max_tokens."
        )
    for (name, (_, size)), low, high in zip(tables.items(), extremes[::2], extremes[1::2], strict=True):
        if low < 0 or high >= size:
            raise ValueError(f"{name} lie between {low} and {high}, the model's table has {size} rows.")
    return on_device(lengths, input_ids), sizes


def check_unread(**given) -> None:
    """Raises ValueError for arguments that wrappers (peft, for one) hand on to every encoder, unless they are None."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise ValueError(f"{name} is not for this model: it reads input_ids, and keeps no outputs of its layers.")


@dataclass
class SeqRecTrainingOutput(ModelOutput):
    """What training needs of a step.

    Args:
        loss: scalar to call `backward` on; on several processes its value is that of the whole batch.
        loss_parts: each part by name, not weighted, detached scalars of the whole batch.
        telemetry: gauges asked for with `telemetry=True`, detached scalars of this process's batch; else empty.
    """

    loss: Tensor | None = None
    loss_parts: dict[str, Tensor] | None = None
    telemetry: dict[str, Tensor] | None = None


def in_slices(read: Callable[..., dict[str, Tensor]], rows: Sequence[Tensor | None], slices: int) -> dict[str, Tensor]:
    """`read` of a batch in `slices` parts; activations are kept of one part at a time (GradCache, Gao et al. 2021).

    Each part is read without keeping activations, and once more when its gradient is known, with the random numbers of
    the first time, so that dropout is the same. What comes out, put end to end, has the gradients of the whole batch.

    Args:
        read: of some rows of every tensor.
        rows: (B, …) each; the first is given, others may be None.
    """
    if slices == 1:
        return read(*rows)
    size = -(-len(rows[0]) // slices)
    parts = zip(*(itertools.repeat(None) if part is None else part.split(size) for part in rows), strict=False)
    # Recomputing a whole forward pass at its backward pass is what GradCache does with a chunk.
    results = [checkpoint(read, *part, use_reentrant=False) for part in parts]
    return {name: torch.cat([result[name] for result in results]) for name in results[0]}


class SeqRecModelWithHead(SeqRecPreTrainedModel):
    """An encoder under the name `base_model_prefix` and what is trained around it."""

    def _add_encoder(self) -> None:
        setattr(self, self.base_model_prefix, self.encoder_class(self.config))

    def _add_token_head(self) -> None:
        words = self.base_model.get_input_embeddings()
        self.lm_head = SeqRecLMHead(self.config, words)
        # Each family calls its word embeddings by another name, so the decoder's twin is looked up, not written down.
        name = next(name for name, module in self.named_modules() if module is words)
        self._tied_weights_keys = {"lm_head.decoder.weight": f"{name}.weight"}

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # T5's configuration has no initializer_range; transformers then draws new layers by its factor, N(0, 1).
        plain = isinstance(module, nn.Linear | nn.Embedding) and getattr(module, "padding_idx", None) is None
        if plain and not hasattr(self.config.get_text_config(), "initializer_range"):
            init.normal_(module.weight, std=INITIALIZER_RANGE)
        if isinstance(module, SeqRecLMHead):
            init.zeros_(module.bias)

    def get_output_embeddings(self) -> nn.Linear | None:
        return self.lm_head.decoder if hasattr(self, "lm_head") else None

    def set_output_embeddings(self, decoder: nn.Linear) -> None:
        self.lm_head.decoder = decoder

    @torch.no_grad()
    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As in transformers; new entries of the token head's bias are zero."""
        words = super().resize_token_embeddings(*args, **kwargs)
        if hasattr(self, "lm_head"):
            known = self.lm_head.bias[: words.num_embeddings]
            self.lm_head.bias = nn.Parameter(nn.functional.pad(known, (0, words.num_embeddings - len(known))))
        return words

    def _token_losses(self, states: Tensor, labels: Tensor) -> Tensor:
        """Of states (b, L, d) and labels (b, L), those of the predicted tokens alone, (t,): only they are decoded, as
        many at a time as `MOST_LOGITS` allow."""
        labels = labels.flatten()
        slots = (labels != -100).nonzero().flatten()
        labels = on_device(labels[slots], states)
        states = states.flatten(0, 1)[on_device(slots, states)]
        most = max(1, MOST_LOGITS // self.lm_head.bias.numel())
        if len(slots) <= most:
            return self._decoded(states, labels)
        parts = zip(states.split(most), labels.split(most), strict=True)
        return torch.cat([checkpoint(self._decoded, *part, use_reentrant=False) for part in parts])

    def _decoded(self, states: Tensor, labels: Tensor) -> Tensor:
        return token_losses(self.lm_head(states), labels)


class SeqRecPredictor(nn.Module):
    """Predicts an item's full vector from the history's and a hint at the item meant (JEPA4Rec, section 3.3.2)."""

    def __init__(self, width: int, positions: int = 0):
        """`positions`: rows of a table of item positions, for an encoder that has none."""
        super().__init__()
        self.history = self._feed_forward(width)
        self.next = self._feed_forward(width)
        self.unmasked_item = nn.Parameter(torch.zeros(width))
        if positions:
            self.item_position_embeddings = nn.Embedding(positions, width)

    @staticmethod
    def _feed_forward(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))

    def history_item(self, history: Tensor, item_position: Tensor, positions: Tensor) -> Tensor:
        """FFN1(h_CLS ⊕ D_n): which item of the history lay there?

        Args:
            history: h_CLS (B, d).
            item_position: rows (B, d) of the item position embedding, D_n.
            positions: (B,) item positions; at 0, where no item was masked, the learnable vector takes the slot of D_n.
        """
        hint = torch.where(positions[:, None] == 0, self.unmasked_item, item_position)
        return self.history(torch.cat([history, hint.to(history.dtype)], dim=-1))

    def next_item(self, history: Tensor, masked_next: Tensor) -> Tensor:
        """FFN2(h_CLS ⊕ h_{n+1,M}): what is the whole next item, seen in part? (B, d) each."""
        return self.next(torch.cat([history, masked_next], dim=-1))


class SeqRecLMHead(nn.Module):
    """Token states (T, d) -> vocabulary logits (T, V), as RoBERTa's and RecFormer's."""

    def __init__(self, config: SeqRecConfig, words: nn.Embedding):
        """`words`: the encoder's word embeddings, whose weights the decoder shares where `tie_word_embeddings`."""
        super().__init__()
        width = words.embedding_dim
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = ACT2FN[getattr(config, "hidden_act", "gelu")]
        self.layer_norm = nn.LayerNorm(width, eps=getattr(config, "layer_norm_eps", 1e-12))
        self.decoder = nn.Linear(width, words.num_embeddings, bias=False)
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.layer_norm(self.activation(self.dense(hidden)))
        return nn.functional.linear(hidden, self.decoder.weight, self.bias)


class SeqRecForPreTraining(SeqRecModelWithHead):
    """JEPA pre-training: context encoder, predictor, token head, and the target encoder that follows by EMA.

    The target encoder is part of the checkpoint, never trains, and is never in training mode (no dropout). Loaded
    from a checkpoint that has none (a plain encoder), it starts as a copy of the context encoder, never at random.

    `objective` says what is minimised (`PreTrainingObjective`); it belongs to a run, so it is not in `config.json`.
    Without its mapping loss this is RecFormer's pre-training. `slices` n reads a batch in n parts (`in_slices`): the
    same loss and gradients, with the activations of one part.
    """

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: SeqRecConfig):
        super().__init__(config)
        self._objective, self.slices = PreTrainingObjective(), 1
        self._add_encoder()
        own_positions = 0 if self.base_model.get_item_position_embeddings() else PREDICTED_POSITIONS
        self.predictor = SeqRecPredictor(config.vector_size, own_positions)
        self._add_token_head()
        self.target_encoder = self.encoder_class(config)
        self.post_init()
        self.update_target_encoder(momentum=0.0)
        self.train()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As for the encoder; a target encoder that the checkpoint lacks becomes a copy of the context encoder."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if any(key.startswith("target_encoder.") for key in info["missing_keys"]):
            model.update_target_encoder(momentum=0.0)
        return (model, info) if wants_info else model

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SeqRecPredictor):
            init.zeros_(module.unmasked_item)

    def train(self, mode: bool = True) -> "SeqRecForPreTraining":
        """Set the mode of all but the target encoder, which stays frozen.

        `from_pretrained` rebuilds parameters with gradients on, and ends in `eval()`, so freezing belongs here.
        """
        super().train(mode)
        self.target_encoder.eval().requires_grad_(False)
        return self

    @property
    def objective(self) -> PreTrainingObjective:
        """What is minimised. Assigning one freezes or frees the predictor, which only the mapping loss needs."""
        return self._objective

    @objective.setter
    def objective(self, objective: PreTrainingObjective) -> None:
        self.predictor.requires_grad_(objective.map_weight > 0)
        self._objective = objective

    @torch.no_grad()
    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As above; the target encoder gets the same new rows."""
        words = super().resize_token_embeddings(*args, **kwargs)
        target = self.target_encoder.get_input_embeddings()
        known = min(target.num_embeddings, words.num_embeddings)
        grown = nn.Embedding.from_pretrained(words.weight.clone(), freeze=True, padding_idx=target.padding_idx)
        grown.weight[:known] = target.weight[:known]
        self.target_encoder.set_input_embeddings(grown)
        return words

    @torch.no_grad()
    def update_target_encoder(self, momentum: float) -> None:
        """target = momentum * target + (1 - momentum) * context, for every parameter."""
        target = list(self.target_encoder.parameters())
        torch._foreach_lerp_(target, list(self.base_model.parameters()), 1.0 - momentum)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        item_position_ids: Tensor,
        labels: Tensor,
        next_input_ids: Tensor,
        next_labels: Tensor,
        clean_next_input_ids: Tensor,
        next_attention_mask: Tensor,
        next_token_type_ids: Tensor,
        next_item_position_ids: Tensor,
        item_input_ids: Tensor,
        item_attention_mask: Tensor,
        item_token_type_ids: Tensor,
        item_item_position_ids: Tensor,
        masked_item_positions: Tensor,
        next_item_ids: Tensor,
        clean_input_ids: Tensor | None = None,
        telemetry: bool = False,
    ) -> SeqRecTrainingOutput:
        """One step's losses (JEPA4Rec, section 3.3.2) as `loss_parts` "contrastive", "mlm" and, if weighted, "map".

        Args:
            input_ids, attention_mask, token_type_ids, item_position_ids: the masked history, (B, L).
            labels: (B, L), the original ids at predicted tokens, -100 elsewhere.
            next_input_ids, next_labels: the masked next item, (B, Ln).
            clean_next_input_ids: the same item untouched; both share the next_* masks, types and positions.
            item_input_ids, item_attention_mask, item_token_type_ids, item_item_position_ids: the sampled masked item
                of the history, untouched and alone, (B, Li).
            masked_item_positions: (B,) where that item lies in the history; 0 = no item of it was masked.
            next_item_ids: (B,) index of the next item, to know duplicates.
            clean_input_ids: (B, L) the untouched history, for `contrastive_history="clean"`.
            telemetry: also measure collapse (a singular value decomposition of a (B, d) matrix).
        """
        next_rest = (next_attention_mask, next_token_type_ids, next_item_position_ids)
        item = (item_input_ids, item_attention_mask, item_token_type_ids, item_item_position_ids)
        item_targets, next_targets = self._target_vectors(item, (clean_next_input_ids, *next_rest))
        history = (input_ids, attention_mask, token_type_ids, item_position_ids, labels, clean_input_ids)
        read = in_slices(
            self._read, (*history, next_input_ids, *next_rest, next_labels, clean_next_input_ids), self.slices
        )
        users = read.get("clean_history", read["history"])
        positives = read.get("clean_next", next_targets)
        parts = {
            "contrastive": self._contrastive(users, positives, next_item_ids),
            "mlm": self._mlm(read["history_tokens"], read["next_tokens"]),
        }
        if self.objective.map_weight:
            vectors = (read["history"], read["masked_next"], masked_item_positions)
            item_predictions, next_predictions = self._predict(*vectors)
            parts["map"] = self._map(item_predictions, item_targets) + self._map(next_predictions, next_targets)
        weights = {"mlm": self.objective.mlm_weight, "map": self.objective.map_weight}
        loss, reported = weighted_total(parts, weights)
        gauges = self._telemetry(users, positives, next_targets) if telemetry else {}
        return SeqRecTrainingOutput(loss=loss, loss_parts=reported, telemetry=gauges)

    def _read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        item_position_ids: Tensor,
        labels: Tensor,
        clean_input_ids: Tensor | None,
        next_input_ids: Tensor,
        next_attention_mask: Tensor,
        next_token_type_ids: Tensor,
        next_item_position_ids: Tensor,
        next_labels: Tensor,
        clean_next_input_ids: Tensor,
    ) -> dict[str, Tensor]:
        """What the losses need of some rows: the context encoder's vectors (b, d), losses of predicted tokens (t,)."""
        rest = (attention_mask, token_type_ids, item_position_ids)
        next_rest = (next_attention_mask, next_token_type_ids, next_item_position_ids)
        history, masked_next = self.base_model(input_ids, *rest), self.base_model(next_input_ids, *next_rest)
        read = {
            "history": history.pooler_output,
            "masked_next": masked_next.pooler_output,
            "history_tokens": self._token_losses(history.last_hidden_state, labels),
            "next_tokens": self._token_losses(masked_next.last_hidden_state, next_labels),
        }
        if self.objective.contrastive_history == "clean":
            if clean_input_ids is None:
                raise ValueError(
                    'contrastive_history="clean" needs clean_input_ids: build the collator with clean_history=True.'
                )
            read["clean_history"] = self.base_model.embed(clean_input_ids, *rest)
        if self.objective.positive == "context":
            read["clean_next"] = self.base_model.embed(clean_next_input_ids, *next_rest)
        return read

    @torch.no_grad()
    def _target_vectors(
        self, item: tuple[Tensor, ...], next_item: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        """h_n and h_{n+1} (B, d), both clean items encoded as one batch of 2B rows; None for what no loss looks at."""
        if not self.objective.map_weight:
            return None, self.target_encoder.embed(*next_item) if self.objective.positive == "target" else None
        width = max(item[0].shape[1], next_item[0].shape[1])
        rows = [torch.cat([_widen(part, width) for part in pair]) for pair in zip(item, next_item, strict=True)]
        item_targets, next_targets = self.target_encoder.embed(*rows).chunk(2)
        return item_targets, next_targets

    def _predict(self, history: Tensor, masked_next: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        table = self.base_model.get_item_position_embeddings() or self.predictor.item_position_embeddings
        item_position = table(positions.clamp(max=table.num_embeddings - 1))
        return (
            self.predictor.history_item(history, item_position, positions),
            self.predictor.next_item(history, masked_next),
        )

    def _contrastive(self, users: Tensor, positives: Tensor, item_ids: Tensor) -> Tensor:
        known = item_ids if self.objective.mask_duplicates else None
        return contrastive_loss(users, positives, self.objective.temperature, known)

    def _mlm(self, history: Tensor, next_item: Tensor) -> Tensor:
        """Of the losses of their predicted tokens, as `mlm_average` says."""
        if self.objective.mlm_average == "sides":
            return whole_batch_mean(history) + whole_batch_mean(next_item)
        return whole_batch_mean(torch.cat([history, next_item]))

    def _map(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return mapping_loss(predictions, targets, self.objective.map_distance, self.objective.normalise_targets)

    def _telemetry(self, users: Tensor, positives: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        """Where no loss looks at the target encoder, collapse is measured on the positives."""
        distance = ema_distance(self.base_model.parameters(), self.target_encoder.parameters())
        gauges = collapse_telemetry(users, positives, positives if targets is None else targets)
        return {**gauges, "ema_distance": distance}


def _widen(rows: Tensor, width: int) -> Tensor:
    """Pad (B, L) with zeros on the right to (B, width); a zero in the attention mask hides the rest."""
    return nn.functional.pad(rows, (0, width - rows.shape[1]))


class SeqRecForSequentialRecommendation(SeqRecModelWithHead):
    """Fine-tuned on one catalogue: softmax over all items on the cosine of user and item (JEPA4Rec, section 3.4).

    The user's vector is that of the history's text, and, with `config.history_items` = K > 0, also that of its K most
    recent items by id: u = gate * h / |h| + sum_k recency_k * v_{i_k}, gate and recency learned and positive.

    With `config.history_reading` "items" no history is read as a text: u = W sum_k decay^k v_{i_k}, v the vectors of
    the items' texts, W a linear layer that items do not go through. Without one, a history of one item says that this
    item itself comes next, which has to be unlearned (docs/training-log.md). `config.history_projection` puts such a
    layer behind the text too. With `config.item_projection` v is G times the vector of the item's text, G a matrix for
    all items.

    The score of an item is its cosine with u; with `config.repeat_items` = K, one of the K newest of the history gets
    a learned amount more or less, by its age.

    To begin: `from_pretrained(an encoder's checkpoint, num_items=N, history_items=K)`, then `initialise_items`.

    A saved checkpoint opens with `AutoModel` as its encoder. For this class, without our code installed:
    `get_class_from_dynamic_module("modeling_jepa4rec.Jepa4RecForSequentialRecommendation", path)`
    of `transformers.dynamic_module_utils` (or another family's), then its `from_pretrained(path)`.
    """

    # Not a class of transformers, but the key that makes the code travel with the weights and names it in `auto_map`.
    _auto_class = "AutoModelForSequentialRecommendation"
    # What a training phase keeps of frozen layers (`training.frozen.FrozenStates`), read while it trains.
    frozen = None

    def __init__(self, config: SeqRecConfig):
        super().__init__(config)
        if config.num_items < 1:
            raise ValueError("A fine-tuned model has one vector per item: pass num_items, the catalogue's size.")
        self._add_encoder()
        self.item_matrix = nn.Embedding(config.num_items, config.vector_size)
        self.log_scale = nn.Parameter(torch.zeros(1))
        if config.history_items:
            rows = config.num_items + 1
            self.history_item_vectors = nn.Embedding(rows, config.vector_size, padding_idx=config.num_items)
            self.log_recency = nn.Parameter(torch.zeros(config.history_items))
            self.log_text_gate = nn.Parameter(torch.zeros(1))
        if config.history_reading == "items" or config.history_projection:
            self.history_projection = Projection(config.vector_size, config.vector_size)
        if config.item_projection:
            self.item_projection = Projection(config.vector_size, config.vector_size, bias=False)
        if config.repeat_items:
            self.repeat_bias = nn.Parameter(torch.zeros(config.repeat_items))
        if config.token_head:
            self._add_token_head()
        self._objective = FineTuningObjective()
        self._seen_items = self._seen_rows = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.log_scale, -math.log(self.objective.temperature))
            if self.config.history_items:
                steps = torch.arange(self.config.history_items, dtype=self.log_recency.dtype)
                init.copy_(self.log_recency, steps * math.log(RECENCY_DECAY))
                init.zeros_(self.log_text_gate)
            if self.config.repeat_items:
                init.zeros_(self.repeat_bias)

    @property
    def objective(self) -> FineTuningObjective:
        """What is minimised. Assigning one freezes or frees the item matrix and the temperature accordingly.

        The temperature itself is set when it is fixed or differs from that of the objective before, so that a second
        phase with the same objective goes on from the learned one.
        """
        return self._objective

    @objective.setter
    def objective(self, objective: FineTuningObjective) -> None:
        if not objective.learn_temperature or objective.temperature != self._objective.temperature:
            nn.init.constant_(self.log_scale, -math.log(objective.temperature))
        self.log_scale.requires_grad_(objective.learn_temperature)
        self.item_matrix.requires_grad_(objective.item_matrix == "learnable")
        self._objective = objective

    @property
    def scale(self) -> Tensor:
        """1 / temperature, a scalar."""
        return self.log_scale.float().exp().squeeze()

    @property
    def recency(self) -> Tensor:
        """(K,) weights of the newest, second newest, … item of the history."""
        return self.log_recency.exp()

    @property
    def text_gate(self) -> Tensor:
        """Weight of the history's text beside its items, a scalar."""
        return self.log_text_gate.exp().squeeze()

    @torch.no_grad()
    def initialise_items(self, item_vectors: Tensor) -> None:
        """Set item matrix and history item vectors to the items' text vectors (num_items, d), made one long.

        Raises:
            ValueError: another shape, or a vector that is not finite.
        """
        wanted = (self.config.num_items, self.config.vector_size)
        if tuple(item_vectors.shape) != wanted:
            raise ValueError(f"item_vectors are {tuple(item_vectors.shape)}, the model's catalogue is {wanted}.")
        if not item_vectors.isfinite().all():
            raise ValueError("item_vectors hold NaN or infinity: the encoder that made them is broken.")
        self.item_matrix.weight.copy_(normalise(item_vectors))
        if self.config.history_items:
            self.history_item_vectors.weight[: self.config.num_items].copy_(self.item_matrix.weight)

    def replace_items(self, item_vectors: Tensor) -> None:
        """Serve other items (N, d) than those of training, each by the vector of its text.

        Raises:
            ValueError: a model that looks items of a history up by id.
        """
        if self.config.history_items:
            raise ValueError("This model has learned its items one by one: it has no other catalogue.")
        self.item_matrix = nn.Embedding.from_pretrained(normalise(item_vectors))
        self.config.num_items = len(item_vectors)

    def mark_seen_items(self, seen: Tensor) -> None:
        """Say which items (num_items,) bool occur in training, for `objective.unseen_items`; never saved."""
        self._seen_items, self._seen_rows = seen, seen.nonzero().flatten()

    def item_vectors(self) -> Tensor:
        """What histories are compared with (num_items, d), each row one long."""
        return normalise(self._projected_items())

    def _projected_items(self) -> Tensor:
        """The item matrix, behind `item_projection` where there is one, (num_items, d)."""
        if not hasattr(self, "item_projection"):
            return self.item_matrix.weight
        return self.item_projection(normalise(self.item_matrix.weight).to(self.item_projection.weight.dtype))

    @torch.no_grad()
    def folded(self) -> "SeqRecForSequentialRecommendation":
        """The model itself; where it has an `item_projection` a copy without, whose encoder gives what items have
        behind it.

        Raises:
            ValueError: an encoder without a projection of its own.
        """
        if not hasattr(self, "item_projection"):
            return self
        model, learned = copy.deepcopy(self), self.item_projection.weight
        model.item_matrix.weight.copy_(self.item_vectors())
        own = model.encoder_projection()
        own.weight.copy_(learned @ own.weight)
        if own.bias is not None:
            own.bias.copy_(learned @ own.bias)
        del model.item_projection
        model.config.item_projection = False
        return model

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, `folded`."""
        super(SeqRecForSequentialRecommendation, self.folded()).save_pretrained(save_directory, **kwargs)

    def encoder_projection(self) -> nn.Linear:
        """The linear layer that the encoder's vectors end in. Raises ValueError where there is none."""
        own = getattr(self.base_model, "projection", None)
        if own is None:
            raise ValueError(
                f"item_projection ends in the encoder's own projection, and this {type(self.base_model).__name__} has "
                "none: leave it out, or set model.config.projection=true, which JEPA4Rec's encoders know."
            )
        return own

    def user_vectors(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        item_position_ids: Tensor | None = None,
        history_item_ids: Tensor | None = None,
        text_rows: Tensor | None = None,
    ) -> Tensor:
        """User vectors (B, d), not normalised, to compare with `item_vectors` by cosine.

        Args:
            input_ids, attention_mask, token_type_ids, item_position_ids: the histories, (B, L); none where
                `config.history_reading` is "items".
            history_item_ids: (B, k) item indices, newest first, -1 where there is none or the catalogue lacks it; only
                the first `config.history_items` count, or all where no text is read.
            text_rows: (B,) which text each user has, where the texts are the distinct ones of the batch (D, L).
        """
        reads_items = self.config.history_reading == "items"
        if history_item_ids is None and (reads_items or self.config.history_items):
            read = "reads histories by their items" if reads_items else "looks up the newest items of a history by id"
            raise ValueError(
                f"This model {read}: pass history_item_ids (batch, {self.config.history_items or 'items'}), newest "
                "first, -1 for none."
            )
        if reads_items:
            return self._read_items(history_item_ids, self._projected_items())
        items = self._remembered_items(history_item_ids) if self.config.history_items else None
        if not self.config.history_text:
            return items
        texts = self._embed((input_ids, attention_mask, token_type_ids, item_position_ids), text_rows)
        return texts if items is None else self.text_gate * normalise(texts) + items

    def _embed(self, texts: tuple[Tensor | None, ...], text_rows: Tensor | None) -> Tensor:
        vectors = (self.frozen if self.frozen and self.training else self.base_model).embed(*texts)
        return self.project_histories(vectors if text_rows is None else vectors[text_rows])

    def project_histories(self, vectors: Tensor) -> Tensor:
        """What the vectors of histories (B, d), of their texts or means of their items, say comes next, (B, d)."""
        if not hasattr(self, "history_projection"):
            return vectors
        return self.history_projection(normalise(vectors).to(self.history_projection.weight.dtype))

    def repeats(self, history_item_ids: Tensor) -> Tensor:
        """(B, k) item indices, newest first, -> the same of the `repeat_items` newest, each item once, -1 for none."""
        if history_item_ids is None:
            raise ValueError("This model scores items of the history anew (repeat_items): pass history_item_ids.")
        ids = history_item_ids[:, : self.config.repeat_items]
        again = (ids[:, :, None] == ids[:, None, :]).tril(-1).any(dim=2)
        return ids.masked_fill(again, -1)

    def with_repeats(self, scores: Tensor, history_item_ids: Tensor) -> Tensor:
        """Cosines (B, num_items) with what is learned of the items of the histories (B, k), newest first, -1 none."""
        if not self.config.repeat_items:
            return scores
        repeats = self.repeats(history_item_ids.to(scores.device))
        return add_repeats(scores, repeats, self.repeat_bias[: repeats.shape[1]].to(scores))

    def _read_items(self, item_ids: Tensor, items: Tensor) -> Tensor:
        """W sum_k decay^k * v_{i_k}, v the rows of `items` (num_items, d) made one long, (B, k) -> (B, d); -1 none."""
        weights = self.config.history_decay ** torch.arange(item_ids.shape[1], device=item_ids.device).float()
        vectors = normalise(items)[item_ids.clamp(min=0)]
        return self.project_histories((weights[:, None] * (item_ids >= 0)[:, :, None] * vectors).sum(dim=1))

    def _remembered_items(self, history_item_ids: Tensor) -> Tensor:
        """sum_k recency_k * v_{i_k}, (B, k) -> (B, d); -1 reads the padding row, which is zero."""
        ids = history_item_ids[:, : self.config.history_items]
        ids = torch.where(ids < 0, self.config.num_items, ids)
        weights = self.recency[: ids.shape[1], None]
        return (weights * self.history_item_vectors(ids)).sum(dim=1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        item_position_ids: Tensor | None = None,
        history_item_ids: Tensor | None = None,
        target_item_ids: Tensor | None = None,
        text_rows: Tensor | None = None,
        masked: dict[str, Tensor] | None = None,
        telemetry: bool = False,
    ) -> SeqRecTrainingOutput:
        """Loss over the whole catalogue as `loss_parts` "softmax", and "mlm" where the objective weighs it; arguments
        as in `user_vectors`, and

        Args:
            target_item_ids: (B,) index of each history's next item; needed.
            masked: for the "mlm" part, the inputs of the masked histories (B, L) and their `labels` (B, L), -100 where
                nothing is predicted.
            telemetry: also report temperature, text gate and recency weights.
        """
        if target_item_ids is None:
            raise ValueError("The loss needs target_item_ids (batch,); to rank, use user_vectors and item_vectors.")
        items = self._projected_items()
        if self.config.history_reading == "items" and history_item_ids is not None:
            users = self._read_items(history_item_ids, items)  # of the same items, projected once
        else:
            texts = (input_ids, attention_mask, token_type_ids, item_position_ids)
            users = self.user_vectors(*texts, history_item_ids, text_rows)
        items, places = self._softmax_items(items)
        targets, repeated = target_item_ids, {}
        if self.config.repeat_items:
            repeats = self.repeats(history_item_ids)
            repeated = {"repeats": repeats, "bias": self.repeat_bias[: repeats.shape[1]]}
        if places is not None:
            targets = places[targets]
            repeated |= {"repeats": places[repeats].masked_fill(repeats < 0, -1)} if repeated else {}
        parts = {"softmax": full_softmax_loss(users, items, targets, self.scale, **repeated)}
        if self.objective.mlm_weight:
            if masked is None:
                raise ValueError("objective.mlm_weight needs masked histories: build the collator with a mask_rate.")
            labels = masked["labels"]
            read = self.base_model(**{name: values for name, values in masked.items() if name != "labels"})
            parts["mlm"] = whole_batch_mean(self._token_losses(read.last_hidden_state, labels))
        loss, reported = weighted_total(parts, {"mlm": self.objective.mlm_weight})
        return SeqRecTrainingOutput(loss=loss, loss_parts=reported, telemetry=self._telemetry() if telemetry else {})

    def _softmax_items(self, items: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of the item vectors those in the softmax, and each item's row in them, -1 for none (None: as they are)."""
        way = self.objective.unseen_items
        if way == "negatives" or self._seen_items is None:
            return items, None
        seen, rows = self._seen_items.to(items.device), self._seen_rows.to(items.device)
        self._seen_items, self._seen_rows = seen, rows  # copied once, counted once: steps wait for neither
        if way == "fixed":
            return torch.where(seen[:, None], items, items.detach()), None
        return items[rows], torch.where(seen, seen.cumsum(0) - 1, -1)

    @torch.no_grad()
    def _telemetry(self) -> dict[str, Tensor]:
        gauges = {"temperature": 1 / self.scale}
        if self.config.history_items:
            gauges["text_gate"] = self.text_gate
            gauges |= {f"recency_{k}": weight for k, weight in enumerate(self.recency, start=1)}
        if self.config.repeat_items:
            gauges |= {f"repeat_{k}": amount for k, amount in enumerate(self.repeat_bias.clone(), start=1)}
        return gauges


class PipelineOfModel:
    """What `pipeline(TASK, model=object)` makes: the pipeline that lies beside the code of that object's class."""

    _load_tokenizer = _load_processor = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    def __new__(cls, model: PreTrainedModel, *args, **kwargs):
        package = type(model).__module__.rpartition(".")[0]
        module, name = PIPELINE.split(".")
        if (Path(sys.modules[type(model).__module__].__file__).parent / "serving" / f"{module}.py").is_file():
            pipeline_class = getattr(importlib.import_module(f"{package}.serving.{module}"), name)
        else:  # code of a checkpoint, and as trusted as the model's, which runs already
            options = {key: value for key, value in getattr(model, "hub_options", {}).items() if key in HUB_OPTIONS}
            options["revision"] = getattr(model.config, "_commit_hash", None) or options.get("revision")
            pipeline_class = get_class_from_dynamic_module(PIPELINE, model.config.name_or_path, **options)
        return pipeline_class(model, *args, **kwargs)


if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=PipelineOfModel)
