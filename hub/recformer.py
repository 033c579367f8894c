"""Official RecFormer weights (`*.bin`) in our words.

Four layouts of one state dict are known: the bare encoder (`recformer_ckpt.bin`), the encoder as `longformer.*` beside
what is left of a token head (`recformer_seqrec_ckpt.bin`), the same with an item matrix (a fine-tuned
`best_model.bin`), and any of them under the prefixes of Lightning and DeepSpeed (`_forward_module.model.`).
Every key of the file is either placed or named: see `RecFormerWeights`.
"""

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

# A table that only RecFormer has; where it stands says under which prefix the encoder lies.
LANDMARK = "embeddings.item_position_embeddings.weight"
WORDS, ITEMS = "embeddings.word_embeddings.weight", "item_embedding.weight"
LONGFORMER_HEAD_WIDTH, LONGFORMER_WINDOW = 64, 64
HEAD_DECODER = ("decoder.weight", "decoder.bias")


class RecFormerWeights(NamedTuple):
    """What is in an official file."""

    encoder: dict[str, Tensor]  # in Jepa4RecModel's names, which are RecFormer's
    head: dict[str, Tensor]  # of SeqRecLMHead, without prefix, a decoder of its own included; empty where none fits
    items: Tensor | None  # (num_items, d), the item matrix of a fine-tuned model
    left_out: list[str]  # what has no place here, each with the reason


def read_recformer(path: Path, words: Tensor | None = None) -> RecFormerWeights:
    """Sort the keys of an official file.

    Args:
        path: the file.
        words: word embeddings (V, d), for a raw pre-training state that leaves out its frozen ones.

    Raises:
        ValueError: no file of weights alone, not RecFormer's, a key without a known meaning, a weight that is NaN.
        OSError: no such file.
    """
    state = _read_tensors(path)
    prefix = _encoder_prefix(path, state)
    root = prefix.removesuffix("longformer.")
    encoder = {key.removeprefix(prefix): value for key, value in state.items() if _is_encoder(key, prefix)}
    rest = {key.removeprefix(root): value for key, value in state.items() if not _is_encoder(key, prefix)}
    left_out = [f"{prefix}embeddings.position_ids (positions are counted)"] * bool(
        encoder.pop("embeddings.position_ids", None) is not None
    )
    _add_word_embeddings(path, encoder, words)
    head, notes = _take_head(rest, encoder[WORDS])
    items = rest.pop(ITEMS, None)
    if rest:
        raise ValueError(f"{path} holds {_some(rest)}, which RecFormer does not have: nothing is imported.")
    _check_numbers(path, encoder | head | ({} if items is None else {ITEMS: items}))
    return RecFormerWeights(encoder, head, items, left_out + notes)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, in float32. Pickled code is refused by torch before any of it runs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a pickle's age; what matters of it is said below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # each way of being no weights has its own kind
        wants = re.search(r"GLOBAL (\S+)", str(error))
        detail = f"; it asks for {wants[1]}" if wants else ""
        raise ValueError(
            f"{path} is no file of weights alone, so nothing in it was executed or imported{detail}."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # Lightning's own .ckpt
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is no RecFormer checkpoint: it holds something else than named tensors.")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _encoder_prefix(path: Path, state: dict[str, Tensor]) -> str:
    prefixes = [key.removesuffix(LANDMARK) for key in state if key.endswith(LANDMARK)]
    if len(prefixes) != 1:
        what = f"no {LANDMARK}" if not prefixes else f"{len(prefixes)} times {LANDMARK}"
        raise ValueError(f"{path} is no RecFormer checkpoint: it has {what}.")
    return prefixes[0]


def _is_encoder(key: str, prefix: str) -> bool:
    return key.startswith((f"{prefix}embeddings.", f"{prefix}encoder."))


def _add_word_embeddings(path: Path, encoder: dict[str, Tensor], words: Tensor | None) -> None:
    """RecFormer's pre-training freezes the word embeddings, and its raw states may come without them."""
    if WORDS in encoder:
        return
    if words is None:
        raise ValueError(
            f"{path} lacks {WORDS}, frozen in pre-training: name the Longformer they came from (folder or Hub id) "
            "with --word_embeddings."
        )
    encoder[WORDS] = words


def _take_head(rest: dict[str, Tensor], words: Tensor) -> tuple[dict[str, Tensor], list[str]]:
    """Take `lm_head.*` out of `rest`: the head, and its decoder where that is not the word embeddings again."""
    names = [key for key in rest if key.startswith("lm_head.")]
    head = {name.removeprefix("lm_head."): rest.pop(name) for name in names}
    if not head:
        return {}, []
    decoder, twin = head.pop("decoder.weight", words), head.pop("decoder.bias", None)
    if twin is not None:
        head.setdefault("bias", twin)
    known = {"bias", "dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias"}
    fits = set(head) == known and decoder.shape == words.shape and (twin is None or torch.equal(twin, head["bias"]))
    if not fits:
        return {}, [f"{', '.join(names)} (a leftover that is no token head of these words)"]
    if not torch.equal(decoder, words):
        return head | {"decoder.weight": decoder}, ["lm_head.decoder.bias (lm_head.bias again)"] * (twin is not None)
    doubles = [name for name in names if name.endswith(HEAD_DECODER)]
    return head, [f"{', '.join(doubles)} (the word embeddings and lm_head.bias again)"] * bool(doubles)


def _check_numbers(path: Path, weights: dict[str, Tensor]) -> None:
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: {_some(broken)} hold NaN or infinity: fetch the file again.")


def _some(names) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def recformer_shape(path: Path, encoder: dict[str, Tensor], overrides: dict) -> dict:
    """Fields of Jepa4RecConfig: from the tables' shapes, and Longformer's own where weights do not tell.

    Args:
        overrides: fields to set instead, `num_attention_heads` and `attention_window` above all.

    Raises:
        ValueError: a table is missing, or the number of heads cannot be told.
    """
    tables = {name: _table(path, encoder, name) for name in ("word", "position", "token_type", "item_position")}
    (vocabulary, width), positions = tables["word"], tables["position"][0]
    layers = {int(match[1]) for key in encoder if (match := re.match(r"encoder\.layer\.(\d+)\.", key))}
    if not layers:
        raise ValueError(f"{path} is no RecFormer checkpoint: it has no encoder layer.")
    if width % LONGFORMER_HEAD_WIDTH and "num_attention_heads" not in overrides:
        raise ValueError(f"{path}: weights of width {width} do not tell their heads: give --num_attention_heads.")
    ends = encoder.get("encoder.layer.0.intermediate.dense.weight")
    if ends is None:
        raise ValueError(f"{path} lacks encoder.layer.0.intermediate.dense.weight.")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": max(1, width // LONGFORMER_HEAD_WIDTH),
        "intermediate_size": len(ends),
        "max_position_embeddings": positions,
        "position_offset": 2,
        "count_pad_tokens": False,
        "type_vocab_size": tables["token_type"][0],
        "max_item_embeddings": tables["item_position"][0],
        "attention_window": LONGFORMER_WINDOW,
        "pooling": "cls",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    } | overrides


def _table(path: Path, encoder: dict[str, Tensor], name: str) -> tuple[int, int]:
    """Rows and width of an embedding table."""
    table = encoder.get(f"embeddings.{name}_embeddings.weight")
    if table is None or table.dim() != 2:
        raise ValueError(f"{path} lacks the table embeddings.{name}_embeddings.weight.")
    return tuple(table.shape)
