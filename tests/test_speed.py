"""The cost of the rewrite at real size."""

from __future__ import annotations

import gc
import statistics
import time

import pytest
import torch

from sparsify import Policy, sparsify
from sparsify.models import dit


@pytest.mark.slow
def test_sparsify_of_dit_xl_is_quick_and_hardly_grows_with_depth() -> None:
    """On meta weights: nothing here depends on their values. Limits: 3 s for 28 blocks, 1.3 times that for 56.

    Processor time of one thread, because other load on the machine hardly shows in it, and as timeit does without the
    garbage collector, whose long passes fall on either depth by chance.
    """
    with torch.device("meta"):
        models = {depth: dit("DiT-XL/2", 512, depth) for depth in (28, 56)}
    seconds: dict[int, list[float]] = {28: [], 56: []}
    for round_ in range(8):
        for depth, (model, inputs) in models.items():
            gc.collect()
            gc.disable()
            try:
                started = time.thread_time()
                sparsify(model, Policy.fit(depth), example_inputs=inputs)
                taken = time.thread_time() - started
            finally:
                gc.enable()
            if round_:  # the first round warms up
                seconds[depth].append(taken)
    assert statistics.median(seconds[28]) < 3
    assert statistics.median(b / a for a, b in zip(seconds[28], seconds[56], strict=True)) <= 1.3


def test_the_trunk_is_captured_once_however_deep() -> None:
    """What keeps the cost flat: one body per kind of block, not per block."""
    with torch.device("meta"):
        model, inputs = dit("DiT-S/2", 128, depth=20)
    sparse = sparsify(model, Policy.fit(20), example_inputs=inputs)
    assert sorted(sparse.program.bodies) == ["block0", "block0.pooling", "block0.split"]
