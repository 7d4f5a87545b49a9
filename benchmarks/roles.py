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

from .cases import CASES, cases
from .common import DTYPES, batched, in_dtype, interleaved, over_schedule, parser, placed, show, table, write
from .contenders import Setup

HEADINGS = ("part", "blocks", "GFLOPs", "ms", "ms / GFLOP", "of dense", "beyond, ms")
OUTSIDE = "outside of blocks"


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
    seconds: dict[Any, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    dense, whole = "dense", "whole"

    def timed_run(key: Any, run: nn.Module, paths: dict[str, list[str]]) -> None:
        with _timed_modules(run, paths) as spent:
            started = time.perf_counter()
            run(**setup.inputs)
            spent[whole] = time.perf_counter() - started
        for part in (whole, *paths):
            seconds[key][part].append(spent[part])

    roles: dict[str, list[str]] = defaultdict(list)
    for block in report.blocks:
        roles[block.role].append(block.path)
    everything = {"blocks": [block.path for block in report.blocks]}
    calls: dict[Any, Any] = {dense: partial(timed_run, dense, setup.model, everything)}
    for grid in setup.shares:
        calls[grid] = partial(_at, sparse, grid, partial(timed_run, grid, sparse, roles))
    interleaved(calls, rounds, title=title)
    schedule = [(share, seconds[grid]) for grid, share in setup.shares.items()]

    def mean(part: str) -> float:
        return statistics.median(over_schedule((share, spent[part][-rounds:]) for share, spent in schedule))

    parts = {
        role: {"blocks": len(paths), "seconds": mean(role), "gflops": _gflops(report, role) * batch}
        for role, paths in roles.items()
    }
    total, inside = mean(whole), sum(part["seconds"] for part in parts.values())
    rest = report.gflops * batch - sum(part["gflops"] for part in parts.values())
    parts[OUTSIDE] = {"blocks": 0, "seconds": total - inside, "gflops": rest}
    return {
        "dense_seconds": statistics.median(seconds[dense][whole][-rounds:]),
        "dense_gflops": report.gflops_dense * batch,
        "seconds": total,
        "gflops": report.gflops * batch,
        "parts": parts,
    }


def _at(sparse: Any, grid: Any, run: Any) -> None:
    sparse.fix(grid)
    run()


def _gflops(report: Any, role: str) -> float:
    return sum(block.gflops_mean for block in report.blocks if block.role == role)


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


def beyond(found: dict[str, Any]) -> dict[str, float]:
    """Seconds of each part over what its GFLOPs take at the dense model's rate."""
    rate = found["dense_seconds"] / found["dense_gflops"]
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
    rate = found["dense_seconds"] / found["dense_gflops"]
    extra = beyond(found)
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
