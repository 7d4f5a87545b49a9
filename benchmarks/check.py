"""Regression gate: fails when a ratio of dense over sparse falls by more than a tenth below the committed baseline.

examples:
  python -m benchmarks.check                       # 0 if all hold, 1 if one fell, with a table that names it
  python -m benchmarks.check --update              # measure and write benchmarks/results/baseline.json
  python -m benchmarks.check --only flops memory   # no timing: the same numbers on every machine
  python -m benchmarks.check --tolerance 0.05

Only ratios are compared, never seconds: both sides of each take turns in one process, and the ratio is the median of the
ratios in each round. A ratio that falls is measured again, twice at most, and the best counts: a busy machine does not slow
one side three times over, worse code does. Ratios of time still depend on the processor: renew the baseline on another one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sparsify import Density, Policy, sparsify
from sparsify.models import dit, pixart

from .cases import Case
from .common import parser, ratio, show, table, write
from .contenders import Setup, by_hand, dense, measure, ours
from .memory import peak_bytes

BASELINE = Path(__file__).parent / "results" / "baseline.json"
TOLERANCE = 0.10
ATTEMPTS = 3
Ratios = dict[str, float]

# One pooled grid each: the calls of a round are few and close together, so that there can be many rounds.
_BASE = Case("DiT-B/2 256", partial(dit, "DiT-B/2", 256), Policy.fit(12, Density.constant(rate=0.75)))
_LONG = Case("DiT-S/2 512", partial(dit, "DiT-S/2", 512), Policy.fit(12, Density.constant(rate=0.93)))
_SHORT = Case("DiT-S/2 256, 6 blocks", partial(dit, "DiT-S/2", 256, 6), Policy.fit(6, Density.constant(rate=0.75)))


def flops() -> Ratios:
    """Multiply-adds saved on the paper's configurations; nothing is computed."""
    found = {}
    for title, make, policy in (
        ("DiT-XL/2 512", partial(dit, "DiT-XL/2", 512), Policy.paper("DiT-XL/2", 512)),
        ("DiT-XL/2 256", partial(dit, "DiT-XL/2", 256), Policy.paper("DiT-XL/2", 256)),
        ("PixArt 256", partial(pixart, 256), Policy.auto()),
    ):
        with torch.device("meta"):
            model, inputs = make()
        report = sparsify(model, policy, example_inputs=inputs).report()
        found[f"GFLOPs, {title}"] = report.gflops_dense / report.gflops
    return found


def memory() -> Ratios:
    """Peak of activations saved."""
    model, inputs = _LONG.make()
    sparse = sparsify(model, _LONG.policy, example_inputs=inputs)
    peaks = [peak_bytes(partial(run, **inputs)) for run in (model, sparse)]
    return {f"memory, {_LONG.title}": peaks[0] / peaks[1]}


def eager() -> Ratios:
    """Time against the dense model and against SparseDiT by hand."""
    found = {}
    for case in (_BASE, _LONG):
        setup = Setup.of(case, *case.make())
        times = measure([c for way in (dense, ours, by_hand) for c in way(setup, False)], rounds=15)
        mine = times["sparsify", False]
        found[f"time, {case.title}, eager"] = ratio(times["dense", False], mine)
        found[f"time, {case.title}, handwritten over ours"] = ratio(times["handwritten", False], mine)
    return found


def compiled() -> Ratios:
    """Time of compiled code on both sides."""
    torch._dynamo.reset()
    setup = Setup.of(_SHORT, *_SHORT.make())
    ways = [*dense(setup, True), next(iter(ours(setup, True)))]
    times = measure(ways, rounds=31)
    return {f"time, {_SHORT.title}, compiled": ratio(*(times[way.name, True] for way in ways))}


GROUPS: dict[str, Callable[[], Ratios]] = {
    "flops": flops,
    "memory": memory,
    "eager": eager,
    "compiled": compiled,
}


@dataclass(frozen=True)
class Verdict:
    """One ratio beside its baseline; None where there is none."""

    name: str
    baseline: float | None
    measured: float | None
    tolerance: float

    @property
    def change(self) -> float:
        """-0.1 is a tenth less than the baseline."""
        if self.baseline is None or self.measured is None:
            return 0.0
        return self.measured / self.baseline - 1

    @property
    def passes(self) -> bool:
        """What is new passes; what is no longer measured does not."""
        return self.measured is not None and self.change >= -self.tolerance


def judge(baseline: Mapping[str, float], measured: Mapping[str, float], tolerance: float = TOLERANCE) -> list[Verdict]:
    """A verdict on every ratio of either."""
    names = dict.fromkeys((*baseline, *measured))
    return [Verdict(name, baseline.get(name), measured.get(name), tolerance) for name in names]


def measure_all(
    groups: Mapping[str, Callable[[], Ratios]], baseline: Mapping[str, float], tolerance: float, attempts: int
) -> dict[str, Ratios]:
    """Ratios by group; a group of which one falls is measured again, and each ratio keeps its best."""
    found: dict[str, Ratios] = {}
    with Console(stderr=True).status("measuring") as status:
        for name, group in groups.items():
            best: Ratios = {}
            for attempt in range(attempts):
                status.update(f"measuring: {name}{f', attempt {attempt + 1}' if attempt else ''}")
                best = {key: max(value, best.get(key, 0.0)) for key, value in group().items()}
                if all(verdict.passes for verdict in judge({k: v for k, v in baseline.items() if k in best}, best, tolerance)):
                    break
            found[name] = best
    return found


def verdict_table(verdicts: Iterable[Verdict]) -> Table:
    """To read: what fell is named and marked."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}x"

    def word(verdict: Verdict) -> str:
        if verdict.passes:
            return "[green]new[/]" if verdict.baseline is None else "[green]holds[/]"
        return "[bold red]NOT MEASURED[/]" if verdict.measured is None else "[bold red]FELL[/]"

    rows = [
        (v.name, word(v), number(v.baseline), number(v.measured), f"{v.change:+.1%}" if v.baseline and v.measured else "")
        for v in verdicts
    ]
    return table("dense over sparse, against the baseline", ("ratio", "", "baseline", "now", "change"), rows, left=2)


def read(path: Path) -> dict[str, Any] | None:
    """The baseline file, or None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def main(words: Sequence[str] | None = None, groups: Mapping[str, Callable[[], Ratios]] = GROUPS) -> int:
    """The command; ``groups`` are the measurements."""
    made = parser("check", __doc__ or "", "json")
    made.add_argument("--update", action="store_true", help="write what is measured as the new baseline")
    made.add_argument("--only", nargs="+", choices=list(groups), default=list(groups), help="which ratios (default: all)")
    made.add_argument("--tolerance", type=float, default=TOLERANCE, help="how far a ratio may fall (default: %(default)s)")
    made.add_argument("--baseline", type=Path, default=BASELINE, help="the file (default: benchmarks/results/baseline.json)")
    options = made.parse_args(words)
    kept = read(options.baseline)
    if kept is None and not options.update:
        print(f"error: there is no baseline {options.baseline}; write one with --update.", file=sys.stderr)
        return 2
    by_group: dict[str, Ratios] = {} if kept is None else kept["results"]
    old = {name: value for group in options.only for name, value in by_group.get(group, {}).items()}
    torch.manual_seed(0)
    chosen = {name: groups[name] for name in options.only}
    found = measure_all(chosen, {} if options.update else old, options.tolerance, 1 if options.update else ATTEMPTS)
    verdicts = judge(old, {name: value for group in found.values() for name, value in group.items()}, options.tolerance)
    notes = (
        []
        if kept is None
        else [f"baseline of {kept['hardware']['date']}, torch {kept['versions']['torch']}, {kept['hardware']['cpu']}"]
    )
    show(verdict_table(verdicts), *notes)
    write(options.json, "check", options, found)
    if options.update:
        write(options.baseline, "check", options, {name: v for name, v in {**by_group, **found}.items() if name in groups})
        print(f"written to {options.baseline}")
        return 0
    fell = [verdict.name for verdict in verdicts if not verdict.passes]
    if fell:
        print(f"error: {len(fell)} ratio(s) fell by more than {options.tolerance:.0%}: {'; '.join(fell)}", file=sys.stderr)
    return 1 if fell else 0


if __name__ == "__main__":
    sys.exit(main())
