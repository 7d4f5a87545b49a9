"""Ridge regression by normal equations in float64, gathered batch by batch and rated by its conditioning."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_SMALLEST = 1e-12  # of the largest column: a column of zeros has no size to be scaled by


@dataclass(frozen=True)
class Solution:
    """The minimiser, (features, outputs) in float64, and the condition number of the scaled and damped equations."""

    weights: torch.Tensor
    condition: float


class NormalEquations:
    """Minimises ``|A W - Y|^2 + ridge * rows * |diag(rms(A)) W|^2`` over ``W`` without keeping ``A`` or ``Y``.

    Columns are scaled to mean square 1 first, so that ``ridge`` has no unit, a few loud channels do not drown the others, and
    the squared condition number is that of the directions alone. Doubles hold it: tokens come in float32 at best.
    """

    def __init__(self, features: int, outputs: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self.gram = torch.zeros(features, features, dtype=torch.float64, device=device)
        self.cross = torch.zeros(features, outputs, dtype=torch.float64, device=device)
        self.square = 0.0

    def add(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        """Take in rows of ``A`` (rows, features) and of ``Y`` (rows, outputs)."""
        a, y = features.to(self.gram), targets.to(self.gram)
        self.rows += len(a)
        self.gram.addmm_(a.T, a)
        self.cross.addmm_(a.T, y)
        self.square += float(y.square().sum())

    def __iadd__(self, other: NormalEquations) -> NormalEquations:
        self.rows += other.rows
        self.gram += other.gram
        self.cross += other.cross
        self.square += other.square
        return self

    def solve(self, ridge: float) -> Solution:
        """The minimiser.

        Raises:
            torch.linalg.LinAlgError: the equations are singular, which they can be for ``ridge=0`` alone.
        """
        scale = (self.gram.diagonal() / self.rows).sqrt()
        scale = scale.clamp(min=float(scale.max()) * _SMALLEST)
        scaled = self.gram / self.rows / scale / scale[:, None]
        scaled.diagonal().add_(ridge)
        eigenvalues = torch.linalg.eigvalsh(scaled)
        factor = torch.linalg.cholesky(scaled)
        weights = torch.cholesky_solve(self.cross / self.rows / scale[:, None], factor) / scale[:, None]
        return Solution(weights, float(eigenvalues[-1] / eigenvalues[0].clamp(min=1e-300)))

    def residual(self, weights: torch.Tensor) -> float:
        """``|A W - Y|^2``, never below 0."""
        fitted = self.gram @ weights - 2 * self.cross
        return max(0.0, self.square + float((weights * fitted).sum()))
