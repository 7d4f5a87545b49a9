"""``sparsify lower``: a model into a file that runs without it."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..api import sparsify
from ..errors import InputError, LoweringError
from ..runtime import SparseModel
from ..targets import available, lower
from ..targets.check import check
from .sources import load_model, load_policy
from .words import console

FILES = {"aot_inductor": ".pt2", "onnx": ".onnx", "tensorrt": ".ep"}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class _Progress:
    """Says what is being done, and how long it took."""

    console: Console
    quiet: bool
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        with self.console.status(name):
            yield
        self.seconds[name] = time.perf_counter() - started
        if not self.quiet:
            self.console.print(f"{name}: {self.seconds[name]:.1f} s", markup=False)


def lower_to_file(arguments: argparse.Namespace) -> None:
    """Build, sparsify, compile, check against eager; print the files and how far they are from eager."""
    if arguments.available:
        _print_available(arguments.json)
        return
    _check_words(arguments)
    progress = _Progress(console(stderr=True), arguments.json)
    with progress.step(f"building {arguments.model}"):
        model, inputs = load_model(arguments.model, arguments.kwargs, arguments.config, arguments.inputs, arguments.device)
        model, inputs = _converted(model, inputs, arguments)
    with progress.step("capturing and rewriting"):
        sparse = sparsify(
            model,
            load_policy(arguments.policy),
            inputs,
            grid=arguments.grid,
            timestep=arguments.timestep,
            savings=arguments.savings,
        )
    with progress.step(f"lowering to {arguments.target}"):
        lowered: Any = lower(sparse, arguments.target, **_options(arguments))
    found = []
    if not arguments.no_check:
        with progress.step("comparing with eager at every pooled grid"):
            found = check(sparse, lowered)
    files = _files(arguments.out)
    if arguments.json:
        grids = [{"grid": d.grid, "error": d.error, "largest_output": d.scale} for d in found]
        result = {"target": arguments.target, "files": files, "seconds": progress.seconds, "differences": grids}
        print(json.dumps(result | ({"trtexec": lowered.trtexec()} if arguments.target == "onnx" else {})))
        return
    _print(arguments, sparse, lowered, files, found)


def _check_words(arguments: argparse.Namespace) -> None:
    """What can be known before minutes of work."""
    if arguments.target not in FILES:
        raise LoweringError(
            f"--target {arguments.target} compiles in the process and writes no file; those that do are {sorted(FILES)}. In Python: "
            f'lower(sparse, "{arguments.target}").'
        )
    if reason := available()[arguments.target]:
        raise LoweringError(f"target {arguments.target} cannot be used here: {reason}.")
    if arguments.out is None:
        arguments.out = Path("model").with_suffix(FILES[arguments.target])
    if arguments.out.suffix != FILES[arguments.target]:
        raise LoweringError(f"--out {arguments.out}: for {arguments.target} its name must end in {FILES[arguments.target]}.")
    if arguments.device == "meta":
        raise InputError("--device meta has no weights to write; lower on cpu or cuda.")


def _converted(model: torch.nn.Module, inputs: dict[str, Any], arguments: argparse.Namespace) -> tuple[torch.nn.Module, Any]:
    """The model and its inputs in the dtype asked for, and with a batch of two where several sizes are to be served."""
    dtype = _DTYPES[arguments.dtype]
    if dtype != torch.float32:
        model = model.to(dtype)
        # A timestep may have more digits than the dtype holds; models convert what they make of it themselves.
        inputs = {k: v.to(dtype) if _is_latent(v) else v for k, v in inputs.items()}
    if arguments.batch is not None and arguments.batch[1] > 1:
        rows = max(2, arguments.batch[0])
        inputs = {
            k: v.repeat(rows, *[1] * (v.ndim - 1)) if isinstance(v, torch.Tensor) and _is_single(v) else v
            for k, v in inputs.items()
        }
    return model, inputs


def _is_latent(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1


def _is_single(tensor: torch.Tensor) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == 1


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {"out": arguments.out}
    given = {"shapes": arguments.shapes, "grids": arguments.grids, "opset": arguments.opset}
    options |= {name: value for name, value in given.items() if value is not None}
    if arguments.batch is not None and arguments.batch[1] > 1:
        options["batch"] = arguments.batch
    return options


def _files(out: Path) -> dict[str, int]:
    """What was written, with sizes in bytes: the file, those of single grids, and the weights beside them."""
    grids = [path for path in out.parent.glob(f"{out.stem}_*{out.suffix}") if re.search(r"_\d+(x\d+)*$", path.stem)]
    found = [*grids, out, out.with_name(out.name + ".data")]
    return {str(path): path.stat().st_size for path in found if path.is_file()}


def _print(arguments: argparse.Namespace, sparse: SparseModel, lowered: Any, files: dict[str, int], found: list[Any]) -> None:
    from rich.table import Table

    console().print(f"{lowered!r}: {sparse.report().gflops_dense:.2f} -> {sparse.report().gflops:.2f} GFLOPs", markup=False)
    table = Table("file", "MB")
    for path, size in files.items():
        table.add_row(path, f"{size / 1e6:.1f}")
    console().print(table)
    if found:
        table = Table("pooled grid", "largest difference to eager", "largest output")
        for difference in found:
            grid = "none" if difference.grid is None else "x".join(map(str, difference.grid))
            table.add_row(grid, f"{difference.error:.1e}", f"{difference.scale:.2g}")
        console().print(table)
    hint = {"aot_inductor": "sparsify.targets.aot_inductor", "onnx": "sparsify.targets.onnx"}.get(arguments.target)
    if hint:
        console().print("to use it:", style="bold")
        console().print(f'from {hint} import load; model = load("{arguments.out}")', markup=False, highlight=False)

    if arguments.target == "onnx":
        console().print("to build a TensorRT engine of it:", style="bold")
        console().print(lowered.trtexec(), markup=False, highlight=False, soft_wrap=True)


def _print_available(as_json: bool) -> None:
    if as_json:
        print(json.dumps(available()))
        return
    from rich.table import Table

    table = Table("target", "here")
    for name, reason in available().items():
        table.add_row(name, "yes" if reason is None else f"no: {reason}".replace("[", r"\["))
    console().print(table)
