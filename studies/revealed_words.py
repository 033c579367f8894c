"""Revealed words: how fast does the target rise when some of its words are told?

    python studies/revealed_words.py --data data/scientific

The base recipe's pre-training is run once a seed (or `pretrained` names checkpoints). For a growing share of the
target's words, zero-shot, in two ways: the predictor, where it has learned, is given the target with its other words
masked and its prediction is compared with the target encoder's item vectors (equation of section 3.3:
FFN2(h_CLS ⊕ h_{n+1,M})), or the words are read as one more, newest item of the history, which any text model can do.
JEPA4Rec, Appendix D, Figure 7b.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

import numpy as np
import torch

from jepa4rec.evaluation.ranking import rank_targets
from jepa4rec.hub.opening import pretraining_class
from jepa4rec.serving.encoding_seqrec import encode_histories, encode_items
from jepa4rec.studies.studying import CheckpointsRecipe, Point, Study, study_command
from jepa4rec.tokenization_itemsent import ItemSentTokenizer, ItemTokens
from jepa4rec.training.masking import word_starts


@dataclass(kw_only=True)
class RevealedWordsRecipe(CheckpointsRecipe):
    """`percents` of the target's words that are revealed; `max_items`: newest items of a history that are read, the
    words of the target as one of them (default: the tokenizer's)."""

    percents: list[float] = field(default_factory=lambda: [0.0, 10.0, 25.0, 50.0, 75.0, 100.0])
    max_items: int | None = None


def revealed_tokens(tokenizer, item_tokens: ItemTokens, share: float, seed: int) -> np.ndarray:
    """Which tokens are revealed (T,): those of a random `share` of each item's words, more of them with a larger one.

    The same seed gives each word the same place in line, so what is revealed at 10 % stays revealed at 50 %.
    """
    starts = word_starts(tokenizer)[item_tokens.input_ids]
    starts[item_tokens.offsets[:-1]] = True  # an item's first token
    words = np.cumsum(starts) - 1
    first_words = words[item_tokens.offsets[:-1]]
    items = np.repeat(np.arange(item_tokens.num_items), item_tokens.lengths)
    place = np.empty(words[-1] + 1)
    draws = np.random.default_rng(seed).random(len(place))
    ends = np.append(first_words[1:], len(place))
    for start, end in zip(first_words, ends, strict=True):
        place[start:end] = (np.argsort(np.argsort(draws[start:end])) + 0.5) / (end - start)
    return place[words] < share if len(items) else np.empty(0, bool)


def only(item_tokens: ItemTokens, kept: np.ndarray) -> ItemTokens:
    """The items with their kept tokens (T,) alone; an item may be left with none."""
    offsets = np.concatenate([[0], np.cumsum(kept)])[item_tokens.offsets]
    return ItemTokens(item_tokens.input_ids[kept], item_tokens.token_type_ids[kept], offsets)


def joined(first: ItemTokens, second: ItemTokens) -> ItemTokens:
    """One catalogue after the other."""
    ids, types = (np.concatenate([a, b]) for a, b in zip(first[:2], second[:2], strict=True))
    return ItemTokens(ids, types, np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]]))


class ByPredictor:
    """The predictor sees the revealed tokens of each target, and its prediction ranks the target encoder's items."""

    @torch.no_grad()
    def __init__(self, model, tokenizer, item_tokens: ItemTokens, split, exclude_history: bool = False):
        self.model, self.tokenizer, self.item_tokens = model, tokenizer, item_tokens
        self.targets, self.excluded = split.targets, split.histories if exclude_history else None
        self.users = encode_histories(model, tokenizer, item_tokens, split.histories, progress=False)
        self.items = encode_items(model.target_encoder, tokenizer, item_tokens, progress=False)

    @torch.no_grad()
    def ranks(self, revealed: np.ndarray) -> np.ndarray:
        """Ranks (U,) of the targets, of which these tokens (T,) are told."""
        ids = np.where(revealed, self.item_tokens.input_ids, self.tokenizer.mask_token_id)
        masked = self.item_tokens._replace(input_ids=ids)
        seen = encode_items(self.model, self.tokenizer, masked, progress=False)[torch.from_numpy(self.targets)]
        predicted = self.model.predictor.next_item(self.users, seen)
        return rank_targets(predicted, self.items, self.targets, self.excluded)


class AsNewestItem:
    """The revealed words of the target are the newest item of the history, which any text model can read."""

    @torch.no_grad()
    def __init__(self, model, tokenizer, item_tokens: ItemTokens, split, exclude_history: bool = False):
        self.model, self.tokenizer, self.item_tokens, self.split = model, tokenizer, item_tokens, split
        self.excluded = split.histories if exclude_history else None
        self.items = encode_items(model, tokenizer, item_tokens, progress=False)

    @torch.no_grad()
    def ranks(self, revealed: np.ndarray) -> np.ndarray:
        """Ranks (U,) of the targets, of which these tokens (T,) are told."""
        parts, targets = only(self.item_tokens, revealed), self.split.targets
        told = parts.lengths[targets] > 0
        rows = zip(self.split.histories, targets + self.item_tokens.num_items, told, strict=True)
        histories = [np.append(history, target) if some else history for history, target, some in rows]
        both = joined(self.item_tokens, parts)
        users = encode_histories(self.model, self.tokenizer, both, histories, progress=False)
        return rank_targets(users, self.items, targets, self.excluded)


WAYS = {"JEPA predictor": ByPredictor, "words as the newest item": AsNewestItem}


def measure(study: Study) -> tuple[list[Point], dict]:
    limits = {} if study.recipe.max_items is None else {"max_items": study.recipe.max_items}
    ranks: dict[tuple[str, float], list[np.ndarray]] = {}
    for name, checkpoints in study.pretrained().items():
        for checkpoint, seed in zip(checkpoints, study.recipe.seeds, strict=True):
            model = pretraining_class(checkpoint).from_pretrained(checkpoint).eval()
            tokenizer = ItemSentTokenizer.from_pretrained(checkpoint, **limits)
            item_tokens = tokenizer.encode_items(study.data.dataset.item_texts(empty=True))
            for way, kind in WAYS.items():
                if kind is ByPredictor and not model.predictor.next[0].bias.any():
                    continue  # RecFormer's pre-training leaves it as it was drawn, with biases of zero
                reader = kind(model, tokenizer, item_tokens, study.data.splits.test, study.rules.exclude_history)
                for percent in study.recipe.percents:
                    revealed = revealed_tokens(tokenizer, item_tokens, percent / 100, seed)
                    series = f"{name}, {way}" if name else way
                    ranks.setdefault((series, percent), []).append(reader.ranks(revealed))
    return [Point(series, percent, np.stack(rows)) for (series, percent), rows in ranks.items()], {}


main = study_command(
    PARSER, RevealedWordsRecipe, "Revealing the target's words", "revealed words of the target (%)", measure
)


if __name__ == "__main__":
    main()
