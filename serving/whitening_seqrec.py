"""Whitening of text vectors, after which no few directions rule their cosines.

Item texts of one shop are alike: most of a cosine between two of them is what all share. Whitened text vectors rank
items better than plain ones (Zhang et al., Are ID Embeddings Necessary?, 2024).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

VARIANCE_FLOOR = 1e-5
CATALOGUE_PRIOR = 100.0  # what a catalogue's own items are weighed against, see docs/training-log.md


class Whitening(NamedTuple):
    """An affine map of vectors (n, d), of which only their directions count."""

    mean: Tensor  # (d,)
    matrix: Tensor  # (d, d), symmetric

    @classmethod
    def fit(cls, vectors: Tensor, power: float, prior: float = 0.0) -> "Whitening":
        """Learned from vectors (n, d) of any length.

        Args:
            power: 1 makes all directions equally strong, 0 only centres; between them strong ones stay stronger.
            prior: how many vectors the belief weighs that their mean is zero and no direction stronger than another; 0
                takes the vectors for all there are, which should then be many times d.
        """
        vectors = normalize(vectors.float(), dim=1)
        known = len(vectors) / (len(vectors) + prior)
        mean = known * vectors.mean(0)
        covariance = (vectors - mean).T @ (vectors - mean) / len(vectors)
        even = covariance.trace() / len(covariance) * torch.eye(len(covariance), device=vectors.device)
        variances, directions = torch.linalg.eigh(known * covariance + (1 - known) * even)
        scales = (variances.clamp(min=0) + VARIANCE_FLOOR) ** (-power / 2)
        scales /= (variances * scales.square()).sum().sqrt()  # the mean squared length is one
        return cls(mean, directions @ torch.diag(scales) @ directions.T)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Vectors (n, d) of any length -> whitened ones, one long, float32."""
        return normalize((normalize(vectors.float(), dim=1) - self.mean) @ self.matrix, dim=1)

    def undo(self, whitened: Tensor) -> Tensor:
        """The directions (n, d) that became these: the one point, on a ray from the mean, whose length is one."""
        rays = torch.linalg.solve(self.matrix, whitened.T).T
        lengths, along = rays.square().sum(1, keepdim=True), rays @ self.mean[:, None]
        inside = 1 - self.mean.square().sum()  # of the sphere lies the mean, unless all directions were one
        steps = (-along + (along.square() + lengths * inside).sqrt()) / lengths
        return normalize(self.mean + steps * rays, dim=1)
