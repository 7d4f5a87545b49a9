"""Cold compile time: a deep model by regions, as the inductor target does it, against the same model compiled flat.

Every measurement is a process of its own with empty caches and one compiler at a time; seconds are of processor time.

examples:
  python -m benchmarks.compile_cost
  python -m benchmarks.compile_cost --depth 12 --width 128 --json out/bench/compile_cost.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from sparsify import Policy, SparseModel, lower, sparsify

from .common import parser, processor_seconds, show, table, write

_ROOT = Path(__file__).parents[1]
# What each is, and which one to hold it against: shapes that are open cost several times as much to trace.
WAYS = {
    "regions, dynamic": ("the target, one artifact for all grids", "flat, dynamic"),
    "regions, per_grid": ("the target, one grid", "flat, static"),
    "flat, dynamic": ("torch.compile of the whole sparse graph", "flat, dynamic"),
    "flat, static": ("the same, one grid", "flat, static"),
    "dense, static": ("torch.compile of the dense model", "flat, static"),
}


def compiled(way: str, model: torch.nn.Module, sparse: SparseModel) -> Callable[..., Any]:
    """What a measurement calls."""
    kind, shapes = way.split(", ")
    sparse.fix((4, 4))  # flat graphs cannot read the timestep from a device
    if kind == "regions":
        return lower(sparse, "inductor", shapes=shapes)
    target = model if kind == "dense" else sparse.graph_module
    return torch.compile(target, fullgraph=True, dynamic=shapes == "dynamic")


def measure(way: str, depth: int, width: int) -> None:
    """Print the seconds of the first call, and the number of graphs that were compiled in it."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=width // 4, in_channels=4, num_layers=depth, sample_size=16
    ).eval()
    inputs = {
        "hidden_states": torch.randn(2, 4, 16, 16),
        "timestep": torch.full((2,), 500),
        "class_labels": torch.full((2,), 7),
    }
    sparse = sparsify(model, Policy.fit(depth), example_inputs=inputs)
    run = compiled(way, model, sparse)
    with torch.no_grad():
        torch.compile(lambda x: x + 1)(torch.randn(8))  # what every process pays once: imports, the compiler's own headers
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        started, wall = processor_seconds(), time.perf_counter()
        run(*inputs.values()) if way.startswith("flat") else run(**inputs)
        seconds, wall = processor_seconds() - started, time.perf_counter() - wall
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    print(json.dumps({"seconds": seconds, "wall": wall, "graphs": graphs}))


def cold(way: str, depth: int, width: int) -> dict[str, float]:
    """A measurement in a process of its own with empty caches."""
    with tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": caches,
            "TRITON_CACHE_DIR": caches,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
        command = [sys.executable, "-m", __spec__.name, "--measure", way, "--depth", str(depth), "--width", str(width)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=_ROOT)
    if ran.returncode:
        raise RuntimeError(f"{way} at depth {depth} failed:\n{ran.stderr[-3000:]}")
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    made = parser("compile_cost", __doc__ or "", "json")
    made.add_argument("--depth", type=int, default=28, help="blocks of the model (default: %(default)s)")
    made.add_argument("--width", type=int, default=64, help="channels of a token (default: %(default)s)")
    made.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    options = made.parse_args(words)
    if options.measure:
        measure(options.measure, options.depth, options.width)
        return 0
    ways = track(WAYS, "compiling, each in a process with empty caches", console=Console(stderr=True))
    results = {way: cold(way, options.depth, options.width) for way in ways}
    rows = []
    for way, found in results.items():
        what, reference = WAYS[way]
        share = found["seconds"] / results[reference]["seconds"]
        rows.append((way, what, f"{found['graphs']:.0f}", f"{found['seconds']:.1f}", f"{share:.2f}x"))
    title = f"cold compile time of {options.depth} blocks of width {options.width}, seconds of processor time"
    show(table(title, ("way", "what", "graphs", "seconds", "share of flat"), rows, left=2))
    write(options.json, "compile_cost", options, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
