"""What a search has found: the trade-off of error against GFLOPs, the pick, and what was measured of each block."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..policy import Policy

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


@dataclass(frozen=True)
class Point:
    """One policy that was measured.

    Attributes:
        policy: with its density.
        gflops: multiply-adds / 1e9 of a forward pass at batch 1, mean over the timesteps, as its report counts them.
        fraction: of the dense model's.
        error: relative L2 error of the outputs, mean over the calibration batches.
        source: ``"search"``, ``"fit"`` (``Policy.fit`` at the same budget), or ``"dense"``.
        budget: the fraction that its density was fitted to.
        on_front: whether nothing measured is both cheaper and better.
    """

    policy: Policy
    gflops: float
    fraction: float
    error: float
    source: Literal["search", "fit", "dense"]
    budget: float
    on_front: bool = False


@dataclass(frozen=True)
class BlockMeasure:
    """What was measured of one block.

    Attributes:
        path: of its module.
        uniformity: ``|attention - mean of values| / |attention|``, 0 where its attention is uniform; None where ``why`` says.
        pooling: error of the model's outputs when this block alone is poolingformer; None where that was refused.
        module: the least of the output errors when a few blocks alone, this one among them, are a sparse-dense module; None
            where all of these were refused.
        role: in the policy that was picked.
        why: why something is missing.
    """

    path: str
    uniformity: float | None
    pooling: float | None
    module: float | None
    role: str
    why: str = ""


@dataclass(frozen=True)
class SpanMeasure:
    """Output error when blocks ``first`` to ``last`` alone are one sparse-dense module; None where refused, see ``why``."""

    first: int
    last: int
    error: float | None
    why: str = ""


@dataclass(frozen=True)
class Search:
    """The account of a search. Print it for tables; ``to_json()`` for machines; ``plot()`` for a picture.

    Attributes:
        model: its class.
        budget: the fraction of the dense GFLOPs that was asked for.
        gflops_dense: those of the dense model.
        pick: the best measured policy within the budget.
        curve: every policy that was measured, cheapest first.
        blocks: bottom to top.
        spans: the modules that were tried alone.
        density: of the trials of single blocks and spans.
        batches: how many calls the errors are means over.
        calibrated: whether restore layers were calibrated before measuring.
    """

    model: str
    budget: float
    gflops_dense: float
    pick: Point
    curve: tuple[Point, ...]
    blocks: tuple[BlockMeasure, ...]
    spans: tuple[SpanMeasure, ...]
    density: str
    batches: int
    calibrated: bool

    @property
    def policy(self) -> Policy:
        """The best measured policy within the budget."""
        return self.pick.policy

    @property
    def front(self) -> tuple[Point, ...]:
        """The points of the curve that nothing measured beats in both error and GFLOPs, cheapest first."""
        return tuple(point for point in self.curve if point.on_front)

    @property
    def fit(self) -> Point | None:
        """``Policy.fit`` at the budget that was asked for; None where it cannot get that low."""
        return next((point for point in self.curve if point.source == "fit" and point.budget == self.budget), None)

    def to_json(self) -> str:
        """All numbers as JSON, policies as :meth:`Policy.to_json` writes them."""
        return json.dumps(asdict(self) | {"pick": _plain(self.pick), "curve": [_plain(point) for point in self.curve]})

    def plot(self, path: str | Path) -> Path:
        """Draw the trade-off curve and the blocks; needs matplotlib, the ``plot`` extra."""
        from .picture import draw_search  # matplotlib is not imported before it is needed

        return draw_search(self, Path(path))

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=118, force_terminal=False).print(self)
        return text.getvalue().rstrip()

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        return Group(*self._lines(), self._curve_table(), self._block_table())

    def _lines(self) -> list[str]:
        pick, fit = self.pick, self.fit
        against = "" if fit is None else f"; Policy.fit there: {fit.gflops:.4g} GFLOPs, error {fit.error:.4f}"
        how = "calibrated" if self.calibrated else "as they start"
        return [
            f"[bold]{self.model}[/]: {len(self.blocks)} blocks, {self.gflops_dense:.4g} GFLOPs dense; errors are relative L2 of the "
            f"outputs over {self.batches} batches, restore layers {how}",
            f"[bold]picked[/] for {self.budget:.1%} of dense: {pick.gflops:.4g} GFLOPs ({pick.fraction:.1%}), error {pick.error:.4f}{against}",
            f"policy: {_escaped(str(pick.policy))}",
        ]

    def _curve_table(self) -> Table:
        from rich.table import Table

        table = Table(title="trade-off, of each budget the best and Policy.fit", title_justify="left")
        for heading in ("GFLOPs", "of dense", "error"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("", "from", "policy"):
            table.add_column(heading)
        for point in _shown(self.curve, self.pick):
            mark = "picked" if point == self.pick else "front" if point.on_front else ""
            cells = (f"{point.gflops:.4g}", f"{point.fraction:.1%}", f"{point.error:.4f}", mark, point.source)
            table.add_row(*cells, _escaped(str(point.policy)))
        return table

    def _block_table(self) -> Table:
        from rich.table import Table

        table = Table(title="blocks, bottom to top: errors by role, and the role they got", title_justify="left")
        table.add_column("block", no_wrap=True)
        for heading in ("attention from uniform", "error if pooling", "error in a module"):
            table.add_column(heading, justify="right")
        table.add_column("role", no_wrap=True)
        table.add_column("remarks")
        for block in self.blocks:
            numbers = (_number(block.uniformity), _number(block.pooling), _number(block.module))
            table.add_row(block.path, *numbers, block.role, _escaped(block.why))
        return table


def with_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points cheapest first, with those marked that no other beats in one of error and GFLOPs without losing in the other."""
    marked: list[Point] = []
    least = float("inf")
    for point in sorted(points, key=lambda p: (p.gflops, p.error)):
        marked.append(replace(point, on_front=point.error < least))
        least = min(least, point.error)
    return tuple(marked)


def _shown(curve: Sequence[Point], pick: Point) -> list[Point]:
    """Of each budget and source the best, and the pick."""
    best: dict[tuple[float, str], Point] = {}
    for point in curve:
        known = best.setdefault((point.budget, point.source), point)
        if point.error < known.error:
            best[point.budget, point.source] = point
    return [point for point in curve if point == pick or point in best.values()]


def _plain(point: Point) -> dict[str, Any]:
    return {**vars(point), "policy": json.loads(point.policy.to_json())}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
