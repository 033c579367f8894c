"""ST5: item sentences -> one vector each, by Sentence-T5 (Ni et al. 2022): T5's encoder, mean, dense layer, length 1.

The same function reads items and histories; `ItemSentTokenizer` with `sentence="structured"` writes both so that the
encoder can tell them apart. Cosines of its vectors rank items for users, with nothing learned per item.

Sizes: B rows of L slots, encoder width d_model, vectors of width d = `config.projection_size`.
"""

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .configuration_jepa4rec import SeqRecConfig, with_plain_errors
from .losses_seqrec import normalise
from .modeling_seqrec import (
    HEAD_WEIGHTS,
    SeqRecForPreTraining,
    SeqRecForSequentialRecommendation,
    SeqRecPreTrainedModel,
    check_batch,
    check_unread,
    on_device,
)


@with_plain_errors
@strict
class St5RecConfig(SeqRecConfig, T5Config):
    """Shape of Sentence-T5: that of T5's encoder (`T5Config`), and of what stands behind it.

    Args:
        projection_size: width of the vectors, after the dense layer without bias; 768 in every published Sentence-T5.
        num_items, history_items, history_text, catalogue_fingerprint: as in `SeqRecConfig`.

    Raises:
        ValueError: a value of the wrong type or outside its range; the message names the field.
    """

    model_type = "st5rec"
    code = {
        "AutoConfig": "modeling_st5rec.St5RecConfig",
        "AutoModel": "modeling_st5rec.St5RecModel",
        "AutoModelForPreTraining": "modeling_st5rec.St5RecForPreTraining",
    }

    projection_size: int = 768

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.is_encoder_decoder = self.use_cache = False

    @property
    def vector_size(self) -> int:
        """Width of a history's or an item's vector."""
        return self.projection_size

    def validate_projection(self):
        """There is a vector."""
        if self.projection_size < 1:
            raise ValueError(f"projection_size must be at least 1, got {self.projection_size}.")


class St5RecPreTrainedModel(SeqRecPreTrainedModel):
    """What the encoder and the models around it share."""

    config_class = St5RecConfig
    base_model_prefix = "st5rec"
    supports_gradient_checkpointing = True
    _no_split_modules = ["T5Block"]
    _encoder_weights = ("t5.", "projection.")


class St5RecModel(St5RecPreTrainedModel):
    """T5's encoder, the mean over a text's tokens, a dense layer without bias, and L2 normalisation."""

    _keys_to_ignore_on_load_unexpected = HEAD_WEIGHTS

    def __init__(self, config: St5RecConfig):
        super().__init__(config)
        self.t5 = T5EncoderModel(config)
        self.projection = nn.Linear(config.d_model, config.projection_size, bias=False)
        self.post_init()

    def stages(self) -> list[nn.Module]:
        """What a text goes through in order: its embeddings, then each layer."""
        return [self.t5.shared, *self.t5.encoder.block]

    def get_input_embeddings(self) -> nn.Embedding:
        return self.t5.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.t5.set_input_embeddings(value)

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

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 at tokens; without it every id but `pad_token_id` is one.
            token_type_ids, item_position_ids: part of every batch of `ItemSentTokenizer`, and of no use here: T5 is
                told by the tags in the text where an item begins.

        Returns:
            `last_hidden_state` (B, L, d_model) of T5, and `pooler_output` (B, d), each row of length one.

        Raises:
            ValueError: a row without a token, an id outside the vocabulary, or an argument that is not read.
        """
        check_unread(
            inputs_embeds=inputs_embeds, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        if attention_mask is None:
            attention_mask = input_ids != self.config.pad_token_id
        tables = {"input_ids": (input_ids, self.config.vocab_size)}
        lengths = check_batch(attention_mask.bool(), tables, None)[0][:, None]
        attention_mask = on_device(attention_mask, input_ids)
        hidden = self.t5(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mean = (hidden * attention_mask[..., None].to(hidden.dtype)).sum(1) / lengths.to(hidden.dtype)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=normalise(self.projection(mean)))


class St5RecForPreTraining(St5RecPreTrainedModel, SeqRecForPreTraining):
    """`SeqRecForPreTraining` around a `St5RecModel`."""

    encoder_class = St5RecModel


class St5RecForSequentialRecommendation(St5RecPreTrainedModel, SeqRecForSequentialRecommendation):
    """`SeqRecForSequentialRecommendation` around a `St5RecModel`."""

    encoder_class = St5RecModel


St5RecModel.pretraining_class = St5RecForPreTraining
St5RecModel.recommendation_class = St5RecForSequentialRecommendation
