"""Two processes on one CPU, connected by gloo, train what one trains."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .training_helpers import contents, curve, run
from .training_two import OPTIONS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have run ``tests.training_two``."""
    out = tmp_path_factory.mktemp("together")
    torch.manual_seed(0)
    for name in ("alone-ddp", "alone-fsdp2", "damaged"):
        run(out / name, 2, gradient_clip=1.0)
    (path,) = (out / "damaged").glob("step-*/ema.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [sys.executable, "-m", "tests.training_two", str(out)]
    processes = [
        subprocess.Popen(
            words, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return out


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_have_the_loss_curve_of_one(together: Path, tmp_path: Path, name: str) -> None:
    run(tmp_path, 4, gradient_clip=1.0, **OPTIONS[name])
    torch.testing.assert_close(torch.tensor(curve(together / name)), torch.tensor(curve(tmp_path)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_their_checkpoint_goes_on_in_one_process(together: Path, tmp_path: Path, name: str) -> None:
    """Of the same whole tensors, so the number of processes may change; with the same results, up to rounding."""
    shutil.copytree(together / name, tmp_path / "both")
    for out in (tmp_path / "both", tmp_path / "one"):
        run(out, 6, gradient_clip=1.0, **OPTIONS[name])
    torch.testing.assert_close(
        torch.tensor(curve(tmp_path / "both")), torch.tensor(curve(tmp_path / "one")), rtol=1e-4, atol=1e-6
    )
    shapes = [{key.split()[1]: x.shape for key, x in contents(out).items()} for out in (tmp_path / "both", tmp_path / "one")]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_go_on_where_one_stopped(together: Path, tmp_path: Path, name: str) -> None:
    run(tmp_path, 4, gradient_clip=1.0)
    torch.testing.assert_close(
        torch.tensor(curve(together / f"alone-{name}")), torch.tensor(curve(tmp_path)), rtol=1e-4, atol=1e-6
    )


def test_what_does_not_fit_is_named_in_both_processes(together: Path) -> None:
    for rank in range(2):
        found = json.loads((together / f"errors-{rank}.json").read_text())
        assert (
            "batch_size 3 does not divide into 2 processes x accumulate 1 equal parts; a multiple of 2 does" in found["batch"]
        )
        assert "has been altered since it was written" in found["damaged"]
