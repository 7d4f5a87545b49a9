"""How near samples are to real images: FID, precision and recall on a classifier's features, and its accuracy on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

_NEIGHBOURS = 3


class Scores(NamedTuple):
    """Of a set of samples.

    Attributes:
        fid: Frechet distance (Heusel et al., arXiv 1706.08500) on the features of the classifier, not of Inception.
        precision: share of samples within the manifold of real images (Kynkaanniemi et al., arXiv 1904.06991, k = 3).
        recall: share of real images within the manifold of samples.
        accuracy: share of samples in which the classifier sees the digit that was asked for.
    """

    fid: float
    precision: float
    recall: float
    accuracy: float


class _AsTheyAre(nn.Identity):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features


def fid(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Frechet distance of two sets of features (N, features)."""
    metric = FrechetInceptionDistance(_AsTheyAre(real.shape[1]))
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return float(metric.compute())


def share_inside(points: torch.Tensor, others: torch.Tensor) -> float:
    """Which share of ``points`` is no farther from one of ``others`` than that one's third neighbour among its own."""
    own = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1).fit(others.numpy())  # each is its own first neighbour
    radii = torch.tensor(own.kneighbors(others.numpy())[0][:, -1])
    inside = torch.cat([(torch.cdist(some, others.double()) <= radii).any(dim=1) for some in points.double().split(500)])
    return float(inside.double().mean())


def scores(real: torch.Tensor, fake: torch.Tensor, seen: torch.Tensor, asked: torch.Tensor) -> Scores:
    """From features of real and fake images, the digits seen in the fake ones and those asked for."""
    accuracy = float((seen == asked).double().mean())
    return Scores(fid(real, fake), share_inside(fake, real), share_inside(real, fake), accuracy)
