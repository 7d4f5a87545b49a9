"""Draw the same digits with the trained DiT and its sparse form, and say what each costs.

examples:
  python -m examples.mnist.demo                  # pictures and numbers into out/
  python -m examples.mnist.demo --digits 40 --seed 7
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from . import report
from .arms import ARMS, dense_model, sparse_model
from .published import FOLDER, weights_of
from .sampling import drawn, labels_of, noise_of
from .settings import Settings

SHOWN = ("dense", "calibrated-finetuned")
_BATCH = 10


class Timed:
    """A model that notes how long each call took, in seconds."""

    def __init__(self, model: Callable[..., torch.Tensor]) -> None:
        self.model, self.seconds = model, list[float]()

    def __call__(self, *inputs: Any) -> torch.Tensor:
        """As the model."""
        started = time.perf_counter()
        output = self.model(*inputs)
        self.seconds.append(time.perf_counter() - started)
        return output


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.mnist.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--digits", type=int, default=20, help="how many to draw (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture (default: out)")
    options = parser.parse_args(words)
    if options.digits < 1:
        parser.error(f"--digits is {options.digits}; draw at least 1.")
    settings = Settings.read()
    dense, _ = dense_model(settings, weights_of("dense"), fused=True)
    sparse = sparse_model(settings, weights_of("dense"), weights_of("calibrated-finetuned"), fused=True)
    models = [Timed(dense.eval()), Timed(sparse)]
    images = side_by_side(models, options.digits, options.seed, settings.dense.objective)
    found = sparse.report()
    Console().print(table(models, [found.gflops_dense, found.gflops], json.loads((FOLDER / "results.json").read_text())))
    picture = options.out / "digits.png"
    report.grid_picture({ARMS[name].title: x[:20] for name, x in zip(SHOWN, images, strict=True)}, picture)
    print(f"the same noise, drawn by both: {picture}")
    return 0


def side_by_side(models: Sequence[Timed], count: int, seed: int, objective: str) -> list[torch.Tensor]:
    """Images of each model from the same noise, drawn in turns so that both meet the same load."""
    noise, labels = noise_of(count, seed), labels_of(count)
    turns = zip(*(drawn(model, noise, labels, objective, batch=_BATCH) for model in models), strict=True)
    batches = [*track(turns, "drawing digits with both models", -(-count // _BATCH), console=Console(stderr=True))]
    return [torch.cat(images) for images in zip(*batches, strict=True)]


def table(models: Sequence[Timed], gflops: Sequence[float], results: dict[str, Any]) -> Table:
    """GFLOPs and time of a step, and the FID that the whole experiment found."""
    shown = Table(title="A DiT trained on MNIST, and its sparse form")
    for column in ("", "GFLOPs", "ms a step", "FID (5,000 samples)"):
        shown.add_column(column, justify="right" if column else "left")
    times = [statistics.median(model.seconds) * 1000 for model in models]
    for name, flops, milliseconds in zip(SHOWN, gflops, times, strict=True):
        seeds = report.seeds_of(results, name).values()
        fid = f"{statistics.mean(scores['fid'] for scores in seeds):.2f}" if seeds else "not measured yet"
        shown.add_row(ARMS[name].title, f"{flops:.3f}", f"{milliseconds:.1f}", fid)
    shown.add_section()
    shown.add_row("dense / sparse", f"{gflops[0] / gflops[1]:.2f}x", f"{times[0] / times[1]:.2f}x", "")
    return shown


if __name__ == "__main__":
    sys.exit(main())
