"""Change one thing in a module, run its tests, and see whether one fails; exits 1 if fewer than nine in ten changes are noticed.

examples:
  python -m tests.mutation                                  # a sample of each module: five minutes on two cores
  python -m tests.mutation --modules share passes/nearest   # these modules
  python -m tests.mutation --all --resume                   # every mutant, an hour; goes on where it was interrupted
  python -m tests.mutation --strict                         # fails, too, if a survivor has no reason in survivors.toml

Nothing is written to the checkout: a mutant lives in the memory of the process that tests it. It counts as noticed if a test fails,
if the process dies, or if it runs five times as long as without a mutant.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .mutants import mutants, sampled
from .results import Score, Store, total
from .runner import MutationError, Runner, import_all, prepared
from .show import show, write
from .survivors import REASONS, read_reasons, reason_for
from .targets import TARGETS, Target, chosen, read_imports, read_targets
from .warm import warm_up

GOAL = 0.9
SAMPLE = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 if too many survive, 2 if the tool cannot run."""
    options = _parser().parse_args(arguments)
    console, root = Console(), options.root.resolve()
    sample = None if options.all else options.sample
    try:
        targets = chosen(read_targets(options.targets), options.modules)
        reasons = read_reasons(options.reasons)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with prepared(root) as scratch:
            import_all(read_imports(options.targets))
            warm_up()
            scores = _run(root, targets, sample, options, scratch, console)
    except (MutationError, ValueError, OSError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, style="red")
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; --resume goes on from here")
        return 130
    show(console, scores, reasons, GOAL)
    write(options.json, scores, reasons, options.seed, sample)
    everything = total(scores)
    unexplained = sum(reason_for(each, reasons) is None for each in everything.survivors)
    console.print(f"\n{everything.share:.1%} of {len(everything.results)} mutants were noticed; {GOAL:.0%} is asked for.")
    console.print(f"{len(everything.survivors)} survived, {unexplained} of them without a reason. Numbers: {options.json}")
    return int(everything.share < GOAL or (options.strict and unexplained > 0))


def _run(
    root: Path, targets: Sequence[Target], sample: int | None, options: argparse.Namespace, scratch: Path, console: Console
) -> list[Score]:
    store = Store(options.json.with_suffix(".jsonl"), options.resume)
    work, scores = [], []
    for target in targets:
        source = (root / target.path).read_text()
        everything = mutants(target.path, source)
        drawn = sampled(everything, sample, options.seed)
        digest = target.digest(root)
        kept = [found for each in drawn if (found := store.known(each.identity, digest)) is not None]
        done = {each.identity for each in kept}
        scores.append(Score(target.name, len(everything), kept))
        work.append([each for each in drawn if each.identity not in done])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # No thread may run here when children are forked off, hence no automatic refresh.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("mutants", total=sum(map(len, work)))
        for target, score, waiting in zip(targets, scores, work, strict=True):
            if not waiting:
                continue
            progress.update(task, description=f"{target.name}: tests without a mutant", refresh=True)
            runner = Runner(root, target, scratch, options.workers, options.grace)
            wall = runner.baseline()
            progress.update(task, description=f"{target.name}, {wall:.0f} s of tests", refresh=True)
            for result in runner.run(waiting):
                store.add(result)
                score.results.append(result)
                progress.update(task, advance=1, refresh=True)
            progress.console.print(f"{score.name}: {score.share:.0%} of {len(score.results)}", highlight=False)
    return scores


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.mutation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="mutate these alone: share, passes/nearest, ...")
    parser.add_argument("--sample", type=int, default=SAMPLE, metavar="N", help="mutants of each module (default %(default)s)")
    parser.add_argument("--all", action="store_true", help="every mutant: hours")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep the results of an earlier run that still hold")
    parser.add_argument("--strict", action="store_true", help="a survivor without a reason is a failure")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time (default %(default)s)")
    parser.add_argument(
        "--grace", type=float, default=15.0, metavar="SECONDS", help="added to each time limit (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, default=Path("out/mutation.json"), help="where numbers go (default %(default)s)")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: here)")
    parser.add_argument("--targets", type=Path, default=TARGETS, help="the table of modules and tests")
    parser.add_argument("--reasons", type=Path, default=REASONS, help="the table of reasons")
    return parser


if __name__ == "__main__":
    sys.exit(main())
