"""Dense against sparse with TensorRT on a GPU: builds, checks against eager, times interleaved, writes a result file.

examples:
  python -m benchmarks.tensorrt                                        # DiT-XL/2 at 256x256, fp16, batch 8
  python -m benchmarks.tensorrt --resolution 512 --precision bf16 --shapes per_grid
  python -m benchmarks.tensorrt --precision fp8 --batch 16             # needs nvidia-modelopt
  python -m benchmarks.tensorrt --model DiT-B/2 --blocks 12 --rounds 50 --out result.json

It times the dense model eager, compiled by Inductor and by TensorRT, and the sparse one by both compilers at every pooled
grid of its schedule. All of these take turns in one process, each synchronised with the GPU; medians are kept. The speedup
is the best dense time over the sparse one, which weighs each grid by its share of the timesteps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsify import Policy, SparseModel, lower, sparsify
from sparsify.density import Density
from sparsify.ends import Grid
from sparsify.errors import SparsifyError
from sparsify.models import dit
from sparsify.targets.base import TARGETS
from sparsify.targets.check import differences
from sparsify.targets.tensorrt import DTYPES

from .common import Call, hardware, in_dtype, interleaved, parser, versions

RESULTS = Path(__file__).parent / "results"


def command() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("tensorrt", __doc__ or "")
    made.add_argument("--model", default="DiT-XL/2", help="DiT-S/2, DiT-B/2, DiT-L/2 or DiT-XL/2 (default: %(default)s)")
    made.add_argument("--resolution", type=int, default=256, help="pixels of a side (default: %(default)s)")
    made.add_argument("--blocks", type=int, help="fewer blocks than the model has, to try things out")
    made.add_argument("--batch", type=int, default=8, help="images per call, 2 or more (default: %(default)s)")
    made.add_argument("--precision", choices=sorted(DTYPES), default="fp16", help="of the engines (default: %(default)s)")
    made.add_argument(
        "--shapes", choices=("profiles", "per_grid"), default="profiles", help="one engine, or one per pooled grid"
    )
    made.add_argument("--rounds", type=int, default=30, help="how often each is timed (default: %(default)s)")
    made.add_argument("--cache", type=Path, help="a folder that keeps the engines between runs")
    made.add_argument("--out", type=Path, help="the result file (default: benchmarks/results/tensorrt-<model>-<...>.json)")
    return made


def main(arguments: list[str] | None = None) -> int:
    """The whole run; 2 where it cannot be done here."""
    options = command().parse_args(arguments)
    if reason := TARGETS["tensorrt"].reason_against():
        print(f"error: target tensorrt cannot be used here: {reason}.", file=sys.stderr)
        return 2
    try:
        result = run(options)
    except SparsifyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = options.out or RESULTS / f"tensorrt-{options.model.replace('/', '-')}-{options.resolution}-{options.precision}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['speedup']:.2f}x faster than the best dense time; written to {out}")
    return 0


def run(options: argparse.Namespace, device: str = "cuda") -> dict[str, Any]:
    """Build, check and time; what the result file holds."""
    torch.manual_seed(0)
    model, one = dit(options.model, options.resolution, options.blocks)
    with torch.no_grad():  # weights that start at zero would make every output zero and every check vacuous
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    dtype = DTYPES[options.precision]
    model = model.to(device)
    inputs = {name: value.to(device).repeat_interleave(options.batch, 0) for name, value in one.items()}
    policy = policy_for(options, len(model.transformer_blocks))
    dense, sparse = (sparsify(model, chosen, example_inputs=inputs) for chosen in (Policy.dense(), policy))
    settings = {"precision": options.precision, "batch": options.batch, "cache_dir": options.cache}
    built: dict[str, Any] = {}
    seconds = {}
    for name, source, shapes in (("dense", dense, "profiles"), ("sparse", sparse, options.shapes)):
        print(f"building the {name} engine{'s' if shapes == 'per_grid' else ''}", file=sys.stderr)
        started = time.perf_counter()
        built[name] = lower(source, "tensorrt", shapes=shapes, **settings)
        seconds[name] = time.perf_counter() - started
    found = {name: differences(source, built[name]) for name, source in (("dense", dense), ("sparse", sparse))}
    sparse.to(dtype)  # and with it the model, whose parameters are the same objects
    low_inputs = in_dtype(inputs, dtype)
    calls = {
        "dense eager": lambda: model(**low_inputs),
        "dense inductor": _compiled(model, low_inputs),
        "dense tensorrt": lambda: built["dense"](**inputs),
    }
    shares = {density.grid: density.share for density in sparse.report().densities}
    inductor = lower(sparse, "inductor", shapes="per_grid")
    for grid in shares:
        text = "x".join(map(str, grid))
        calls[f"sparse inductor {text}"] = _at(sparse, inductor, grid, low_inputs)
        calls[f"sparse tensorrt {text}"] = _at(built["sparse"], built["sparse"], grid, inputs)
    times = interleaved(calls, options.rounds, warm_up=3, title="timing, interleaved")
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return summary(options, medians, shares, seconds, found, sparse)


def policy_for(options: argparse.Namespace, depth: int) -> Policy:
    """The paper's row for this model, or its proportions for a part of it."""
    if options.blocks is None and options.model in ("DiT-XL/2", "DiT-B/2"):
        return Policy.paper(options.model, options.resolution)
    return Policy.fit(depth, Density.paper(r_min=0.61, r_max=0.86))


def _compiled(model: nn.Module, inputs: Mapping[str, Any]) -> Call:
    compiled = torch.compile(model)
    return lambda: compiled(**inputs)


def _at(clock: Any, run_: Callable[..., Any], grid: Grid, inputs: Mapping[str, Any]) -> Call:
    """A call at one pooled grid, which the host says, so that no timestep is read from the GPU."""

    def call() -> Any:
        clock.fix(grid)
        return run_(**inputs)

    return call


def summary(
    options: argparse.Namespace,
    medians: Mapping[str, float],
    shares: Mapping[Grid, float],
    build_seconds: Mapping[str, float],
    found: Mapping[str, Any],
    sparse: SparseModel,
) -> dict[str, Any]:
    """The result file: what was run, on what, how far from eager, how fast."""
    mean = {
        compiler: sum(share * medians[f"sparse {compiler} {'x'.join(map(str, grid))}"] for grid, share in shares.items())
        for compiler in ("inductor", "tensorrt")
    }
    best_dense = min(seconds for name, seconds in medians.items() if name.startswith("dense"))
    report = sparse.report()
    return {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "policy": str(sparse.policy),
        "hardware": hardware(),
        "versions": versions(),
        "gflops": {"dense": report.gflops_dense, "sparse": report.gflops},
        "build_seconds": dict(build_seconds),
        "difference_to_eager_float32": {
            name: [{"grid": d.grid, "absolute": d.error, "largest_output": d.scale} for d in each]
            for name, each in found.items()
        },
        "median_seconds": dict(medians),
        "sparse_seconds_over_the_schedule": mean,
        "speedup": best_dense / mean["tensorrt"],
        "speedup_of_the_method_in_tensorrt": medians["dense tensorrt"] / mean["tensorrt"],
    }


if __name__ == "__main__":
    sys.exit(main())
