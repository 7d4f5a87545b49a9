"""What a training step needs, against what autograd keeps when the step is really made."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from sparsify import InputError, Policy, SparseModel, sparsify
from sparsify.cli.main import main
from sparsify.training.estimate import estimate

from .helpers import POLICY, inputs, plain, sparse_plain


def really_kept(sparse: SparseModel, example: Any, precision: str) -> int:
    """Bytes of what autograd keeps besides weights, each memory once."""
    known = {t.untyped_storage().data_ptr() for t in (*sparse.parameters(), *sparse.buffers())}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        where = tensor.untyped_storage().data_ptr()
        if where not in known:
            sizes[where] = tensor.untyped_storage().nbytes()
            alive.append(tensor)  # or its memory would be given out again
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
    ):
        sparse(*example)
    return sum(sizes.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("policy", [POLICY, Policy.dense()], ids=["sparse", "dense"])
def test_activations_are_those_that_autograd_keeps(policy: Policy, precision: str) -> None:
    example = inputs(batch=4, t=10)
    sparse = sparsify(plain(width=64), policy, example_inputs=example)
    found = estimate(sparse, inputs(batch=2), 4, precision=precision, gradient_checkpointing=False)
    assert found.activations == pytest.approx(really_kept(sparse, example, precision), rel=0.02)


def test_state_and_arithmetic_are_counted() -> None:
    sparse = sparse_plain()[1]
    weights = sum(p.numel() * 4 for p in sparse.parameters())
    buffers = sum(b.numel() * 4 for b in sparse.buffers())
    found = estimate(sparse, inputs(), 8, gradient_checkpointing=False)
    assert (found.weights, found.gradients, found.optimiser, found.ema) == (weights + buffers, weights, 2 * weights, weights)
    assert found.gflops == pytest.approx(3 * 8 * sparse.report().gflops)
    assert found.total == found.weights + found.gradients + found.optimiser + found.ema + found.activations
    assert found.seconds(0.5) == pytest.approx(found.gflops / 500)
    spread = estimate(sparse, inputs(), 8, gradient_checkpointing=False, devices=4)
    assert spread.optimiser == pytest.approx(found.optimiser / 4, abs=4)
    assert found.weights / 4 < spread.weights < found.weights


def test_checkpointing_keeps_less_and_computes_blocks_again() -> None:
    sparse = sparse_plain(12, Policy.dense())[1]
    kept, saved = (estimate(sparse, inputs(), 8, gradient_checkpointing=each) for each in (False, True))
    assert saved.activations < kept.activations / 3
    report = sparse.report()
    blocks = sum(block.gflops_mean for block in report.blocks)
    assert saved.gflops == pytest.approx(8 * (3 * report.gflops + blocks))
    assert sparse._clock.grid is None


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "estimate",
        "sparsify.models:dit",
        "--kwargs",
        '{"name": "DiT-S/2", "resolution": 64, "depth": 5}',
        "--batch-size",
        "2",
        "4",
    ]
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["batch"]) for row in rows] == [("dense", 2), ("dense", 4), ("sparse", 2), ("sparse", 4)]
    assert rows[2]["gflops"] < rows[0]["gflops"]
    assert main([*words, "--teraflops", "10"]) == 0
    shown = capsys.readouterr().out
    assert "seconds" in shown and "MiB on each" in shown
    assert main([*words, "--device", "meta"]) == 2
    assert "nothing is computed" in capsys.readouterr().err


def test_what_is_not_allowed_is_named() -> None:
    sparse = sparse_plain()[1]
    for options, name in (({"precision": "fp8"}, "precision"), ({"devices": 0}, "devices"), ({"devices": True}, "devices")):
        with pytest.raises(InputError, match=f"{name} is"):
            estimate(sparse, inputs(), 2, **options)
    with pytest.raises(InputError, match="batch is 0"):
        estimate(sparse, inputs(), 0)
    with pytest.raises(InputError, match="no example input has rows"):
        estimate(sparse, {"t": torch.tensor(5)}, 2)
