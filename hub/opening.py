"""The text encoders of this repository: which class a checkpoint's `model_type` means."""

from pathlib import Path

from transformers import PreTrainedConfig

from ..modeling_jepa4rec import Jepa4RecModel, SeqRecPreTrainedModel
from ..modeling_st5rec import St5RecModel

ENCODERS = {model.config_class.model_type: model for model in (Jepa4RecModel, St5RecModel)}


def encoder_class(checkpoint: str | Path) -> type[SeqRecPreTrainedModel]:
    """The class of a checkpoint's encoder; for a checkpoint of no family Jepa4RecModel, which explains what is wrong.

    Raises OSError when there is no readable config.json.
    """
    return ENCODERS.get(PreTrainedConfig.get_config_dict(checkpoint)[0].get("model_type"), Jepa4RecModel)


def open_encoder(checkpoint: str | Path, **options) -> SeqRecPreTrainedModel:
    """The encoder of any checkpoint of ours, heads left out; options are those of `from_pretrained`.

    Raises:
        ValueError, OSError: no checkpoint of ours, or a broken one; one sentence.
    """
    return encoder_class(checkpoint).from_pretrained(checkpoint, **options)
