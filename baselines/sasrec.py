"""SASRec (Kang and McAuley, 2018): causal self-attention over item ids, trained to predict every next item.

Unlike the paper's one sampled negative per position, the loss is the softmax over the whole catalogue, which is what
makes it a strong baseline. The blocks too are today's, not the paper's: LayerNorm before each half, a GELU network
that widens, a residual around what is normed, and positions that count from the oldest item read, not the newest.

Figures of RecTools compare only where its NDCG was told `divide_by_achievable=True`: by default it divides DCG by that
of k relevant items, here by that of the one target.
"""

from huggingface_hub.dataclasses import strict
from torch import nn

from .item_sequences import ItemSequenceConfig, ItemSequenceModel, TransformerBody


@strict
class SasRecConfig(ItemSequenceConfig):
    """Shape of SASRec; arguments as `ItemSequenceConfig`."""

    model_type = "sasrec"


class SasRec(ItemSequenceModel):
    """Causal Transformer whose item embeddings are read and predicted."""

    config_class = SasRecConfig

    def __init__(self, config: SasRecConfig):
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items, config.hidden_size)
        self.body = TransformerBody(config, config.max_length)
        self.post_init()
