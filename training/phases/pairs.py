"""An encoder in contrastive training: pairs of sentences in, symmetric ranking loss out (ST5, section 4.4)."""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from ...hub.opening import ENCODERS, open_encoder
from ...losses_seqrec import SentencePairObjective, collapse_telemetry, symmetric_ranking_loss, weighted_total
from ...modeling_jepa4rec import Jepa4RecTrainingOutput

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "item_position_ids")


class SentencePairModel(PreTrainedModel):
    """Any of our encoders under `objective`. It has no weights of its own, and what it saves is the encoder.

    With `cache_chunk` n the gradients of a batch of any size need the activations of n texts at a time (GradCache, Gao
    et al. 2021): each chunk is encoded without keeping activations, and once more when its gradient is known, with the
    random numbers of the first time, so that dropout is the same. Loss and gradients are those of the whole batch.
    """

    base_model_prefix = "encoder"
    _supports_sdpa = True  # where the encoder does

    def __init__(self, config: PreTrainedConfig):
        encoder = ENCODERS[config.model_type](config)  # first, so that it says in the config how it attends
        super().__init__(encoder.config)
        self.encoder = encoder
        self._no_split_modules = self.encoder._no_split_modules
        self.objective, self.cache_chunk = SentencePairObjective(), None

    @classmethod
    def from_encoder(cls, checkpoint) -> "SentencePairModel":
        """Around the encoder of a checkpoint of ours."""
        encoder = open_encoder(checkpoint)
        with torch.device("meta"):
            model = cls(encoder.config)
        model.encoder = encoder
        return model

    def save_pretrained(self, *args, **kwargs) -> None:
        self.encoder.save_pretrained(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        item_position_ids: Tensor,
        positive_input_ids: Tensor,
        positive_attention_mask: Tensor,
        positive_token_type_ids: Tensor,
        positive_item_position_ids: Tensor,
        pair_ids: Tensor | None = None,
        telemetry: bool = False,
    ) -> Jepa4RecTrainingOutput:
        """Symmetric ranking loss of the batch's pairs as `loss_parts` "ranking".

        Args:
            input_ids, attention_mask, token_type_ids, item_position_ids: the anchors, (B, L).
            positive_*: their positives, (B, Lp).
            pair_ids: (B,) pairs of equal id are no negatives of each other (`objective.mask_duplicates`).
            telemetry: also measure collapse, on the positives.
        """
        anchors = (input_ids, attention_mask, token_type_ids, item_position_ids)
        positives = (
            positive_input_ids, positive_attention_mask, positive_token_type_ids, positive_item_position_ids,
        )  # fmt: skip
        vectors = [embed_in_chunks(self.encoder.embed, texts, self.cache_chunk) for texts in (anchors, positives)]
        known = pair_ids if self.objective.mask_duplicates else None
        parts = {"ranking": symmetric_ranking_loss(*vectors, self.objective.temperature, known)}
        loss, reported = weighted_total(parts, {})
        gauges = collapse_telemetry(*vectors, vectors[1]) if telemetry else {}
        return Jepa4RecTrainingOutput(loss=loss, loss_parts=reported, telemetry=gauges)


def embed_in_chunks(embed, texts: tuple[Tensor, ...], chunk: int | None) -> Tensor:
    """`embed` of a batch (INPUTS, (B, L) each), activations kept for at most `chunk` rows at a time: (B, d)."""
    if chunk is None or len(texts[0]) <= chunk:
        return embed(**dict(zip(INPUTS, texts, strict=True)))
    parts = []
    for rows in zip(*(part.split(chunk) for part in texts), strict=True):
        rows = [part[:, : int(rows[1].any(0).nonzero().max()) + 1] for part in rows]  # a chunk's own longest row
        inputs = dict(zip(INPUTS, rows, strict=True))
        # Recomputing a whole forward pass at its backward pass is what GradCache does with a chunk.
        parts.append(checkpoint(partial(embed, **inputs), use_reentrant=False))
    return torch.cat(parts)
