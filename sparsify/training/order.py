"""Which images, noise and timesteps a step gets: a function of the seed and the step's number, and of nothing else.

So a run that goes on needs to know its step alone, and what a batch holds does not depend on how many processes share it:
each draws the whole batch and takes its rows.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import torch

from ..density import Density, Grid
from ..discretise import is_discrete
from ..sampling import Draw, TimestepSampler
from .config import TrainConfig
from .data import Images


@dataclass(frozen=True)
class Batch:
    """What one process trains on at a time, on the CPU.

    Attributes:
        images: (rows, C, H, W) in float32.
        noise: standard normal, of the same shape.
        timesteps: (rows,); all have the same pooled grid.
        labels: (rows,), some of them the null label where labels are dropped; None without labels.
    """

    images: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    labels: torch.Tensor | None


class Order:
    """Batches by their number.

    Args:
        config: batch size, parts, seed, distribution of timesteps, label dropout.
        images: what is drawn from, in an order of its own in every epoch.
        density: whose pooled grid all timesteps of a part share; None lets them differ.
        grid: the dense token grid.
        rank: which share of the rows to give.
        world: how many shares there are; it must divide the rows of a part.
    """

    def __init__(
        self, config: TrainConfig, images: Images, density: Density | None, grid: Grid, rank: int = 0, world: int = 1
    ) -> None:
        self._config, self._images = config, images
        self._rows = config.batch_size // config.accumulate
        share = self._rows // world
        self._mine = slice(rank * share, (rank + 1) * share)
        self._null = images.classes if config.null_label is None else config.null_label
        if density is None:
            density, grid = Density.constant(rate=0.0, timesteps=config.timesteps), (1, 1)
        self._timesteps = TimestepSampler(density, grid, self._rows, draw=_draw(config))
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffled)  # a batch may reach into the next epoch

    def batch(self, step: int, part: int = 0) -> Batch:
        """This process's rows of one part of a step, both counted from 0."""
        number = step * self._config.accumulate + part
        images, labels = self._images.batch(self.index(number)[self._mine])
        noise = torch.randn(self._rows, *self._images.shape, generator=self._generator("noise", number))
        self._timesteps.load_state_dict({"generator": self._generator("timesteps", number).get_state()})
        timesteps = self._timesteps.batch()[self._mine]
        if labels is not None and self._config.label_dropout:
            drawn = torch.rand(self._rows, generator=self._generator("labels", number))[self._mine]
            labels = labels.masked_fill(drawn < self._config.label_dropout, self._null)
        return Batch(images, noise[self._mine], timesteps, labels)

    def index(self, number: int) -> torch.Tensor:
        """Which images all processes together get: every image once an epoch, the last batch of one reaching into the next."""
        places = torch.arange(number * self._rows, (number + 1) * self._rows)
        epochs, within = places // len(self._images), places % len(self._images)
        return torch.cat([self._permutation(e)[within[epochs == e]] for e in epochs.unique().tolist()])

    def _shuffled(self, epoch: int) -> torch.Tensor:
        return torch.randperm(len(self._images), generator=self._generator("epoch", epoch))

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self._config.seed, purpose, number))


def seed_of(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose and number.

    torch's generator on the CPU takes 32 bits of a seed. Numbers follow each other here, so that none of one purpose
    coincide before there are 2^32 of them, which hashes of that length would after some ten thousand.
    """
    start = hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:4]
    return (int.from_bytes(start, "little") + number) % 2**32


def _draw(config: TrainConfig) -> Draw | None:
    """Logit-normal timesteps; the sampler's own are uniform."""
    if config.timestep_distribution == "uniform":
        return None

    def draw(count: int, generator: torch.Generator) -> torch.Tensor:
        timesteps = torch.randn(count, generator=generator).sigmoid() * config.timesteps
        return timesteps.floor().clamp(max=config.timesteps - 1).long() if is_discrete(config.timesteps) else timesteps

    return draw
