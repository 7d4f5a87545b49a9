"""Timesteps for training, tested against the distribution they must have."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from sparsify import Density, InputError
from sparsify.sampling import TimestepSampler

GRID = (16, 16)
DENSITIES = [Density.paper(0.5, 0.9, timesteps=100), Density.linear(0.3, 0.9, timesteps=1.0, reversed=True)]


def chi_square(counts: torch.Tensor) -> float:
    """Of equal expectations, per degree of freedom: about 1 where the counts are what they should be."""
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))


@pytest.mark.parametrize("density", DENSITIES, ids=str)
def test_each_batch_has_one_grid_and_all_together_are_uniform(density: Density) -> None:
    batches = list(islice(TimestepSampler(density, GRID, 4, seed=3), 6000))
    grids = [{density.grid_at(t, GRID) for t in batch.tolist()} for batch in batches]
    assert all(len(found) == 1 for found in grids) and len(set.union(*grids)) > 3
    for position in (0, 3):  # the one that chose the grid and one that followed; within a batch they depend on another
        drawn = torch.stack(batches)[:, position].double() / density.timesteps
        counts = torch.histc(drawn, bins=20, min=0, max=1)
        assert chi_square(counts) < 2.2  # 99.9% of such tables stay below


def test_any_distribution_is_kept() -> None:
    """Logit-normal timesteps, as flow matching is trained with: their quartiles are known."""
    density = Density.linear(0.3, 0.9, timesteps=1.0)
    sampler = TimestepSampler(density, GRID, 2, draw=lambda count, g: torch.randn(count, generator=g).sigmoid(), seed=1)
    drawn = torch.stack(list(islice(sampler, 6000)))[:, 1]
    quartiles = torch.quantile(drawn, torch.tensor([0.25, 0.5, 0.75]))
    want = torch.tensor([-0.6745, 0.0, 0.6745]).sigmoid()
    assert (quartiles - want).abs().max() < 0.02


def test_ranks_differ_and_a_run_goes_on_where_it_stopped() -> None:
    first, second, again = (TimestepSampler(DENSITIES[0], GRID, 8, seed=seed) for seed in (0, 1, 0))
    assert not torch.equal(first.batch(), second.batch())
    state = first.state_dict()
    want = [first.batch() for _ in range(3)]
    again.load_state_dict(state)
    assert all(torch.equal(a, again.batch()) for a in want)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(InputError, match="batch_size is 0; it must be an integer of at least 1"):
        TimestepSampler(DENSITIES[0], GRID, 0)
