"""The judge of samples: a small convolutional classifier, trained on images that the Diffusion Transformer never sees."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from .data import Part

FEATURES = 64
_BATCH = 100


class Classifier(nn.Module):
    """Images (batch, 1, 32, 32) in [-1, 1] to 64 features, and these to logits of 10 digits."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (1, 32, 64, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 16, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(self.body(images))


def train(part: Part, epochs: int = 60, seed: int = 0) -> Classifier:
    """A classifier of ``part``, whose images are turned, scaled and shifted at random as they are shown."""
    torch.manual_seed(seed)
    model = Classifier()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * (len(part.labels) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(part.labels)).split(_BATCH):
            loss = F.cross_entropy(model(moved(part.images[rows])), part.labels[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def moved(images: torch.Tensor) -> torch.Tensor:
    """Each image turned by up to 17 degrees, scaled by up to 12%, sheared and shifted a little."""
    count = len(images)
    angle, shear = (torch.rand(2, count) * 2 - 1) * 0.3
    scale = 1 + (torch.rand(2, count) * 2 - 1) * 0.12
    shift = (torch.rand(2, count) * 2 - 1) * 0.12
    rows = torch.stack([scale[0] * angle.cos(), -angle.sin() + shear, shift[0]], dim=1)
    columns = torch.stack([angle.sin(), scale[1] * angle.cos(), shift[1]], dim=1)
    where = F.affine_grid(torch.stack([rows, columns], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, where, align_corners=False) - 1  # what comes in from outside is black


@torch.no_grad()
def judged(model: Classifier, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, 64) and the digits seen (N,)."""
    features = torch.cat([model.body(some) for some in images.split(500)])
    return features, model.head(features).argmax(dim=-1)
