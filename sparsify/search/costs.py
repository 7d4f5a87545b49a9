"""What a block costs in each role, and what a whole trunk of given roles costs, at every pooled grid."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ..accounting import Costs, sizes_at
from ..ends import Grid
from ..flops import evaluate
from ..program import Program
from .words import REWRITTEN


class RoleCosts:
    """GFLOPs of every block by role, read off rewritten programs: blocks of one kind cost alike in one role.

    Attributes:
        dense: of each block before any rewrite.
        outside: of the rest of the model.
        whole: of the dense model.

    Args:
        base: the program before any pass.
    """

    def __init__(self, base: Program) -> None:
        costs, sizes = Costs.of(base), sizes_at(base, ())
        self.dense = tuple(evaluate(cost, sizes) / 1e9 for cost in costs.blocks)
        self.outside = evaluate(costs.outside, sizes) / 1e9
        self.whole = evaluate(costs.total, sizes) / 1e9
        self._kinds: list[Any] = [(node.meta["body"], cost) for node, cost in zip(base.block_nodes, self.dense, strict=True)]
        self._known: dict[tuple[str, Any], Callable[[Grid], float]] = {}
        self._of_module: Callable[[Grid], float] | None = None

    def lacks(self, word: str) -> bool:
        """Whether a word has a role that was not seen yet of a kind of block."""
        return any(letter != "D" and (letter, kind) not in self._known for letter, kind in zip(word, self._kinds, strict=True))

    def learn(self, word: str, program: Program) -> None:
        """Take over what blocks cost in a program with these roles, and modules besides their blocks."""
        costs = Costs.of(program)
        for letter, kind, cost in zip(word, self._kinds, costs.blocks, strict=True):
            if letter != "D":
                self._known.setdefault((letter, kind), _at_grids(program, cost))
        if (modules := len(program.restores)) and self._of_module is None:
            outside = _at_grids(program, costs.outside)
            self._of_module = lambda grid: (outside(grid) - self.outside) / modules

    def at(self, grids: Mapping[Grid, float]) -> dict[str, list[float]]:
        """By letter, GFLOPs of each block: the mean over pooled grids with these shares; what was not seen costs as if dense.

        What a module costs besides its blocks, its restore layers, is counted with its generate block.
        """
        found = {"D": list(self.dense)}
        for letter in REWRITTEN:
            known = [self._known.get((letter, kind)) for kind in self._kinds]
            found[letter] = [
                dense if cost is None else sum(share * cost(grid) for grid, share in grids.items())
                for cost, dense in zip(known, self.dense, strict=True)
            ]
        if (of_module := self._of_module) is not None:
            beside = sum(share * of_module(grid) for grid, share in grids.items())
            found["G"] = [cost + beside for cost in found["G"]]
        return found


def exact_cost(program: Program) -> Callable[[Grid], float]:
    """GFLOPs of a whole program by pooled grid, as its report counts them."""
    return _at_grids(program, Costs.of(program).total)


def _at_grids(program: Program, cost: Any) -> Callable[[Grid], float]:
    @functools.cache
    def at(grid: Grid) -> float:
        return evaluate(cost, sizes_at(program, grid)) / 1e9

    return at
