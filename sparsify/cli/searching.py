"""``sparsify search``: choose a policy under a budget by measuring."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..density import Density
from ..errors import InputError
from ..policy import DEFAULT_RATES
from ..search import random_batches
from ..search import search as run_search
from .sources import load_model
from .words import console


def search(arguments: argparse.Namespace) -> None:
    """Print the policy that was picked, the trade-off curve, and what was measured of each block."""
    if arguments.device == "meta":
        raise InputError("--device meta has no weights to measure with; search on cpu or cuda.")
    density = arguments.density or Density.paper(*DEFAULT_RATES)
    errors = console(stderr=True)
    with errors.status(f"building {arguments.model}"):
        model, inputs = load_model(arguments.model, arguments.kwargs, arguments.config, arguments.inputs, arguments.device)
    where = {"grid": arguments.grid, "timestep": arguments.timestep}
    with errors.status("capturing and drawing latents"):
        batches = random_batches(model, inputs, arguments.batches, density, seed=arguments.seed, **where)
    with _progress(arguments.json) as on_progress:
        found = run_search(
            model,
            batches,
            arguments.budget,
            density=density,
            calibrate=not arguments.no_calibrate,
            candidates=arguments.candidates,
            on_progress=on_progress,
            **where,
        )
    if arguments.out is not None:
        _write(arguments.out, found.policy.to_json())
    if arguments.picture is not None:
        found.plot(arguments.picture)
    if arguments.json:
        print(found.to_json())
        return
    out = console()
    out.print(found)
    out.print(
        f"[yellow]measured on random latents[/], {arguments.batches} batches at timesteps spread over the schedule: a stand-in for noised data."
    )
    if arguments.out is not None:
        out.print(f"wrote the policy: sparsify report {arguments.model} --policy {arguments.out}", markup=False)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("measuring"), BarColumn(), TextColumn("{task.completed}/{task.total} policies"), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task("measuring", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    except OSError as error:
        raise InputError(f"--out {path} cannot be written: {error}.") from error
