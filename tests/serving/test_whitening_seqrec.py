"""A whitening: what it does to directions, and how few vectors change it little."""

import pytest
import torch
from torch.nn.functional import normalize

from jepa4rec.serving.whitening_seqrec import Whitening

WIDTH = 12


def crowded(number):
    """Vectors that share most of a direction, with variances a thousandfold apart."""
    torch.manual_seed(0)
    return torch.randn(number, WIDTH) * torch.logspace(0, -1.5, WIDTH) + torch.linspace(2, 0, WIDTH)


def mean_cosine(vectors):
    return (vectors @ vectors.T)[~torch.eye(len(vectors), dtype=bool)].mean().item()


def test_it_is_zca_of_that_power():
    """Against the textbook form by singular values: directions one long, centred, each scaled to the power."""
    vectors = normalize(crowded(500), dim=1)
    centred = vectors - vectors.mean(0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    scaled = centred @ directions.T @ torch.diag((spread.square() / 500 + 1e-5) ** -0.375) @ directions
    torch.testing.assert_close(
        Whitening.fit(crowded(500), 0.75)(crowded(500)), normalize(scaled, dim=1), atol=1e-4, rtol=0
    )


def test_vectors_no_longer_crowd_and_their_lengths_do_not_count():
    vectors = crowded(300)
    whitened = Whitening.fit(vectors, 0.75)(vectors)
    assert mean_cosine(normalize(vectors, dim=1)) > 0.5 and abs(mean_cosine(whitened)) < 0.01
    torch.testing.assert_close(whitened.norm(dim=1), torch.ones(300))
    torch.testing.assert_close(Whitening.fit(3 * vectors, 0.75)(7 * vectors), whitened, atol=1e-5, rtol=0)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_beside_a_prior_few_vectors_change_little(number):
    few, others = crowded(400)[:number], normalize(crowded(400), dim=1)
    moved = Whitening.fit(few, 0.75, prior=400.0)(others)
    assert moved.isfinite().all() and (moved * others).sum(1).min() > 0.97
    alone = Whitening.fit(crowded(400), 0.75, prior=400.0)(others)
    assert mean_cosine(alone) < 0.6 * mean_cosine(others)


@pytest.mark.parametrize("number", [1, 5, 300])
def test_it_can_be_undone(number):
    vectors = crowded(300)
    for prior in (0.5, 100.0):
        whitening = Whitening.fit(vectors[:number], 0.75, prior)
        torch.testing.assert_close(whitening.undo(whitening(vectors)), normalize(vectors, dim=1), atol=1e-4, rtol=0)
