"""Small benchmarks for pytest-benchmark: a call of a small model, dense and sparse, and the rewrite itself."""

from __future__ import annotations

import pytest
import torch

from sparsify import Density, Policy, sparsify
from sparsify.models import dit
from sparsify.ops import pool_tokens, restore_tokens


@pytest.fixture(scope="module")
def model():
    return dit("DiT-S/2", 256)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_call(benchmark, model, kind: str) -> None:
    module, inputs = model
    run = module if kind == "dense" else sparsify(module, Policy.auto(), example_inputs=inputs)
    with torch.no_grad():
        benchmark(lambda: run(**inputs))


def test_sparsify(benchmark, model) -> None:
    module, inputs = model
    benchmark.pedantic(lambda: sparsify(module, Policy.auto(), example_inputs=inputs), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("operation", ["pool", "restore"])
def test_operation(benchmark, operation: str) -> None:
    dense, few = torch.randn(1, 1024, 1152), torch.randn(1, 100, 1152)
    if operation == "pool":
        benchmark(pool_tokens, dense, (32, 32), (10, 10))
    else:
        benchmark(restore_tokens, few, (10, 10), (32, 32))


def test_density(benchmark) -> None:
    density = Density.paper(finest=(10, 10), coarsest=(6, 6))
    benchmark(density.grid_at, 700, (32, 32))
