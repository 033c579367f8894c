"""Masks for pre-training: which tokens of a batch are hidden, token by token or word by word (section 3.3)."""

import string
import unicodedata
from collections.abc import Sequence

import numpy as np

from ..tokenization_itemsent import ItemSentTokenizer

IGNORED_LABEL = -100
MOST_PREDICTIONS = 512  # of a text, in RecFormer's published code


class TokenMasker:
    """Chooses tokens of a batch to be predicted and corrupts them, by uniform numbers (see `uniform`).

    Args:
        mask_unit: what is chosen, see `PretrainPhase`.

    Raises:
        ValueError: the tokenizer has no mask token.
    """

    def __init__(self, tokenizer: ItemSentTokenizer, mask_unit: str = "token"):
        if tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask_token, which pre-training needs: add one to the tokenizer")
        self.mask_token_id, self.mask_unit = tokenizer.mask_token_id, mask_unit
        self.starts_word = None if mask_unit == "token" else word_starts(tokenizer, mask_unit == "spaced_word")
        self.replacements = np.array(sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)))

    def __call__(
        self, batch: dict[str, np.ndarray], draws: np.ndarray, rate: float, at_least_one: bool = False
    ) -> dict[str, np.ndarray]:
        """Masked input_ids and labels (B, L) by draws (3, B, L); `at_least_one` token a row where asked for."""
        if self.mask_unit == "spaced_word":
            chosen = self._choose_to_quota(batch, draws[0], rate)
        else:
            draw = draws[0] if self.starts_word is None else self._one_draw_a_word(batch, draws[0])
            chosen = draw < rate
            if at_least_one:
                chosen |= ~chosen.any(1, keepdims=True) & (draw == draw.min(1, keepdims=True))
        return mask_tokens(batch["input_ids"], chosen, draws[1], draws[2], self.mask_token_id, self.replacements)

    def _one_draw_a_word(self, batch: dict[str, np.ndarray], draw: np.ndarray) -> np.ndarray:
        """Every token takes the number drawn for the first token of its word; CLS and padding are never chosen."""
        firsts = word_firsts(batch, self.starts_word, seams=True)
        return np.where(maskable(batch), np.take_along_axis(draw, firsts, 1), 1.0)

    def _choose_to_quota(self, batch: dict[str, np.ndarray], draw: np.ndarray, rate: float) -> np.ndarray:
        """At least one token a text and at most `MOST_PREDICTIONS`; the share is of all its tokens, CLS included."""
        quotas = np.rint(rate * batch["attention_mask"].sum(1)).astype(np.int64).clip(1, MOST_PREDICTIONS)
        firsts = word_firsts(batch, self.starts_word, seams=False)
        return words_to_quota(draw, firsts, maskable(batch), quotas)


def uniform(rngs: Sequence[np.random.Generator], may: np.ndarray) -> np.ndarray:
    """Three numbers in [0, 1) for each token that may be chosen, (3, B, L), row i by the i-th generator; else 1."""
    draws = np.ones((3, *may.shape), np.float32)
    for row, rng in enumerate(rngs):
        draws[:, row, may[row]] = rng.random((3, may[row].sum()), np.float32)
    return draws


def word_starts(tokenizer: ItemSentTokenizer, punctuation: bool = False) -> np.ndarray:
    """Which ids of the vocabulary begin a word in running text, (V,) bool.

    A byte-level or SentencePiece vocabulary marks the space before a word, WordPiece what continues one.

    Args:
        punctuation: a token that begins with punctuation begins a word too, as in RecFormer's published code.

    Raises:
        ValueError: the vocabulary marks neither.
    """
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    spaced = np.array([token.startswith(("Ġ", "▁")) for token in tokens])
    if spaced.any():
        marked = [punctuation and _is_punctuation(token[0]) for token in tokens]
        return spaced | np.array(marked)
    continued = np.array([token.startswith("##") for token in tokens])
    if not continued.any():
        raise ValueError("the tokenizer does not mark words (Ġ, ▁ or ##): mask_unit must be token")
    return ~continued


def _is_punctuation(letter: str) -> bool:
    """As BERT's tokenizer counts it: what Unicode calls punctuation, and every other ASCII sign."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def words_to_quota(draw: np.ndarray, firsts: np.ndarray, may: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    """Whole words in random order, as many as fit into each row's quota of tokens, (B, L) bool.

    RecFormer's published code: a word that would go beyond the quota is passed over, and the next one tried.

    Args:
        draw: (B, L) uniform numbers; that of a word's first token is its place in the order.
        firsts: (B, L) from `word_firsts`.
        may: (B, L) tokens that may be chosen.
        quotas: (B,) tokens.
    """
    chosen = np.zeros_like(may)
    for row, quota in enumerate(quotas):
        columns = np.flatnonzero(may[row])
        begins, words, sizes = np.unique(firsts[row, columns], return_inverse=True, return_counts=True)
        taken, left = np.zeros(len(begins), bool), quota
        for word in np.argsort(draw[row, begins], kind="stable"):
            if sizes[word] <= left:
                taken[word], left = True, left - sizes[word]
        chosen[row, columns] = taken[words]
    return chosen


def word_firsts(batch: dict[str, np.ndarray], starts_word: np.ndarray, seams: bool) -> np.ndarray:
    """Column of the first token of each token's word, (B, L).

    Args:
        starts_word: (V,) from `word_starts`.
        seams: a word also ends where an attribute's name, its value or an item ends. RecFormer writes no space there
            and its published code goes by spaces alone, so that its first word of a value is one with the name.
    """
    starts = starts_word[batch["input_ids"]]
    starts[:, :2] = True  # CLS, and what follows it
    if seams:
        for name in ("token_type_ids", "item_position_ids"):
            starts[:, 1:] |= batch[name][:, 1:] != batch[name][:, :-1]
    columns = np.arange(starts.shape[1])
    return np.maximum.accumulate(np.where(starts, columns, 0), axis=1)


def maskable(batch: dict[str, np.ndarray]) -> np.ndarray:
    """All tokens but CLS and padding, (B, L) bool; CLS is the only real token at item position 0."""
    return (batch["attention_mask"] == 1) & (batch["item_position_ids"] > 0)


def mask_tokens(
    input_ids: np.ndarray,
    chosen: np.ndarray,
    kind: np.ndarray,
    word: np.ndarray,
    mask_token_id: int,
    replacements: np.ndarray,
) -> dict[str, np.ndarray]:
    """BERT's corruption of the `chosen` tokens: 80 % mask, 10 % random, 10 % kept. All arrays (B, L).

    Args:
        kind, word: uniform numbers that decide what happens to a token and which random token it becomes.
        replacements: token ids a random token is taken from.
    """
    random_ids = replacements[(word * len(replacements)).astype(np.int64).clip(max=len(replacements) - 1)]
    masked = np.where(chosen & (kind < 0.8), mask_token_id, input_ids)
    masked = np.where(chosen & (kind >= 0.8) & (kind < 0.9), random_ids, masked)
    return {"input_ids": masked, "labels": np.where(chosen, input_ids, IGNORED_LABEL)}


def sample_masked_item(chosen: np.ndarray, item_position_ids: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Item position of one of the items with a chosen token, by `draws` (B,) in [0, 1); 0 where there is none."""
    rows, columns = np.nonzero(chosen)
    hit = np.zeros((len(chosen), item_position_ids.max() + 1), bool)
    hit[rows, item_position_ids[rows, columns]] = True
    rank = np.floor(draws * hit.sum(1))
    positions = np.argmax(hit.cumsum(1) > rank[:, None], 1)
    return np.where(hit.any(1), positions, 0)
