"""What became of a model: for each block its role and why, tokens, multiply-adds, and what was left alone."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from .density import Grid

if TYPE_CHECKING:  # rich is loaded when a report is printed
    from rich.console import RenderableType
    from rich.table import Table

    from .program import PassRun
    from .savings import Saving


@dataclass(frozen=True)
class DensityReport:
    """One pooled grid of the schedule: its share of the timesteps and the cost of a forward pass at batch 1."""

    grid: Grid
    share: float
    gflops: float


@dataclass(frozen=True)
class BlockReport:
    """One block: ``tokens_dense`` is the length of its sequence before the rewrite, ``tokens`` and ``gflops`` hold one number per density, in the order of ``Report.densities``."""

    path: str
    role: str
    why: str
    tokens: tuple[int, ...]
    keys: tuple[int, ...]
    tokens_dense: int
    gflops_dense: float
    gflops: tuple[float, ...]
    gflops_mean: float


@dataclass(frozen=True)
class Skipped:
    """A rewrite that was asked for and not made."""

    pass_name: str
    where: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The account of one sparsification. Print it for a table; ``to_json()`` for machines.

    GFLOPs are multiply-adds / 1e9 of one forward pass at batch 1, counted on the graph; ``gflops`` is their mean over
    the timesteps of the schedule. ``gflops_once`` are those that a sampling run needs once for each prompt, in no other figure.
    """

    model: str
    policy: str
    pipeline: str
    grid: Grid
    grid_source: str
    timestep: str | None
    way: str
    chains: dict[str, int]
    gflops_dense: float
    gflops: float
    parameters: int
    parameters_added: int
    densities: tuple[DensityReport, ...]
    blocks: tuple[BlockReport, ...]
    skipped: tuple[Skipped, ...]
    savings: tuple[Saving, ...] = ()
    gflops_once: float = 0.0
    pass_seconds: dict[str, float] = field(default_factory=dict)
    passes: tuple[PassRun, ...] = ()

    def to_json(self) -> str:
        """The whole report as JSON."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=118, force_terminal=False).print(self)
        return text.getvalue().rstrip()

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        return Group(*self._lines(), self._density_table(), *self._savings_table(), self._block_table(), *self._skipped_lines())

    def _lines(self) -> list[str]:
        share = self.gflops / self.gflops_dense if self.gflops_dense else 1.0
        return [
            f"[bold]{self.model}[/]: {len(self.blocks)} blocks on a {_grid_text(self.grid)} token grid ({self.grid_source}), "
            f"timestep from {self.timestep or 'nowhere'}",
            f"chains: {' -> '.join(f'{name} x{count}' for name, count in self.chains.items())}",
            f"captured as {_escaped(self.way)}",
            f"policy: {_escaped(self.policy)}",
            *([f"places rewritten: {_escaped(self._passes_text())}"] if self.passes else []),
            f"[bold]{self.gflops_dense:.2f} -> {self.gflops:.2f} GFLOPs[/] ({share:.1%} of dense, mean over the schedule), "
            f"{self.parameters_added / 1e6:.2f} M parameters added to {self.parameters / 1e6:.2f} M",
        ]

    def _passes_text(self) -> str:
        places: dict[str, int] = {}
        for run in self.passes:
            name = run.text.partition("{")[0]
            places[name] = places.get(name, 0) + run.places
        return ", ".join(f"{name} {count}" for name, count in places.items())

    def _density_table(self) -> Table:
        from rich.table import Table

        table = Table(title="densities, from the data to pure noise", title_justify="left")
        for heading in ("pooled grid", "tokens", "share of timesteps", "GFLOPs", "of dense"):
            table.add_column(heading, justify="right")
        for density in self.densities:
            tokens = 1
            for side in density.grid:
                tokens *= side
            cells = (_grid_text(density.grid), str(tokens), f"{density.share:.1%}", f"{density.gflops:.2f}")
            table.add_row(*cells, f"{density.gflops / self.gflops_dense:.1%}" if self.gflops_dense else "")
        return table

    def _savings_table(self) -> list[RenderableType]:
        from rich.table import Table

        table = Table(title="exact savings, per forward pass", title_justify="left")
        for heading in ("pass", "places", "GFLOPs saved", "MB not read or written"):
            table.add_column(heading, justify="left" if heading == "pass" else "right")
        for saving in self.savings:
            table.add_row(saving.pass_name, str(saving.places), f"{saving.gflops:.3f}", f"{saving.megabytes:.1f}")
        once = [f"once for each prompt, not in the figures above: {self.gflops_once:.3f} GFLOPs"] if self.gflops_once else []
        return [table, *once] if self.savings else []

    def _block_table(self) -> Table:
        from rich.table import Table

        table = Table(title="blocks, bottom to top", title_justify="left")
        table.add_column("block", no_wrap=True)
        table.add_column("role", no_wrap=True)
        for heading in ("tokens", "keys", "GFLOPs dense", "GFLOPs"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("why")
        for block in self.blocks:
            cells = (block.path, block.role, _span(block.tokens), _span(block.keys))
            table.add_row(*cells, f"{block.gflops_dense:.3f}", f"{block.gflops_mean:.3f}", block.why)
        return table

    def _skipped_lines(self) -> list[str]:
        return [f"[yellow]left alone[/] by {s.pass_name}: {_escaped(s.where)}: {_escaped(s.reason)}" for s in self.skipped]


def _grid_text(grid: Sequence[int]) -> str:
    return "x".join(map(str, grid)) or "no"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{high} to {low}"


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
