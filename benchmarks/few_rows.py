"""Linear maps of few rows on this CPU: MKL's product, which lays the weight out at every call, against oneDNN's.

examples:
  python -m benchmarks.few_rows                                  # the widths of DiT-S/2, DiT-XL/2 and Flux: two minutes
  python -m benchmarks.few_rows --widths 1152 --rows 36 64 100 --json out/bench/few_rows.json

Every call multiplies another weight, as the blocks of a model do, so that weights come from where a model's come from. "a share" is
oneDNN's time of MKL's. ``lower(sparse, "inductor", shapes="per_grid")`` takes oneDNN in the rows printed bold: targets/few_rows.py.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from rich.table import Table

from sparsify.cli.words import a_count
from sparsify.targets.few_rows import IS_HERE, is_faster

from .common import interleaved, parser, show, table, write

WEIGHTS = 12
WIDTHS, ROWS = (384, 1152, 3072), (4, 16, 36, 64, 100, 256, 512, 1024)


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    made = parser("few_rows", __doc__ or "", "rounds", "json")
    made.add_argument("--widths", type=a_count, nargs="+", default=WIDTHS, help="channels; an MLP has four times as many")
    made.add_argument("--rows", type=a_count, nargs="+", default=ROWS, help="tokens that are multiplied")
    options = made.parse_args(words)
    if not IS_HERE:
        made.error("this torch comes without oneDNN or without MKL, so there is nothing to compare")
    torch.manual_seed(0)
    results = []
    for width in options.widths:
        for source, target in ((width, width), (width, 4 * width), (4 * width, width)):
            weights = [torch.randn(target, source) / source for _ in range(WEIGHTS)]
            for rows in options.rows:
                results.append({"from": source, "to": target, "rows": rows, **measured(weights, rows, options.rounds)})
                write(options.json, "few_rows", options, results)
    show(few_rows_table(results))
    return 0


def measured(weights: Sequence[torch.Tensor], rows: int, rounds: int) -> dict[str, float]:
    """Seconds of one product by either library."""
    target, source = weights[0].shape
    x, bias = torch.randn(rows, source), torch.randn(target)
    out = torch.empty(rows, target)  # inductor gives MKL its memory, too
    runs: dict[str, Callable[[torch.Tensor], object]] = {
        "mkl": lambda weight: torch.addmm(bias, x, weight.t(), out=out),
        "onednn": lambda weight: torch.ops.sparsify.linear_of_few_rows.default(x, weight, bias),
    }

    def all_weights(run: Callable[[torch.Tensor], object]) -> None:
        for weight in weights:
            run(weight)

    times = interleaved({name: partial(all_weights, run) for name, run in runs.items()}, rounds)
    return {name: statistics.median(seconds) / len(weights) for name, seconds in times.items()}


def few_rows_table(results: Sequence[dict[str, Any]]) -> Table:
    """To read."""
    rows = []
    for each in results:
        share = f"{each['onednn'] / each['mkl']:.0%}"
        rows.append(
            (
                f"{each['from']} to {each['to']}",
                f"{each['rows']}",
                f"{1e3 * each['mkl']:.3f}",
                f"{1e3 * each['onednn']:.3f}",
                f"[bold]{share}[/]" if is_faster(each["from"] * each["to"], each["rows"]) else share,
            )
        )
    return table("linear maps in float32", ("channels", "rows", "MKL, ms", "oneDNN, ms", "a share"), rows)


if __name__ == "__main__":
    sys.exit(main())
