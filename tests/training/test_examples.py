"""Claims: examples, masks and the order of batches follow from (seed, epoch, example) alone, and batches hold what
the forward methods ask for."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader

from jepa4rec.serving.encoding_seqrec import HistoryCollator
from jepa4rec.tokenization_itemsent import ItemSentTokenizer
from jepa4rec.training.batches import Batches, Example, LengthGroupedBatchSampler, PrefixDataset, prefix_examples
from jepa4rec.training.masking import mask_tokens, sample_masked_item, word_firsts, word_starts, words_to_quota
from jepa4rec.training.phases.finetune import FineTuningCollator, ItemReadingCollator
from jepa4rec.training.phases.pretrain import PreTrainingCollator
from jepa4rec.training.start import train_wordpiece

SEQUENCES = [np.array([5, 6, 7]), np.array([1]), np.array([0, 2, 4, 6]), np.array([9, 9])]


@pytest.fixture
def item_tokens(tiny_tokenizer, tiny_items):
    return tiny_tokenizer.encode_items(tiny_items)


@pytest.fixture
def collator(tiny_tokenizer, item_tokens):
    return PreTrainingCollator(tiny_tokenizer, item_tokens, clean_history=True)


def random_dataset(num_sequences=40, **options) -> PrefixDataset:
    rng = np.random.default_rng(0)
    return PrefixDataset([rng.integers(0, 12, rng.integers(2, 30)) for _ in range(num_sequences)], **options)


def pairs(dataset) -> list[tuple[list[int], int]]:
    return [(example.history.tolist(), example.target) for example in map(dataset.__getitem__, range(len(dataset)))]


class TestPrefixes:
    def test_all(self):
        assert pairs(PrefixDataset(SEQUENCES)) == [
            ([5], 6), ([5, 6], 7), ([0], 2), ([0, 2], 4), ([0, 2, 4], 6), ([9], 9),
        ]  # fmt: skip
        assert pairs(PrefixDataset(SEQUENCES, min_history=2)) == [([5, 6], 7), ([0, 2], 4), ([0, 2, 4], 6)]

    def test_last_and_longest_history(self):
        assert pairs(PrefixDataset(SEQUENCES, "last", max_history=2)) == [([5, 6], 7), ([2, 4], 6), ([9], 9)]

    def test_random_draws_anew_each_epoch_and_the_same_again(self):
        dataset = random_dataset(mode="random", seed=3)
        first = pairs(dataset)
        dataset.set_epoch(1)
        assert pairs(dataset) != first and len(dataset) == 40
        dataset.set_epoch(0)
        assert pairs(dataset) == first != pairs(random_dataset(mode="random", seed=4))

    def test_random_reaches_every_prefix(self):
        rng = np.random.default_rng(0)
        sequences, positions = prefix_examples(np.full(1000, 4), "random", rng=rng)
        assert np.array_equal(sequences, np.arange(1000))
        assert np.bincount(positions).tolist()[0] == 0 and (np.bincount(positions)[1:] > 280).all()

    def test_late_draws_from_the_later_half(self):
        drawn = prefix_examples(np.full(1000, 7), "late", rng=np.random.default_rng(0))[1]
        assert sorted(set(drawn.tolist())) == [3, 4, 5, 6]
        assert prefix_examples(np.array([2]), "late", rng=np.random.default_rng(0))[1].tolist() == [1]
        dataset = random_dataset(mode="late")
        first = pairs(dataset)
        dataset.set_epoch(1)
        assert pairs(dataset) != first

    def test_a_window_is_the_whole_sequence_or_any_part_that_is_read(self):
        lengths = np.array([3, 5, 1, 9])
        drawn = [prefix_examples(lengths, "window", 1, np.random.default_rng(n), 4)[1].tolist() for n in range(200)]
        assert {(row[0], row[1]) for row in drawn} == {(2, 4)}  # the last item, after all others
        assert sorted({row[2] for row in drawn}) == [4, 5, 6, 7, 8]  # four items stand before each
        dataset = PrefixDataset([np.arange(9)], "window", max_history=4)
        dataset.set_epoch(1)
        ((history, target),) = pairs(dataset)
        assert history == list(range(target - 4, target))

    def test_an_empty_history_where_it_is_asked_for(self, item_tokens):
        sequences, positions = prefix_examples(np.full(3000, 5), "random", 0, np.random.default_rng(0))
        assert abs(np.mean(positions == 0) - 0.2) < 0.03  # RecFormer's published code: 1 / length
        dataset = PrefixDataset([np.array([5, 6])], min_history=0)
        assert pairs(dataset) == [([], 5), ([5], 6)]
        assert dataset.token_lengths(item_tokens, 50, 1024)[0] == 1

    def test_an_example_costs_two_integers(self):
        dataset = PrefixDataset([np.arange(200)] * 2000)
        assert len(dataset) == 398_000
        assert sum(array.nbytes for array in dataset.examples) == 8 * len(dataset)

    def test_token_lengths_are_those_of_the_batch(self, tiny_tokenizer, item_tokens):
        dataset = random_dataset()
        batch = tiny_tokenizer.batch_histories(
            item_tokens, [dataset[i].history for i in range(len(dataset))], max_items=4, max_tokens=20
        )
        assert np.array_equal(dataset.token_lengths(item_tokens, 4, 20), batch["attention_mask"].sum(1).numpy())

    def test_bad_input(self):
        with pytest.raises(ValueError, match="no training sequence has 2 items"):
            PrefixDataset([np.array([1])])
        with pytest.raises(ValueError, match="min_history is -1"):
            PrefixDataset(SEQUENCES, min_history=-1)
        with pytest.raises(ValueError, match="unknown prefix mode 'some'"):
            PrefixDataset(SEQUENCES, "some")


class TestLengthGroupedBatchSampler:
    def test_a_batch_may_be_kept_to_one_domain(self, item_tokens):
        dataset, domains = random_dataset(60), np.arange(60) % 3
        sampler = LengthGroupedBatchSampler(dataset, item_tokens, batch_size=8, domains=domains)
        batches = list(sampler)
        of = domains[dataset.examples[0]]
        assert len(batches) == len(sampler) and all(len(set(of[batch])) == 1 for batch in batches)
        assert {int(of[batch[0]]) for batch in batches} == {0, 1, 2}
        seen = [example for batch in batches for example in batch]
        assert len(seen) == len(set(seen)) >= len(dataset) - 3 * 7

    def test_every_example_once_in_another_order_each_epoch(self, item_tokens):
        dataset = random_dataset()
        sampler = LengthGroupedBatchSampler(dataset, item_tokens, batch_size=8)
        first = list(sampler)
        seen = sorted(sum(first, []))
        assert len(set(seen)) == len(seen) == len(sampler) * 8 and len(dataset) - len(seen) < 8
        assert len(first) == len(sampler) and {len(batch) for batch in first} == {8}
        assert list(sampler) == first
        dataset.set_epoch(1)
        assert list(sampler) != first

    def test_lengths_are_similar_within_a_batch(self, item_tokens):
        dataset = random_dataset()
        lengths = dataset.token_lengths(item_tokens, 50, 1024)
        padding = [
            np.mean([1 - lengths[batch].mean() / lengths[batch].max() for batch in sampler])
            for sampler in (
                LengthGroupedBatchSampler(dataset, item_tokens, batch_size=8),
                LengthGroupedBatchSampler(dataset, item_tokens, batch_size=8, pool_batches=1),
            )
        ]
        assert padding[0] < 0.1 < 0.3 < padding[1]

    def test_what_does_not_fill_a_batch_is_left_out(self, item_tokens):
        dataset = random_dataset()
        sampler = LengthGroupedBatchSampler(dataset, item_tokens, batch_size=7)
        assert len(list(sampler)) == len(sampler) == len(dataset) // 7
        assert {len(batch) for batch in sampler} == {7}
        with pytest.raises(ValueError, match="do not fill one batch of 9000: use a smaller batch"):
            LengthGroupedBatchSampler(dataset, item_tokens, batch_size=9000)

    def test_accelerate_resumes_in_the_middle_of_a_later_epoch(self, item_tokens):
        def loader():
            dataset = random_dataset(mode="random")
            sampler = LengthGroupedBatchSampler(dataset, item_tokens, batch_size=8)
            return Accelerator(cpu=True).prepare(DataLoader(dataset, batch_sampler=sampler, collate_fn=flat))

        def flat(examples):
            return torch.tensor([(e.target, e.index, e.epoch) for e in examples])

        uninterrupted = loader()
        epochs = [[batch.tolist() for batch in uninterrupted] for _ in range(3)]
        assert {row[2] for batch in epochs[2] for row in batch} == {2}
        resumed = loader()
        resumed.set_epoch(2)
        assert [batch.tolist() for batch in skip_first_batches(resumed, 3)] == epochs[2][3:]


class TestPreTrainingCollator:
    def test_keys_are_those_of_forward(self, collator):
        dataset = random_dataset()
        batch = collator([dataset[i] for i in range(6)])
        suffixes = ["input_ids", "attention_mask", "token_type_ids", "item_position_ids"]
        assert set(batch) == {
            *(prefix + suffix for prefix in ("", "next_", "item_") for suffix in suffixes),
            *("labels", "clean_input_ids", "next_labels", "clean_next_input_ids"),
            *("masked_item_positions", "next_item_ids"),
        }
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}

    def test_masks_follow_from_seed_epoch_and_example_alone(self, collator, tiny_tokenizer, item_tokens):
        dataset = random_dataset()
        together = collator([dataset[i] for i in (0, 30, 70, 200)])
        alone = collator([dataset[70]])
        for name, tensor in alone.items():
            row = together[name][2]
            assert torch.equal(
                row[: tensor.shape[1]] if tensor.ndim == 2 else row[None], tensor[0] if tensor.ndim == 2 else tensor
            )
        dataset.set_epoch(1)
        assert not torch.equal(collator([dataset[70]])["labels"], alone["labels"])
        other_seed = PreTrainingCollator(tiny_tokenizer, item_tokens, seed=1)
        dataset.set_epoch(0)
        assert not torch.equal(other_seed([dataset[70]])["labels"], alone["labels"])

    def test_workers_give_the_batches_of_the_main_process(self, collator):
        dataset = random_dataset()
        batches = [[0, 9, 17], [5, 80], [33, 2]]
        main = DataLoader(dataset, batch_sampler=batches, collate_fn=collator)
        workers = DataLoader(
            dataset, batch_sampler=batches, collate_fn=collator, num_workers=2, persistent_workers=True
        )
        for epoch in range(2):
            dataset.set_epoch(epoch)
            for expected, found in zip(main, workers, strict=True):
                assert all(torch.equal(expected[name], found[name]) for name in expected)

    def test_rates(self, collator, tiny_tokenizer):
        history = np.random.default_rng(0).integers(0, 12, 50)
        batch = collator([Example(history, 3, index, 0) for index in range(400)])
        for prefix, clean, rate in (("", "clean_input_ids", 0.15), ("next_", "clean_next_input_ids", 0.5)):
            ids, labels, clean = batch[prefix + "input_ids"], batch[prefix + "labels"], batch[clean]
            real = (batch[prefix + "item_position_ids"] > 0) & (batch[prefix + "attention_mask"] == 1)
            chosen = labels != -100
            assert abs(chosen[real].float().mean() - rate) < 0.02
            assert not chosen[~real].any() and torch.equal(ids[~chosen], clean[~chosen])
            assert torch.equal(labels[chosen], clean[chosen])
            masked = (ids == tiny_tokenizer.mask_token_id)[chosen].float().mean()
            kept = (ids == clean)[chosen].float().mean()
            assert abs(masked - 0.8) < 0.03 and abs(kept - 0.1) < 0.03
            replaced = ids[chosen & (ids != clean) & (ids != tiny_tokenizer.mask_token_id)]
            assert not set(replaced.tolist()) & set(tiny_tokenizer.all_special_ids)
            assert len(set(replaced.tolist())) > 50

    def test_the_next_item_is_never_left_untouched(self, tiny_tokenizer, item_tokens):
        collator = PreTrainingCollator(tiny_tokenizer, item_tokens, next_mask_rate=0.0)
        labels = collator([Example(np.array([0]), target, index, 0) for index, target in enumerate(range(12))])
        assert ((labels["next_labels"] != -100).sum(1) == 1).all()

    def test_the_sampled_item_has_a_chosen_token_and_comes_clean_and_alone(
        self, collator, tiny_tokenizer, item_tokens
    ):
        dataset = random_dataset()
        examples = [dataset[i] for i in range(0, len(dataset), 3)]
        batch = collator(examples)
        for row, example in enumerate(examples):
            position = int(batch["masked_item_positions"][row])
            chosen = batch["labels"][row] != -100
            assert (position == 0) == (not chosen.any())
            assert position == 0 or position in batch["item_position_ids"][row][chosen]
            item = tiny_tokenizer.batch_histories(item_tokens, [[example.history[-max(position, 1)]]])
            for name, expected in item.items():
                assert torch.equal(batch[f"item_{name}"][row, : expected.shape[1]], expected[0])
        assert torch.equal(batch["next_item_ids"], torch.tensor([example.target for example in examples]))

    def test_an_untouched_history(self, tiny_tokenizer, item_tokens):
        collator = PreTrainingCollator(tiny_tokenizer, item_tokens, history_mask_rate=0.0)
        batch = collator([Example(np.array([3, 1, 2]), 5, 0, 0)])
        assert batch["masked_item_positions"].tolist() == [0] and "clean_input_ids" not in batch
        newest = tiny_tokenizer.batch_histories(item_tokens, [[2]])
        assert torch.equal(batch["item_input_ids"], newest["input_ids"])

    def test_words_are_chosen_whole(self, tiny_items):
        texts = [text for item in tiny_items for text in item.values()]
        tokenizer = ItemSentTokenizer.wrap(train_wordpiece(texts, vocab_size=110))  # few words are one token
        item_tokens = tokenizer.encode_items(tiny_items)
        collator = PreTrainingCollator(tokenizer, item_tokens, 0.3, 0.3, clean_history=True, mask_unit="word")
        history = np.random.default_rng(0).integers(0, 12, 50)
        batch = {k: v.numpy() for k, v in collator([Example(history, 3, i, 0) for i in range(100)]).items()}
        for prefix, clean in (("", "clean_input_ids"), ("next_", "clean_next_input_ids")):
            arrays = {name: batch[prefix + name] for name in ("token_type_ids", "item_position_ids")}
            firsts = word_firsts(arrays | {"input_ids": batch[clean]}, word_starts(tokenizer), seams=True)
            chosen, real = batch[prefix + "labels"] != -100, batch[prefix + "attention_mask"] == 1
            assert np.array_equal(chosen[real], np.take_along_axis(chosen, firsts, 1)[real])
            assert not chosen[:, 0].any() and not chosen[~real].any()
            assert (firsts[real] != np.broadcast_to(np.arange(firsts.shape[1]), firsts.shape)[real]).any()
        assert abs((batch["labels"] != -100)[:, 1:].mean() - 0.3) < 0.02
        assert (batch["next_labels"] != -100).any(1).all()

    def test_a_tokenizer_without_mask_token_is_refused(self, tiny_backend, item_tokens):
        tokenizer = ItemSentTokenizer.wrap(tiny_backend)
        tokenizer.mask_token = None
        with pytest.raises(ValueError, match="no mask_token"):
            PreTrainingCollator(tokenizer, item_tokens)


class FewWords:
    """A vocabulary of five byte-level tokens: Ġ is a space."""

    words = ["title", "Red", "Ġtea", "ĠPot", "s"]

    def __len__(self):
        return len(self.words)

    def convert_ids_to_tokens(self, ids):
        return [self.words[i] for i in ids]


def test_words_by_hand():
    """CLS (here as 0), then "title" "Red" " tea" " Pot" "s", and the next item's "title" "Red"."""
    starts = word_starts(FewWords())
    assert starts.tolist() == [False, False, True, True, False]
    batch = {
        "input_ids": np.array([[0, 0, 1, 2, 3, 4, 0, 1]]),
        "token_type_ids": np.array([[0, 1, 2, 2, 2, 2, 1, 2]]),
        "item_position_ids": np.array([[0, 1, 1, 1, 1, 1, 2, 2]]),
    }
    assert word_firsts(batch, starts, seams=True).tolist() == [[0, 1, 2, 3, 4, 4, 6, 7]]
    assert word_firsts(batch, starts, seams=False).tolist() == [[0, 1, 1, 3, 4, 4, 4, 4]]
    FewWords.words = ["title", ",", "Ġtea", "«Red", "s"]
    assert word_starts(FewWords()).tolist() == [False, False, True, False, False]
    assert word_starts(FewWords(), punctuation=True).tolist() == [False, True, True, True, False]
    FewWords.words = ["a", "b"]
    with pytest.raises(ValueError, match="does not mark words"):
        word_starts(FewWords())


def test_words_are_taken_in_their_order_while_they_fit_a_quota():
    rng = np.random.default_rng(0)
    may = np.arange(30) < rng.integers(10, 31, 50)[:, None]
    may[:, 0] = False
    firsts = np.maximum.accumulate(np.where(rng.random((50, 30)) < 0.5, np.arange(30), 1), axis=1)
    draw, quotas = rng.random((50, 30)), rng.integers(1, 8, 50)
    chosen = words_to_quota(draw, firsts, may, quotas)
    for row in range(50):
        words = {}
        for column in np.flatnonzero(may[row]):
            words.setdefault(firsts[row, column], []).append(column)
        taken = []
        for first in sorted(words, key=lambda first: draw[row, first]):
            if len(taken) + len(words[first]) <= quotas[row]:
                taken += words[first]
        assert np.flatnonzero(chosen[row]).tolist() == sorted(taken)


def test_the_published_rule_masks_a_quota_of_every_text(tiny_items):
    texts = [text for item in tiny_items for text in item.values()]
    tokenizer = ItemSentTokenizer.wrap(train_wordpiece(texts, vocab_size=110))
    item_tokens = tokenizer.encode_items(tiny_items)
    collator = PreTrainingCollator(tokenizer, item_tokens, 0.15, 0.15, mask_unit="spaced_word")
    history = np.random.default_rng(0).integers(0, 12, 50)
    batch = collator([Example(history[: 5 + i], 3, i, 0) for i in range(40)])
    tokens, masked = batch["attention_mask"].sum(1), (batch["labels"] != -100).sum(1)
    assert (masked <= (0.15 * tokens).round()).all() and (masked >= (0.15 * tokens).round() - 1).all()
    assert not (batch["labels"] != -100)[:, 0].any()
    again = collator([Example(history[: 5 + i], 3, i, 0) for i in range(40)])
    assert torch.equal(batch["input_ids"], again["input_ids"])


def test_mask_tokens_by_hand():
    ids = np.array([[10, 11, 12, 13]])
    chosen = np.array([[True, True, True, False]])
    masked = mask_tokens(ids, chosen, np.array([[0.1, 0.85, 0.95, 0.1]]), np.full((1, 4), 0.5), 4, np.array([20, 21]))
    assert masked["input_ids"].tolist() == [[4, 21, 12, 13]]
    assert masked["labels"].tolist() == [[10, 11, 12, -100]]


def test_sample_masked_item_by_hand():
    positions = np.array([[0, 1, 1, 2, 3, 3]] * 5)
    chosen = np.array([[0, 0, 1, 0, 1, 1]] * 3 + [[0] * 6, [0, 0, 0, 1, 0, 0]], bool)
    draws = np.array([0.0, 0.49, 0.5, 0.9, 0.99])
    assert sample_masked_item(chosen, positions, draws).tolist() == [1, 1, 3, 0, 2]


def test_fine_tuning_batch(tiny_tokenizer, item_tokens):
    histories = [np.array([3, 1, 2]), np.array([7])]
    examples = [Example(histories[0], 5, 0, 0), Example(histories[1], 0, 1, 0)]
    batch = FineTuningCollator(tiny_tokenizer, item_tokens, history_items=2)(examples)
    assert batch["history_item_ids"].tolist() == [[2, 1], [7, -1]]
    assert batch["target_item_ids"].tolist() == [5, 0]
    expected = tiny_tokenizer.batch_histories(item_tokens, histories)
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    assert FineTuningCollator(tiny_tokenizer, item_tokens)(examples)["history_item_ids"].shape == (2, 0)


def test_a_batch_that_reads_items_has_their_ids_alone():
    histories = [np.array([3, 1, 2]), np.array([7]), np.array([2, 2])]
    examples = [Example(history, target, 0, 0) for history, target in zip(histories, [5, 0, 9], strict=True)]
    batch = ItemReadingCollator(2)(examples)
    assert batch.pop("history_item_ids").tolist() == [[2, 1], [7, -1], [2, 2]]
    assert batch.pop("target_item_ids").tolist() == [5, 0, 9] and not batch


def test_masks_of_fine_tuning_are_of_each_example_and_leave_the_texts_whole(tiny_tokenizer, item_tokens):
    examples = [Example(np.array([3, 1]), 4, index, 2) for index in range(40)]
    plain = FineTuningCollator(tiny_tokenizer, item_tokens)(examples)
    batch = FineTuningCollator(tiny_tokenizer, item_tokens, mask_rate=0.15, seed=3)(examples)
    masked = batch.pop("masked")
    assert batch.keys() == plain.keys() and len(batch["input_ids"]) == 1  # they all say the same
    whole = batch["input_ids"][batch["text_rows"]]
    chosen = masked["labels"] != -100
    assert torch.equal(torch.where(chosen, masked["labels"], masked["input_ids"]), whole)
    assert 0.08 < chosen.float().mean() < 0.2 and len(chosen.unique(dim=0)) > 20
    again = FineTuningCollator(tiny_tokenizer, item_tokens, mask_rate=0.15, seed=3)(examples[7:8])["masked"]
    assert torch.equal(again["labels"][0], masked["labels"][7])


def test_an_empty_history_is_cls_alone_in_training_and_an_error_elsewhere(tiny_tokenizer, item_tokens):
    examples = [Example(np.array([], np.int32), 5, 0, 0), Example(np.array([3, 1]), 0, 1, 0)]
    batch = FineTuningCollator(tiny_tokenizer, item_tokens, history_items=1)(examples)
    assert batch["attention_mask"].sum(1)[0] == 1 and batch["input_ids"][0, 0] == tiny_tokenizer.cls_token_id
    assert batch["history_item_ids"].tolist() == [[-1], [1]]
    whole = tiny_tokenizer.batch_histories(item_tokens, [[3, 1]])
    assert all(torch.equal(batch[name][1], tensor[0]) for name, tensor in whole.items())
    alone = FineTuningCollator(tiny_tokenizer, item_tokens)(examples[:1])
    assert alone["input_ids"].tolist() == [[tiny_tokenizer.cls_token_id]]
    with pytest.raises(ValueError, match="history 0 is empty"):
        HistoryCollator(tiny_tokenizer, item_tokens)([[]])


def test_history_batch(tiny_tokenizer, item_tokens):
    histories = [np.array([3, 1, 2]), [7]]
    batch = HistoryCollator(tiny_tokenizer, item_tokens)(histories)
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "item_position_ids"}
    with_items = HistoryCollator(tiny_tokenizer, item_tokens, history_items=4)(histories)
    assert with_items["history_item_ids"].tolist() == [[2, 1, 3, -1], [7, -1, -1, -1]]


@pytest.mark.slow("starts workers")
def test_batches_made_ahead_by_workers_are_the_same_and_checked(collator, item_tokens, tiny_config):
    from jepa4rec.modeling_jepa4rec import Jepa4RecModel

    sampler = LengthGroupedBatchSampler(random_dataset(), item_tokens, 16)
    encoder = Jepa4RecModel(tiny_config)
    here, ahead = (Batches(sampler, collator, 2, 0, 1) for _ in range(2))
    ahead.prepare_ahead(encoder, workers=2)
    for own, theirs in zip(here.epoch(1, skip=1), ahead.epoch(1, skip=1), strict=True):
        for one, other in zip(own, theirs, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
    tiny_config.vocab_size -= 1 + int(item_tokens.input_ids.max()) // 2
    strict = Batches(sampler, collator, 1, 0, 1)
    strict.prepare_ahead(Jepa4RecModel(tiny_config), workers=0)
    with pytest.raises(ValueError, match="input_ids lie between"):
        list(strict.epoch(0))
