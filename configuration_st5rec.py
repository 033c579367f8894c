"""Every number that shapes the Sentence-T5 recommender, and nothing about a training run."""

from huggingface_hub.dataclasses import strict
from transformers import T5Config

from .configuration_jepa4rec import with_plain_errors

# What opens the checkpoint; the code it names travels beside the weights.
AUTO_MAP = {"AutoConfig": "configuration_st5rec.St5RecConfig", "AutoModel": "modeling_st5rec.St5RecModel"}


@with_plain_errors
@strict
class St5RecConfig(T5Config):
    """Shape of Sentence-T5: that of T5's encoder (`T5Config`), and of what stands behind it.

    Args:
        projection_size: width of the vectors, after the dense layer without bias; 768 in every published Sentence-T5.

    Raises:
        ValueError: a value of the wrong type or outside its range; the message names the field.
    """

    model_type = "st5rec"

    projection_size: int = 768

    def __post_init__(self, **kwargs):
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
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


St5RecConfig.register_for_auto_class()
