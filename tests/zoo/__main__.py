"""Run every check on every model of the zoo and write the table of results: ``python -m tests.zoo -o docs/models.md``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import Progress

from .check import Result, check
from .entry import Entry

FILES = ("written", "images", "packed", "streams", "videos", "more_videos", "audio", "newer", "newer_videos")


def entries(files: Sequence[str] = FILES) -> list[Entry]:
    """Every model of the zoo."""
    return [entry for file in files for entry in importlib.import_module(f"tests.zoo.{file}").MODELS]


def entry_of(name: str) -> Entry:
    """The model of this name."""
    return next(entry for entry in entries() if entry.name == name)


def left_out() -> dict[str, str]:
    """Classes that are no model with a token grid, or do not run on a CPU, and why."""
    reasons: dict[str, str] = {}
    for file in FILES:
        reasons |= getattr(importlib.import_module(f"tests.zoo.{file}"), "LEFT_OUT", {})
    return reasons


def result_of(entry: Entry) -> Result:
    """One row; whatever goes wrong is the reason why the model does not count."""
    try:
        return check(entry)
    except Exception as error:  # noqa: BLE001  # a row of the table, not the end of it
        return Result(entry, refusal=f"{type(error).__name__}: {error}")


def page(results: Sequence[Result], missing: dict[str, str]) -> str:
    """The table as Markdown."""
    works = sorted((r for r in results if r.works), key=lambda r: (r.entry.family, r.entry.name))
    refused = [r for r in results if not r.works]
    lines = [
        "# Models",
        "",
        f"{len(works)} of {len(results)} tiny, randomly initialised models pass every check of `tests/zoo/check.py`: the dense policy "
        'equals the original, a sparse policy passes `verify="full"`, runs at two densities and two batch sizes (and at another '
        "resolution where the class can), shrinks the GFLOPs, and gradients reach every block. No code names a class. Made by "
        "`make models`.",
        "",
        "| Model | Family | Blocks | Grid | Captured as | Captures | Largest error, dense policy | MFLOPs dense | MFLOPs sparse |",
        "|---|---|---|---|---|--:|--:|--:|--:|",
    ]
    for r in works:
        lines.append(
            f"| {r.entry.name} | {r.entry.family} | {r.blocks} | {r.grid_source} | {r.way.split(':')[0]} | {r.captures} | "
            f"{r.error:.0e} | {r.gflops_dense * 1e3:.2f} | {r.gflops * 1e3:.2f} |"
        )
    lines += ["", "## Refused", "", "| Model | Family | Reason |", "|---|---|---|"]
    lines += [f"| {r.entry.name} | {r.entry.family} | {_one_line(r.refusal)} |" for r in refused]
    lines += ["", "## Left out", "", "| Class | Reason |", "|---|---|"]
    lines += [f"| {name} | {_one_line(reason)} |" for name, reason in sorted(missing.items())]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:300]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names of models to run, such as Flux; all without any")
    parser.add_argument("-o", "--output", type=Path, help="write the table there, such as docs/models.md")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = [entry for entry in entries() if not options.names or any(part in entry.name for part in options.names)]
    results = []
    with Progress(disable=options.json) as progress:
        for entry in progress.track(chosen, description="models"):
            results.append(result := result_of(entry))
            progress.console.print(f"{'works  ' if result.works else 'refused'} {entry.name} {_one_line(result.refusal)}")
    if options.output is not None:
        options.output.write_text(page(results, left_out()))
    if options.json:
        print(
            json.dumps(
                [{"name": r.entry.name, "works": r.works, "captures": r.captures, "refusal": r.refusal} for r in results]
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
