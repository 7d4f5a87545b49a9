"""``sparsify train`` under ``torchrun`` and ``accelerate launch``, as the guides have it, with two processes on one CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .test_training_cli import MODEL, train
from .training_helpers import POLICY, curve, tiny_of_diffusers

ROOT = Path(__file__).parents[1]
STEPS = ("--steps", "3", "--set", "gradient_clip=1.0", "--log-every", "1")
# accelerate launches several processes on a CPU by MPI, or, told of GPUs, by torch's own launcher, which needs none.
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}


def diffusers() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    whole = torch.zeros(1, dtype=torch.long)
    return tiny_of_diffusers(), {"hidden_states": torch.zeros(1, 1, 8, 8), "timestep": whole + 500, "class_labels": whole}


@pytest.mark.slow
def test_diffusers_dit_is_sharded(tmp_path: Path) -> None:
    both_are_one(tmp_path, "torchrun", "fsdp2", "tests.test_training_launchers:diffusers")


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_launched_processes_have_the_loss_curve_of_one(tmp_path: Path, launcher: str, parallel: str) -> None:
    both_are_one(tmp_path, launcher, parallel, MODEL)


def both_are_one(tmp_path: Path, launcher: str, parallel: str, model: str) -> None:
    """Train in one process and in two, and compare the losses."""
    assert train(tmp_path, *STEPS, model=model) == 0
    words = ["-m", "sparsify", "train", model, "--policy", POLICY.to_json(), "--data", str(tmp_path / "data.npz")]
    usual = ["--batch-size", "4", "--tracker", "none", "--device", "cpu", "--parallel", parallel, *STEPS]
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], *words, "--out", str(tmp_path / "both"), *usual],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "both" / "step-00000003" / "state").iterdir()]) == 2, "each process wrote its shard"
    torch.testing.assert_close(
        torch.tensor(curve(tmp_path / "both")), torch.tensor(curve(tmp_path / "out")), rtol=1e-4, atol=1e-6
    )
