"""Columns of any type -> plain text; what is nested reads as the tokenizer reads it (`words`)."""

import ast
import contextlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..tokenization_st5rec import words

DEEPEST = 100  # lists and objects within each other, of JSON that is read
_EMPTY_FRACTION = r"\.0+($|[Z+-])"  # of a time's second, which Arrow writes out for every unit but seconds


def as_text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A column of any Arrow type as strings: null as "", whole floats without ``.0``, nested values in words."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return as_text(column.cast(kind.storage_type))
    if pa.types.is_dictionary(kind):
        return as_text(column.cast(kind.value_type))
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    if pa.types.is_nested(kind) or pa.types.is_duration(kind) or pa.types.is_interval(kind) or is_binary:
        return _in_words(column)
    texts = _of_floats(column) if pa.types.is_floating(kind) else column.cast(pa.string())
    if pa.types.is_timestamp(kind):
        texts = pc.replace_substring_regex(texts, _EMPTY_FRACTION, r"\1")
    return pc.fill_null(texts, "")


def _of_floats(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Whole numbers with all their digits, which Arrow writes as 1.7e+12; not a number as null."""
    floats = column.cast(pa.float64())
    whole = pc.and_(pc.equal(pc.floor(floats), floats), pc.less(pc.abs(floats), 2.0**53))
    digits = pc.if_else(whole, floats, None).cast(pa.int64()).cast(pa.string())
    return pc.if_else(pc.is_nan(floats), None, pc.coalesce(digits, column.cast(pa.string())))


def _in_words(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    texts = pa.array(map(words, column.to_pylist()), pa.string())
    return pa.chunked_array([texts]) if isinstance(column, pa.ChunkedArray) else texts


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text: strings in any encoding, or lists and structs with strings somewhere inside."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_text(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    if pa.types.is_nested(kind):
        return any(is_text(kind.field(place).type) for place in range(kind.num_fields))
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


# Lists and objects inside a text


def open_nested(texts: pa.Array) -> pa.Array:
    """Texts that are a list or an object in JSON (or as Python prints it) -> the words in it; others as they stand."""
    nested = pc.match_substring_regex(texts, r"(?s)^\s*(\[.*\]|\{.*\})\s*$")
    if not pc.any(nested).as_py():
        return texts
    return pc.replace_with_mask(texts, nested, pa.array(map(_opened, texts.filter(nested).to_pylist()), pa.string()))


def _opened(text: str) -> str:
    value = nested_value(text)
    if value is None or (words(value) and not _holds_text(value)):  # a title "[1984]" is a title
        return text
    return words(value)


def is_too_deep(text: bytes) -> bool:
    """Whether lists and objects stand within each other more than `DEEPEST` deep, such as a text only spells too."""
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return False
    signs = np.frombuffer(text, np.uint8) | 32  # [ as {, ] as }
    return np.cumsum((signs == ord("{")) * 1 - (signs == ord("}"))).max() > DEEPEST


def nested_value(text: str) -> list | dict | None:
    """The list or object that a text spells, None where it spells none, or one of no end of others."""
    if is_too_deep(text.encode("utf-8", "ignore")):
        return None
    spaced = re.sub(r"""(['"])\s+(?=['"])""", r"\1, ", text)  # numpy prints lists without commas
    for read, form in ((json.loads, text), (ast.literal_eval, spaced)):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = read(form)
            if isinstance(value, list | dict):
                return value
    return None


def _holds_text(value) -> bool:
    if isinstance(value, dict):
        return bool(value)
    return any(map(_holds_text, value)) if isinstance(value, list | tuple) else isinstance(value, str)
