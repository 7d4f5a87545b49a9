"""Time dense against sparse: side by side in one process, interleaved, medians."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .density import Density, Grid
from .runtime import SparseModel


@dataclass(frozen=True)
class Timing:
    """One pooled grid: its share of the timesteps and the median seconds of a call there."""

    grid: Grid
    share: float
    seconds: float


@dataclass(frozen=True)
class Bench:
    """Dense and sparse timings of one model; ``speedup`` weighs the grids by their share of the timesteps."""

    dense_seconds: float
    timings: tuple[Timing, ...]
    rounds: int
    gflops_ratio: float

    @property
    def sparse_seconds(self) -> float:
        """Mean over the schedule."""
        return sum(timing.share * timing.seconds for timing in self.timings)

    @property
    def speedup(self) -> float:
        """Dense over sparse time."""
        return self.dense_seconds / self.sparse_seconds

    def to_json(self) -> str:
        """All numbers as JSON."""
        return json.dumps(asdict(self) | {"sparse_seconds": self.sparse_seconds, "speedup": self.speedup})

    def __rich__(self) -> object:
        from rich.table import Table

        table = Table(
            title=f"dense against sparse: [bold]{self.speedup:.2f}x[/] faster at {self.gflops_ratio:.2f}x fewer GFLOPs "
            f"(interleaved, medians of {self.rounds})",
            title_justify="left",
        )
        for heading in ("pooled grid", "share of timesteps", "seconds", "dense over this"):
            table.add_column(heading, justify="right")
        table.add_row("dense", "", f"{self.dense_seconds:.3f}", "1.00x")
        for timing in self.timings:
            cells = ("x".join(map(str, timing.grid)), f"{timing.share:.1%}", f"{timing.seconds:.3f}")
            table.add_row(*cells, f"{self.dense_seconds / timing.seconds:.2f}x")
        return table


def bench(
    model: nn.Module,
    sparse: SparseModel,
    inputs: Mapping[str, Any],
    rounds: int = 3,
    run_dense: Callable[..., Any] | None = None,
    run_sparse: Callable[..., Any] | None = None,
    on_call: Callable[[], None] = lambda: None,
) -> Bench:
    """Time ``model`` against ``sparse`` with keyword ``inputs``, at one timestep for every pooled grid of the schedule.

    Args:
        model: the dense model.
        sparse: the sparse model, captured.
        inputs: keyword inputs; the timestep among them is replaced.
        rounds: how often each is timed; the calls of a round follow each other.
        run_dense: how to call the dense model, compiled for one; the model itself if not given.
        run_sparse: likewise for the sparse one.
        on_call: called after every timed call, for a progress bar.
    """
    run_dense = model if run_dense is None else run_dense
    run_sparse = sparse if run_sparse is None else run_sparse
    report = sparse.report()
    calls: dict[Grid | None, dict[str, Any]] = {None: dict(inputs)}
    for density in report.densities:
        calls[density.grid] = dict(inputs) | _at(sparse.program.density, report.timestep, inputs, report.grid, density.grid)
    seconds: dict[Grid | None, list[float]] = {grid: [] for grid in calls}
    with torch.no_grad():
        for round_ in range(rounds + 1):
            for grid, call in calls.items():
                if round_ == 0 and grid is not None and run_sparse is sparse and grid != report.densities[-1].grid:
                    continue  # eager code needs one warm-up, compiled code one for every grid
                elapsed = _timed(run_dense if grid is None else run_sparse, call)
                on_call()
                if round_:  # the first round warms up
                    seconds[grid].append(elapsed)
    medians = {grid: statistics.median(times) for grid, times in seconds.items()}
    timings = tuple(Timing(density.grid, density.share, medians[density.grid]) for density in report.densities)
    return Bench(medians[None], timings, rounds, report.gflops_dense / report.gflops)


def _at(density: Density | None, name: str | None, inputs: Mapping[str, Any], dense: Grid, pooled: Grid) -> dict[str, Any]:
    """The inputs with a timestep at which the schedule gives this grid."""
    if density is None or name is None:
        return {}
    t = density.timesteps_of(dense)[pooled][0]
    return {name: torch.full_like(inputs[name], t)}


def _timed(run: Callable[..., Any], call: Mapping[str, Any]) -> float:
    _synchronise(call)
    started = time.perf_counter()
    run(**call)
    _synchronise(call)
    return time.perf_counter() - started


def _synchronise(call: Mapping[str, Any]) -> None:
    if any(isinstance(value, torch.Tensor) and value.is_cuda for value in call.values()):
        torch.cuda.synchronize()
