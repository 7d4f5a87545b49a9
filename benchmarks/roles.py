"""Where the time of a sparse model goes, by role of its blocks, and what each role takes beyond its share of the arithmetic.

examples:
  python -m benchmarks.roles                                # DiT-XL/2 at 512x512: two minutes
  python -m benchmarks.roles --models dit-256 pixart-256 --batch 1 4 --json out/bench/roles.json
  python -m benchmarks.roles --quick                        # small models: to try things out

"ms / GFLOP" is held against the same model, dense: a block on few tokens has to read all of its weights for little arithmetic.
"beyond" are the milliseconds that a role takes more than its GFLOPs would at the dense model's rate. Without them the model would be
as many times faster as it has fewer GFLOPs. Eager code, a mean over the schedule.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import nn

from sparsify.ends import Grid

from .cases import CASES, cases
from .common import DTYPES, batched, in_dtype, interleaved, over_schedule, parser, placed, show, table, timed, write
from .contenders import Setup

HEADINGS = ("part", "blocks", "GFLOPs", "ms", "ms / GFLOP", "of dense", "beyond, ms")
OUTSIDE = "outside of blocks"
_WHOLE = "whole"


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    made = parser("roles", __doc__ or "", "batch", "rounds", "dtype", "quick", "json")
    made.add_argument("--models", nargs="+", choices=CASES, default=["dit-512"], help="which models (default: dit-512)")
    options = made.parse_args(words)
    warnings.filterwarnings("ignore", module="torch")
    results: list[dict[str, Any]] = []
    for name in options.models:
        case, dtype = cases(options.quick)[name], DTYPES[options.dtype]
        torch.manual_seed(0)
        model, one = case.make()
        model = placed(model, "cpu", dtype)
        for batch in options.batch:
            setup = Setup.of(case, model, in_dtype(batched(one, batch), dtype))
            found = {"model": name, "batch": batch, **measured(setup, options.rounds, f"{case.title}, batch {batch}")}
            results.append(found)
            write(options.json, "roles", options, results)
            show(roles_table(f"[bold]{case.title}[/], batch {batch}, {options.dtype}", found), verdict(found))
        gc.collect()
    return 0


def measured(setup: Setup, rounds: int, title: str) -> dict[str, Any]:
    """Seconds and GFLOPs (of the whole batch) by role, and of the dense model."""
    report, sparse = setup.sparse.report(), setup.sparse
    batch = len(next(iter(setup.inputs.values())))
    roles: dict[str, list[Any]] = defaultdict(list)
    for block in report.blocks:
        roles[block.role].append(block)
    paths = {role: [block.path for block in blocks] for role, blocks in roles.items()}
    runs: dict[Any, list[dict[str, float]]] = defaultdict(list)  # by pooled grid, None for the dense model

    def timed_run(grid: Grid | None) -> None:
        if grid is not None:
            sparse.fix(grid)
        run = setup.model if grid is None else sparse
        with _timed_modules(run, {} if grid is None else paths) as spent:
            spent[_WHOLE] = timed(partial(run, **setup.inputs))
        runs[grid].append(spent)

    interleaved({grid: partial(timed_run, grid) for grid in (None, *setup.shares)}, rounds, title=title)

    def seconds(grid: Grid | None, part: str) -> list[float]:
        return [spent[part] for spent in runs[grid][-rounds:]]  # without those of the warm-up

    def mean(part: str) -> float:
        return statistics.median(over_schedule((share, seconds(grid, part)) for grid, share in setup.shares.items()))

    parts = {
        role: {"blocks": len(blocks), "seconds": mean(role), "gflops": batch * sum(block.gflops_mean for block in blocks)}
        for role, blocks in roles.items()
    }
    whole = {"seconds": mean(_WHOLE), "gflops": batch * report.gflops}
    rest = {name: total - sum(part[name] for part in parts.values()) for name, total in whole.items()}
    return {
        "dense_seconds": statistics.median(seconds(None, _WHOLE)),
        "dense_gflops": batch * report.gflops_dense,
        **whole,
        "parts": {**parts, OUTSIDE: {"blocks": 0, **rest}},
    }


@contextmanager
def _timed_modules(model: nn.Module, groups: dict[str, list[str]]) -> Iterator[dict[str, float]]:
    """Seconds spent in the modules of each group while the context is open."""
    spent: dict[str, float] = dict.fromkeys(groups, 0.0)
    began: dict[str, float] = {}
    handles = []
    for group, paths in groups.items():
        for path in paths:

            def before(*_: Any, path: str = path) -> None:
                began[path] = time.perf_counter()

            def after(*_: Any, path: str = path, group: str = group) -> None:
                spent[group] += time.perf_counter() - began[path]

            module = model.get_submodule(path)
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _dense_rate(found: dict[str, Any]) -> float:
    """Seconds per GFLOP."""
    return float(found["dense_seconds"] / found["dense_gflops"])


def beyond(found: dict[str, Any]) -> dict[str, float]:
    """Seconds of each part over what its GFLOPs take at the dense model's rate."""
    rate = _dense_rate(found)
    return {name: part["seconds"] - rate * part["gflops"] for name, part in found["parts"].items()}


def verdict(found: dict[str, Any]) -> str:
    """How much faster it is, and could be."""
    dense, sparse, lost = found["dense_seconds"], found["seconds"], sum(beyond(found).values())
    return (
        f"{dense / sparse:.2f}x faster than dense with {found['dense_gflops'] / found['gflops']:.2f}x fewer GFLOPs; "
        f"{lost / sparse:.1%} of its time lies beyond the arithmetic."
    )


def roles_table(title: str, found: dict[str, Any]) -> Table:
    """To read."""
    rate, extra = _dense_rate(found), beyond(found)
    rows = [
        (
            name,
            str(part["blocks"] or ""),
            f"{part['gflops']:.2f}",
            f"{1e3 * part['seconds']:.1f}",
            f"{1e3 * part['seconds'] / part['gflops']:.2f}" if part["gflops"] else "",
            f"{part['seconds'] / part['gflops'] / rate:.2f}x" if part["gflops"] else "",
            f"{1e3 * extra[name]:+.1f}",
        )
        for name, part in found["parts"].items()
    ]
    whole = found["dense_gflops"], found["dense_seconds"]
    rows.append(("the dense model", "", f"{whole[0]:.2f}", f"{1e3 * whole[1]:.1f}", f"{1e3 * rate:.2f}", "1.00x", ""))
    return table(title, HEADINGS, rows)


if __name__ == "__main__":
    sys.exit(main())
