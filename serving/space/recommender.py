"""What the page does, without the page: a checkpoint's pipeline over one catalogue, asked by clicks.

A history is compared with the items' vectors, as in the pipeline. A wish is compared with the items' *texts*: in a
fine-tuned checkpoint the learned vectors of items have moved away from what the encoder makes of their words. The two
are mixed as standard scores, so that a half of each is half of what tells items apart.
"""

import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForPreTraining, Pipeline, PreTrainedModel

from attribution_seqrec import Word, attribute, masked_words, only_words, without_item, without_word, words_of
from reading import TASK, add_catalogue, open_checkpoint

EXAMPLE_ITEMS = 4
MOST_WORDS = 200  # deleted one by one for an explanation; those of the newest items where there are more
MOST_REVEALED = 30  # ranks worked out for a target at most, one for each further word or so
NEAR_WISH = 0.05  # share of the catalogue that a restriction to the wish leaves


@dataclass(frozen=True)
class Wish:
    """A wish in words: `weight` of it is mixed with the history, and `only` leaves just the items nearest to it."""

    text: str = ""
    weight: float = 0.5
    only: bool = False

    @property
    def mixed(self) -> bool:
        return bool(self.text.strip()) and self.weight > 0

    @property
    def restricts(self) -> bool:
        return bool(self.text.strip()) and self.only


NO_WISH = Wish()


class Recommendation(NamedTuple):
    """An item, its row in the catalogue and its score: cosine, mixed standard score, or how often it was bought."""

    item_id: str
    row: int
    score: float


class Cause(NamedTuple):
    """The deletion that costs most: what is gone, and the item's rank without it."""

    what: str
    rank: float


@dataclass(frozen=True)
class Explanation:
    """Why one item: its score and rank, and what the score loses without the wish, each history item, each word."""

    score: float
    rank: float
    wish: float | None  # None where no wish is mixed in
    items: np.ndarray  # (n,)
    words: np.ndarray  # (W,)
    places: list[Word]  # (W,)
    history: list[dict[str, str]]  # the n items, attributes that the model reads
    checks: list[Cause]  # of the item and of the word that matter most


@dataclass(frozen=True)
class Reveal:
    """The target's rank among all items as more of its words are told."""

    item: dict[str, str]  # attributes that the model reads
    order: list[Word]  # the W words in the order they are told
    counts: list[int]  # words told, from 0 (1 where the history is empty) to W
    ranks: list[float]
    catalogue: int  # items there are

    def step(self, percent: float) -> int:
        """The last step that tells no more than so many per cent of the words; at least the first."""
        told = percent / 100 * len(self.order)
        return max([0, *(step for step, count in enumerate(self.counts) if count <= told + 1e-9)])


class Recommender:
    """A pipeline and its catalogue. `examples` are real histories (item ids, oldest first) to begin with."""

    def __init__(self, pipe: Pipeline, name: str, examples: Sequence[Sequence[str]] = ()):
        self.pipe, self.name, self.examples = pipe, name, examples
        # A checkpoint carries the reader that it came with; older ones know lists alone.
        self._words = getattr(pipe.tokenizer, "in_words", str)
        self.items = [self._in_words(item) for item in pipe.catalogue.items]
        self._folded = [fold(" ".join(item.values())) for item in self.items]

    @classmethod
    def open(cls, checkpoint: str, catalogue: str | None, revision: str | None = None) -> "Recommender":
        """A checkpoint with a catalogue, or with none yet. Raises ValueError, see `reading`."""
        pipe = open_checkpoint(checkpoint, revision)
        examples = add_catalogue(pipe, catalogue) if catalogue else ()
        return cls(pipe, (catalogue or "").rstrip("/").rpartition("/")[2], examples)

    def with_items(
        self, items: Sequence[Mapping], name: str, popularity: Sequence[float] | None = None
    ) -> "Recommender":
        """The same model over other items; this one stays as it is."""
        pipe = type(self.pipe)(self.pipe.model, self.pipe.tokenizer, task=TASK)
        pipe._weights_hash = self.pipe.weights_hash  # of the same weights, which take seconds to read
        pipe.add_items(items, popularity)
        return Recommender(pipe, name)

    @property
    def catalogue(self):
        return self.pipe.catalogue

    # ---- items in words

    def _in_words(self, item: Mapping) -> dict[str, str]:
        """An item's attributes as the model reads them, those without a value left out."""
        texts = {name: "" if value is None else self._words(value) for name, value in item.items()}
        return {name: text for name, text in texts.items() if text.strip()}

    def item(self, item_id: str) -> dict[str, str]:
        """An item's attributes that have a value."""
        return self.items[self.catalogue.rows([item_id])[0]]

    def read_item(self, item_id: str) -> dict[str, str]:
        """The attributes of an item that the model reads."""
        return dict(list(self.item(item_id).items())[: self.pipe.tokenizer.max_attributes])

    def search(self, words: str, limit: int = 8) -> tuple[list[str], bool]:
        """Ids of items that have all the words, and True; where none has, the nearest in meaning and False."""
        wanted = fold(words).split()
        if not wanted or not len(self.catalogue):
            return [], True
        found = [row for row, text in enumerate(self._folded) if all(word in text for word in wanted)]
        if found:  # those where the words are beginnings of words come first
            found.sort(key=lambda row: not all(f" {word}" in f" {self._folded[row]}" for word in wanted))
            return [self.catalogue.ids[row] for row in found[:limit]], True
        rows = self.near(words, min(limit, len(self.catalogue)))
        return [self.catalogue.ids[row] for row in rows], False

    def example(self, number: int) -> tuple[list[str], str | None]:
        """A history to begin with and what came next in truth; three of the items where no histories are known."""
        if self.examples:
            *history, last = self.examples[number % len(self.examples)]
            return history[-EXAMPLE_ITEMS:], last
        size = len(self.catalogue)
        rows = np.random.default_rng(number).choice(size, min(3, size), replace=False)
        return [self.catalogue.ids[row] for row in rows], None

    # ---- scores of every item

    def scores(self, histories: Sequence[Sequence], wish: Wish = NO_WISH) -> Tensor:
        """How well each item follows each history (ids or attribute dicts), (B, N); cosines where there is no wish."""
        known = self._history_scores(histories)
        return mixed(known, self._text_scores([self._as_item(wish.text)]), wish.weight) if wish.mixed else known

    def _history_scores(self, histories: Sequence[Sequence]) -> Tensor:
        """What the pipeline ranks by (B, N); zeros for an empty history."""
        vectors = torch.zeros(len(histories), self.catalogue.vectors.shape[1])
        told = [place for place, history in enumerate(histories) if history]
        if told:
            vectors[told] = self.pipe.user_vectors([histories[place] for place in told])
        scores = vectors @ self.catalogue.vectors.T
        added = getattr(self.pipe, "repeat_amounts", None)  # the code beside older weights has no such thing
        for place in told if added else ():
            for row, amount in added(histories[place]).items():
                scores[place, row] += amount
        return scores

    def _text_scores(self, items: Sequence[Mapping]) -> Tensor:
        """Cosines (B, N) of texts with the catalogue's, both less the catalogue's mean text."""
        mean, own = self._texts
        return normalize(self.pipe.item_vectors(items) - mean, dim=1) @ own.T

    @cached_property
    def _texts(self) -> tuple[Tensor, Tensor]:
        """The mean text vector (d,) of the catalogue, and every item's direction from it (N, d)."""
        learned = hasattr(self.pipe.model, "item_vectors")
        vectors = self.pipe.item_vectors(self.catalogue.items) if learned else self.catalogue.vectors
        return vectors.mean(0), normalize(vectors - vectors.mean(0), dim=1)

    def _as_item(self, text: str) -> dict[str, str]:
        """A wish is read as an item of that text, under the attribute that the catalogue's items begin with."""
        return {next(iter(self.catalogue.items[0]), "title"): text}

    def near(self, text: str, number: int, hidden: Sequence[int] = ()) -> np.ndarray:
        """Rows of the items whose texts are nearest to a text, less the hidden ones."""
        scores = self._text_scores([self._as_item(text)])[0]
        scores[list(hidden)] = -torch.inf
        return scores.topk(min(number, len(scores) - len(hidden))).indices.numpy()

    # ---- recommending

    def recommend(
        self, history: Sequence[str], wish: Wish = NO_WISH, top_k: int = 10, exclude: bool = True
    ) -> list[Recommendation]:
        """The best items for a history (ids) and a wish; the most popular where there is neither.

        Raises:
            ValueError: an empty catalogue, top_k over what is left, nothing to go by.
        """
        if not len(self.catalogue):
            raise ValueError("There is no catalogue yet: upload one as CSV.")
        hidden = self.catalogue.rows(list(history)) if exclude else []
        left = len(self.catalogue) - len(hidden)
        if not 1 <= top_k <= left:
            raise ValueError(f"{left} items can be recommended here: ask for 1 to {left}, not {top_k}.")
        near = max(top_k, round(NEAR_WISH * len(self.catalogue)))
        rows = self.near(wish.text, near, hidden) if wish.restricts else np.arange(len(self.catalogue))
        if not history and not wish.mixed:
            return self._popular(top_k, rows)
        scores = self.scores([list(history)], wish)[0]
        scores[hidden] = -torch.inf
        best = scores[torch.from_numpy(rows)].topk(top_k)
        return [
            self._recommendation(row, score)
            for row, score in zip(rows[best.indices.numpy()], best.values.tolist(), strict=True)
        ]

    def _popular(self, top_k: int, rows: np.ndarray) -> list[Recommendation]:
        counts = self.catalogue.popularity
        rows = rows[~np.isnan(counts[rows])]
        if not len(rows):
            raise ValueError("Nothing is known of what is popular here: add an item to your history, or write a wish.")
        best = rows[np.argsort(-counts[rows], kind="stable")[:top_k]]
        return [self._recommendation(row, float(counts[row])) for row in best]

    def _recommendation(self, row: int, score: float) -> Recommendation:
        return Recommendation(self.catalogue.ids[row], int(row), score)

    # ---- why, and what if

    def explain(self, history: Sequence[str], item_id: str, wish: Wish = NO_WISH, exclude: bool = True) -> Explanation:
        """Why an item: its score less its score without the wish, each item, each word. Raises ValueError if empty."""
        items = [self.read_item(own) for own in history]
        named = [{"item_id": own, **item} for own, item in zip(history, items, strict=True)]
        row = self.catalogue.rows([item_id])[0]
        one = np.ones((1, 1))  # a history's "vector" is the score of this item
        found = attribute(named, one, lambda histories: self.scores(histories, wish)[:, [row]].numpy(), MOST_WORDS)
        score, lost = float(found.scores[0]), None
        if wish.mixed:
            lost = score - (1 - wish.weight) * float(standard(self._history_scores([named]))[0, row])
        item = int(found.items[0].argmax())
        names, variants = [f"“{next(iter(items[item].values()))}”"], [named, without_item(named, item)]
        if found.places:
            word = found.places[int(found.words[0].argmax())]
            names.append(f"the word “{items[word.item][word.attribute][word.start : word.end]}”")
            variants.append(without_word(named, word))
        hidden = self.catalogue.rows(list(history)) if exclude else []
        rank, *others = ranks(self.scores(variants, wish), row, hidden)
        checks = [Cause(name, other) for name, other in zip(names, others, strict=True)]
        return Explanation(score, rank, lost, found.items[0], found.words[0], found.places, items, checks)

    def reveal(self, history: Sequence[str], target: str) -> Reveal:
        """The target's rank as its words are told (JEPA4Rec, Appendix D, Figure 7).

        Where the checkpoint has JEPA4Rec's predictor, that is told them; else they are mixed with the history as half
        of the score. Which word is told when is drawn once for each item; a word that was told stays told.
        """
        item = self.read_item(target)
        words = words_of(item)
        if not words:
            raise ValueError("This item has no words to tell: choose another one.")
        draw = np.random.default_rng(zlib.crc32(target.encode()))
        order = [words[place] for place in draw.permutation(len(words))]
        first = 0 if history else 1
        steps = np.linspace(first, len(order), min(MOST_REVEALED, len(order) + 1 - first))
        counts = sorted({int(round(step)) for step in steps})
        if history and self._pretrained is not None:
            scores = self._predicted_scores(history, item, [order[:count] for count in counts])
        else:
            known = self._history_scores([list(history)])
            told = self._text_scores([only_words(item, order[:count]) for count in counts if count])
            scores = torch.cat([known, mixed(known, told, 0.5)]) if history else mixed(known, told, 0.5)
        row = self.catalogue.rows([target])[0]
        return Reveal(item, order, counts, ranks(scores, row), len(self.catalogue))

    @cached_property
    def _pretrained(self) -> PreTrainedModel | None:
        """The checkpoint with its predictor and target encoder; None where it has none, or none that ever learned."""
        config = self.pipe.model.config
        if not any(name.endswith("ForPreTraining") for name in config.architectures or []):
            return None
        revision = getattr(config, "_commit_hash", None) or "main"
        model = AutoModelForPreTraining.from_pretrained(config.name_or_path, trust_remote_code=True, revision=revision)
        # RecFormer's pre-training leaves the predictor as it was drawn, with biases of zero.
        return model.eval() if model.predictor.next[0].bias.any() else None

    @torch.no_grad()
    def _predicted_scores(self, history: Sequence[str], item: Mapping, told: Sequence[Sequence[Word]]) -> Tensor:
        """Cosines (B, N) of FFN2(h_CLS ⊕ h_{n+1,M}) with the target encoder's items (JEPA4Rec, section 3.3.2)."""
        model, tokenizer = self._pretrained, self.pipe.tokenizer
        masked = [[masked_words(item, words, tokenizer)] for words in told]
        texts = ([[self.read_item(own) for own in history]], masked)
        user, parts = (model.base_model.embed(**tokenizer(text, return_tensors="pt")) for text in texts)
        predicted = model.predictor.next_item(user.expand(len(parts), -1), parts)
        return normalize(predicted, dim=1) @ self._targets.T

    @cached_property
    def _targets(self) -> Tensor:
        """What the predictor aims at: the target encoder's vectors of the catalogue (N, d), each one long."""
        pipe = type(self.pipe)(self._pretrained.target_encoder, self.pipe.tokenizer, task=TASK)
        return pipe.item_vectors(self.catalogue.items)


def mixed(history: Tensor, text: Tensor, weight: float) -> Tensor:
    """Standard scores (B, N) of a history's and a text's scores, the latter with this weight."""
    return (1 - weight) * standard(history) + weight * standard(text)


def standard(scores: Tensor) -> Tensor:
    """Scores (B, N) in standard deviations from the catalogue's mean; zeros where all are equal."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, correction=0, keepdim=True).clamp(min=1e-9)


def ranks(scores: Tensor, row: int, hidden: Sequence[int] = ()) -> list[float]:
    """The rank of an item among all but the hidden ones for each row of scores (B, N); ties take the mean rank."""
    others = [other for other in hidden if other != row]
    own = scores[:, [row]]
    better, equal = (scores > own).sum(1), (scores == own).sum(1)
    better -= (scores[:, others] > own).sum(1)
    equal -= (scores[:, others] == own).sum(1)
    return (better + (equal + 1) / 2).tolist()


def fold(text: str) -> str:
    """Text for searching: lower case, without accents."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))
