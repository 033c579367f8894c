"""JEPA4Rec's pre-training (section 3.3), and RecFormer's, which is the same without the mapping loss (eq. 11)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from ...hub.opening import pretraining_class
from ...losses_seqrec import PreTrainingObjective, ema_momentum
from ...tokenization_itemsent import ItemSentTokenizer, ItemTokens
from ..batches import MASK_STREAM, Example
from ..data import RunData
from ..masking import IGNORED_LABEL, TokenMasker, maskable, sample_masked_item, uniform
from ..typed_yaml import Range, check_ranges
from .phase import InBatchPhase, Work


@dataclass(kw_only=True)
class PretrainPhase(InBatchPhase):
    """JEPA4Rec pre-training: contrastive + MLM + mapping (paper section 3.3), or RecFormer's, without mapping.

    The mask rates are over tokens, or over words where `mask_unit` is "word". "spaced_word" is the rule of RecFormer's
    published code: words are told by spaces and punctuation alone, so that a value's first word is one with its
    attribute's name, and each text has the rate's share of its tokens chosen, as nearly as whole words can.

    `same_domain` makes each batch of users of one of the datasets, whose items are harder negatives for each other.
    `lr_heads` is the learning rate of predictor and token head, which begin anew (None: that of the encoder).
    `result_encoder` is what the phase leaves: "context", the encoder that learns, or "target", its running average,
    which stays nearer to the start and forgets less (I-JEPA evaluates its target encoder, too).
    """

    kind: Literal["pretrain"]
    history_mask_rate: float = 0.15
    next_mask_rate: float = 0.5
    mask_unit: Literal["token", "word", "spaced_word"] = "token"
    same_domain: bool = False
    lr_heads: float | None = None
    result_encoder: Literal["context", "target"] = "context"
    objective: PreTrainingObjective = field(default_factory=PreTrainingObjective)

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, history_mask_rate=Range(0, 1), next_mask_rate=Range(0, 1))

    def open_model(self, source: Path, data: RunData) -> nn.Module:
        """A new target encoder is a copy of the context encoder."""
        model = pretraining_class(source).from_pretrained(source)
        model.objective, model.slices = self.objective, self.slices_in_model
        return model

    def collator(self, work: Work) -> Callable:
        item_tokens = work.data.item_tokens(work.tokenizer, self.corpus(work.data))
        return PreTrainingCollator(
            work.tokenizer,
            item_tokens,
            self.history_mask_rate,
            self.next_mask_rate,
            seed=work.recipe.run.seed,
            clean_history=self.objective.contrastive_history == "clean",
            mask_unit=self.mask_unit,
        )

    def result(self, model: nn.Module) -> nn.Module:
        if self.result_encoder == "context":
            return model
        model = copy.deepcopy(model)
        model.base_model.load_state_dict(model.target_encoder.state_dict())
        return model

    def after_step(self, model: nn.Module, step: int, total: int) -> None:
        """The target encoder follows the context encoder."""
        model.update_target_encoder(ema_momentum(step, total, self.objective.ema_start, self.objective.ema_end))


class PreTrainingCollator:
    """Examples -> the batch of JEPA4Rec's pre-training (JEPA4Rec, section 3.3).

    Tokens are chosen independently, 15 % in the history and 50 % in the next item; of the chosen ones 80 % become the
    mask token, 10 % a random token, 10 % stay. At least one token of the next item is always chosen: an untouched
    next item would give away what is to be predicted. The history may stay untouched, for which the model has a
    learnable vector. One of the history items with a chosen token, each equally likely, is the item to reconstruct.
    With `mask_unit` "word", words are chosen whole, at the same rates (see `word_firsts`); with "spaced_word", to a
    quota (see `words_to_quota`).

    Gives (B = batch, L, Ln, Li = longest history, next item, sampled item):
        input_ids (masked), labels, attention_mask, token_type_ids, item_position_ids (B, L); with `clean_history`
        also clean_input_ids; next_input_ids (masked), next_labels, clean_next_input_ids, next_attention_mask,
        next_token_type_ids, next_item_position_ids (B, Ln); item_input_ids, item_attention_mask,
        item_token_type_ids, item_item_position_ids (B, Li): the sampled history item, untouched and alone;
        masked_item_positions (B,): its item position in the history, 0 = no history token was chosen, the item is
        then the newest one; next_item_ids (B,).

    Raises:
        ValueError: the tokenizer has no mask token.
    """

    def __init__(
        self,
        tokenizer: ItemSentTokenizer,
        item_tokens: ItemTokens,
        history_mask_rate: float = 0.15,
        next_mask_rate: float = 0.5,
        seed: int = 0,
        clean_history: bool = False,
        mask_unit: str = "token",
    ):
        self.mask = TokenMasker(tokenizer, mask_unit)
        self.tokenizer, self.item_tokens = tokenizer, item_tokens
        self.history_mask_rate, self.next_mask_rate = history_mask_rate, next_mask_rate
        self.seed, self.clean_history = seed, clean_history

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        histories = [example.history for example in examples]
        targets = np.array([example.target for example in examples])
        history, next_item = self._encode(histories), self._encode(targets[:, None])
        rngs = [np.random.default_rng((MASK_STREAM, self.seed, e.epoch, e.index)) for e in examples]
        item_draws = np.array([rng.random() for rng in rngs])
        next_draws, history_draws = uniform(rngs, maskable(next_item)), uniform(rngs, maskable(history))
        clean_history, clean_next = history["input_ids"], next_item["input_ids"]
        history |= self.mask(history, history_draws, self.history_mask_rate)
        next_item |= self.mask(next_item, next_draws, self.next_mask_rate, at_least_one=True)
        positions = sample_masked_item(history["labels"] != IGNORED_LABEL, history["item_position_ids"], item_draws)
        newest_or_sampled = np.maximum(positions, 1)
        sampled = np.array([items[-k] for items, k in zip(histories, newest_or_sampled, strict=True)])
        batch = history | ({"clean_input_ids": clean_history} if self.clean_history else {})
        batch |= {f"next_{name}": array for name, array in next_item.items()} | {"clean_next_input_ids": clean_next}
        batch |= {f"item_{name}": array for name, array in self._encode(sampled[:, None]).items()}
        batch |= {"masked_item_positions": positions, "next_item_ids": targets}
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _encode(self, histories) -> dict[str, np.ndarray]:
        return dict(self.tokenizer.batch_histories(self.item_tokens, histories, return_tensors="np"))
