"""Ranks: the tie rule, the NaN rule and the history rule by hand, everything else against the slow, obvious way."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from jepa4rec.evaluation import ranking
from jepa4rec.evaluation.ranking import (
    ItemIndex,
    find_repeated_rows,
    length_groups,
    rank_scores,
    rank_split,
    rank_split_both_ways,
    rank_targets,
    top_k,
)
from jepa4rec.evaluation.scorers import DualEncoderScorer, ItemMeanScorer, TfIdfScorer, make_scorer
from jepa4rec.serving.encoding_seqrec import encode_histories, encode_items, token_budget_batches
from jepa4rec.tokenization_itemsent import ItemTokens

INF = float("inf")


class FixedScorer:
    """Scores of the last item of the history, from a table (N, N)."""

    def __init__(self, table):
        self.table, self.num_items = torch.as_tensor(table, dtype=torch.float32), len(table)

    def score(self, histories):
        return self.table[[int(history[-1]) for history in histories]]


def split_of(histories, targets):
    histories = [np.array(history, dtype=np.int32) for history in histories]
    return SimpleNamespace(
        user_ids=np.arange(len(histories)).astype(str), histories=histories, targets=np.array(targets)
    )


def brute_force_rank(scores, target, excluded=(), ties="mean"):
    """Sort nothing, share nothing: compare the target with every candidate, one after the other."""
    if target in excluded:
        return INF
    rank = 1.0
    for item, score in enumerate(scores):
        if item != target and item not in excluded:
            rank += 1.0 if score > scores[target] else 0.5 if score == scores[target] and ties == "mean" else 0.0
    return rank


# The rules, by hand


def test_both_ways_to_count_ties_come_out_of_one_ranking():
    """Two equals beside the target: the middle of three places, or the first; a miss is a miss either way."""
    table = [[0.5, 0.9, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4], [0.0] * 4, [0.0] * 4]
    split = split_of([[0], [1]], [3, 1])
    mean, official = rank_split_both_ways(FixedScorer(table), split, exclude_history=True, progress=False)
    assert (mean.tolist(), official.tolist()) == ([2.5, INF], [2.0, INF])
    for ties, expected in (("mean", [3.0, 3.0]), ("official", [2.0, 3.0])):
        assert rank_split(FixedScorer(table), split, ties=ties).tolist() == expected


def test_rank_counts_the_items_above():
    assert rank_scores(torch.tensor([[0.1, 0.9, 0.5]] * 3), [1, 2, 0]).tolist() == [1.0, 2.0, 3.0]


def test_ties_take_the_mean_of_their_ranks():
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1]])  # ranks 2, 3 and 4 are shared
    assert rank_scores(scores, [0]).tolist() == [3.0]
    assert rank_scores(torch.tensor([[0.5, 0.5]]), [0]).tolist() == [1.5]


def test_official_ties_count_no_equal_item():
    assert rank_scores(torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1]]), [3], ties="official").tolist() == [2.0]


def test_a_constant_scorer_gets_the_middle_of_the_catalogue():
    assert rank_scores(torch.zeros(2, 101), [0, 100]).tolist() == [51.0, 51.0]


def test_a_collapsed_model_gets_the_middle_of_the_catalogue():
    item_vectors = torch.randn(1, 24).expand(1001, 24)
    ranks = rank_targets(torch.randn(7, 24), item_vectors, np.arange(7) * 150)
    assert ranks.tolist() == [501.0] * 7


@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
def test_a_score_that_is_no_number_is_an_error_that_names_the_user(bad):
    scores = torch.zeros(4, 5)
    scores[2, 3] = bad
    with pytest.raises(ValueError, match="User row 2 has scores that are NaN or infinite"):
        rank_scores(scores, [0, 0, 0, 0])
    with pytest.raises(ValueError, match="User row 2"):
        rank_scores(scores, [0, 0, 0, 0], ties="official")


def test_large_scores_whose_sum_overflows_are_still_numbers():
    assert rank_scores(torch.tensor([[3e38, 3e38, 1.0]]), [2]).tolist() == [3.0]


def test_the_user_is_named_across_blocks_and_sorting(monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_USERS", 2)
    table = torch.eye(6)
    table[4, 0] = float("nan")
    split = split_of([[0, 1, 2], [3], [1, 4], [5], [2]], [0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="User row 2"):
        rank_split(FixedScorer(table), split)
    vectors = torch.ones(5, 3)
    vectors[3] = float("nan")
    with pytest.raises(ValueError, match="User row 3"):
        rank_targets(vectors, torch.randn(6, 3), [0] * 5)


def test_history_items_stay_candidates_unless_excluded():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    assert rank_scores(scores, [2]).tolist() == [3.0]
    assert rank_scores(scores, [2], excluded=[[0]]).tolist() == [2.0]
    assert rank_scores(scores, [2], excluded=[[0, 0, 1, 3]]).tolist() == [1.0]  # an item bought twice is one item


def test_an_excluded_tie_no_longer_ties():
    assert rank_scores(torch.zeros(1, 4), [0], excluded=[[1, 1]]).tolist() == [2.0]


def test_a_target_that_repeats_an_excluded_item_is_a_miss():
    scores = torch.tensor([[0.9, 0.8], [0.9, 0.8]])
    assert rank_scores(scores, [0, 1], excluded=[[0], []]).tolist() == [INF, 2.0]
    split = split_of([[0, 1], [1, 1]], [1, 0])
    assert rank_split(FixedScorer(torch.eye(2)), split, exclude_history=True).tolist() == [INF, 1.0]


# Against the slow way


@pytest.mark.parametrize("ties", ["mean", "official"])
@pytest.mark.parametrize("exclude", [False, True])
def test_ranks_equal_brute_force_on_random_scores_with_many_ties(ties, exclude, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_USERS", 7)
    rng = np.random.default_rng(0)
    table = rng.integers(0, 6, (40, 40))
    split = split_of([rng.integers(0, 40, rng.integers(1, 9)) for _ in range(60)], rng.integers(0, 40, 60))
    expected = [
        brute_force_rank(table[history[-1]], target, set(history.tolist()) if exclude else (), ties)
        for history, target in zip(split.histories, split.targets, strict=True)
    ]
    assert rank_split(FixedScorer(table), split, exclude, ties).tolist() == expected


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("block_users", [1, 3, 1024])
def test_vector_ranks_equal_brute_force(similarity, block_users, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_USERS", block_users)
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(11, 8, generator=generator), torch.randn(50, 8, generator=generator) * 3
    exact = users.double() @ items.double().T
    if similarity == "cosine":
        exact = nn.functional.cosine_similarity(users.double()[:, None], items.double()[None], dim=-1)
    targets = torch.randint(50, (11,), generator=generator)
    excluded = [[int(i), 4] for i in torch.randint(50, (11,), generator=generator)]
    expected = [brute_force_rank(exact[u].tolist(), int(targets[u])) for u in range(11)]
    assert rank_targets(users, items, targets, similarity=similarity).tolist() == expected
    expected = [brute_force_rank(exact[u].tolist(), int(targets[u]), excluded[u]) for u in range(11)]
    assert rank_targets(users, items, targets, excluded, similarity).tolist() == expected


def test_memory_limit_decides_the_block_size(monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 4 * 100 * 3)
    assert [len(rows) for rows in ranking._blocks(np.arange(8), 100)] == [3, 3, 2]
    assert [len(rows) for rows in ranking._blocks(np.arange(2), 10**9)] == [1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_ranks_of_the_cpu():
    users, items = torch.randint(-4, 5, (50, 8)).float(), torch.randint(-4, 5, (300, 8)).float()
    targets, excluded = np.arange(50), [[1, 2, 60]] * 50
    on_cpu = rank_targets(users, items, targets, excluded, "dot")
    assert (rank_targets(users.cuda(), items.cuda(), targets, excluded, "dot") == on_cpu).all()


# Equal vectors, equal scores


@pytest.mark.parametrize("num_items", [5, 257, 4099])
def test_items_with_equal_vectors_tie_exactly_wherever_they_stand(num_items):
    """Matrix multiplication rounds by position (edges of blocks); repeated vectors must not notice."""
    generator = torch.Generator().manual_seed(num_items)
    vectors = torch.randn(num_items, 383, generator=generator)
    copies = torch.randperm(num_items, generator=generator)[: num_items // 2]
    vectors[copies] = vectors[copies[0]].clone()
    for users in (torch.randn(1, 383), torch.randn(33, 383)):
        for similarity in ("cosine", "dot"):
            scores = ItemIndex(vectors, similarity).scores(users)
            assert (scores[:, copies] == scores[:, copies[:1]]).all()


def test_repeated_rows_point_to_their_first_occurrence():
    vectors = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [0.0, -0.0], [1.0, 2.0], [-0.0, 0.0]])
    copies, originals = find_repeated_rows(vectors)
    assert dict(zip(copies.tolist(), originals.tolist(), strict=True)) == {2: 0, 4: 0, 5: 3}


def test_rows_that_only_share_a_hash_are_not_repeated(monkeypatch):
    monkeypatch.setattr(ranking, "_hash_rows", lambda vectors: torch.zeros(len(vectors), dtype=torch.int64))
    copies, originals = find_repeated_rows(torch.tensor([[1.0], [2.0], [1.0]]))
    assert (copies.tolist(), originals.tolist()) == ([2], [0])


def test_repeated_rows_are_found_among_many():
    vectors = torch.randn(20_000, 4).bfloat16().float()  # few bits set: hard for a weak hash
    vectors[-1] = vectors[0]
    copies, originals = find_repeated_rows(vectors)
    assert (vectors[copies] == vectors[originals]).all()
    assert len(vectors) - len(copies) == len(torch.unique(vectors, dim=0))


# Recommendations


def test_top_k_is_the_head_of_the_sorted_scores():
    table = torch.randn(9, 9)
    histories = [np.array([u, u]) for u in range(9)]
    items, scores = top_k(FixedScorer(table), histories, 4)
    assert (items == table.argsort(dim=1, descending=True)[:, :4].numpy()).all()
    assert np.allclose(scores, np.take_along_axis(table.numpy(), items, 1))


def test_top_k_without_the_history():
    items, _ = top_k(FixedScorer(torch.eye(3)), [np.array([0, 2, 2])], 1, exclude_history=True)
    assert items.tolist() == [[1]]


def test_k_larger_than_the_catalogue_is_an_error():
    with pytest.raises(ValueError, match="k = 4 is outside 1..3: the catalogue has 3 items"):
        top_k(FixedScorer(torch.eye(3)), [np.array([0])], 4)
    with pytest.raises(ValueError, match="k = 0"):
        top_k(FixedScorer(torch.eye(3)), [np.array([0])], 0)
    with pytest.raises(ValueError, match="User row 1 has 1 items left without its history, fewer than k = 2"):
        top_k(FixedScorer(torch.eye(3)), [np.array([0]), np.array([0, 1])], 2, exclude_history=True)


# Bad input


def test_items_outside_the_catalogue_are_named_with_their_row():
    scorer = FixedScorer(torch.eye(3))
    with pytest.raises(ValueError, match=r"history of user row 1 has item 7, but the catalogue has items 0\.\.2"):
        rank_split(scorer, split_of([[0], [1, 7], [0]], [0, 0, 0]))
    with pytest.raises(ValueError, match="target of user row 1 has item -1"):
        rank_split(scorer, split_of([[0], [1]], [0, -1]))
    with pytest.raises(ValueError, match="excluded list of user row 0 has item 3"):
        rank_scores(torch.zeros(1, 3), [0], excluded=[[3]])
    with pytest.raises(ValueError, match="history of user row 1 is empty"):
        rank_split(scorer, split_of([[0], []], [0, 0]))


def test_rows_that_do_not_fit_together_are_errors():
    with pytest.raises(ValueError, match="2 users need one target each"):
        rank_scores(torch.zeros(2, 3), [0])
    with pytest.raises(ValueError, match="2 users need one list of excluded items each, got 1"):
        rank_scores(torch.zeros(2, 3), [0, 0], excluded=[[1]])


def test_unknown_modes_and_broken_item_vectors_are_errors():
    with pytest.raises(ValueError, match='ties is "random"'):
        rank_scores(torch.zeros(1, 2), [0], ties="random")
    with pytest.raises(ValueError, match='similarity is "l2"'):
        rank_targets(torch.zeros(1, 2), torch.zeros(2, 2), [0], similarity="l2")
    with pytest.raises(ValueError, match="vector of item 1 is NaN or infinite"):
        rank_targets(torch.zeros(1, 2), torch.tensor([[0.0, 1.0], [INF, 0.0]]), [0])


# Encoding


@pytest.fixture
def encoder(tiny_config):
    from jepa4rec.modeling_jepa4rec import Jepa4RecModel

    torch.manual_seed(0)
    return Jepa4RecModel(tiny_config).eval()


@pytest.fixture
def item_tokens(tiny_tokenizer, tiny_items):
    return tiny_tokenizer.encode_items(tiny_items)


@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
def test_item_vectors_are_those_of_one_item_at_a_time(encoder, tiny_tokenizer, item_tokens, tiny_items, batch_tokens):
    vectors = encode_items(encoder, tiny_tokenizer, item_tokens, batch_tokens)
    one_by_one = [encoder(**tiny_tokenizer([[item]], return_tensors="pt")).pooler_output[0] for item in tiny_items]
    assert torch.allclose(vectors, torch.stack(one_by_one), atol=1e-5)
    assert not vectors.requires_grad


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_history_vectors_are_those_of_one_history_at_a_time(
    encoder, tiny_tokenizer, item_tokens, tiny_items, batch_tokens
):
    histories = [np.array(h) for h in ([3], [0, 5, 1, 2], [7, 7], [4, 3, 2, 1, 0])]
    vectors = encode_histories(encoder, tiny_tokenizer, item_tokens, histories, batch_tokens)
    for history, vector in zip(histories, vectors, strict=True):
        batch = tiny_tokenizer([[tiny_items[item] for item in history]], return_tensors="pt")
        assert torch.allclose(vector, encoder(**batch).pooler_output[0], atol=1e-5)


def test_items_with_equal_text_have_equal_vectors_and_tie(encoder, tiny_tokenizer, tiny_items):
    tokens = tiny_tokenizer.encode_items([*tiny_items, *tiny_items[:5], *tiny_items[:2]])
    vectors = encode_items(encoder, tiny_tokenizer, tokens, batch_tokens=40)
    assert (vectors[12:17] == vectors[:5]).all() and (vectors[17:] == vectors[:2]).all()
    ranks = rank_targets(vectors[[0]], vectors, [17])
    assert ranks.tolist() == [2.0]  # three equal items share the ranks 1, 2, 3


def test_encoding_runs_without_dropout_and_restores_the_mode(encoder, tiny_tokenizer, item_tokens):
    encoder.train()
    first, second = (encode_items(encoder, tiny_tokenizer, item_tokens) for _ in range(2))
    assert torch.equal(first, second) and encoder.training


def test_a_low_precision_is_of_the_encoder_alone(encoder, tiny_tokenizer, item_tokens):
    """Vectors near those in float32 and not equal to them; what is made of them stays float32."""
    histories = [np.array([3]), np.array([0, 5, 1, 2])]
    low = {"precision": torch.bfloat16}
    for encode, read in ((encode_items, ()), (encode_histories, (histories,))):
        plain, other = (encode(encoder, tiny_tokenizer, item_tokens, *read, **how) for how in ({}, low))
        assert other.dtype == torch.float32 and not torch.equal(plain, other)
        assert nn.functional.cosine_similarity(plain, other).min() > 0.99
    items = encode_items(encoder, tiny_tokenizer, item_tokens, **low)
    cosines = nn.functional.cosine_similarity(other[:, None], items[None], dim=-1)
    scores = make_scorer(encoder, tiny_tokenizer, item_tokens, **low).score(histories)
    torch.testing.assert_close(scores, cosines, rtol=0, atol=1e-6)


def test_batches_hold_similar_lengths_and_keep_the_budget():
    lengths = np.array([3, 9, 1, 4, 4, 20, 2])
    batches = list(token_budget_batches(lengths, 12))
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= 12 for rows in batches)
    assert batches[0].tolist() == [5]


def test_zero_shot_scores_are_cosines_of_texts(encoder, tiny_tokenizer, item_tokens):
    scorer = DualEncoderScorer(encoder, tiny_tokenizer, item_tokens)
    histories = [np.array([1, 2]), np.array([4])]
    users = encode_histories(encoder, tiny_tokenizer, item_tokens, histories)
    items = encode_items(encoder, tiny_tokenizer, item_tokens)
    expected = nn.functional.cosine_similarity(users[:, None], items[None], dim=-1)
    assert torch.allclose(scorer.score(histories), expected, atol=1e-6)
    assert rank_split(scorer, split_of([[4]], [4])).tolist() == [1.0]  # an item is nearest to itself


@pytest.mark.parametrize("history_items", [0, 2])
def test_a_fine_tuned_model_ranks_with_its_item_matrix(tiny_config, tiny_tokenizer, item_tokens, history_items):
    from jepa4rec.modeling_jepa4rec import Jepa4RecForSequentialRecommendation

    tiny_config.num_items, tiny_config.history_items = 12, history_items
    model = Jepa4RecForSequentialRecommendation(tiny_config).eval()
    model.initialise_items(torch.randn(12, 32))
    scorer = DualEncoderScorer(model, tiny_tokenizer, item_tokens, model.item_vectors())
    history = np.array([5, 1, 8])
    batch = tiny_tokenizer.batch_histories(item_tokens, [history])
    user = model.user_vectors(**batch, history_item_ids=torch.tensor([[8, 1, 5]]))
    expected = nn.functional.cosine_similarity(user, model.item_matrix.weight, dim=-1)
    assert torch.allclose(scorer.score([history])[0], expected, atol=1e-6)


def test_an_item_matrix_of_another_catalogue_is_an_error(encoder, tiny_tokenizer, item_tokens):
    with pytest.raises(ValueError, match="item matrix has 11 rows, the catalogue 12 items"):
        DualEncoderScorer(encoder, tiny_tokenizer, item_tokens, torch.zeros(11, 32))


def test_length_groups_part_the_users():
    lengths = np.array([1, 2, 3, 5, 9, 30])
    groups = length_groups(lengths, [3, 6])
    assert list(groups) == ["1-2 items", "3-5 items", "6-30 items"]
    assert list(length_groups(lengths)) == ["1-2 items", "3-4 items", "5-8 items", "9-30 items"]  # quartiles
    assert sum(members.sum() for members in groups.values()) == len(lengths)


def test_a_history_read_as_items_is_their_recency_weighted_mean():
    vectors = torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 1.0], [-1.0, 0.0]])
    scorer = ItemMeanScorer(vectors)
    users = torch.tensor(
        [[0.5, 1.0], [1.0, 0.0], [1.0 - 0.25, 0.5]]
    )  # lengths do not count, the newest item does most
    directions = torch.nn.functional.normalize(vectors, dim=1)
    wanted = torch.nn.functional.normalize(users, dim=1) @ directions.T
    histories = [np.array([0, 1]), np.array([0]), np.array([3, 1, 0])]
    torch.testing.assert_close(scorer.score(histories), wanted)
    with pytest.raises(ValueError, match="empty"):
        scorer.score([np.array([], np.int64)])


def test_tf_idf_is_the_slow_count_of_words():
    texts, decay = [[1, 2, 2, 3], [1, 4], [2, 3, 9, 1], [1], [4, 9, 1]], 0.5
    offsets = np.cumsum([0, *map(len, texts)])
    tokens = ItemTokens(np.concatenate(texts).astype(np.int32), np.zeros(offsets[-1], np.int8), offsets)
    table = np.zeros((5, 10))
    for row, text in enumerate(texts):
        for token in set(text):
            table[row, token] = math.log(5 / sum(token in other for other in texts))
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)  # the fourth says what all say
    histories = [np.array([0, 1, 0]), np.array([3]), np.array([2])]
    users = [table[0] + decay * table[1] + decay**2 * table[0], table[3], table[2]]
    scores = TfIdfScorer(tokens, decay).score(histories)
    np.testing.assert_allclose(scores, np.stack(users) @ table.T, atol=1e-6)
    with pytest.raises(ValueError, match="user row 1 is empty"):
        TfIdfScorer(tokens).score([[0], []])
