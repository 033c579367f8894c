"""ST5's item sentences: what is written for an item or a history, and where each of its tokens goes; and, for every
reader of items and builder of tables, how a value that is no text reads in `words`.

    item      <extra_id_1> TITLE: Tape <extra_id_2>
    history   <extra_id_0> <extra_id_1> TITLE: Glue <extra_id_2> <extra_id_1> TITLE: Tape <extra_id_2> <extra_id_3>

Items stand oldest first. "unstructured" writes the same texts without tags, a history's items parted by commas. An
instruction may stand before the history. (Section 4.1 of the ST5 thesis.)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

TAGS = ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>", "<extra_id_3>")  # sequence start, item start and end, ... end
SENTENCES = ("structured", "unstructured")
INSTRUCTION = (
    "A user has purchased a sequence of items ordered in chronological order. Each item in the sequence is "
    'represented as "Title: <item title>". The following sentence represents the user history:'
)
DESCRIPTION = "description"
NO_DESCRIPTION = "description not available."
FIXED_TEXTS = (
    "TITLE:",
    "DESCRIPTION:",
    NO_DESCRIPTION,
    INSTRUCTION,
    ",",
)  # what is written beside an item's own words


class Marks(NamedTuple):
    """Ids around the texts of a sentence, each a list of int."""

    opening: list[int]
    item_opening: list[int]
    item_closing: list[int]
    separator: list[int]  # between two items
    closing: list[int]


def item_text(item: Mapping[str, str], description: bool) -> str:
    """`TITLE: …`, with `description` also `DESCRIPTION: …`; "" for an item without text.

    The title is the attribute of that name, else the first one with text that is no description. An item that has a
    description and nothing else is `DESCRIPTION: …` alone.
    """
    others = (text for name, text in item.items() if text and name != DESCRIPTION)
    title = item.get("title") or next(others, "")
    if not title:
        return f"DESCRIPTION: {item[DESCRIPTION]}" if item.get(DESCRIPTION) else ""
    if not description:
        return f"TITLE: {title}"
    return f"TITLE: {title} DESCRIPTION: {item.get(DESCRIPTION) or NO_DESCRIPTION}"


def words(value: Any) -> str:
    """One value as text: of lists the members, of objects names and values, nothing for what is missing."""
    if isinstance(value, str):
        return value.encode("utf-8", "ignore").decode()  # JSON may hold half a surrogate pair, Arrow may not
    if isinstance(value, Mapping):
        if len(value) == 1 and str(next(iter(value))).startswith("$"):
            return words(next(iter(value.values())))  # how MongoDB writes a type: {"$date": ...}
        members = ((str(name).strip(), words(own)) for name, own in value.items())
        return " ".join(f"{name} {text}" for name, text in members if text)
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return " ".join(filter(None, map(words, value)))
    # Marks for nothing: NaN and NaT differ from themselves, and a data frame's NA answers <NA> to that.
    if value is None or str(value != value) in ("True", "<NA>"):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, float | np.floating) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return str(value)


class Layout(NamedTuple):
    """Where n items of B rows go; all columns count from the row's first token."""

    kept: np.ndarray  # (n,) bool, which items fit; everything below is of these alone
    starts: np.ndarray  # first column of each item, its tag included
    texts: np.ndarray  # tokens of each item's text
    sizes: np.ndarray  # tokens of each item with its tags, and with the separator behind it
    rows: np.ndarray  # (B,) tokens of each row


def lay_out(
    lengths: np.ndarray, rows: np.ndarray, positions: np.ndarray, count: int, marks: Marks, max_tokens: int
) -> Layout:
    """Fit the newest items of every row into `max_tokens`, oldest dropped first, the newest cut at its end.

    Args:
        lengths: (n,) tokens of the items' texts; an item of a row stands before the next older one.
        rows, positions: (n,) row of each item, and its age in it, 1 = newest.
        count: B, rows without an item included.

    Raises:
        ValueError: max_tokens is too small for the marks and one token of text.
    """
    around, tags = len(marks.opening) + len(marks.closing), len(marks.item_opening) + len(marks.item_closing)
    room = max_tokens - around
    if room - tags < 1:
        raise ValueError(f"max_tokens is {max_tokens}: {around + tags} go to tags, nothing is left for an item's text")
    newest = positions == 1
    texts = np.where(newest, np.minimum(lengths, room - tags), lengths)
    sizes = texts + tags + np.where(newest, 0, len(marks.separator))
    ends = np.cumsum(sizes)
    before = np.zeros(count, np.int64)
    before[rows[newest]] = (ends - sizes)[newest]
    ends = ends - before[rows]
    kept = ends <= room
    used = np.bincount(rows[kept], sizes[kept], count).astype(np.int64)
    starts = len(marks.opening) + used[rows[kept]] - ends[kept]
    return Layout(kept, starts, texts[kept], sizes[kept], around + used)
