"""Time and peak memory against the number of tokens, dense and sparse, as a table and a picture.

examples:
  python -m benchmarks.scaling                                    # 256 to 16384 tokens, a few minutes; out/bench/scaling.png
  python -m benchmarks.scaling --sides 16 32 64 --depth 7 --rounds 5
  python -m benchmarks.scaling --device cuda --dtype bf16 --depth 28 --budget 60 --json out/bench/scaling.json
  python -m benchmarks.scaling --quick --picture /tmp/scaling.png

A DiT as wide as DiT-XL/2 (1152) but with fewer blocks, so that 16384 tokens can be waited for. Five blocks are a poolingformer
block, a module of one block that generates, one that is sparse and one that recovers, and a dense one on top: a smaller share
of sparse blocks than the paper's 28 have. The pruning rate is the same at all timesteps. Dense and sparse calls take turns.

The first call of each point is recorded for its memory: the most bytes of activations alive at once, weights not counted. If
it took longer than --budget seconds it is also the time of that point, for it is then long enough to need no warm-up.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sparsify import Density, Policy, sparsify
from sparsify.cli.words import a_count
from sparsify.models import dit

from .common import DTYPES, Call, batched, in_dtype, interleaved, machine_line, parser, placed, show, table, timed, write
from .memory import peak_bytes

SIDES = (16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class Side:
    """The dense or the sparse model at one number of tokens: seconds, bytes of activations, GFLOPs, and calls timed."""

    seconds: float
    bytes: int
    gflops: float
    calls: int


@dataclass(frozen=True)
class Point:
    """One number of tokens."""

    tokens: int
    pooled: int
    dense: Side
    sparse: Side


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    batch = {"nargs": None, "default": 1, "help": "images per call (default: 1)"}
    made = parser("scaling", __doc__ or "", "batch", "rounds", "dtype", "device", "quick", "json", batch=batch)
    made.add_argument("--sides", nargs="+", type=a_count, help=f"tokens of a side (default: {' '.join(map(str, SIDES))})")
    made.add_argument("--depth", type=a_count, default=5, help="blocks, at least 4 (default: %(default)s)")
    made.add_argument("--rate", type=float, default=0.9, help="pruning rate, as in the paper at 512x512 (default: %(default)s)")
    made.add_argument("--budget", type=float, default=10, help="seconds of a call that is not repeated (default: %(default)s)")
    made.add_argument("--picture", type=Path, default=Path("out/bench/scaling.png"), help="the picture (default: %(default)s)")
    options = made.parse_args(words)
    sides = options.sides or ((8, 12, 16) if options.quick else SIDES)
    progress = track(sides, "timing", console=Console(stderr=True), transient=True)
    name = "DiT-S/2" if options.quick else "DiT-XL/2"
    points = [measured(name, side, options) for side in progress]
    what = f"{name} cut to {options.depth} blocks, pruning rate {options.rate:g}, {options.dtype}, batch {options.batch}"
    show(scaling_table(what, points), f"drawn in {draw(points, what, options.picture)}")
    write(options.json, "scaling", options, [asdict(point) for point in points])
    return 0


def measured(name: str, side: int, options: Any) -> Point:
    """One number of tokens, dense and sparse."""
    torch.manual_seed(0)
    dtype = DTYPES[options.dtype]
    model, one = dit(name, side * 16, options.depth)
    model = placed(model, options.device, dtype)
    inputs = in_dtype(batched(one, options.batch, options.device), dtype)
    sparse = sparsify(model, Policy.fit(options.depth, Density.constant(rate=options.rate)), example_inputs=inputs)
    report = sparse.report()
    (density,) = report.densities
    sparse.fix(density.grid)
    runs: dict[str, Callable[..., Any]] = {"dense": model, "sparse": sparse}
    calls = {kind: partial(run, **inputs) for kind, run in runs.items()}
    peaks: dict[str, int] = {}
    seconds = {kind: [timed(partial(_record, peaks, kind, call, options.device))] for kind, call in calls.items()}
    if max(first for (first,) in seconds.values()) < options.budget:
        seconds = interleaved(calls, options.rounds, warm_up=0)
    cost = {"dense": report.gflops_dense, "sparse": report.gflops}
    of = {k: Side(statistics.median(seconds[k]), peaks[k], cost[k], len(seconds[k])) for k in calls}
    return Point(side * side, density.grid[0] * density.grid[1], of["dense"], of["sparse"])


def _record(peaks: dict[str, int], kind: str, call: Call, device: str) -> None:
    peaks[kind] = peak_bytes(call, device)


def scaling_table(what: str, points: Sequence[Point]) -> Table:
    """To read."""
    headings = (
        "tokens",
        "pooled",
        "s dense",
        "s sparse",
        "faster",
        "fewer GFLOPs",
        "MB dense",
        "MB sparse",
        "less memory",
        "calls",
    )
    rows = [
        (
            str(p.tokens),
            str(p.pooled),
            f"{p.dense.seconds:.3f}",
            f"{p.sparse.seconds:.3f}",
            f"{p.dense.seconds / p.sparse.seconds:.2f}x",
            f"{p.dense.gflops / p.sparse.gflops:.2f}x",
            f"{p.dense.bytes / 1e6:.1f}",
            f"{p.sparse.bytes / 1e6:.1f}",
            f"{p.dense.bytes / p.sparse.bytes:.2f}x",
            str(p.dense.calls),
        )
        for p in points
    ]
    return table(f"[bold]{what}[/]: medians, peak of activations", headings, rows, left=0)


def draw(points: Sequence[Point], what: str, path: Path) -> Path:
    """Write the picture; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    tokens = [p.tokens for p in points]
    panels: list[tuple[str, Callable[[Side], float]]] = [
        ("seconds of a forward pass", lambda side: side.seconds),
        ("peak of activations, MB", lambda side: side.bytes / 1e6),
    ]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axis, (label, value) in zip(axes, panels, strict=True):
        dense, sparse = ([value(getattr(p, kind)) for p in points] for kind in ("dense", "sparse"))
        axis.fill_between(tokens, sparse, dense, color="#2b8cbe", alpha=0.12, linewidth=0)
        axis.plot(tokens, dense, "o-", color="#525252", label="dense")
        axis.plot(tokens, sparse, "o-", color="#2b8cbe", label="sparse")
        for x, above, below in zip(tokens, dense, sparse, strict=True):
            note = f"{above / below:.2f}x"
            axis.annotate(note, (x, below), (0, -15), textcoords="offset points", ha="center", color="#2b8cbe", fontsize=9)
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=label)
        axis.set_xticks(tokens, [f"{count:,}" for count in tokens])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.margins(y=0.12)
        axis.grid(which="major", color="#e5e5e5", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="upper left")
    figure.suptitle(f"{what}\n", fontsize=13)
    figure.text(0.5, 0.925, machine_line(), ha="center", color="#777777", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    sys.exit(main())
