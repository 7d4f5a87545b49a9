"""What all benchmarks share: their command lines, the machine they ran on, interleaved timing, tables and result files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from sparsify.cli.words import a_count, console

Call = Callable[[], Any]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PACKAGES = ("torch", "torch_tensorrt", "tensorrt", "nvidia-modelopt", "triton", "diffusers", "sparsedit")
OPTIONS: dict[str, dict[str, Any]] = {
    "batch": {"type": a_count, "nargs": "+", "default": [1], "help": "batch sizes (default: 1)"},
    "compile": {"action": "store_true", "help": "time compiled code beside eager code"},
    "rounds": {"type": a_count, "default": 5, "help": "how often each is timed, in turns (default: %(default)s)"},
    "dtype": {"choices": sorted(DTYPES), "default": "fp32", "help": "of weights and inputs (default: %(default)s)"},
    "device": {"default": "cpu", "help": "where to run: cpu, cuda, cuda:1, ... (default: %(default)s)"},
    "quick": {"action": "store_true", "help": "small models of the same kinds: to try things out, not to quote"},
    "json": {"type": Path, "metavar": "FILE", "help": "also write all numbers there, with the machine they were measured on"},
}


def parser(module: str, doc: str, *options: str, **changes: dict[str, Any]) -> argparse.ArgumentParser:
    """A command line that teaches by the examples in its module's docstring, with some of :data:`OPTIONS`."""
    summary, _, rest = doc.partition("\n\n")
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in options:
        made.add_argument(f"--{name}", **(OPTIONS[name] | changes.get(name, {})))
    return made


def hardware() -> dict[str, Any]:
    """The processor, the GPU if there is one, threads, and the day."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": None if gpu is None else gpu.name,
        "gpu_bytes": None if gpu is None else gpu.total_memory,
        "host": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    """Linux names the model in one place only."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Of the packages that matter; None where one is not installed."""
    found: dict[str, str | None] = {"cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine_line() -> str:
    """The machine in one line, for under a table."""
    found = hardware()
    device = found["gpu"] or f"{found['cpu']}, {found['threads']} threads of {found['cores']} cores"
    return f"{device}; torch {torch.__version__}, {found['date']}"


def interleaved(calls: Mapping[Any, Call], rounds: int, warm_up: int = 1, title: str = "") -> dict[Any, list[float]]:
    """Seconds of each call in each round, by key. They take turns, so that a slow minute of the machine slows all of them.

    The first ``warm_up`` rounds are not kept: compilers and caches work in them. With a ``title`` progress goes to stderr.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with torch.no_grad(), Progress(*columns, console=console(stderr=True), disable=not title, transient=True) as progress:
        task = progress.add_task(title, total=len(calls) * (rounds + warm_up))
        for round_ in range(rounds + warm_up):
            for name, call in calls.items():
                seconds = timed(call)
                if round_ >= warm_up:
                    times[name].append(seconds)
                progress.advance(task)
    return times


def timed(call: Call) -> float:
    """Seconds of one call, until the GPU is done too."""
    _synchronise()
    started = time.perf_counter()
    call()
    _synchronise()
    return time.perf_counter() - started


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def over_schedule(times: Iterable[tuple[float, Sequence[float]]]) -> list[float]:
    """Of (share of the timesteps, seconds of every round), the mean over the schedule in every round."""
    weighted = [[share * second for second in seconds] for share, seconds in times]
    return [sum(round_) for round_ in zip(*weighted, strict=True)]


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the ratios in each round: what slowed a whole round is in both and cancels."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def counted(run: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """GFLOPs (multiply-adds / 1e9) of a call by torch's own counter.

    It counts multiplies and adds apart, and on the CPU it sees into attention only where that is written out.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(*args, **kwargs)
    return counter.get_total_flops() / 2e9


def in_dtype(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Latents and texts in another dtype; timesteps and position ids as they are."""

    def converted(leaf: Any) -> Any:
        is_value = isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim > 1
        return leaf.to(dtype) if is_value else leaf

    changed = tree_map(converted, dict(inputs))
    return {**changed, **{name: value for name, value in inputs.items() if name.endswith("_ids")}}


def placed(model: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """On a device and in a dtype; diffusers warns of every cast, also of one that changes nothing."""
    return model.to(device) if dtype == torch.float32 else model.to(device, dtype)


def batched(inputs: Mapping[str, Any], batch: int, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Inputs of one image, repeated; position ids are the same for all images of a batch."""

    def repeated(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.to(device) if name.endswith("_ids") else leaf.to(device).repeat_interleave(batch, 0)

    return {name: repeated(name, leaf) for name, leaf in inputs.items()}


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, caption: str = "") -> Table:
    """A table whose first ``left`` columns are words and the others numbers."""
    made = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="left" if index < left else "right", no_wrap=index >= left)
    for row in rows:
        made.add_row(*row)
    return made


def show(*parts: RenderableType) -> None:
    """Print to stdout, and under it the machine."""
    console().print(*parts, machine_line(), sep="\n", highlight=False)


def write(path: Path | None, benchmark: str, options: argparse.Namespace, results: Any) -> None:
    """The result file, if one is asked for: what was run, on what, and the numbers."""
    if path is None:
        return
    words = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}  # files tell nothing
    found = {"benchmark": benchmark, "arguments": words, "hardware": hardware(), "versions": versions(), "results": results}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")


def grid_text(grid: Sequence[int] | None) -> str:
    """``10x10``."""
    return "" if grid is None else "x".join(map(str, grid))


def processor_seconds() -> float:
    """Of this process and of the C++ compilers it has waited for; other load on the machine hardly shows in it."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
