"""Item sentences: attributes of items -> token ids, on top of any fast tokenizer.

An item is a mapping of attribute name to text, a history is a list of items, oldest first. The history becomes one
sentence, newest item first (RecFormer, Figure 2 and eq. 1; JEPA4Rec, sections 3.1 and 3.2):

    [CLS] title Tape brand Acme   title Glue brand Acme      tokens
      0     1    2     1    2       1     2    1    2        token_type_ids: CLS, attribute name, value (pads have 3)
      0     1    1     1    1       2     2    2    2        item_position_ids: CLS, newest item, the one before it

The setting `sentence` chooses ST5's formats instead (`tokenization_st5rec`): items oldest first, between tags.

A catalogue is encoded once into flat arrays (`ItemTokens`); batches are cut out of them by offset arithmetic.
"""

import difflib
import json
import os
import string
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerBase, TokenizersBackend

from .tokenization_st5rec import INSTRUCTION, SENTENCES, TAGS, Marks, item_text, lay_out, words

CLS_TYPE, NAME_TYPE, VALUE_TYPE, PAD_TYPE = range(4)

SETTINGS = {
    "max_attributes": None,  # attributes of an item that are read, in the item's order; None = all
    "max_attribute_tokens": 32,  # tokens of one attribute, name and value together
    "max_items": 50,  # most recent items of a history that are read
    "max_tokens": 1024,  # tokens of a history with its CLS; at most model_max_length unless set
    "attribute_names": True,  # False: only the values are written
    "empty_attributes": False,  # True: the name of an attribute without a value is written, even where all lack one
    "empty_histories": False,  # True: a history without items is its CLS alone; False: it is refused
    "whole_items": False,  # True: leave out an item that does not fit whole; False: cut it at max_tokens
    "pad_item_position": 0,  # item_position_ids of padding
    "sentence": "attributes",  # or ST5's formats, "structured" by tags or "unstructured"; the rest is for those alone
    "instruction": False,  # True: a sentence of explanation stands before every history
    "description": False,  # True: the description follows the title
}
# Padding and truncation are settings of the shared backend, so one call at a time sets and uses them. A process forked
# meanwhile begins with a lock that nobody holds.
_BACKEND = threading.RLock()
CHOICES = {"sentence": ("attributes", *SENTENCES)}

# The format of the ST5 thesis; max_attributes and max_attribute_tokens mean nothing in it.
ST5_SETTINGS = {"sentence": "structured", "max_tokens": 255}

# The tokenisation of the published RecFormer code (fine-tuning configuration).
RECFORMER_SETTINGS = {
    "max_attributes": 3,
    "max_attribute_tokens": 32,
    "max_items": 50,
    "max_tokens": 1024,
    "empty_attributes": True,
    "empty_histories": True,
    "pad_item_position": 50,
}


class ItemTokens(NamedTuple):
    """A catalogue of n items with T tokens in all: item i owns the tokens offsets[i] to offsets[i + 1]."""

    input_ids: np.ndarray  # (T,) int32
    token_type_ids: np.ndarray  # (T,) int8
    offsets: np.ndarray  # (n + 1,) int64

    @property
    def num_items(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every item, (n,) int64."""
        return np.diff(self.offsets)


NO_ITEMS = ItemTokens(np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(1, np.int64))


class ItemSentTokenizer(TokenizersBackend):
    """Any fast tokenizer that also reads items and histories of items.

    The settings (see `SETTINGS`) are keyword arguments of `wrap` and `from_pretrained`; they are saved with the
    tokenizer and belong to the instance, so that tokenizers with different settings live side by side.
    """

    # There is no __init__ on purpose: with one, transformers rebuilds the backend from its vocabulary alone when the
    # class is loaded directly, and silently gives other ids. The settings live in `init_kwargs`.
    model_input_names = ["input_ids", "attention_mask", "token_type_ids", "item_position_ids"]

    @classmethod
    def wrap(cls, tokenizer: PreTrainedTokenizerBase, **settings) -> "ItemSentTokenizer":
        """An ItemSentTokenizer with the vocabulary and ids of `tokenizer`, which stays as it is.

        Settings of a wrapped ItemSentTokenizer are kept where they are not given. Raises ValueError for a tokenizer
        without a fast backend and for unknown or impossible settings.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer: load one that has a tokenizer.json")
        kept = {name: tokenizer.init_kwargs[name] for name in SETTINGS if name in tokenizer.init_kwargs}
        settings = {**kept, **settings}
        for name, value in settings.items():
            _check_setting(name, value)
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_padding()  # sentence-transformers save a fixed length, which is no property of the vocabulary
        backend.no_truncation()
        return cls(tokenizer_object=backend, **_special_tokens(tokenizer), **_text_options(tokenizer), **settings)

    max_attributes = property(lambda self: self._setting("max_attributes"))
    max_attribute_tokens = property(lambda self: self._setting("max_attribute_tokens"))
    max_items = property(lambda self: self._setting("max_items"))
    attribute_names = property(lambda self: self._setting("attribute_names"))
    empty_attributes = property(lambda self: self._setting("empty_attributes"))
    empty_histories = property(lambda self: self._setting("empty_histories"))
    whole_items = property(lambda self: self._setting("whole_items"))
    pad_item_position = property(lambda self: self._setting("pad_item_position"))
    sentence = property(lambda self: self._setting("sentence"))
    instruction = property(lambda self: self._setting("instruction"))
    description = property(lambda self: self._setting("description"))

    @property
    def max_tokens(self) -> int:
        if "max_tokens" in self.init_kwargs:
            return self._setting("max_tokens")
        return min(SETTINGS["max_tokens"], self.model_max_length)

    def _setting(self, name: str) -> Any:
        if self.init_kwargs.get("title_attributes") is not None:
            raise ValueError("title_attributes is no longer a setting: call the attribute that is the title title")
        value = self.init_kwargs.get(name, SETTINGS[name])
        _check_setting(name, value)  # from_pretrained(..., max_items=0) comes past no constructor of ours
        return value

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in force, by name."""
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def pad_token_type_id(self) -> int:
        return PAD_TYPE

    @property
    def first_token_id(self) -> int:
        """The id that opens every history (ends it, with `cls_last`): CLS, or BOS for tokenizers without CLS."""
        for token_id in (self.cls_token_id, self.bos_token_id):
            if token_id is not None:
                return token_id
        raise ValueError("the tokenizer has neither a cls_token nor a bos_token to open a history: set one of them")

    @property
    def cls_last(self) -> bool:
        """Whether a row's CLS ends it instead of opening it: where the tokenizer itself ends a text with its CLS, as
        tokenizers of embedding models with a decoder do (its last token alone sees the whole row)."""
        return self.cls_token_id is not None and self._tokenizer.encode("a").ids[-1] == self.cls_token_id

    @property
    def opening_ids(self) -> list[int]:
        """What stands before a row's items where its CLS comes last: the BOS that some decoders begin every text with,
        else nothing."""
        begins_with_bos = self.cls_last and self._tokenizer.encode("a").ids[0] == self.bos_token_id
        return [self.bos_token_id] if begins_with_bos else []

    # ---- items -> ItemTokens

    @staticmethod
    def in_words(value: Any) -> str:
        """An attribute's value as it is read: text as it stands, lists and objects in words."""
        return value if isinstance(value, str) else words(value)

    def encode_items(self, items: Iterable[Mapping[str, Any]], item_ids: Sequence | None = None) -> ItemTokens:
        """Tokens of every item, each distinct word or string encoded once.

        None, NaN, NaT, NA and empty values are left out, all others that are no text read as their `words`: `id 1
        name Acme` of {"id": 1, "name": "Acme"}. Raises ValueError for an empty catalogue and for an item without
        text, named by its index (and its `item_ids` entry).
        """

        def label(i):
            known = item_ids is not None and item_ids[i] is not None
            return f"item {i} (id {item_ids[i]!r})" if known else f"item {i}"

        if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
            raise ValueError(f"the items are one {type(items).__name__}: give a list of {{attribute: text}}")
        return self._encode_items(list(items), label)

    def _encode_items(self, items: list, label) -> ItemTokens:
        if not items:
            raise ValueError("there is no item to encode: the catalogue is empty")
        if self.sentence != "attributes":
            return self._encode_item_texts(items, label)
        strings, refs, counts = self._collect_attributes(items, label)
        _check_every_item_has_text(counts, label)
        ids, starts, lengths = self._encode_strings(strings)
        keep = self._kept_tokens(lengths[refs])
        written = keep.sum(1) if self.empty_attributes else lengths[refs[:, 1]]
        _check_every_item_has_text(_sums(written, counts), label)
        return ItemTokens(
            input_ids=ids[_ranges(starts[refs].ravel(), keep.ravel())],
            token_type_ids=np.repeat(np.tile(np.int8([NAME_TYPE, VALUE_TYPE]), len(keep)), keep.ravel()),
            offsets=_from_zero(keep.sum(1))[_from_zero(counts)],
        )

    def _encode_item_texts(self, items: list, label) -> ItemTokens:
        """Tokens of the texts that ST5's sentences are made of, without tags."""
        index: dict[str, int] = {}
        places = np.empty(len(items), np.int64)
        for i, item in enumerate(items):
            text = item_text(_text_attributes(item, label(i)), self.description)
            if not text:
                raise ValueError(f"{label(i)} has no text: give it a title or remove it")
            places[i] = index.setdefault(text, len(index))
        ids, starts, lengths = self._encode_strings(list(index))
        keep = np.minimum(lengths, self.max_tokens)[places]
        input_ids = ids[_ranges(starts[places], keep)]
        return ItemTokens(input_ids, np.full(len(input_ids), VALUE_TYPE, np.int8), _from_zero(keep))

    def _collect_attributes(self, items, label) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Distinct strings; (attributes, 2) index of each attribute's name and value in them; attributes per item."""
        limit, keep_empty = self.max_attributes, self.empty_attributes
        index: dict[str, int] = {}
        refs, counts = [], []
        for i, item in enumerate(items):
            if not isinstance(item, Mapping):
                raise ValueError(f"{label(i)} is a {type(item).__name__}: give a mapping of attribute name to text")
            before = len(refs)
            for name, value in item.items():
                if type(value) is not str:
                    value = _text_of(value, lambda: f"attribute {name!r} of {label(i)}")  # noqa: B023
                if keep_empty or (value and not value.isspace()):
                    refs.append((index.setdefault(str(name), len(index)), index.setdefault(value, len(index))))
                    if len(refs) - before == limit:
                        break
            counts.append(len(refs) - before)
        return list(index), np.array(refs, np.int64).reshape(-1, 2), np.array(counts, np.int64)

    def _kept_tokens(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens of name and value that are written, (attributes, 2): the limit holds for both together."""
        limit = self.max_attribute_tokens
        names = np.minimum(lengths[:, 0], limit) if self.attribute_names else np.zeros(len(lengths), np.int64)
        return np.stack([names, np.minimum(lengths[:, 1], limit - names)], 1)

    # ---- strings -> ids

    def _encode_strings(self, strings: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All ids (T,) int32 without special tokens, and where in them every string starts and how many it has.

        Equal to `self(string, add_special_tokens=False)` and faster: see `_Words`.
        """
        strings = [text if text.isascii() else _utf8(text) for text in strings]
        starts, lengths = np.zeros((2, len(strings)), np.int64)
        parts, total = [], 0
        for members, encode in self._ways_to_encode(strings):
            ids, part_lengths = encode([strings[i] for i in members])
            starts[members], lengths[members] = total + np.cumsum(part_lengths) - part_lengths, part_lengths
            parts, total = [*parts, ids], total + len(ids)
        return np.concatenate(parts), starts, lengths

    def _ways_to_encode(self, strings: list[str]) -> list[tuple[list[int], Callable]]:
        """Groups of strings by their index, each with the fastest exact way to encode it."""
        added = self._holding_added_tokens(strings)
        rest = [i for i in range(len(strings)) if i not in added] if added else range(len(strings))
        words = _Words(self._tokenizer)
        plain = [i for i in rest if words.is_plain(strings[i])]
        other = [i for i in rest if not words.is_plain(strings[i])]
        ways = [(plain, words.encode_plain), (other, words.encode), (sorted(added), self._encode_with_added_tokens)]
        return [(members, encode) for members, encode in ways if members]

    def _holding_added_tokens(self, strings: list[str]) -> set[int]:
        """Indices of the strings that hold an added token such as `[SEP]`, which only the whole backend finds."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        if self._tokenizer.normalizer is not None and any(token.normalized for token in added):
            return set(range(len(strings)))  # these are looked for in the normalized text
        text = "\n".join(strings)
        present = [token.content for token in added if token.content in text]
        return {i for i, s in enumerate(strings) if any(content in s for content in present)} if present else set()

    def _encode_with_added_tokens(self, strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flatten(super().__call__(strings, add_special_tokens=False, return_token_type_ids=False)["input_ids"])

    # ---- histories of item indices -> model inputs

    def batch_histories(
        self,
        item_tokens: ItemTokens,
        histories: Sequence[Sequence[int] | np.ndarray],
        return_tensors: str | None = "pt",
        max_items: int | None = None,
        max_tokens: int | None = None,
        padding: bool | str = True,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        allow_empty: bool = False,
        alone: bool = False,
    ) -> BatchEncoding:
        """Model inputs of B histories (item indices, oldest first), int64 (B, L), without Python work per token.

        Args:
            return_tensors: "pt", "np" or None for lists (only lists may stay unpadded, `padding=False`).
            max_items, max_tokens: override the settings of the same name.
            padding: True or "longest", or "max_length" for L = max_tokens.
            allow_empty: an empty history is its CLS alone (in ST5's formats: the marks around a history), whatever the
                setting `empty_histories` says.
            alone: each history is one item, to be read as an item: ST5's formats then leave a history's tags out.

        Raises:
            ValueError: an empty history (unless allowed) or an index outside the catalogue, named by its row.
        """
        marks = None if self.sentence == "attributes" else self._marks(alone)
        max_items, max_tokens = max_items or self.max_items, max_tokens or self.max_tokens
        allow_empty = allow_empty or self.empty_histories
        rows, items, positions = _newest_items(histories, max_items, item_tokens.num_items, allow_empty)
        if marks is None:
            starts, keep = self._place_items(item_tokens.lengths[items], rows, positions, max_tokens)
            around = 1 + len(self.opening_ids)
            lengths = around + np.bincount(rows, keep, len(histories)).astype(np.int64)
        else:
            layout = lay_out(item_tokens.lengths[items], rows, positions, len(histories), marks, max_tokens)
            rows, items, positions = rows[layout.kept], items[layout.kept], positions[layout.kept]
            starts, keep, lengths = layout.starts + len(marks.item_opening), layout.texts, layout.rows
        width = max_tokens if padding == "max_length" else int(lengths.max())
        width += -width % (pad_to_multiple_of or 1)
        shift = (width - lengths) if (padding_side or self.padding_side) == "left" else np.zeros_like(lengths)
        source = _ranges(item_tokens.offsets[items], keep)
        target = _ranges(rows * width + shift[rows] + starts, keep)
        arrays = self._padded_arrays(lengths, shift, width, opened=marks is None)
        arrays["input_ids"].reshape(-1)[target] = item_tokens.input_ids[source]
        arrays["token_type_ids"].reshape(-1)[target] = item_tokens.token_type_ids[source]
        arrays["item_position_ids"].reshape(-1)[target] = np.repeat(positions, keep)
        if marks is not None:
            begins = np.arange(len(lengths)) * width + shift
            self._write_marks(arrays, marks, layout, begins, begins[rows] + layout.starts, positions)
        if return_tensors is None:
            return BatchEncoding(_as_lists(arrays, unpadded=padding is False))
        return BatchEncoding(arrays, tensor_type=return_tensors)

    def batch_items(self, item_tokens: ItemTokens, items: Sequence[int] | np.ndarray, **options) -> BatchEncoding:
        """Model inputs of B items (indices), each read alone; options are those of `batch_histories`."""
        return self.batch_histories(item_tokens, np.asarray(items, np.int64)[:, None], alone=True, **options)

    def _marks(self, alone: bool) -> Marks:
        """What ST5's format writes around texts; what the vocabulary itself opens and ends a text with, outermost.

        Raises:
            ValueError: the vocabulary has no tags.
        """
        first = next((i for i in (self.cls_token_id, self.bos_token_id) if i is not None), None)
        last = next((i for i in (self.eos_token_id, self.sep_token_id) if i is not None), None)
        opening, closing = ([] if i is None else [i] for i in (first, last))
        if self.cls_last:
            opening, closing = self.opening_ids, [first]
        if self.instruction and not alone:
            opening = opening + super().__call__(INSTRUCTION, add_special_tokens=False)["input_ids"]
        if self.sentence == "unstructured":
            comma = self.get_vocab().get(",")
            separator = super().__call__(",", add_special_tokens=False)["input_ids"] if comma is None else [comma]
            return Marks(opening, [], [], separator, closing)
        missing = [tag for tag in TAGS if tag not in self.get_vocab()]
        if missing:
            raise ValueError(f'sentence="structured" needs the tags of T5 in the vocabulary, and {missing[0]} is not')
        start, item_start, item_end, end = self.convert_tokens_to_ids(list(TAGS))
        if alone:
            return Marks(opening, [item_start], [item_end], [], closing)
        return Marks([*opening, start], [item_start], [item_end], [], [end, *closing])

    def _write_marks(self, arrays, marks: Marks, layout, begins, item_begins, positions) -> None:
        """Put marks into arrays (B, L) that hold the texts; `begins` (B,) and `item_begins` (n,) are flat slots."""
        ends, item_ends = begins + layout.rows, item_begins + layout.sizes
        separated = positions > 1
        text_ends = item_ends - separated * len(marks.separator)
        outside = [(begins, marks.opening), (ends - len(marks.closing), marks.closing)]
        inside = [(item_begins, marks.item_opening), (text_ends - len(marks.item_closing), marks.item_closing)]
        inside += [(text_ends[separated], marks.separator)]
        for places, ids in outside + inside:
            for column, token_id in enumerate(ids):
                arrays["input_ids"].reshape(-1)[places + column] = token_id
                arrays["token_type_ids"].reshape(-1)[places + column] = VALUE_TYPE
                arrays["item_position_ids"].reshape(-1)[places + column] = 0
        tagged = _ranges(item_begins, layout.sizes)
        arrays["item_position_ids"].reshape(-1)[tagged] = np.repeat(positions, layout.sizes)
        if marks.opening and marks.opening[0] in (self.cls_token_id, self.bos_token_id):
            arrays["token_type_ids"].reshape(-1)[begins] = CLS_TYPE
        if self.cls_last:
            arrays["token_type_ids"].reshape(-1)[ends - 1] = CLS_TYPE

    def _place_items(self, lengths, rows, positions, max_tokens) -> tuple[np.ndarray, np.ndarray]:
        """First column of every item (CLS and BOS have their own) and how many of its tokens fit below max_tokens."""
        ends = np.cumsum(lengths)
        newest = positions == 1
        row_begins = np.zeros(rows.max(initial=0) + 1, np.int64)
        row_begins[rows[newest]] = (ends - lengths)[newest]
        starts = 1 + len(self.opening_ids) + (ends - lengths) - row_begins[rows]
        keep = np.clip(max_tokens - starts, 0, lengths)
        if self.whole_items:
            keep[(keep < lengths) & ~newest] = 0  # the newest item is cut rather than lost
        return starts - int(self.cls_last), keep

    def _padded_arrays(self, lengths, shift, width, opened: bool) -> dict[str, np.ndarray]:
        """Arrays (B, width) that hold the padding and, where rows are `opened` by one, the CLS (and a BOS)."""
        if self.pad_token_id is None:
            raise ValueError("the tokenizer has no pad_token: set one, for example tokenizer.pad_token = '<pad>'")
        columns = np.arange(width) - shift[:, None]
        real = (columns >= 0) & (columns < lengths[:, None])
        cls = (columns == (lengths[:, None] - 1 if self.cls_last else 0)) & opened
        input_ids = np.where(cls, self.first_token_id if opened else 0, self.pad_token_id)
        for token_id in self.opening_ids if opened else ():
            input_ids[columns == 0], cls = token_id, cls | (columns == 0)
        return {
            "input_ids": input_ids,
            "attention_mask": real.astype(np.int64),
            "token_type_ids": np.where(cls, CLS_TYPE, PAD_TYPE),
            "item_position_ids": np.where(cls, 0, self.pad_item_position),
        }

    # ---- the tokenizer's own interface

    def __call__(self, text=None, *args, **kwargs) -> BatchEncoding:
        """Plain text as every tokenizer; or a batch of histories, one history, or one item.

        Histories come back padded when `return_tensors` is given; one history gives flat lists without it, as one
        text does. `padding`, `max_length`, `pad_to_multiple_of`, `padding_side` and `return_tensors` have their usual
        meaning; a history that is too long always loses its oldest tokens.
        """
        histories = None if kwargs.get("is_split_into_words") else _as_histories(text)
        if histories is not None:
            alone = isinstance(text, Mapping)
            return self._encode_histories(histories, *args, single=histories is not text, alone=alone, **kwargs)
        # A plain text is one item of values: without token types the model gives it just that, whereas the zeros of a
        # BERT tokenizer would make a CLS of every token.
        kwargs.setdefault("return_token_type_ids", False)
        try:
            return super().__call__(text, *args, **kwargs)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "the input does not read as text (one or several), an item {attribute: text} or a history of items, "
                f"oldest first: {' '.join(str(error).split())}"
            ) from error

    def _encode_histories(
        self,
        histories,
        *,
        single: bool,
        alone: bool,
        padding: bool | str | None = None,
        truncation: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        for row, history in enumerate(histories):
            if len(history) == 0 and not self.empty_histories:
                raise ValueError(f"history {row} is empty: give at least one item")
        # What is too old to be read is not encoded either, which would take seconds for the longest histories.
        newest = [range(max(0, len(history) - self.max_items), len(history)) for history in histories]
        places = [(row, i) for row, own in enumerate(newest) for i in own]
        items = [histories[row][i] for row, i in places]
        item_tokens = NO_ITEMS
        if items:
            item_tokens = self._encode_items(items, lambda i: "item {1} of history {0}".format(*places[i]))
        ends = np.cumsum(list(map(len, newest)))
        batch = self.batch_histories(
            item_tokens,
            [np.arange(end - len(own), end) for end, own in zip(ends, newest, strict=True)],
            return_tensors=return_tensors,
            max_tokens=max_length,
            padding=return_tensors is not None if padding is None else padding,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            alone=alone,
        )
        flat = single and return_tensors is None
        return BatchEncoding({name: rows[0] for name, rows in batch.items()}) if flat else batch

    def _encode_plus(self, *args, **kwargs) -> BatchEncoding:
        with _BACKEND:
            return super()._encode_plus(*args, **kwargs)

    def _pad(self, encoded_inputs, *args, padding_side=None, **kwargs) -> dict:
        before = len(encoded_inputs["input_ids"])
        padded = super()._pad(encoded_inputs, *args, padding_side=padding_side, **kwargs)
        pads = [self.pad_item_position] * (len(padded["input_ids"]) - before)
        if pads and "item_position_ids" in padded:
            positions = list(padded["item_position_ids"])
            left = (padding_side or self.padding_side) == "left"
            padded["item_position_ids"] = pads + positions if left else positions + pads
        return padded


ItemSentTokenizer.register_for_auto_class()


def _renew_lock() -> None:
    global _BACKEND
    _BACKEND = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _check_setting(name: str, value: Any) -> None:
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1) or list(SETTINGS)
        raise ValueError(f"unknown tokenizer setting {name!r}: did you mean {' or '.join(map(repr, near))}?")
    if name in CHOICES:
        fits, wanted = value in CHOICES[name], f"one of {', '.join(CHOICES[name])}"
    elif isinstance(SETTINGS[name], bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif value is None:
        fits, wanted = SETTINGS[name] is None, "a whole number"
    else:
        smallest = {"pad_item_position": 0, "max_tokens": 2}.get(name, 1)
        fits = isinstance(value, int) and not isinstance(value, bool) and smallest <= value < 2**31
        wanted = f"a whole number of at least {smallest}"
    if not fits:
        raise ValueError(f"tokenizer setting {name!r} is {value!r}: it must be {wanted}")


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    tokens = dict(tokenizer.special_tokens_map)
    extra = list(getattr(tokenizer, "extra_special_tokens", None) or [])
    return {**tokens, "extra_special_tokens": extra} if extra else tokens


def _text_options(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    names = ("model_max_length", "padding_side", "truncation_side", "split_special_tokens")
    return {name: getattr(tokenizer, name) for name in names}


def _as_histories(text) -> list | None:
    """The histories in the argument of a call, or None for plain text."""
    if isinstance(text, Mapping):
        return [[text]]
    if not isinstance(text, (list, tuple)):
        return None
    if len(text) == 0:
        raise ValueError("the input is empty: give a text, an item, or a history of at least one item")
    if isinstance(text[0], Mapping):
        return [text]
    lists = all(isinstance(history, (list, tuple)) for history in text)
    items = lists and any(isinstance(item, Mapping) for history in text for item in history[:1])
    return text if items or (lists and not any(text)) else None


def _text_attributes(item: Any, label: str) -> dict[str, str]:
    """An item's attributes as text, "" for those without."""
    if not isinstance(item, Mapping):
        raise ValueError(f"{label} is a {type(item).__name__}: give a mapping of attribute name to text")
    texts = {name: _text_of(value, lambda: f"attribute {name!r} of {label}") for name, value in item.items()}  # noqa: B023
    return {name: "" if text.isspace() else text for name, text in texts.items()}


def _utf8(text: str) -> str:
    """Half a surrogate pair, as broken emoji leave behind, has no UTF-8 and becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _text_of(value: Any, label) -> str:
    """Text of an attribute value that is no string; "" for a missing one."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        raise ValueError(f"{label()} is a {type(value).__name__}: give text, a number, or a list or object of them")
    try:
        return words(value)
    except RecursionError:
        raise ValueError(f"{label()} holds lists or objects in themselves without end: give text") from None


def _check_every_item_has_text(value_tokens: np.ndarray, label) -> None:
    if not value_tokens.all():
        where = label(int(np.argmin(value_tokens)))
        raise ValueError(f"{where} has no text: give it an attribute with a value or remove it")


class _Words:
    """A backend that encodes every distinct word once, where its words are known to be independent.

    Three things make it fast and leave the ids as they are: distinct words instead of whole texts; a bare backend
    (same model, normalizer and pre-tokenizer, shared and not copied) without post-processor and search for added
    tokens; and no normalizer for printable ASCII, which these normalizers at most turn into lower case.
    """

    # A space separates words for these pre-tokenizers; ByteLevel gives it to the word behind it. Under the
    # normalizers named for each, words stay independent. Everything else is encoded as whole texts.
    UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
    NORMALIZERS = {
        "BertPreTokenizer": {"BertNormalizer", "Lowercase", "StripAccents", *UNICODE_FORMS},
        "WhitespaceSplit": {"BertNormalizer", "Lowercase", "StripAccents", *UNICODE_FORMS},
        "Whitespace": {"BertNormalizer", "Lowercase", "StripAccents", *UNICODE_FORMS},
        "ByteLevel": {"Lowercase", "NFC"},
    }

    def __init__(self, backend: Tokenizer):
        self.normalizers = _state_parts(backend.normalizer, "normalizers")
        pre_tokenizers = _state_parts(backend.pre_tokenizer, "pretokenizers")
        types = {part["type"] for part in self.normalizers}
        kind = pre_tokenizers[0]["type"] if len(pre_tokenizers) == 1 else None
        whole_texts = kind not in self.NORMALIZERS or not pre_tokenizers[0].get("use_regex", True)
        self.independent = not whole_texts and types <= self.NORMALIZERS[kind]
        self.split = _whole_text
        if self.independent:
            self.split = _words_with_space if kind == "ByteLevel" else _words_between_spaces
        self.isolates_punctuation = kind == "BertPreTokenizer"
        self.bare, self.unnormalized = _bare(backend, backend.normalizer), _bare(backend, None)

    def is_plain(self, text: str) -> bool:
        """Whether `encode_plain` may encode it."""
        return bool(self.normalizers) and self.independent and text.isascii() and text.isprintable()

    def encode_plain(self, strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
        text = "\n".join(strings)
        if any(part["type"] == "Lowercase" or part.get("lowercase") for part in self.normalizers):
            text = text.lower()
        if self.isolates_punctuation:  # "Red," and "Red" are then one word
            for mark in filter(text.__contains__, string.punctuation):
                text = text.replace(mark, f" {mark} ")
        split = str.split if self.split is _words_between_spaces else self.split
        return self._encode_words(self.unnormalized, text.split("\n"), split)

    def encode(self, strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return self._encode_words(self.bare, strings, self.split)

    def _encode_words(self, backend: Tokenizer, strings: list[str], split) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all strings one after the other, and the number of each string's ids."""
        split_strings = list(map(split, strings))
        counts = np.fromiter(map(len, split_strings), np.int64, len(strings))
        words = list(chain.from_iterable(split_strings))
        index = {word: i for i, word in enumerate(dict.fromkeys(words))}
        encodings = backend.encode_batch_fast(list(index), add_special_tokens=False)
        ids, lengths = _flatten([encoding.ids for encoding in encodings])
        refs = np.fromiter(map(index.__getitem__, words), np.int64, len(words))
        return ids[_ranges((np.cumsum(lengths) - lengths)[refs], lengths[refs])], _sums(lengths[refs], counts)


# Ways to cut a text; the ids of the parts, one after the other, are those of the text.


def _whole_text(text: str) -> list[str]:
    return [text]


def _words_between_spaces(text: str) -> list[str]:
    return text.split(" ")


def _words_with_space(text: str) -> list[str]:
    """A word owns the space before it; a text with runs of spaces or other white space stays whole."""
    words = text.split(" ")
    if "  " in text or text.split() != [word for word in words if word]:
        return [text]
    return words[:1] * bool(words[0]) + [" " + word for word in words[1:]]


def _state_parts(component, parts_name: str) -> list[dict]:
    """The settings of a normalizer or pre-tokenizer, those of its parts for a sequence of them."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    return state.get(parts_name, [state])


def _bare(backend: Tokenizer, normalizer) -> Tokenizer:
    bare = Tokenizer(backend.model)
    if normalizer is not None:
        bare.normalizer = normalizer
    if backend.pre_tokenizer is not None:
        bare.pre_tokenizer = backend.pre_tokenizer
    return bare


def _newest_items(
    histories, max_items: int, num_items: int, allow_empty: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, item index and item position (1 = newest) of the max_items newest items of all histories."""
    lengths = np.fromiter(map(len, histories), np.int64, len(histories))
    if len(lengths) == 0 or not (allow_empty or lengths.all()):
        where = f"history {int(np.argmin(lengths))} is empty" if len(lengths) else "there is no history"
        raise ValueError(f"{where}: give at least one item")
    flat = np.concatenate([np.asarray(history, np.int64) for history in histories])
    ends = np.cumsum(lengths)
    kept = np.minimum(lengths, max_items)
    rows = np.repeat(np.arange(len(kept)), kept)
    positions = 1 + _ranges(np.zeros_like(kept), kept)
    items = flat[ends[rows] - positions]
    outside = (items < 0) | (items >= num_items)
    if outside.any():
        first = int(np.argmax(outside))
        raise ValueError(f"history {rows[first]} holds item {items[first]}, but the catalogue has {num_items} items")
    return rows, items, positions


def _as_lists(arrays: dict[str, np.ndarray], unpadded: bool) -> dict[str, list[list[int]]]:
    real = arrays["attention_mask"].astype(bool) | (not unpadded)
    return {name: [row[kept].tolist() for row, kept in zip(rows, real, strict=True)] for name, rows in arrays.items()}


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices start, start + 1, ..., start + length - 1 of all ranges, one after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def _flatten(rows: list) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over consecutive groups of `counts` values."""
    return np.diff(_from_zero(values)[_from_zero(counts)])


def _from_zero(counts: np.ndarray) -> np.ndarray:
    """Cumulative sum that begins with 0: where consecutive groups start, and the end of the last one."""
    return np.concatenate([[0], np.cumsum(counts)])
