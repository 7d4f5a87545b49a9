"""What the example passes make can be compiled: every target equals eager at several densities and batch sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import examples.passes.pooled_keys
import examples.passes.sprint
import examples.passes.windowed  # noqa: F401  # they register themselves
from sparsify import Policy, SparseModel, available, lower, sparsify

from .helpers import inputs, plain
from .test_custom_passes import DENSITY, WINDOWS, freshened

CASES = {
    "sprint": (Policy.dense(), "sprint{blocks=2-4}"),
    "windowed": (WINDOWS, "windowed{blocks=2-3}"),
    "pooled-keys": (Policy.dense(), f"{DENSITY},pooled-keys{{blocks=1-4}}"),
}


def made(name: str) -> SparseModel:
    policy, passes = CASES[name]
    return freshened(sparsify(plain(), policy, inputs(), passes=passes))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_inductor(name: str) -> None:
    sparse = made(name)
    fast = lower(sparse, "inductor")
    with torch.no_grad():
        for batch, t in ((2, 500), (2, 100), (3, 900)):
            given = inputs(batch, t=t)
            assert (fast(*given) - sparse(*given)).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("target", [("aot_inductor", "m.pt2"), ("onnx", "m.onnx")], ids=lambda each: each[0])
@pytest.mark.parametrize("name", CASES)
def test_ahead_of_time(name: str, target: tuple[str, str], tmp_path: Path) -> None:
    kind, file = target
    if reason := available()[kind]:
        pytest.skip(reason)
    sparse = made(name)
    # Windows divide the grids of the schedule, and not every number that an open grid may have.
    shapes = "per_grid" if name == "windowed" else "dynamic"
    fast = lower(sparse, kind, out=tmp_path / file, shapes=shapes)
    with torch.no_grad():
        for t in (100, 900):
            given = inputs(t=t)
            assert (fast(*given) - sparse(*given)).abs().max() < 1e-4
