"""The folder of a Sentence-T5, as sentence-transformers writes it: read into our model, and written from it.

    config.json model.safetensors tokenizer*    T5's encoder        2_Dense/       a dense layer without bias
    modules.json                                what follows it     3_Normalize/   nothing but its name
    1_Pooling/                                  the mean

Nothing of sentence-transformers itself is needed.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Config, T5EncoderModel
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import cached_file

from ..modeling_st5rec import St5RecConfig, St5RecModel
from ..tokenization_itemsent import ST5_SETTINGS, ItemSentTokenizer
from ..tokenization_st5rec import INSTRUCTION, TAGS, item_text

MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
DENSE_FILES = ("model.safetensors", "pytorch_model.bin")  # the newer first
IDENTITY = "Identity"
# T5Config's fields that say nothing about an encoder's shape.
LEFT_OUT = ("model_type", "architectures", "transformers_version", "dtype", "is_encoder_decoder", "use_cache")


def read_sentence_t5(source: str, config: PreTrainedConfig, **overrides) -> St5RecModel:
    """The model of a folder or Hub id whose config.json is T5's; its vectors are those of sentence-transformers.

    Args:
        overrides: fields of `St5RecConfig`, such as `dropout_rate`.

    Raises:
        ValueError, OSError: modules other than encoder, mean, dense, normalisation, or one of them missing or broken.
    """
    unknown = sorted(set(overrides) - set(St5RecConfig.__dataclass_fields__))
    if unknown:
        raise ValueError(f"{source}: {unknown[0]} is nothing that a Sentence-T5 has.")
    folders = _check_modules(source)
    _check_pooling(source, folders["Pooling"])
    dense = _read_dense(source, folders["Dense"], config.d_model)
    encoder, info = T5EncoderModel.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{source} lacks {len(missing)} weights of the encoder, the first of them {missing[0]}.")
    shape = {name: value for name, value in config.to_dict().items() if name not in LEFT_OUT}
    model = St5RecModel(St5RecConfig(**{**shape, "projection_size": len(dense), **overrides}))
    try:
        model.t5.load_state_dict(encoder.state_dict())
        model.projection.load_state_dict({"weight": dense})
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit its own config: {str(error).splitlines()[1].strip()}") from error
    return model.eval()


def read_max_tokens(source: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a text that sentence-transformers reads; the thesis' 255 where neither folder nor tokenizer says."""
    path = find_file(source, "sentence_bert_config.json")
    limit = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length") if path else None
    limit = limit or tokenizer.model_max_length
    return ST5_SETTINGS["max_tokens"] if limit >= VERY_LARGE_INTEGER else limit


def _check_modules(source: str) -> dict[str, str]:
    """Folder of each module, by its kind."""
    path = find_file(source, "modules.json")
    if path is None:
        raise ValueError(
            f"{source} is a T5 without modules.json: its dense layer (2_Dense) is missing, and without that it is no "
            "Sentence-T5; take a sentence-transformers/sentence-t5-* folder."
        )
    modules = json.loads(path.read_text(encoding="utf-8"))
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds != list(MODULES):
        lost = [kind for kind in MODULES if kind not in kinds]
        wrong = f"{', '.join(lost)} is missing" if lost else "these are others"
        raise ValueError(
            f"{path}: a Sentence-T5 is made of {', '.join(MODULES)}; {wrong} (found {', '.join(kinds) or 'nothing'})."
        )
    return {kind: module["path"] for kind, module in zip(kinds, modules, strict=True)}


def find_file(source: str, name: str, subfolder: str = "") -> Path | None:
    """A file of a checkpoint in a folder or on the Hub; None where it has none."""
    path = cached_file(
        source, name, subfolder=subfolder,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if path is None else Path(path)


def _read_settings(source: str, subfolder: str) -> tuple[Path, dict]:
    path = find_file(source, "config.json", subfolder)
    if path is None:
        raise ValueError(f"{source} names {subfolder} in its modules.json, but {subfolder}/config.json is missing.")
    return path, json.loads(path.read_text(encoding="utf-8"))


def _check_pooling(source: str, subfolder: str) -> None:
    path, settings = _read_settings(source, subfolder)
    modes = {key.removeprefix("pooling_mode_") for key, value in settings.items() if value is True}
    modes = modes - {"include_prompt"} or {settings.get("pooling_mode")}
    if modes not in ({"mean_tokens"}, {"mean"}):
        raise ValueError(f"{path}: Sentence-T5 takes the mean over tokens, this one {', '.join(map(str, modes))}.")


def _read_dense(source: str, subfolder: str, width: int) -> Tensor:
    """The weight (out, in) of the dense layer."""
    path, settings = _read_settings(source, subfolder)
    activation = str(settings.get("activation_function", "")).rpartition(".")[2]
    if settings.get("bias") is not False or activation != IDENTITY:
        raise ValueError(f"{path}: the dense layer of a Sentence-T5 has no bias and no activation, this one has.")
    found = next((path for name in DENSE_FILES if (path := find_file(source, name, subfolder))), None)
    if found is None:
        raise ValueError(f"{source} lacks the weights of its dense layer, {subfolder}/{DENSE_FILES[0]}.")
    try:
        safe = found.suffix == ".safetensors"
        weights = load_file(found) if safe else torch.load(found, weights_only=True, map_location="cpu")
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{found} is truncated or corrupt ({str(error).splitlines()[0]}); fetch it again.") from error
    weight = weights.get("linear.weight")
    if weight is None or weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(f"{found} must hold linear.weight for an encoder of width {width}.")
    return weight.float()


# ------------------------------------------------------------------------------------------------ writing


def write_sentence_t5(model: St5RecModel, tokenizer: ItemSentTokenizer, folder: str | Path) -> None:
    """Write a folder that `SentenceTransformer(folder)` opens and that gives the model's vectors for plain texts.

    It reads sentences as they are: an item is its tags and text, `<extra_id_1>TITLE: …<extra_id_2>`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ours = model.config.to_dict()
    config = T5Config(**{k: v for k, v in ours.items() if k in T5Config.__dataclass_fields__ and k not in LEFT_OUT})
    with torch.device("meta"):
        encoder = T5EncoderModel(config)
    encoder.load_state_dict(model.t5.state_dict(), assign=True)
    encoder.tie_weights()
    encoder.save_pretrained(folder)
    _plain_tokenizer(tokenizer).save_pretrained(folder)
    weight = model.projection.weight.detach().cpu().contiguous()
    dense = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": False}
    dense["activation_function"] = "torch.nn.modules.linear.Identity"
    pooling = {"word_embedding_dimension": weight.shape[1], "pooling_mode_mean_tokens": True}
    paths = ("", "1_Pooling", "2_Dense", "3_Normalize")
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(zip(MODULES, paths, strict=True))
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": tokenizer.max_tokens, "do_lower_case": False})
    _write(folder / "1_Pooling" / "config.json", pooling)
    _write(folder / "2_Dense" / "config.json", dense)
    _write(folder / "3_Normalize" / "config.json", {})
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})


def write_sentence(tokenizer: ItemSentTokenizer, item_or_history: Mapping | Sequence[Mapping]) -> str:
    """The plain text that the tokenizer reads an item or a history as, where nothing of it has to be cut."""
    alone = isinstance(item_or_history, Mapping)
    items = [item_or_history] if alone else item_or_history
    texts = [item_text(item, tokenizer.description) for item in items]
    begin = f"{INSTRUCTION} " if tokenizer.instruction and not alone else ""
    if tokenizer.sentence == "unstructured":
        return begin + ", ".join(texts)
    start, item_start, item_end, end = TAGS
    sentence = "".join(f"{item_start}{text}{item_end}" for text in texts)
    return sentence if alone else f"{begin}{start}{sentence}{end}"


def _plain_tokenizer(tokenizer: ItemSentTokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer without what reads items, so that no code has to be trusted."""
    names = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    extra = list(tokenizer.extra_special_tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=tokenizer.max_tokens,
        extra_special_tokens=extra,
        **names,
    )


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
