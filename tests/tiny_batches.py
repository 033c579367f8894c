"""Small random batches and models for the objectives' tests; imported by the tests and by the processes they start."""

import torch

from jepa4rec.configuration_jepa4rec import Jepa4RecConfig

VOCABULARY, MASK = 60, 4
ITEM_LENGTHS = [[3, 4], [5], [2, 6, 4, 3], [4, 4, 4], [7], [3, 3]]  # tokens of each item, newest item first; six users


def tiny_config(**changes) -> Jepa4RecConfig:
    """Two layers of width 16, no dropout unless asked for."""
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    limits = {"intermediate_size": 32, "max_position_embeddings": 40, "max_item_embeddings": 6}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return Jepa4RecConfig(**{**shape, **limits, **dropout, **changes})


def _row(item_lengths: list[int], rng: torch.Generator) -> dict[str, torch.Tensor]:
    """One history: `[CLS]` (id 2), then the items' tokens, the first of each an attribute name."""
    ids, types, positions = [torch.tensor([2])], [0], [0]
    for position, length in enumerate(item_lengths, start=1):
        ids.append(torch.randint(5, VOCABULARY, (length,), generator=rng))
        types += [1] + [2] * (length - 1)
        positions += [position] * length
    return {
        "input_ids": torch.cat(ids),
        "token_type_ids": torch.tensor(types),
        "item_position_ids": torch.tensor(positions),
    }


def _pad(rows: list[dict[str, torch.Tensor]], prefix: str = "") -> dict[str, torch.Tensor]:
    rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    fill = {"token_type_ids": 3}
    return {
        f"{prefix}{key}": torch.nn.utils.rnn.pad_sequence(
            [row[key] for row in rows], batch_first=True, padding_value=fill.get(key, 0)
        )
        for key in rows[0]
    }


def pretraining_batch(rows: slice = slice(None), item_lengths=ITEM_LENGTHS) -> dict[str, torch.Tensor]:
    """The users in `rows`, padded to their own longest; a user's tokens and masks do not depend on the others."""
    users = range(len(item_lengths))[rows]
    histories, nexts, items, masked, next_masked, positions = [], [], [], [], [], []
    for user in users:
        rng = torch.Generator().manual_seed(user)
        histories.append(_row(item_lengths[user], rng))
        nexts.append(_row([3 + user % 3], rng))
        masked.append(_mask_row(histories[-1], 0.3, rng))
        next_masked.append(_mask_row(nexts[-1], 0.5, rng))
        positions.append(user % (len(item_lengths[user]) + 1))  # user 0 has no masked item
        items.append(_alone(histories[-1], max(positions[-1], 1)))
    clean, clean_next = _pad(histories), _pad(nexts, "next_")
    return {
        **clean,
        "clean_input_ids": clean["input_ids"],
        "input_ids": _stack(masked, "ids", 0),
        "labels": _stack(masked, "labels", -100),
        **clean_next,
        "clean_next_input_ids": clean_next["next_input_ids"],
        "next_input_ids": _stack(next_masked, "ids", 0),
        "next_labels": _stack(next_masked, "labels", -100),
        **_pad(items, "item_"),
        "masked_item_positions": torch.tensor(positions),
        "next_item_ids": torch.tensor([10 + user % 4 for user in users]),  # users 4 and 5 repeat items of 0 and 1
    }


def _mask_row(row: dict[str, torch.Tensor], rate: float, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """`[MASK]` in place of some tokens, never of `[CLS]`."""
    clean = row["input_ids"]
    chosen = torch.rand(clean.shape, generator=rng) < rate
    chosen[0] = False
    return {"ids": torch.where(chosen, MASK, clean), "labels": torch.where(chosen, clean, -100)}


def _stack(rows: list[dict[str, torch.Tensor]], key: str, fill: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True, padding_value=fill)


def _alone(row: dict[str, torch.Tensor], position: int) -> dict[str, torch.Tensor]:
    """The item at `position` of a history as a history of one."""
    kept = (row["item_position_ids"] == position) | (row["item_position_ids"] == 0)
    alone = {key: value[kept] for key, value in row.items()}
    return {**alone, "item_position_ids": alone["item_position_ids"].clamp(max=1)}


def finetuning_batch(num_items: int, rows: slice = slice(None), item_lengths=ITEM_LENGTHS) -> dict[str, torch.Tensor]:
    """The users in `rows` with their three newest items by id (newest first, -1 = none) and their targets."""
    users = range(len(item_lengths))[rows]
    histories, ids, targets = [], [], []
    for user in users:
        rng = torch.Generator().manual_seed(user)
        histories.append(_row(item_lengths[user], rng))
        known = torch.randint(num_items, (3,), generator=rng)
        ids.append(torch.where(torch.arange(3) < len(item_lengths[user]), known, -1))
        targets.append(int(torch.randint(num_items, (), generator=rng)))
    return {**_pad(histories), "history_item_ids": torch.stack(ids), "target_item_ids": torch.tensor(targets)}
