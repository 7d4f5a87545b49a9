"""GFLOPs of the paper's table: the paper's, and ours without and with the passes that save work at equal results.

examples:
  python -m benchmarks.flops
  python -m benchmarks.flops --json out/bench/flops.json

GFLOPs are multiply-adds / 1e9 of one forward pass at batch 1, mean over the timesteps of the density schedule, counted on the
graph of a model on the meta device: no weights are made and nothing is computed. The last column is the cost with savings over
what the paper prints for the same configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from sparsify import Density, Policy, sparsify
from sparsify.models import dit, pixart
from sparsify.paper import ROWS

from .common import parser, show, table, write

# GFLOPs as printed in the paper, dense and sparse, by model, resolution and pruning rates.
PUBLISHED = {
    ("DiT-XL/2", 512, (0.90, 0.96)): (525, 235),
    ("DiT-XL/2", 512, (0.61, 0.86)): (525, 286),
    ("DiT-XL/2", 256, (0.61, 0.86)): (118.64, 68.05),
    ("DiT-XL/2", 256, (0.44, 0.61)): (118.64, 88.91),
    ("DiT-B/2", 256, (0.61, 0.86)): (23.01, 14.34),
    ("PixArt-alpha", 256, (0.61, 0.86)): (148.73, 91.62),
}
_NOTE = "PixArt-alpha: the paper prints neither its segments nor its rates; here the proportions and rates of DiT-XL/2."


@dataclass(frozen=True)
class Line:
    """A row of the table; GFLOPs."""

    model: str
    resolution: int
    rates: tuple[float, float]
    paper_dense: float
    paper_sparse: float
    dense: float
    without_savings: float
    with_savings: float


def configurations() -> list[tuple[str, int, tuple[float, float], Policy, Callable[[], tuple[nn.Module, dict[str, Any]]]]]:
    """Model, resolution, rates, policy, and how to make the model."""
    rows: list[Any] = [
        (
            row.model,
            row.resolution,
            row.rates,
            Policy.paper(row.model, row.resolution, rates=row.rates),
            partial(dit, row.model, row.resolution),
        )
        for row in ROWS
    ]
    return [*rows, ("PixArt-alpha", 256, (0.61, 0.86), Policy.fit(28, Density.paper(0.61, 0.86)), partial(pixart, 256))]


def lines(quiet: bool = False) -> list[Line]:
    """Count every configuration."""
    found = []
    progress = track(configurations(), "counting", console=Console(stderr=True), transient=True, disable=quiet)
    for model_name, resolution, rates, policy, make in progress:
        with torch.device("meta"):
            model, inputs = make()
        without, full = (sparsify(model, policy, example_inputs=inputs, savings=on).report() for on in (False, True))
        published = PUBLISHED[model_name, resolution, rates]
        found.append(Line(model_name, resolution, rates, *published, full.gflops_dense, without.gflops, full.gflops))
    return found


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser("flops", __doc__ or "", "json").parse_args(words)
    found = lines()
    headings = ("model", "pixels", "r", "dense, paper", "dense", "sparse, paper", "without savings", "with", "of paper")
    rows = [
        (
            line.model,
            str(line.resolution),
            "{:.2f} to {:.2f}".format(*line.rates),
            f"{line.paper_dense:g}",
            f"{line.dense:.2f}",
            f"{line.paper_sparse:g}",
            f"{line.without_savings:.2f}",
            f"[bold]{line.with_savings:.2f}[/]",
            f"{line.with_savings / line.paper_sparse:.1%}",
        )
        for line in found
    ]
    show(table("GFLOPs, mean over the timesteps", headings, rows, caption=_NOTE))
    write(options.json, "flops", options, [asdict(line) for line in found])
    return 0


if __name__ == "__main__":
    sys.exit(main())
