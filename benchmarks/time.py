"""Time of a forward pass: dense, ours, SparseDiT by hand, token merging at equal FLOPs, first-block cache.

examples:
  python -m benchmarks.time                                     # DiT-XL/2 at 256x256, eager, batch 1
  python -m benchmarks.time --models dit-512 pixart-512 --batch 1 4 --compile --json out/bench/time.json
  python -m benchmarks.time --models flux --ways ours           # Flux's width, six blocks; needs 6 GB
  python -m benchmarks.time --device cuda --dtype bf16 --batch 1 8 32 --compile
  python -m benchmarks.time --quick --models dit-256 flux       # small models, in a minute

All ways take turns in one process on the same weights. A model with a schedule is called once per pooled grid, and the grids
are weighed by their share of the timesteps. Seconds are medians of the rounds; a time ratio is the median of the ratios in
each round, so that what slows a whole round cancels. Compiled rows are held against the compiled dense model. "of dense" is
a share of its time, "faster" its inverse, and "fewer GFLOPs" says how much faster it could be if time were arithmetic.

Every call has the same inputs, as all steps of a sampling run have the same prompt: what ours computes once for each prompt is
done in the warm-up and is neither in its seconds nor in its GFLOPs. The other ways compute it at every call.

dense, token merging: torch.compile of the whole model with static shapes. ours: lower(sparse, "inductor") of the blocks, with
dynamic and with static shapes, and of the whole model (scope="model", static shapes). by hand: torch.compile of one block after the
other and of the whole model, with static shapes. ours-dense: the dense model through our lowering, as a whole.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.table import Table

from .cases import CASES, Case, cases
from .common import DTYPES, batched, grid_text, in_dtype, parser, placed, ratio, show, table, write
from .contenders import DEFAULT_WAYS, WAYS, Contender, Setup, measure

HEADINGS = ("batch", "way", "code", "seconds", "of dense", "faster", "fewer GFLOPs", "GFLOPs")


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    made = parser("time", __doc__ or "", "batch", "compile", "rounds", "dtype", "device", "quick", "json")
    made.add_argument("--models", nargs="+", choices=CASES, default=["dit-256"], help="which models (default: dit-256)")
    made.add_argument(
        "--ways", nargs="+", choices=[*WAYS][1:], default=DEFAULT_WAYS, help=f"beside dense (default: {' '.join(DEFAULT_WAYS)})"
    )
    options = made.parse_args(words)
    results = []
    for name in options.models:
        case = cases(options.quick)[name]
        found: list[dict[str, Any]] = []
        results.append({"model": name, "title": case.title, "batches": found})
        for at_batch in timed_case(case, options):
            found.append(at_batch)
            write(options.json, "time", options, results)  # after each: the later ones take long
        show(time_table(case.title, found, options), *remarks(found))
        gc.collect()  # one model at a time
    return 0


def timed_case(case: Case, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All ways at each batch size."""
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="torch")
    dtype = DTYPES[options.dtype]
    model, one = case.make()
    model = placed(model, options.device, dtype)
    for batch in options.batch:
        # A compiler that gives up and runs eager code, unasked, would be timed as compiled code.
        with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
            torch._dynamo.reset()
            setup = Setup.of(case, model, in_dtype(batched(one, batch, options.device), dtype))
            yield {"batch": batch, **timed_setup(setup, options, f"{case.title}, batch {batch}")}


def timed_setup(setup: Setup, options: argparse.Namespace, title: str) -> dict[str, Any]:
    """All ways of one model and batch size, with the numbers of a row for each."""
    codes = (False, True) if options.compile else (False,)
    ways = ("dense", *(way for way in WAYS if way in options.ways))
    contenders = [c for compiled in codes for way in ways for c in WAYS[way](setup, compiled)]
    times = measure(contenders, options.rounds, title)
    dense = next(c for c in contenders if c.name == "dense")
    return {
        "grid": grid_text(setup.grid),
        "pooled": {grid_text(grid): share for grid, share in setup.shares.items()},
        "rows": [row(c, dense, times) for c in contenders],
        "skipped": setup.skipped,
    }


def row(contender: Contender, dense: Contender, times: dict[tuple[str, bool], list[float]]) -> dict[str, Any]:
    """The numbers of one contender."""
    seconds = times[contender.name, contender.compiled]
    return {
        "name": contender.name,
        "compiled": contender.compiled,
        "is_step": contender.is_step,
        "seconds": statistics.median(seconds),
        "seconds_of_rounds": seconds,
        "time_ratio": ratio(times["dense", contender.compiled], seconds),
        "gflops": contender.gflops,
        "gflops_ratio": dense.gflops / contender.gflops,
        "remark": contender.remark,
    }


def time_table(title: str, found: list[dict[str, Any]], options: argparse.Namespace) -> Table:
    """To read."""
    rows = []
    for at_batch in found:
        for index, each in enumerate(at_batch["rows"]):
            rows.append(
                (
                    "" if index else str(at_batch["batch"]),
                    each["name"],
                    "compiled" if each["compiled"] else "eager",
                    f"{each['seconds']:.4f}",
                    f"{1 / each['time_ratio']:.1%}",
                    "" if each["is_step"] else f"{each['time_ratio']:.2f}x",
                    "" if each["is_step"] else f"{each['gflops_ratio']:.2f}x",
                    f"{each['gflops']:.2f}",
                )
            )
    pooled = ", ".join(f"{grid} {share:.0%}" for grid, share in found[0]["pooled"].items())
    return table(
        f"[bold]{title}[/], {options.dtype}, {options.device}: {found[0]['grid']} tokens, pooled to {pooled}",
        HEADINGS,
        rows,
        left=3,
        caption=f"interleaved, {options.rounds} rounds",
    )


def remarks(found: list[dict[str, Any]]) -> list[str]:
    """What to know of the rows, and which are missing and why."""
    lines = {
        f"{each['name'].partition(',')[0]}: {each['remark']}": None for at in found for each in at["rows"] if each["remark"]
    }
    lines |= {f"no {name}: {reason}": None for at in found for name, reason in at["skipped"].items()}
    return list(lines)


if __name__ == "__main__":
    sys.exit(main())
