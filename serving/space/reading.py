"""Opening what the page works on: a checkpoint, and a catalogue in any of the forms that people have one in."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from transformers import Pipeline, pipeline

TASK = "sequential-recommendation"
MOST_UPLOADED = 20_000
EXAMPLES = 50
POPULARITY = "popularity"
NAMES = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16", "cp1252": "Windows-1252"}
CONTROL = bytes({*range(9), *range(14, 27)})  # no text has these, every picture and archive does


class Items(NamedTuple):
    """Items `{"item_id": ..., attribute: text}` with what else is known of them."""

    items: list[dict[str, str]]
    popularity: Sequence[float] | None = None
    examples: Sequence[Sequence[str]] = ()  # real histories of ids, oldest first
    encoding: str = ""  # a CSV file's


def open_checkpoint(place: str, revision: str | None = None) -> Pipeline:
    """The pipeline of a run's folder, a checkpoint's folder or a Hub id. Raises ValueError where there is none."""
    inner = Path(place) / "checkpoint"
    try:
        pipe = pipeline(
            TASK, model=str(inner if inner.is_dir() else place), revision=revision, trust_remote_code=True
        )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = _first_line(error)
        raise ValueError(
            f"{place} does not open as a checkpoint ({reason}); name a folder or a Hub id of one, or let make "
            "quickstart train one in runs/quickstart."
        ) from error
    if pipe.tokenizer is None:
        raise ValueError(
            f"{place} knows items by their ids and reads no texts, which this page is about: name a checkpoint that "
            f'reads, and ask this one by pipeline("{TASK}").'
        )
    return pipe


def add_catalogue(pipe: Pipeline, place: str) -> Sequence[Sequence[str]]:
    """Fill the pipeline's catalogue; gives example histories where the place has any.

    Args:
        place: a folder `save_catalogue` wrote, a built dataset's folder, a CSV file, or a dataset on the Hub that is
            a copy of one of these folders.

    Raises:
        ValueError: none of these, or one that cannot be read.
    """
    path = Path(place)
    if not path.exists():
        path = _from_hub(place)
    if (path / "catalogue.json").is_file():
        pipe.load_catalogue(path)
        return ()
    found = read_csv(path.read_bytes(), path.name) if path.is_file() else read_dataset(path)
    pipe.add_items(found.items, found.popularity)
    return found.examples


def _from_hub(place: str) -> Path:
    try:
        return Path(snapshot_download(place, repo_type="dataset"))
    except Exception as error:  # whatever a bad id, the Hub or the network may answer
        raise ValueError(
            f"{place} is no catalogue, folder, CSV file or dataset on the Hub: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


# ---- a built dataset: items.parquet, and sequences.parquet whose `items` are rows of it, oldest first


def read_dataset(folder: Path) -> Items:
    """Items, how often each was bought in training, and what some users did. Raises ValueError if it is no dataset."""
    try:
        items = pq.read_table(folder / "items.parquet").to_pylist()
        sequences = pq.read_table(folder / "sequences.parquet", columns=["items"])["items"].combine_chunks()
        ids = [item["item_id"] for item in items]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(
            f"{folder} is no built dataset ({_first_line(error)}); scripts/build_dataset.py makes one."
        ) from error
    bought, ends = sequences.flatten().to_numpy(), np.cumsum(pc.list_value_length(sequences).to_numpy())
    held_out = ends[pc.list_value_length(sequences).to_numpy() >= 3]  # the last two are for test and validation
    popularity = np.bincount(bought, minlength=len(ids)).astype(float)
    for place in (1, 2):
        popularity -= np.bincount(bought[held_out - place], minlength=len(ids))
    texts = [{name: text for name, text in item.items() if text} for item in items]
    return Items(texts, popularity, [[ids[row] for row in history] for history in _examples(sequences)])


def _examples(sequences: pa.ListArray) -> list[list[int]]:
    """Histories of some users, each item once, with an item that came last and is new; a seeded sample."""
    found = []
    for user in np.random.default_rng(0).permutation(len(sequences))[: 20 * EXAMPLES]:
        *history, last = sequences[int(user)].as_py() or [-1]
        history = list(dict.fromkeys(history))
        if len(history) >= 2 and last not in history:
            found.append([*history, last])
    return found[:EXAMPLES]


# ---- CSV


def read_csv(content: bytes, name: str) -> Items:
    """Items of a CSV file with a column item_id, at least one of text, and perhaps one named popularity.

    Comma, semicolon or tab; UTF-8, UTF-16 or, failing these, Windows-1252.

    Raises:
        ValueError: what is wrong with the file, and in which line.
    """
    text, encoding = decode(content, name)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        header = [column.strip() for column in next(lines, [])]
        _check_header(header, name)
        rows = [(lines.line_num, row) for row in lines if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{name}: line {lines.line_num} is not CSV ({error}).") from error
    if not rows:
        raise ValueError(f"{name} has a header but no items.")
    if len(rows) > MOST_UPLOADED:
        raise ValueError(f"{name} has {len(rows):,} items: the page reads at most {MOST_UPLOADED:,}.")
    first_lines: dict[str, int] = {}
    items, popularity = [], []
    for line, cells in rows:
        item = _item(header, cells, f"{name}: line {line}")
        if item["item_id"] in first_lines:
            first = first_lines[item["item_id"]]
            raise ValueError(f"{name}: lines {first} and {line} have the same item_id {item['item_id']!r}.")
        first_lines[item["item_id"]] = line
        popularity.append(_count(item.pop(POPULARITY, "0"), f"{name}: line {line}"))
        items.append(item)
    return Items(items, popularity if POPULARITY in header else None, (), encoding)


def decode(content: bytes, name: str) -> tuple[str, str]:
    """A file's text, and the encoding it was read in. Raises ValueError for what is no text or one in another."""
    if not content.strip():
        raise ValueError(f"{name} is empty: a CSV file with the columns item_id and title is needed.")
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not marked and any(byte in CONTROL for byte in content[:4096]):
        raise ValueError(f"{name} is no text file: save your table as CSV (UTF-8) and upload that.")
    for encoding in ["utf-16"] if marked else ["utf-8-sig", "cp1252"]:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding != "cp1252" or _looks_western(text):
            return text, NAMES[encoding]
    raise ValueError(f"{name} is in an encoding that was not recognised: save it as CSV in UTF-8 and upload it again.")


def _looks_western(text: str) -> bool:
    """Cyrillic, Greek or Asian letters read as Windows-1252 are words of accents alone; western words never are."""
    words = text.split()
    strange = sum(sum(letter > "\x7f" for letter in word) > len(word) / 2 for word in words)
    return strange <= len(words) / 20


def _delimiter(text: str) -> str:
    first = text.lstrip("\r\n").partition("\n")[0]
    return max(",;\t", key=first.count)


def _check_header(header: list[str], name: str) -> None:
    if "item_id" not in header:
        said = ", ".join(repr(column) for column in header[:6])
        raise ValueError(f"{name} has no column 'item_id': its first line has {said}.")
    twice = [column for column in header if column and header.count(column) > 1]
    if twice:
        raise ValueError(f"{name} has the column {twice[0]!r} twice.")
    if not set(header) - {"item_id", POPULARITY, ""}:
        raise ValueError(f"{name} has no column of text beside 'item_id': add one, for example 'title'.")


def _item(header: list[str], cells: list[str], where: str) -> dict[str, str]:
    """A line's filled cells. Raises ValueError for one too many, no id or no text."""
    if len(cells) > len(header):
        raise ValueError(f"{where} has {len(cells)} values for {len(header)} columns; quote a value with a comma.")
    item = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if name and cell.strip()}
    if "item_id" not in item:
        raise ValueError(f"{where} has no item_id.")
    if not set(item) - {"item_id", POPULARITY}:
        raise ValueError(f"{where}: item {item['item_id']!r} has no text; the model reads nothing else.")
    return item


def _count(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: popularity is {text!r}, which is no number.") from None
