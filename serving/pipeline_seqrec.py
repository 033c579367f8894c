"""`pipeline("sequential-recommendation")`: histories in, items of a catalogue out, best first.

    pipe = pipeline("sequential-recommendation", model=CHECKPOINT, trust_remote_code=True)
    pipe.add_items([{"item_id": "tea", "title": "Green tea"}, {"item_id": "pot", "title": "Ceramic teapot"}])
    pipe({"history": ["tea"]}, top_k=1)

A history is a list, oldest first, of ids of the catalogue or of attribute dicts that need not be in it. An encoder
reads texts alone. A fine-tuned checkpoint also knows the items it was trained on by id (item_ids.json beside its
weights): where the catalogue uses the same ids these have their learned vectors, and any other item, in the catalogue
or in a history, takes its text vector in their place, which is what learned vectors began as.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from .catalogue_seqrec import Snapshot
from .encoding_seqrec import encode_histories, encode_items, reads_items
from .pipeline_catalogue import IDS_FILE, CataloguePipeline, hub_options, read_item_ids

logger = logging.get_logger(__name__)

LEAST_WEIGHT = 1e-4  # of an item of a history, where the newest has 1; what is older is not read


class SequentialRecommendationPipeline(CataloguePipeline):
    """Recommends by what items say; arguments as `CataloguePipeline`."""

    _load_tokenizer = True

    def __init__(self, model, tokenizer=None, *args, **kwargs):
        if tokenizer is None:
            raise ValueError(
                f"{type(model).__name__} reads texts: give its tokenizer too, "
                "tokenizer=AutoTokenizer.from_pretrained(...)."
            )
        super().__init__(_whole_model(model), tokenizer, *args, **kwargs)

    @property
    def vector_size(self) -> int:
        return self.model.config.vector_size

    def _read_known_items(self) -> dict | None:
        return _known_items(self.model)

    def _reading(self) -> list:
        return [self.tokenizer.settings, self.tokenizer.backend_tokenizer.to_str()]

    def _catalogue_vectors(self, attributes: Sequence[Mapping], ids: Sequence) -> tuple[Tensor, np.ndarray]:
        """Vectors (n, d) and the items' rows in the model's own item matrix, -1 for those that are read."""
        vectors = self._text_vectors(attributes, None if None in ids else ids)
        learned = self._learned_rows(ids)
        if (learned >= 0).any():
            own = torch.from_numpy(learned >= 0)
            vectors[own] = self.model.item_vectors()[learned[own.numpy()]].detach().float().cpu()
        return vectors, learned

    def _text_vectors(self, attributes: Sequence[Mapping], ids: Sequence[str] | None) -> Tensor:
        tokens = self.tokenizer.encode_items(attributes, ids)
        vectors = encode_items(self.model, self.tokenizer, tokens)
        return torch.nn.functional.normalize(vectors.float(), dim=1).cpu()

    @property
    def _whitening_power(self) -> float | None:
        is_encoder = not hasattr(self.model, "item_matrix")
        return self.model.config.catalogue_whitening if is_encoder and reads_items(self.model) else None

    def _user_vectors(self, histories: Sequence[Sequence[tuple[str | None, Mapping]]], catalogue: Snapshot) -> Tensor:
        try:
            return self._read_histories(histories, catalogue)
        except ValueError:
            if len(histories) == 1:  # what failed may be cut and newest first: the sentence counts as the user does
                self.tokenizer.encode_items([item for _, item in histories[0]], [name for name, _ in histories[0]])
            raise

    @torch.no_grad()
    def _read_histories(
        self, histories: Sequence[Sequence[tuple[str | None, Mapping]]], catalogue: Snapshot
    ) -> Tensor:
        if reads_items(self.model):
            return self._means_of_items(histories, catalogue)
        # What is too old to be read is not encoded either, which would take seconds for the longest histories.
        most = max(self.tokenizer.max_items, self.model.config.history_items)
        histories = [history[-most:] for history in histories]
        items = [[item for _, item in history] for history in histories]
        vectors = self._encode_texts([history[-self.tokenizer.max_items :] for history in items])
        if getattr(self.model, "history_item_vectors", None) is not None:
            vectors = self._with_items(vectors, items, [[name for name, _ in history] for history in histories])
        return torch.nn.functional.normalize(vectors, dim=1)

    def _means_of_items(
        self, histories: Sequence[Sequence[tuple[str | None, Mapping]]], catalogue: Snapshot
    ) -> Tensor:
        """The recency-weighted means (B, d) of the items' vectors: the catalogue's, or those of what is not in it."""
        decay = self.model.config.history_decay
        most = 1 + int(np.log(LEAST_WEIGHT) / np.log(decay)) if decay < 1 else None
        newest = [history[::-1][:most] for history in histories]

        def is_known(name: str | None, item: Mapping) -> bool:
            """Whether the id alone was given: then the item is the catalogue's own dict."""
            return name in catalogue.places and catalogue.items[catalogue.places[name]] is item

        strange = {id(item): item for history in newest for name, item in history if not is_known(name, item)}
        read = {}
        if strange:
            vectors = catalogue.as_held(self._text_vectors(list(strange.values()), None))
            read = dict(zip(strange, vectors, strict=True))
        means = torch.zeros(len(histories), self.vector_size)
        for mean, history in zip(means, newest, strict=True):
            for age, (name, item) in enumerate(history):
                vector = read[id(item)] if id(item) in read else catalogue.vectors[catalogue.places[name]]
                mean += decay**age * vector
        return torch.nn.functional.normalize(self._projected(means), dim=1)

    def _projected(self, vectors: Tensor) -> Tensor:
        """What a fine-tuned model makes of the vectors (B, d) of histories before it compares them."""
        if not hasattr(self.model, "history_projection"):
            return vectors
        return self.model.project_histories(vectors.to(self.model.device)).float().cpu()

    def _encode_texts(self, texts: list[list[dict]]) -> Tensor:
        """The text vectors (B, d) of histories, one long."""
        tokens = self.tokenizer.encode_items([item for history in texts for item in history])
        ends = np.cumsum([len(history) for history in texts])
        histories = [np.arange(end - len(history), end) for end, history in zip(ends, texts, strict=True)]
        # Of a fine-tuned model too it is the encoder alone that reads; what it knows by id is added afterwards.
        vectors = encode_histories(self.model.base_model, self.tokenizer, tokens, histories, progress=False)
        return torch.nn.functional.normalize(self._projected(vectors.cpu()), dim=1)

    def _with_items(self, texts: Tensor, items: list[list[dict]], ids: list[list[str | None]]) -> Tensor:
        """gate * text + sum_k recency_k * v_k (`SeqRecForSequentialRecommendation`): v_k is learned, or the text
        vector of an item the model was not trained on."""
        recency = self.model.recency.float().cpu()
        gate = self.model.text_gate.float().cpu() if self.model.config.history_text else 0.0
        newest = [
            list(zip(own, names, strict=True))[: -len(recency) - 1 : -1] for own, names in zip(items, ids, strict=True)
        ]
        rows = [self._learned_rows([name for _, name in history]) for history in newest]
        strangers = [
            item
            for history, own in zip(newest, rows, strict=True)
            for (item, _), row in zip(history, own, strict=True)
            if row < 0
        ]
        strange = iter(self._text_vectors(strangers, None) if strangers else ())
        vectors = gate * texts
        for user, own in enumerate(rows):
            remembered = self.model.history_item_vectors.weight[own].float().cpu()
            for age, row in enumerate(own):
                vectors[user] += recency[age] * (remembered[age] if row >= 0 else next(strange))
        return vectors

    def _repeat_amounts(self, history: list[tuple[str | None, Mapping]]) -> dict[str, float]:
        if not hasattr(self.model, "repeat_bias"):
            return {}
        newest = zip([name for name, _ in reversed(history)], self.model.repeat_bias.tolist(), strict=False)
        return {name: amount for name, amount in reversed(list(newest)) if name is not None}


def _whole_model(model) -> torch.nn.Module:
    """The fine-tuned model around an encoder that was loaded from its checkpoint, else the model itself.

    What is in memory stays as it is: the encoder becomes part of the whole, only the heads are read from the
    checkpoint. Their class lies in the encoder's own module, wherever that came from: the package or the checkpoint.
    """
    saved_as = (getattr(model.config, "architectures", None) or [None])[0]
    whole_class = getattr(sys.modules[type(model).__module__], saved_as or "", type(model))
    if isinstance(model, whole_class) or not hasattr(whole_class, "item_vectors") or not model.config.name_or_path:
        return model
    whole = whole_class.from_pretrained(model.config.name_or_path, **hub_options(model)).to(model.device, model.dtype)
    setattr(whole, whole.base_model_prefix, model)
    whole.config = model.config
    return whole


def _known_items(model) -> dict | None:
    """The ids of a fine-tuned model's items, see `read_item_ids`; None for an encoder, which has no item matrix."""
    if not hasattr(model, "item_vectors") or not model.config.name_or_path:
        return None
    known = read_item_ids(model)
    if known is None:
        logger.warning(
            f"{model.config.name_or_path} has no {IDS_FILE}: which items its learned vectors belong to is unknown, so "
            "all items are read by their text alone, which recommends worse."
        )
    return known


def save_checkpoint_files(model, tokenizer, folder: str | Path) -> None:
    """Weights, configuration, tokenizer and all code: `AutoModel`, `AutoTokenizer`, `pipeline` and
    `SentenceTransformer` open it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
