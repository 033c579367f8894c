"""JEPA4Rec: item sentences -> one vector a history, on a Longformer, RoBERTa or BERT encoder.

A history is `[CLS]`, then its items' tokens, newest item first. Every token is the sum of four embeddings (word,
position, token type, item position); the encoder's output at `[CLS]` (or the mean over tokens) is the history's
vector, and an item's vector is that of a history of one. Padding is taken out at the door and put back on the way out.

Sizes: B rows of L slots, T valid tokens in all, hidden width d.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .attention_jepa4rec import (
    AttentionPlan,
    Dropout,
    Jepa4RecSelfAttention,
    PackedRows,
    plan_attention,
    reads_packed_rows,
    scatter_tokens,
)
from .configuration_jepa4rec import Jepa4RecConfig
from .losses_seqrec import normalise
from .modeling_seqrec import (
    CLS_TYPE,
    HEAD_WEIGHTS,
    VALUE_TYPE,
    Projection,
    SeqRecForPreTraining,
    SeqRecForSequentialRecommendation,
    SeqRecPreTrainedModel,
    check_batch,
    check_unread,
    on_device,
)


class PackedBatch(NamedTuple):
    """A batch without its padding; all ids (T,)."""

    rows: PackedRows
    source: Tensor  # flat slot of each token in the (B, L) the caller gave
    input_ids: Tensor
    token_types: Tensor
    item_positions: Tensor


def table_sizes(config: Jepa4RecConfig) -> dict[str, int]:
    """Rows of the table that each input's ids index."""
    return {
        "input_ids": config.vocab_size,
        "token_type_ids": config.type_vocab_size,
        "item_position_ids": config.max_item_embeddings,
    }


def pack_batch(
    config: Jepa4RecConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    item_position_ids: Tensor | None,
) -> PackedBatch:
    """Take the padding out of a batch (arguments as in `Jepa4RecModel.forward`) and check what is left."""
    if attention_mask is None:
        padding = -1 if config.pad_token_id is None else config.pad_token_id
        attention_mask = input_ids != padding
    ids = {"input_ids": input_ids, "token_type_ids": token_type_ids, "item_position_ids": item_position_ids}
    tables = {name: (ids[name], size) for name, size in table_sizes(config).items()}
    valid = attention_mask.bool()
    rows = PackedRows.from_lengths(*check_batch(valid, tables, config.max_tokens))
    source = on_device(valid.flatten().nonzero().flatten(), input_ids)
    is_cls = rows.column == 0
    types = torch.where(is_cls, CLS_TYPE, VALUE_TYPE) if token_type_ids is None else token_type_ids.flatten()[source]
    items = (~is_cls).long() if item_position_ids is None else item_position_ids.flatten()[source]
    return PackedBatch(rows, source, input_ids.flatten()[source], types, items)


def _columns_without_pads(batch: PackedBatch, pad_token_id: int) -> Tensor:
    """Place of each packed token among the others of its row that are no padding token, -1 for one that is, (T,)."""
    words = batch.input_ids != pad_token_id
    counts = words.cumsum(0)
    before = (counts - words.long())[batch.rows.first]
    return torch.where(words, counts - before[batch.rows.row] - 1, -1)


class Jepa4RecEmbeddings(nn.Module):
    """LayerNorm(word + position + token type + item position), dropout after (JEPA4Rec, section 3.2)."""

    def __init__(self, config: Jepa4RecConfig):
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.item_position_embeddings = nn.Embedding(config.max_item_embeddings, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.position_offset = config.position_offset
        self.tells_types, self.tells_items = config.token_types, config.item_positions

    def forward(self, input_ids: Tensor, columns: Tensor, token_types: Tensor, item_positions: Tensor) -> Tensor:
        """Packed ids, (T,) each -> (T, d). `columns` count the tokens of a row from 0."""
        token_types = token_types if self.tells_types else torch.zeros_like(token_types)
        item_positions = item_positions if self.tells_items else torch.zeros_like(item_positions)
        embeddings = self.word_embeddings(input_ids) + self.position_embeddings(columns + self.position_offset)
        embeddings = embeddings + self.token_type_embeddings(token_types)
        embeddings = embeddings + self.item_position_embeddings(item_positions)
        return self.dropout(self.LayerNorm(embeddings))


class Jepa4RecResidual(nn.Module):
    """LayerNorm(input + dropout(dense(hidden))), the end of both halves of a layer."""

    def __init__(self, width: int, config: Jepa4RecConfig):
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class Jepa4RecIntermediate(nn.Module):
    """Widen, then activate."""

    def __init__(self, config: Jepa4RecConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class Jepa4RecAttention(nn.Module):
    """Self-attention and its residual."""

    def __init__(self, config: Jepa4RecConfig):
        super().__init__()
        self.self = Jepa4RecSelfAttention(config)
        self.output = Jepa4RecResidual(config.hidden_size, config)

    def forward(self, hidden: Tensor, plan: AttentionPlan, cls_only: bool) -> Tensor:
        # Behind the last layer only [CLS] is read, and its row needs no projected tokens: see `cls_attention`.
        if cls_only:
            return self.output(self.self.cls_row(hidden, plan), hidden[plan.rows.first])
        return self.output(self.self(hidden, plan), hidden)


class Jepa4RecLayer(GradientCheckpointingLayer):
    """One post-norm transformer layer on packed tokens."""

    def __init__(self, config: Jepa4RecConfig):
        super().__init__()
        self.attention = Jepa4RecAttention(config)
        self.intermediate = Jepa4RecIntermediate(config)
        self.output = Jepa4RecResidual(config.intermediate_size, config)

    def forward(self, hidden: Tensor, plan: AttentionPlan, cls_only: bool = False) -> Tensor:
        """(T, d) -> (T, d), or (B, d) when `cls_only`."""
        attended = self.attention(hidden, plan, cls_only)
        hidden = self.output(self.intermediate(attended), attended)
        return self._touch_idle(hidden) if cls_only and self.training else hidden

    def _touch_idle(self, hidden: Tensor) -> Tensor:
        """Add nothing, but give every parameter a gradient (zero): distributed training waits for all of them."""
        # For [CLS] alone the local projections are never asked. Were they left out of the graph, the processes would
        # wait for their gradients and stop at the next step; zero times their sum costs next to nothing.
        idle = self.attention.self.idle_in_cls_row()
        return hidden + 0.0 * sum(parameter.sum() for linear in idle for parameter in linear.parameters())


class Jepa4RecEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: Jepa4RecConfig):
        super().__init__()
        self.layer = nn.ModuleList(Jepa4RecLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, hidden: Tensor, plan: AttentionPlan, cls_only: bool = False, layers: slice = slice(None)
    ) -> Tensor:
        """Packed tokens (T, d) -> (T, d); with `cls_only` the last layer works for `[CLS]` alone: (B, d)."""
        for layer in self.layer[layers]:
            hidden = layer(hidden, plan, cls_only and layer is self.layer[-1])
        return hidden


class Jepa4RecPreTrainedModel(SeqRecPreTrainedModel):
    """What the encoder and the models around it share."""

    config_class = Jepa4RecConfig
    base_model_prefix = "jepa4rec"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Jepa4RecEmbeddings", "Jepa4RecLayer"]
    _supports_sdpa = True
    # What sees tokens one by one: `torch.compile` fuses it, once for any number of tokens.
    token_wise = (Jepa4RecEmbeddings, Jepa4RecResidual, Jepa4RecIntermediate)
    _encoder_weights = ("embeddings.", "encoder.", "projection.")


class Jepa4RecModel(Jepa4RecPreTrainedModel):
    """The encoder: item sentences -> hidden states and one vector a row."""

    _keys_to_ignore_on_load_unexpected = HEAD_WEIGHTS

    def __init__(self, config: Jepa4RecConfig):
        super().__init__(config)
        self.embeddings = Jepa4RecEmbeddings(config)
        self.encoder = Jepa4RecEncoder(config)
        self.projection = Projection(config.hidden_size, config.hidden_size) if config.projection else None
        self.post_init()

    def stages(self) -> list[nn.Module]:
        """What a text goes through in order: all embeddings, then each layer."""
        return [self.embeddings, *self.encoder.layer]

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def get_item_position_embeddings(self) -> nn.Embedding:
        return self.embeddings.item_position_embeddings

    def table_sizes(self) -> dict[str, int]:
        return table_sizes(self.config)

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
        """Encode a padded batch.

        Padding may stand anywhere: rows are packed first, so it never moves a token's position.

        Args:
            input_ids: (B, L), `[CLS]` first in every row.
            attention_mask: (B, L), 1 at tokens; without it every id but `pad_token_id` is one. It may stay on the host
                (`training.batches.to_device`).
            token_type_ids: (B, L), 0 `[CLS]`, 1 attribute name, 2 value; without it all but `[CLS]` is value.
            item_position_ids: (B, L), 0 `[CLS]`, k the k-th most recent item; without it the row is one item.

        Returns:
            `last_hidden_state` (B, L, d), zeros at padding, and `pooler_output` (B, d): the hidden state of `[CLS]`,
            or the mean over the row's tokens (`config.pooling`), behind the projection where there is one.

        Raises:
            ValueError: an empty or too long row, an id outside its table, or outputs that are never kept.
        """
        check_unread(
            inputs_embeds=inputs_embeds, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        batch = pack_batch(self.config, input_ids, attention_mask, token_type_ids, item_position_ids)
        hidden = self._encode(batch)
        padded = hidden.new_zeros(input_ids.numel(), hidden.shape[-1]).index_copy_(0, batch.source, hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=padded.view(*input_ids.shape, -1), pooler_output=self._pool(hidden, batch.rows)
        )

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        item_position_ids: Tensor | None = None,
    ) -> Tensor:
        """`forward(...).pooler_output` (B, d), not normalised, without the work that only other tokens need."""
        batch = pack_batch(self.config, input_ids, attention_mask, token_type_ids, item_position_ids)
        if self.config.pooling == "cls":
            return self._project(self._encode(batch, cls_only=True))
        return self._pool(self._encode(batch), batch.rows)

    @torch.no_grad()
    def embed_below(self, layers: int, *texts: Tensor) -> Tensor:
        """What the lowest `layers` layers make of texts (arguments as in `embed`), without dropout: the hidden states
        of their tokens, one text after the other, (T, d)."""
        read = [(module, module.training) for module in self.stages()[: layers + 1]]
        for module, _ in read:
            module.eval()
        hidden = self._encode(pack_batch(self.config, *texts), layers=slice(layers))
        for module, training in read:  # what else goes through them keeps its dropout
            module.train(training)
        return hidden

    def embed_above(self, layers: int, hidden: Tensor, *texts: Tensor) -> Tensor:
        """`embed` of texts of which `embed_below` gave `hidden` (T, d), (B, d)."""
        batch = pack_batch(self.config, *texts)
        return self._pool(self._encode(batch, layers=slice(layers, None), hidden=hidden), batch.rows)

    def add_projection(self) -> None:
        """Stand a projection behind the pooling, the identity at first."""
        self.config.projection = True
        self.projection = Projection(self.config.hidden_size, self.config.hidden_size)
        self._init_weights(self.projection)
        self.projection.to(self.device, self.dtype)

    @torch.no_grad()
    def whiten(self, mean: Tensor, matrix: Tensor) -> None:
        """Set the projection to a `Whitening` of the vectors it reads: mean (d,) and symmetric matrix (d, d).

        Raises:
            ValueError: the model has no projection.
        """
        if self.projection is None:
            raise ValueError("whitening is held by the projection, which this model lacks: set projection to true.")
        self.projection.weight.copy_(matrix)
        self.projection.bias.copy_(-(matrix @ mean))

    def _encode(
        self, batch: PackedBatch, cls_only: bool = False, layers: slice = slice(None), hidden: Tensor | None = None
    ) -> Tensor:
        if hidden is None:
            columns = batch.rows.column
            if not self.config.count_pad_tokens:
                columns = _columns_without_pads(batch, self.config.pad_token_id)
            hidden = self.embeddings(batch.input_ids, columns, batch.token_types, batch.item_positions)
        packed = reads_packed_rows(hidden, self.config.hidden_size // self.config.num_attention_heads)
        plan = plan_attention(batch.rows, self.config.attention_window, packed)
        return self.encoder(hidden, plan, cls_only, layers)

    def _pool(self, hidden: Tensor, rows: PackedRows) -> Tensor:
        if self.config.pooling == "cls":
            return self._project(hidden[rows.first])
        grid = (len(rows.sizes), rows.longest)
        pooled = scatter_tokens(hidden, rows.slots, grid).sum(1) / rows.lengths[:, None].to(hidden.dtype)
        return self._project(pooled)

    def _project(self, pooled: Tensor) -> Tensor:
        return pooled if self.projection is None else self.projection(normalise(pooled).to(pooled.dtype))


class Jepa4RecForPreTraining(Jepa4RecPreTrainedModel, SeqRecForPreTraining):
    """`SeqRecForPreTraining` around a `Jepa4RecModel`."""

    encoder_class = Jepa4RecModel


class Jepa4RecForSequentialRecommendation(Jepa4RecPreTrainedModel, SeqRecForSequentialRecommendation):
    """`SeqRecForSequentialRecommendation` around a `Jepa4RecModel`."""

    encoder_class = Jepa4RecModel


Jepa4RecModel.pretraining_class = Jepa4RecForPreTraining
Jepa4RecModel.recommendation_class = Jepa4RecForSequentialRecommendation
