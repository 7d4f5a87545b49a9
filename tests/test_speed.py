"""The cost of the rewrite at real size."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from sparsify import Policy, sparsify
from sparsify.models import dit


@pytest.mark.slow
def test_sparsify_of_dit_xl_is_quick_and_hardly_grows_with_depth() -> None:
    """On meta weights: nothing here depends on their values. Limits: 5 s for 28 blocks, 1.5 times that for 56."""
    with torch.device("meta"):
        models = {depth: dit("DiT-XL/2", 512, depth) for depth in (28, 56)}
    seconds: dict[int, list[float]] = {28: [], 56: []}
    for _ in range(4):
        for depth, (model, inputs) in models.items():
            started = time.perf_counter()
            sparsify(model, Policy.fit(depth), example_inputs=inputs)
            seconds[depth].append(time.perf_counter() - started)
    medians = {depth: statistics.median(times) for depth, times in seconds.items()}
    assert medians[28] < 5
    assert medians[56] < 1.5 * medians[28]


def test_the_trunk_is_captured_once_however_deep() -> None:
    """What keeps the cost flat: one body per kind of block, not per block."""
    with torch.device("meta"):
        model, inputs = dit("DiT-S/2", 128, depth=20)
    sparse = sparsify(model, Policy.fit(20), example_inputs=inputs)
    assert sorted(sparse.program.bodies) == ["block0", "block0.pooling", "block0.split"]
