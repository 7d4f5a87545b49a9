"""What sparsify() costs against depth and width: seconds and peak memory, on DiT blocks of the published sizes.

Seconds are of processor time on one thread, medians of runs interleaved in one process; as in timeit the garbage
collector rests, whose long passes fall on one run or another by chance. Memory is the rise of the peak
resident size during one sparsify() in a process of its own, after a small model was sparsified there. Weights are on the
meta device and in neither number, but for those of one block, on which split blocks are tried. Where 28 and 56
blocks of width 1152 are measured the targets are checked, and the exit code is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sparsify import Policy, sparsify
from sparsify.models import dit

_ROOT = Path(__file__).parents[1]
NAMES = {384: "DiT-S/2", 768: "DiT-B/2", 1024: "DiT-L/2", 1152: "DiT-XL/2"}  # by width
WIDTH, DEPTH = 1152, 28  # of the one while the other varies
MOST_SECONDS = 3.0  # 28 blocks of DiT-XL/2
MOST_GROWTH = 1.3  # 56 blocks over 28

EXAMPLES = """examples:
  python -m benchmarks.rewrite_cost
  python -m benchmarks.rewrite_cost --depths 28 56 --widths 1152 --rounds 9
  python -m benchmarks.rewrite_cost --json rewrite_cost.json
"""


@dataclass(frozen=True, order=True)
class Point:
    """One size of model: channels per token, and blocks."""

    width: int
    depth: int

    def build(self) -> tuple[torch.nn.Module, dict[str, Any]]:
        """The model on the meta device, and its inputs at 512 x 512 pixels."""
        with torch.device("meta"):
            return dit(NAMES[self.width], 512, self.depth)


@dataclass(frozen=True)
class Cost:
    """What one point cost."""

    point: Point
    seconds: float
    peak_mib: float


def rewrite(point: Point, built: tuple[torch.nn.Module, dict[str, Any]]) -> None:
    """What is measured."""
    model, inputs = built
    sparsify(model, Policy.fit(point.depth), example_inputs=inputs)


def seconds_of(points: list[Point], rounds: int) -> dict[Point, float]:
    """Medians by point; a first round warms up."""
    torch.set_num_threads(1)
    models = {point: point.build() for point in points}
    seconds: dict[Point, list[float]] = {point: [] for point in points}
    for round_ in track(range(rounds + 1), "sparsifying, interleaved", console=Console(stderr=True)):
        for point, built in models.items():
            gc.collect()
            gc.disable()
            started = time.process_time()
            rewrite(point, built)
            taken = time.process_time() - started
            gc.enable()
            if round_:
                seconds[point].append(taken)
    return {point: statistics.median(times) for point, times in seconds.items()}


def peak_of(point: Point) -> float:
    """MiB in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.rewrite_cost", "--peak", str(point.width), str(point.depth)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
    if ran.returncode:
        raise RuntimeError(f"{point} failed:\n{ran.stderr[-3000:]}")
    return float(ran.stdout.splitlines()[-1])


def rise_of_peak(point: Point) -> float:
    """MiB by which the resident size rises above where it was; needs Linux."""
    torch.set_num_threads(1)
    small = Point(384, 6)
    rewrite(small, small.build())  # what every process pays once
    built = point.build()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident("VmRSS")
    rewrite(point, built)
    return (_resident("VmHWM") - before) / 1024


def _resident(key: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def missed(costs: list[Cost]) -> list[str]:
    """Which targets the numbers miss, in words."""
    seconds = {cost.point: cost.seconds for cost in costs}
    base, deep = Point(WIDTH, 28), Point(WIDTH, 56)
    found = []
    if base in seconds and seconds[base] >= MOST_SECONDS:
        found.append(f"28 blocks take {seconds[base]:.2f} s, not less than {MOST_SECONDS:.0f} s")
    if base in seconds and deep in seconds and seconds[deep] > MOST_GROWTH * seconds[base]:
        found.append(f"56 blocks take {seconds[deep] / seconds[base]:.2f}x of 28, more than {MOST_GROWTH}x")
    return found


def table_of(costs: list[Cost], rounds: int) -> Table:
    """The numbers, against 28 blocks of each width where these were measured."""
    table = Table(title=f"sparsify() of DiT at 512x512, medians of {rounds}, interleaved", title_justify="left")
    for heading in ("width", "blocks", "seconds", "of 28 blocks", "peak memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    seconds = {cost.point: cost.seconds for cost in costs}
    for cost in costs:
        base = seconds.get(Point(cost.point.width, DEPTH))
        share = "" if base is None else f"{cost.seconds / base:.2f}x"
        size = f"{cost.point.width}", f"{cost.point.depth}"
        table.add_row(*size, f"{cost.seconds:.2f}", share, f"+{cost.peak_mib:.0f} MiB")
    return table


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, prog="rewrite_cost"
    )
    parser.add_argument("--depths", type=int, nargs="+", default=[14, 28, 56], help="blocks, at width 1152 (14 28 56)")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[384, 768, 1152], choices=NAMES, help="of 28 blocks (384 768 1152)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each that the medians are of (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.peak:
        print(rise_of_peak(Point(*arguments.peak)))
        return 0
    points = sorted({Point(WIDTH, d) for d in arguments.depths} | {Point(w, DEPTH) for w in arguments.widths})
    seconds = seconds_of(points, arguments.rounds)
    peaks = {point: peak_of(point) for point in track(points, "measuring memory", console=Console(stderr=True))}
    costs = [Cost(point, seconds[point], peaks[point]) for point in points]
    reasons = missed(costs)
    if arguments.json:
        found = {"costs": [asdict(cost) for cost in costs], "rounds": arguments.rounds, "missed": reasons}
        arguments.json.write_text(json.dumps(found, indent=1))
    console = Console()
    console.print(table_of(costs, arguments.rounds))
    console.print(f"targets: 28 blocks under {MOST_SECONDS:.0f} s, 56 blocks at most {MOST_GROWTH}x of that")
    for reason in reasons:
        console.print(f"missed: {reason}")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
