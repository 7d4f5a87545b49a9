"""Targets against eager on five kinds of model: largest difference, artifact size, cold time.

examples:
  python -m benchmarks.targets                                    # the whole matrix: twenty minutes
  python -m benchmarks.targets -o docs/targets.md                 # written as Markdown too
  python -m benchmarks.targets --models Flux --targets onnx       # a part of it
  python -m benchmarks.targets --json

The models are the tiny ones of tests/zoo, with random weights, in float32 and bfloat16. Errors are the largest over outputs
and pooled grids. In bfloat16 both are measured against float32: ``bf16`` is the error of the lowered sparse model over that of
the dense eager model, both relative to their largest output, so that 1.0 means no worse than rounding the model itself.
Cold time is that of lowering and of the first call at every grid, with empty caches, in seconds of processor time: other load
on the machine hardly shows in it. The file is written anew after each cell.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from sparsify import Policy, SparseModel, available, lower, sparsify
from sparsify.targets.check import Difference, differences
from tests.zoo.__main__ import entries
from tests.zoo.check import difference, policy_for, tensors_in
from tests.zoo.entry import Entry

from .common import in_dtype, parser, processor_seconds

MODELS = {
    "DiT": "DiTTransformer2DModel",
    "PixArt": "PixArtTransformer2DModel",
    "SD3": "SD3Transformer2DModel",
    "Flux": "FluxTransformer2DModel",
    "Wan": "WanTransformer3DModel",
}
TARGETS: dict[str, tuple[str, dict[str, Any], str]] = {
    "inductor": ("inductor", {}, ""),
    "inductor per_grid": ("inductor", {"shapes": "per_grid"}, ""),
    "aot_inductor": ("aot_inductor", {}, ".pt2"),
    "onnx": ("onnx", {}, ".onnx"),
    "tensorrt": ("tensorrt", {}, ".ep"),
}


@dataclass(frozen=True)
class Cell:
    """One target on one model; sizes in bytes, times in seconds of processor time."""

    model: str
    target: str
    grids: int = 0
    error: float | None = None
    bytes: int | None = None
    cold: float | None = None
    bf16: float | None = None
    remark: str = ""


def measured(entry: Entry, name: str, target: str) -> Cell:
    """Lower one model in float32 and bfloat16 and compare."""
    kind, options, suffix = TARGETS[target]
    if reason := available()[kind]:
        return Cell(name, target, remark=reason)
    model, inputs = entry.make(), entry.inputs(2, 0)
    sparse = sparse_model(entry, model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        out = {"out": Path(folder) / f"model{suffix}"} if suffix else {}
        found, cold = lowered(sparse, kind, {**options, **out})
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) if suffix else None
    error = max(d.error for d in found)
    try:
        ratio, remark = bf16_ratio(entry, model, inputs, found, kind, options), ""
    except Exception as failed:  # noqa: BLE001  # a cell of the table that says so, not its end
        ratio, remark = None, f"bfloat16: {str(failed).splitlines()[0]}"
    return Cell(name, target, len(found), error, size, cold, ratio, remark)


def sparse_model(entry: Entry, model: nn.Module, inputs: dict[str, Any]) -> SparseModel:
    """With one poolingformer block and one module over most others."""
    depth = len(sparsify(model, Policy.dense(), inputs, **entry.options(0)).report().blocks)
    return sparsify(model, policy_for(depth), inputs, **entry.options(0))


def lowered(sparse: SparseModel, kind: str, options: dict[str, Any]) -> tuple[list[Difference], float]:
    """Differences to eager at every grid, and the seconds until all of them had run, with empty caches."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        torch._dynamo.reset()
        started = processor_seconds()
        with torch._inductor.config.patch(compile_threads=1):  # compilers in a pool would not be counted
            found = differences(sparse, lower(sparse, kind, **options))
        return found, processor_seconds() - started


def bf16_ratio(
    entry: Entry, model: nn.Module, inputs: dict[str, Any], found: list[Difference], kind: str, options: dict[str, Any]
) -> float:
    """The lowered model's error in bfloat16 over the dense eager model's, both against float32."""
    low, low_inputs = copy.deepcopy(model).to(torch.bfloat16), in_dtype(inputs, torch.bfloat16)
    with torch.no_grad():
        want = model(**inputs)
        dense = difference(low(**low_inputs), want) / largest(want)
    sparse, low_sparse = sparse_model(entry, model, inputs), sparse_model(entry, low, low_inputs)
    fast = lower(low_sparse, kind, **options)
    errors = []
    for grid in [d.grid for d in found if d.grid is not None]:
        with torch.no_grad():
            want = sparse.fix(grid)(**inputs)
            low_sparse.fix(grid)
            errors.append(difference(fast(**low_inputs), want) / largest(want))
    return float(torch.tensor(errors).max()) / dense  # as a tensor, whose maximum is not a number if one of them is not


def largest(output: Any) -> float:
    """The largest output, at least 1."""
    return max(1.0, *(float(x.abs().max()) for x in tensors_in(output)))


def markdown(cells: Sequence[Cell]) -> str:
    """The matrix as Markdown."""
    lines = ["| target | " + " | ".join(dict.fromkeys(c.model for c in cells)) + " |"]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    for target in dict.fromkeys(c.target for c in cells):
        lines.append(f"| {target} | " + " | ".join(text(c) for c in cells if c.target == target) + " |")
    return "\n".join(lines) + "\n"


def document(cells: Sequence[Cell], machine: str) -> str:
    """All of it as Markdown: what is measured, where, the matrix, and why parts of it were not run."""
    remarks = "\n".join(dict.fromkeys(f"- {c.target}: {c.remark}" for c in cells if c.remark))
    explained = (__doc__ or "").split("--json")[1].strip()
    return f"# Targets\n\n`python -m benchmarks.targets -o docs/targets.md` writes this file.\n\n{explained}\n\n{machine}\n\n{markdown(cells)}\n{remarks}\n"


def text(cell: Cell) -> str:
    """One cell in a line."""
    if cell.error is None:
        return "not run"
    size = "" if cell.bytes is None else f", {cell.bytes / 1e6:.1f} MB"
    low = "" if cell.bf16 is None else f", bf16 {cell.bf16:.2f}"
    return f"{cell.error:.0e}{size}, {cell.cold:.0f} s{low}"


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    made = parser("targets", __doc__ or "")
    made.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which models (default all)")
    made.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="which targets (default all)")
    made.add_argument("-o", "--output", type=Path, help="also write the matrix there, as Markdown")
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = made.parse_args(words)
    warnings.simplefilter("ignore")
    by_name = {entry.name: entry for entry in entries(("images", "packed", "videos"))}
    cells: list[Cell] = []
    gpu = "GPU" if torch.cuda.is_available() else "no GPU"
    machine = f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {gpu}"
    with Progress(console=Console(stderr=True), disable=options.json, transient=True) as progress:
        pairs = [(model, target) for target in options.targets for model in options.models]
        task = progress.add_task("lowering", total=len(pairs))
        for model, target in pairs:
            progress.update(task, description=f"{target}: {model}")
            cells.append(measured(by_name[MODELS[model]], model, target))
            progress.advance(task)
            if options.output is not None:
                options.output.write_text(document(cells, machine))
    if options.json:
        print(json.dumps({"machine": machine, "cells": [asdict(cell) for cell in cells]}))
    else:
        Console(width=140).print(table(cells, machine))
        for remark in dict.fromkeys(f"{c.target}: {c.remark}" for c in cells if c.remark):
            print(remark)
    return 0


def table(cells: Sequence[Cell], machine: str) -> Table:
    """The matrix to read: error in float32, size, cold time, error in bfloat16 over the dense model's own."""
    made = Table("target", *dict.fromkeys(c.model for c in cells), title=machine, title_justify="left")
    for target in dict.fromkeys(c.target for c in cells):
        made.add_row(target, *(text(c) for c in cells if c.target == target))
    return made


if __name__ == "__main__":
    sys.exit(main())
