"""Timesteps for training: each batch has one density, and all batches together have the timesteps they would have had."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from .density import Density
from .discretise import is_discrete
from .ends import Grid, check_whole
from .errors import InputError

Draw = Callable[[int, torch.Generator], torch.Tensor]

_TRIES = 10_000  # batches that are drawn in search of one grid, before it counts as out of reach
_KNOWN = 4096  # timesteps whose grid is kept


class TimestepSampler:
    """Batches of timesteps that share a pooled grid.

    A batch that mixes densities would run at the densest of them. So the first timestep is drawn as ever, and the others
    are drawn until they have its grid: the grid comes as often as before, and within it each timestep does, so over
    many batches the distribution is that of ``draw``. Ranks with other seeds mix their densities freely.

    Args:
        density: whose grids count.
        grid: the dense token grid, such as ``sparse.report().grid``.
        batch_size: timesteps per batch.
        draw: ``draw(count, generator)`` gives ``count`` independent timesteps; uniform over the density's range if left out,
            over whole timesteps below T where T is a whole number above 1.
        seed: of the generator; give every rank its own.

    Raises:
        InputError: ``batch_size`` is no positive integer.
    """

    def __init__(self, density: Density, grid: Grid, batch_size: int, *, draw: Draw | None = None, seed: int = 0) -> None:
        check_whole("TimestepSampler: batch_size", batch_size)
        self._density, self._batch_size = density, batch_size
        # Whole timesteps come again and again.
        self._grid_at = functools.lru_cache(_KNOWN)(functools.partial(density.grid_at, dense=tuple(grid)))
        self._draw = draw or self._uniform
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Batches without end."""
        while True:
            yield self.batch()

    def batch(self) -> torch.Tensor:
        """Timesteps of shape (batch,), on the CPU.

        Raises:
            InputError: ``draw`` hardly ever gives the grid of its first timestep.
        """
        kept = self._draw(1, self._generator)
        grid = self._grid_at(float(kept))
        for _ in range(_TRIES):
            if len(kept) >= self._batch_size:
                return kept[: self._batch_size]
            more = self._draw(4 * self._batch_size, self._generator)
            mask = [self._grid_at(t) == grid for t in more.tolist()]
            kept = torch.cat([kept, more[torch.tensor(mask)]])
        raise InputError(f"TimestepSampler: in {_TRIES} tries draw() gave too few timesteps of the pooled grid {grid}.")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Where the generator stands."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self._generator.set_state(state["generator"])

    def _uniform(self, count: int, generator: torch.Generator) -> torch.Tensor:
        last = self._density.timesteps
        if is_discrete(last):
            return torch.randint(int(last), (count,), generator=generator)
        return torch.rand(count, generator=generator) * last
