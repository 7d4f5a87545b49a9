"""Runs that kill themselves at a given moment; started by ``test_training_resume.py`` as a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsify.training import StepDone, checkpoint
from sparsify.training.manifest import Manifest

from .training_helpers import run, sparse_tiny


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(number: int, function: Callable[..., Any], instead: Callable[..., Any] = die) -> Callable[..., Any]:
    """``function``, but at a certain call of it ``instead``: when the run saves step 4."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return instead(*args, **kwargs) if calls == number else function(*args, **kwargs)

    return call


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, and then death."""

    def call(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)
        die()

    return call


def half_removed(path: Path, ignore_errors: bool = False, rmtree: Callable[..., Any] = shutil.rmtree) -> None:
    """As far as a removal got."""
    if path.name.endswith(".old") and path.is_dir():
        next(path.rglob("*.safetensors")).unlink()
        die()
    rmtree(path, ignore_errors)


def prepare(moment: str) -> Callable[[StepDone], None] | None:
    """Set the trap for one moment."""
    replace = checkpoint.os.replace
    if moment == "in a step":
        return lambda done: die() if done.step == 3 else None
    if moment == "while writing":
        checkpoint.write_state = at(2, checkpoint.write_state, after(checkpoint.write_state))
    elif moment == "before the manifest":
        Manifest.of = at(2, Manifest.of)  # type: ignore[method-assign]
    elif moment == "before renaming":
        checkpoint.os.replace = at(3, replace)  # the first one is that of the metrics
    elif moment == "after renaming":
        checkpoint.os.replace = at(3, replace, after(replace))
    else:
        checkpoint.shutil.rmtree = half_removed
    return None


def main(out: Path, moments: list[str]) -> None:
    """One process for each moment: forked before torch has started any thread, because importing it takes long."""
    torch.set_num_threads(1)
    sparse_tiny()  # captured once, before the processes part
    for moment in moments:
        child = os.fork()
        if child == 0:
            # With two checkpoints kept, the first is removed at the third; with one at the second.
            run(
                out / moment,
                on_step=prepare(moment),
                keep=1 if moment == "while removing" else 2,
                gradient_clip=1.0,
                weight_decay=0.01,
            )
            os._exit(1)  # it should not have come this far
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{moment}: the run ended otherwise, with status {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
