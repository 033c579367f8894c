"""Item and user vectors from an exported checkpoint, with numpy, tokenizers and onnxruntime alone.

    encoder = OnnxEncoder("exported")  # the folder that scripts/export_checkpoint.py wrote; this file is in it
    items = encoder.item_vectors([{"title": "Green tea"}, {"title": "Ceramic teapot", "brand": "Hearth"}])
    users = encoder.user_vectors([[{"title": "Black tea"}, {"title": "Tea cosy"}]])  # oldest item first
    best = (users @ items.T).argsort(1)[:, ::-1]

All vectors are one long, so their product is the cosine. An item with an `item_id` that a fine-tuned model knows has
its learned vector, any other that of its text. Texts are read as `tokenization_itemsent.ItemSentTokenizer` does.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

GRAPH_FILE, TOKENIZER_FILE, SETTINGS_FILE = "encoder.onnx", "tokenizer.json", "settings.json"
ITEMS_FILE, IDS_FILE = "items.npz", "item_ids.json"
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "item_position_ids")
OUTPUT = "vector"
NAME_TYPE, VALUE_TYPE, PAD_TYPE = 1, 2, 3

Item = Mapping[str, Any]  # attribute name -> text


class OnnxEncoder:
    """Encodes items and histories.

    Args:
        folder: the export.
        batch_size: rows encoded at once, those of similar length together.
        options: of the `onnxruntime.InferenceSession` (threads, say).
        providers: processors to run on, best first, as onnxruntime names them.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int = 64,
        options: onnxruntime.SessionOptions | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ):
        folder = Path(folder)
        if not (folder / GRAPH_FILE).is_file():
            raise ValueError(f"{folder} has no {GRAPH_FILE}: name the folder that scripts/export_checkpoint.py wrote.")
        self.session = onnxruntime.InferenceSession(folder / GRAPH_FILE, options, list(providers))
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        self.settings, self.batch_size = settings["tokenizer"], batch_size
        self.recency, self.text_gate = np.float32(settings["recency"]), np.float32(settings["text_gate"])
        self.learned, self.rows = {}, {}
        if (folder / ITEMS_FILE).is_file():
            self.learned = dict(np.load(folder / ITEMS_FILE))
            ids = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))["item_ids"]
            self.rows = {item_id: row for row, item_id in enumerate(ids)}

    # ---- vectors

    def item_vectors(self, items: Sequence[Item]) -> np.ndarray:
        """Vectors of items, (n, d) float32. Raises ValueError for an item without text."""
        return self._vectors(items, "items")

    def user_vectors(self, histories: Sequence[Sequence[Item]]) -> np.ndarray:
        """Vectors of histories, items oldest first, (n, d) float32. Raises ValueError for one that is empty."""
        vectors = self.encode([self._history_tokens(history, row) for row, history in enumerate(histories)])
        if not len(self.recency):
            return vectors
        vectors *= self.text_gate
        for vector, history in zip(vectors, histories, strict=True):
            newest = list(history)[::-1][: len(self.recency)]
            vector += self.recency[: len(newest)] @ self._vectors(newest, "history")
        return _one_long(vectors)

    def _vectors(self, items: Sequence[Item], table: str) -> np.ndarray:
        """Learned vectors of that table where there are any, else those of the texts."""
        rows = np.array([self.rows.get(item.get("item_id"), -1) for item in items])
        rows = rows if table in self.learned else np.full_like(rows, -1)
        strange = np.flatnonzero(rows < 0)
        width = self.session.get_outputs()[0].shape[1]
        vectors = np.empty((len(items), width), np.float32)
        if len(strange):
            vectors[strange] = self.encode([self._tokens([items[place]], [f"item {place}"]) for place in strange])
        if (rows >= 0).any():
            vectors[rows >= 0] = self.learned[table][rows[rows >= 0]]
        return vectors

    def encode(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Text vectors (n, d) of rows of ids, types and item positions, (3, length) each."""
        order = np.argsort([row.shape[1] for row in rows], kind="stable")
        parts = [
            self.session.run([OUTPUT], self.pad([rows[index] for index in order[start : start + self.batch_size]]))[0]
            for start in range(0, len(order), self.batch_size)
        ]
        vectors = np.concatenate(parts)
        return _one_long(vectors[np.argsort(order)])

    # ---- texts -> ids

    def pad(self, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's inputs, int64 (n, longest) each."""
        width = max(row.shape[1] for row in rows)
        fill = {
            "input_ids": self.settings["pad_token_id"],
            "token_type_ids": PAD_TYPE,
            "item_position_ids": self.settings["pad_item_position"],
        }
        inputs = {name: np.full((len(rows), width), value, np.int64) for name, value in fill.items()}
        for place, row in enumerate(rows):
            for name, values in zip(fill, row, strict=True):
                inputs[name][place, : len(values)] = values
        lengths = np.array([row.shape[1] for row in rows])
        return inputs | {"attention_mask": (np.arange(width) < lengths[:, None]).astype(np.int64)}

    def _history_tokens(self, history: Sequence[Item], row: int) -> np.ndarray:
        """Ids, types and item positions of a history, newest item first, (3, length)."""
        if isinstance(history, str | Mapping) or not len(history):
            raise ValueError(f"history {row} is {history!r}: give a list of at least one item, oldest first.")
        newest = list(history)[::-1][: self.settings["max_items"]]
        return self._tokens(
            newest, [f"item {len(history) - age} of history {row}" for age in range(1, len(newest) + 1)]
        )

    def _tokens(self, items: Sequence[Item], labels: Sequence[str]) -> np.ndarray:
        tokens = [np.array([[self.settings["first_token_id"]], [0], [0]])]
        room = self.settings["max_tokens"] - 1
        for position, (item, label) in enumerate(zip(items, labels, strict=True), start=1):
            own = self._item_tokens(item, label)
            if own.shape[1] > room and self.settings["whole_items"] and position > 1:
                break
            own = own[:, :room]
            tokens.append(np.vstack([own, np.full((1, own.shape[1]), position)]))
            room -= own.shape[1]
        return np.hstack(tokens)

    def _item_tokens(self, item: Item, label: str) -> np.ndarray:
        """Ids and types of an item, (2, length)."""
        if not isinstance(item, Mapping):
            raise ValueError(f"{label} is a {type(item).__name__}: give a mapping of attribute name to text.")
        texts = [(str(name), _text_of(value, label)) for name, value in item.items() if name != "item_id"]
        if not self.settings["empty_attributes"]:
            texts = [(name, value) for name, value in texts if value.strip()]
        texts = texts[: self.settings["max_attributes"]]
        encoded = self.tokenizer.encode_batch([part for pair in texts for part in pair], add_special_tokens=False)
        ids, types, limit = [], [], self.settings["max_attribute_tokens"]
        for name, value in zip(encoded[::2], encoded[1::2], strict=True):
            name = name.ids[:limit] if self.settings["attribute_names"] else []
            kept = value.ids[: limit - len(name)]
            ids += [*name, *kept]
            types += [NAME_TYPE] * len(name) + [VALUE_TYPE] * len(kept)
        if not any(value.ids for value in encoded[1::2]):
            raise ValueError(f"{label} has no text: give it an attribute with a value or remove it.")
        return np.array([ids, types])


def _text_of(value: Any, label: str) -> str:
    """Text of an attribute's value; "" for a missing one."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    if isinstance(value, Mapping | bytes):
        raise ValueError(f"{label} has a {type(value).__name__} for a value: give text, a number or a list of them.")
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return " ".join(filter(None, (_text_of(part, label) for part in value)))
    return str(value)


def _one_long(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
