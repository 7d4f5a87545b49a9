"""Whole sampling runs: DDPM with 250 steps, DDIM with 50, DPM-Solver with 25; seconds per image, dense and sparse.

examples:
  python -m benchmarks.sampling                                  # DiT-XL/2 at 256x256, estimated: a few minutes
  python -m benchmarks.sampling --models dit-256 dit-512 --compile --json out/bench/sampling.json
  python -m benchmarks.sampling --full --samplers dpm-25         # the real loops too; DDPM takes an hour on two cores
  python -m benchmarks.sampling --quick --full                   # a small model, estimate beside real loops, in seconds

Images are made with classifier-free guidance, two forward passes in one batch of twice the images; --unguided makes it one.
Timesteps are those of diffusers' schedulers, set up as DiT's are, and the density schedule picks the pooled grid of each.

A run is estimated, not run: a forward pass is timed at each pooled grid, interleaved with the dense one, and its median weighed
by how many of the scheduler's own timesteps get that grid; the scheduler's arithmetic is timed by itself and added to both.
--full runs the real loops, dense and sparse, and prints their times beside the estimates. Decoding the latents to pixels costs
the same on both sides and is left out of both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from rich.table import Table

from sparsify import SparseModel, lower, sparsify
from sparsify.cli.words import a_count
from sparsify.ends import Grid

from .cases import CASES, Case, cases
from .common import DTYPES, batched, grid_text, in_dtype, interleaved, parser, placed, show, table, timed, write

SAMPLERS: dict[str, tuple[str, type[Any], int]] = {
    "ddpm-250": ("DDPM", DDPMScheduler, 250),
    "ddim-50": ("DDIM", DDIMScheduler, 50),
    "dpm-25": ("DPM-Solver", DPMSolverMultistepScheduler, 25),
}
MODELS = [name for name in CASES if name.startswith("dit")]  # class to image, as in the paper's table
_GUIDANCE = 4.0


@dataclass(frozen=True)
class Run:
    """One sampler: how often each grid is visited, seconds per image by estimate, and by a real loop if there was one."""

    sampler: str
    steps: int
    visits: dict[str, int]
    dense: float
    sparse: float
    gflops_ratio: float
    dense_loop: float | None = None
    sparse_loop: float | None = None


def scheduler_of(sampler: str) -> Any:
    """With its timesteps set."""
    _, kind, steps = SAMPLERS[sampler]
    scheduler = kind(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    scheduler.set_timesteps(steps)
    return scheduler


def visits(sparse: SparseModel, scheduler: Any) -> dict[Grid, int]:
    """How many steps of a run happen at each pooled grid."""
    report, density = sparse.report(), sparse.program.density
    if density is None:
        return {report.grid: len(scheduler.timesteps)}
    counts = Counter(density.grid_at(float(t), report.grid) for t in scheduler.timesteps)
    return {each.grid: counts[each.grid] for each in report.densities if counts[each.grid]}


def loop(run: Callable[..., Any], inputs: dict[str, Any], scheduler: Any, guided: bool) -> torch.Tensor:
    """One sampling run of a class-conditional model with learned variance; latents."""
    batch = inputs["hidden_states"]
    latents = torch.randn_like(batch[: len(batch) // 2] if guided else batch)
    with torch.no_grad():
        for t in scheduler.timesteps:
            both = torch.cat([latents, latents]) if guided else latents
            timestep = t.to(both.device).expand(len(both))
            noise = run(**inputs | {"hidden_states": scheduler.scale_model_input(both, t), "timestep": timestep}).sample
            noise = noise[:, : latents.shape[1]]
            if guided:
                with_class, without = noise.chunk(2)
                noise = without + _GUIDANCE * (with_class - without)
            latents = scheduler.step(noise, t, latents).prev_sample
    return latents


def estimate(sampler: str, sparse: SparseModel, seconds: dict[Grid | None, float], arithmetic: float, images: int) -> Run:
    """From the seconds of a forward pass by grid, dense under None, and those of the scheduler over the whole run."""
    found = visits(sparse, scheduler_of(sampler))
    steps = sum(found.values())
    sparse_seconds = sum(count * seconds[grid] for grid, count in found.items())
    cost = {density.grid: density.gflops for density in sparse.report().densities}
    gflops = sum(count * cost[grid] for grid, count in found.items()) / steps
    return Run(
        sampler=SAMPLERS[sampler][0],
        steps=steps,
        visits={grid_text(grid): count for grid, count in found.items()},
        dense=(steps * seconds[None] + arithmetic) / images,
        sparse=(sparse_seconds + arithmetic) / images,
        gflops_ratio=sparse.report().gflops_dense / gflops,
    )


def arithmetic_of(sampler: str, inputs: dict[str, Any], guided: bool) -> float:
    """Seconds that a run spends outside of the model: a loop whose model hands back zeros."""
    latents = inputs["hidden_states"]
    zeros = SimpleNamespace(sample=torch.zeros_like(latents).repeat(1, 2, 1, 1))
    return min(timed(lambda: loop(lambda **_: zeros, inputs, scheduler_of(sampler), guided)) for _ in range(2))


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    batch = {"nargs": None, "default": 1, "type": a_count, "help": "images per run (default: 1)"}
    flags = ("batch", "compile", "rounds", "dtype", "device", "quick", "json")
    made = parser("sampling", __doc__ or "", *flags, batch=batch)
    made.add_argument("--models", nargs="+", choices=MODELS, default=["dit-256"], help="which models (default: dit-256)")
    made.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), help="which (default: all)")
    made.add_argument("--full", action="store_true", help="run the real loops too")
    made.add_argument("--unguided", action="store_true", help="without classifier-free guidance")
    options = made.parse_args(words)
    results = []
    for name in options.models:
        case = cases(options.quick)[name]
        for compiled in (False, True) if options.compile else (False,):
            runs = sampled(case, options, compiled)
            show(sampling_table(case.title, runs, options, compiled))
            results.append({"model": name, "title": case.title, "compiled": compiled, "runs": [asdict(run) for run in runs]})
            write(options.json, "sampling", options, results)  # after each: the later ones take long
    return 0


def sampled(case: Case, options: argparse.Namespace, compiled: bool) -> list[Run]:
    """Every sampler on one model."""
    torch.manual_seed(0)
    dtype, guided = DTYPES[options.dtype], not options.unguided
    model, one = case.make()
    model = placed(model, options.device, dtype)
    inputs = in_dtype(batched(one, options.batch * (2 if guided else 1), options.device), dtype)
    sparse = sparsify(model, case.policy, example_inputs=inputs)
    runs: dict[str, Callable[..., Any]] = {"dense": model, "sparse": sparse}
    if compiled:
        torch._dynamo.reset()
        runs = {"dense": torch.compile(model, dynamic=False), "sparse": lower(sparse, "inductor")}
    seconds = step_seconds(runs, sparse, inputs, options.samplers, options.rounds, case.title)
    found = []
    for sampler in options.samplers:
        run = estimate(sampler, sparse, seconds, arithmetic_of(sampler, inputs, guided), options.batch)
        if options.full:
            loops = {}
            for kind, each in runs.items():
                seconds_of_run = timed(partial(loop, each, inputs, scheduler_of(sampler), guided))
                loops[kind] = seconds_of_run / options.batch
            run = Run(**asdict(run) | {"dense_loop": loops["dense"], "sparse_loop": loops["sparse"]})
        found.append(run)
    return found


def step_seconds(
    runs: dict[str, Callable[..., Any]],
    sparse: SparseModel,
    inputs: dict[str, Any],
    samplers: Sequence[str],
    rounds: int,
    title: str = "",
) -> dict[Grid | None, float]:
    """Median seconds of a forward pass, dense under None and sparse at each grid that some sampler visits."""

    def at(grid: Grid) -> Callable[[], Any]:
        def call() -> Any:
            sparse.fix(grid)
            return runs["sparse"](**inputs)

        return call

    grids = dict.fromkeys(grid for sampler in samplers for grid in visits(sparse, scheduler_of(sampler)))
    calls: dict[Grid | None, Callable[[], Any]] = {None: lambda: runs["dense"](**inputs), **{grid: at(grid) for grid in grids}}
    try:
        times = interleaved(calls, rounds, title=title)
    finally:
        sparse.fix(None)
    return {grid: statistics.median(each) for grid, each in times.items()}


def sampling_table(title: str, runs: Sequence[Run], options: argparse.Namespace, compiled: bool) -> Table:
    """To read; columns of real loops only where there were any."""
    headings = ["sampler", "steps at each pooled grid", "s dense", "s sparse", "faster", "fewer GFLOPs"]
    rows = [
        [
            f"{run.sampler}, {run.steps} steps",
            ", ".join(f"{grid}: {count}" for grid, count in run.visits.items()),
            f"{run.dense:.2f}",
            f"{run.sparse:.2f}",
            f"[bold]{run.dense / run.sparse:.2f}x[/]",
            f"{run.gflops_ratio:.2f}x",
        ]
        for run in runs
    ]
    if options.full:
        headings += ["loop dense", "loop sparse", "faster"]
        for row, run in zip(rows, runs, strict=True):
            if run.dense_loop is not None and run.sparse_loop is not None:
                row += [f"{run.dense_loop:.2f}", f"{run.sparse_loop:.2f}", f"{run.dense_loop / run.sparse_loop:.2f}x"]
    code = "compiled" if compiled else "eager"
    batch = f"batch {options.batch}{'' if options.unguided else ' with guidance'}"
    caption = f"estimates: medians of {options.rounds} interleaved forward passes, weighed by the steps at each grid"
    return table(f"[bold]{title}[/], {code}, {options.dtype}, {batch}: seconds per image", headings, rows, 2, caption)


if __name__ == "__main__":
    sys.exit(main())
