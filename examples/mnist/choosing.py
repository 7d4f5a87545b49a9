"""A policy for the trained dense model, found by measuring: ``search.json`` has all of it."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from sparsify import Density
from sparsify.search import Search, search

from . import arms
from .data import Part
from .settings import Settings

_TIMES = range(50, 1000, 100)
_IMAGES = 32  # of each timestep
_BUDGETS_BESIDES = (0.6,)
_CANDIDATES = 15
_SHAPE = Density.paper(0.44, 0.75)  # the search scales it to the budget


def choose(settings: Settings, data: Part, dense: Path) -> Search:
    """Policies within the budget of the settings against ``Policy.fit`` there."""
    model, _ = arms.dense_model(settings, dense)
    whole = arms.noised_batches(settings, data, _TIMES, seed=0)
    batches = [{name: rows[:_IMAGES] for name, rows in batch.items()} for batch in whole]
    with Progress(transient=True) as progress:
        task = progress.add_task("measuring policies", total=None)
        return search(
            model.eval(),
            batches,
            settings.budget,
            density=_SHAPE,
            curve=_BUDGETS_BESIDES,
            candidates=_CANDIDATES,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
