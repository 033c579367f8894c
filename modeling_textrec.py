"""TextRec: item sentences -> one vector each, by any text model of transformers (ModernBERT, Qwen3, ...).

The text model is transformers' own, built from `config.text_config`. Before it, tables of token types and item
positions are added to its word embeddings; they begin at zero, so that an imported model equals its source on any ids
until it has learned to use them. Behind it, a row's vector is read at its first or last token, or as the mean.

Sizes: B rows of L slots, hidden width d.
"""

import inspect

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .configuration_jepa4rec import SeqRecConfig, with_plain_errors
from .modeling_seqrec import (
    CLS_TYPE,
    HEAD_WEIGHTS,
    VALUE_TYPE,
    SeqRecForPreTraining,
    SeqRecForSequentialRecommendation,
    SeqRecPreTrainedModel,
    check_batch,
    check_unread,
    on_device,
)

POOLINGS = ("cls", "mean", "last")


@with_plain_errors
@strict
class TextRecConfig(SeqRecConfig):
    """Shape of a text model of transformers, and of what stands around it.

    Args:
        text_config: the text model's own configuration, or a dict of it with its `model_type`.
        pooling: `"cls"` (the hidden state of a row's first token), `"mean"` (over its tokens) or `"last"` (of its last
            token, for decoders), what `pooler_output` holds.
        token_types, item_positions: whether tokens are told apart by type and by item, with a table each.
        type_vocab_size, max_item_embeddings: rows of these tables, as in `Jepa4RecConfig`.
        num_items, history_items, history_text, catalogue_fingerprint: as in `SeqRecConfig`.

    Raises:
        ValueError: a value of the wrong type or outside its range, or a text model that is none; the message names it.
    """

    model_type = "textrec"
    sub_configs = {"text_config": AutoConfig}
    code = {
        "AutoConfig": "modeling_textrec.TextRecConfig",
        "AutoModel": "modeling_textrec.TextRecModel",
        "AutoModelForPreTraining": "modeling_textrec.TextRecForPreTraining",
    }

    text_config: dict | PreTrainedConfig | None = None
    pooling: str = "cls"
    token_types: bool = True
    item_positions: bool = True
    type_vocab_size: int = 4
    max_item_embeddings: int = 51
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = AutoConfig.for_model(**{"model_type": "modernbert", **(self.text_config or {})})
        self.text_config.name_or_path = ""  # where it was read from is no part of the shape
        if hasattr(self.text_config, "use_cache"):
            self.text_config.use_cache = False
        super().__post_init__(**kwargs)

    hidden_size = property(lambda self: self.text_config.hidden_size)
    num_hidden_layers = property(lambda self: self.text_config.num_hidden_layers)
    vocab_size = property(lambda self: self.text_config.vocab_size)

    @property
    def max_tokens(self) -> int | None:
        """Longest input in tokens; None where the text model does not say."""
        return getattr(self.text_config, "max_position_embeddings", None)

    def validate_pooling(self):
        """`pooler_output` is one of three things."""
        if self.pooling not in POOLINGS:
            raise ValueError(f'pooling must be "cls", "mean" or "last", got "{self.pooling}".')

    def validate_tables(self):
        """The tables have room for what every input holds."""
        if self.type_vocab_size < 4:
            raise ValueError(f"type_vocab_size must be >= 4 (CLS, name, value, pad), got {self.type_vocab_size}.")
        if self.max_item_embeddings < 2:
            raise ValueError(f"max_item_embeddings must be >= 2 (CLS and one item), got {self.max_item_embeddings}.")

    def validate_text_config(self):
        """One stack of layers reads the text."""
        if self.text_config.is_encoder_decoder:
            raise ValueError(
                f"text_config is a {self.text_config.model_type}, an encoder and a decoder: not one stack."
            )


class TextRecPreTrainedModel(SeqRecPreTrainedModel):
    """What the encoder and the models around it share."""

    config_class = TextRecConfig
    base_model_prefix = "textrec"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # where the text model does
    _encoder_weights = ("text_model.",)


class TextRecTable(nn.Embedding):
    """A table that begins at zero."""


class TextRecModel(TextRecPreTrainedModel):
    """A text model of transformers as an encoder of items and histories."""

    _keys_to_ignore_on_load_unexpected = HEAD_WEIGHTS

    def __init__(self, config: TextRecConfig):
        super().__init__(config)
        self.text_model = AutoModel.from_config(config.text_config)
        if not isinstance(self.get_input_embeddings(), nn.Embedding):
            raise ValueError(f"{type(self.text_model).__name__} is no text model: it embeds no token ids.")
        # Rows are pooled here. A pooler of the text model's own would wait for gradients that never come.
        if getattr(self.text_model, "pooler", None) is not None:
            self.text_model.pooler = None
        takes_embeddings = "inputs_embeds" in inspect.signature(self.text_model.forward).parameters
        if (config.token_types or config.item_positions) and not takes_embeddings:
            raise ValueError(
                f"{type(self.text_model).__name__} takes no inputs_embeds, so token types and item positions have no "
                "place in it: set token_types and item_positions to false."
            )
        width, rows = config.hidden_size, config.max_item_embeddings
        self.token_type_embeddings = TextRecTable(config.type_vocab_size, width) if config.token_types else None
        self.item_position_embeddings = TextRecTable(rows, width) if config.item_positions else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TextRecTable):
            init.zeros_(module.weight)

    def _tables(self) -> list[TextRecTable]:
        return [t for t in (self.token_type_embeddings, self.item_position_embeddings) if t is not None]

    def stages(self) -> list[nn.Module]:
        """What a text goes through in order: all embeddings, then each layer of the text model."""
        words, depth = self.get_input_embeddings(), self.config.num_hidden_layers
        lists = (module for module in self.text_model.modules() if isinstance(module, nn.ModuleList))
        layers = next((module for module in lists if len(module) == depth), None)
        if layers is None:
            raise ValueError(f"{type(self.text_model).__name__} keeps its {depth} layers in no list of them.")
        parts = ((child, set(child.modules())) for child in self.text_model.children())
        embeddings = next((child for child, inner in parts if words in inner and layers not in inner), words)
        return [nn.ModuleList([embeddings, *self._tables()]), *layers]

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_model.set_input_embeddings(value)

    def get_item_position_embeddings(self) -> nn.Embedding | None:
        return self.item_position_embeddings

    def table_sizes(self) -> dict[str, int]:
        sizes = {"input_ids": self.get_input_embeddings().num_embeddings}
        if self.token_type_embeddings is not None:
            sizes["token_type_ids"] = self.config.type_vocab_size
        if self.item_position_embeddings is not None:
            sizes["item_position_ids"] = self.config.max_item_embeddings
        return sizes

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        item_position_ids: Tensor | None = None,
        inputs_embeds: None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode a padded batch. "`[CLS]`" is a row's first token, its last one with `pooling="last"`.

        Args:
            input_ids: (B, L), padded on the right: most text models count positions from the first slot.
            attention_mask: (B, L), 1 at tokens; without it every id is one: decoders pad with the id that ends a row.
            token_type_ids: (B, L), 0 `[CLS]`, 1 attribute name, 2 value; without it all but `[CLS]` is value.
            item_position_ids: (B, L), 0 `[CLS]`, k the k-th most recent item; without it the row is one item.

        Returns:
            `last_hidden_state` (B, L, d) of the text model, and `pooler_output` (B, d), not normalised.

        Raises:
            ValueError: an empty or too long row, an id outside its table, or an argument that is not read.
        """
        check_unread(
            inputs_embeds=inputs_embeds, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        valid = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        ids = {"input_ids": input_ids, "token_type_ids": token_type_ids, "item_position_ids": item_position_ids}
        tables = {name: (ids[name], size) for name, size in self.table_sizes().items()}
        check_batch(valid, tables, self.config.max_tokens)
        valid = on_device(valid, input_ids)
        cls = self._cls_columns(valid)
        inputs = {"input_ids": input_ids}
        if self._tables():
            inputs = {"inputs_embeds": self._embeddings(input_ids, cls, token_type_ids, item_position_ids)}
        hidden = self.text_model(**inputs, attention_mask=valid.long()).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self._pool(hidden, valid, cls))

    def _cls_columns(self, valid: Tensor) -> Tensor:
        """Column of each row's `[CLS]`, (B, L) -> (B, 1)."""
        columns = torch.arange(valid.shape[1], device=valid.device)
        if self.config.pooling == "last":
            return torch.where(valid, columns, -1).amax(1, keepdim=True)
        return torch.where(valid, columns, valid.shape[1]).amin(1, keepdim=True)

    def _embeddings(self, input_ids: Tensor, cls: Tensor, token_types, item_positions) -> Tensor:
        """word + token type + item position, (B, L, d)."""
        embeddings = self.get_input_embeddings()(input_ids)
        is_cls = torch.arange(input_ids.shape[1], device=input_ids.device) == cls
        if self.token_type_embeddings is not None:
            types = torch.where(is_cls, CLS_TYPE, VALUE_TYPE) if token_types is None else token_types
            embeddings = embeddings + self.token_type_embeddings(types)
        if self.item_position_embeddings is not None:
            items = (~is_cls).long() if item_positions is None else item_positions
            embeddings = embeddings + self.item_position_embeddings(items)
        return embeddings

    def _pool(self, hidden: Tensor, valid: Tensor, cls: Tensor) -> Tensor:
        if self.config.pooling == "mean":
            weights = valid.to(hidden.dtype)
            return torch.einsum("bl,bld->bd", weights, hidden) / weights.sum(1, keepdim=True)
        return hidden.take_along_dim(cls[..., None], dim=1).squeeze(1)


class TextRecForPreTraining(TextRecPreTrainedModel, SeqRecForPreTraining):
    """`SeqRecForPreTraining` around a `TextRecModel`."""

    encoder_class = TextRecModel


class TextRecForSequentialRecommendation(TextRecPreTrainedModel, SeqRecForSequentialRecommendation):
    """`SeqRecForSequentialRecommendation` around a `TextRecModel`."""

    encoder_class = TextRecModel


TextRecModel.pretraining_class = TextRecForPreTraining
TextRecModel.recommendation_class = TextRecForSequentialRecommendation
