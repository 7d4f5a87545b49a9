"""A pass made of two functions: what to look for, and what to put there."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..errors import RewriteError
from ..program import Program
from .base import Pass, remove_dead
from .pattern import Match, Pattern, Place, explain, find


class PatternPass(Pass):
    """Replaces, in the outer graph and in every kind of block, what looks like ``pattern`` by ``replacement``.

    Both take the same arguments and return as much. ``check`` may refuse a place: its ``found`` is a
    :class:`~sparsify.passes.Match`. Where nothing matches the report has the nearest miss.
    """

    @abstractmethod
    def pattern(self, *values: Any) -> Any:
        """What to look for, in torch code without shapes; see :class:`~sparsify.passes.Pattern`."""

    @abstractmethod
    def replacement(self, *values: Any) -> Any:
        """What to put there: the values of the same shapes, in any torch code."""

    def match(self, program: Program) -> list[Place]:
        # The last comes first: what is put in its place reads the results of those before it, and follows their changes.
        return find(program, _pattern_of(self.pattern))[::-1]

    def explain(self, program: Program) -> str | None:
        return explain(program, _pattern_of(self.pattern))

    def describe(self, place: Place) -> str:
        return f"{place.found.output.name} of {place.where}"

    def rewrite(self, program: Program, place: Place) -> None:
        match: Match = place.found
        late = [node for node in match.inputs.values() if isinstance(node, fx.Node) and node > min(match.outputs)]
        if late:
            raise RewriteError(f"{late[0].name} is computed behind {min(match.outputs).name}, which would come to depend on it")
        with place.graph.inserting_before(min(match.outputs)):
            made = self.trace(place.graph, self.replacement, *match.inputs.values(), origin=match.output)
        results = made if isinstance(made, (tuple, list)) else (made,)
        if [_kind(new.meta["val"]) for new in results] != [_kind(old.meta["val"]) for old in match.outputs]:
            remove_dead(place.graph)
            raise RewriteError(f"the replacement yields {list(map(str, results))}, not what {match.output.name} does")
        for old, new in zip(match.outputs, results, strict=True):
            old.replace_all_uses_with(new)
        remove_dead(place.graph)


@functools.lru_cache
def _pattern_of(function: Callable[..., Any]) -> Pattern:
    return Pattern(function)


def _kind(value: Any) -> object:
    return (value.ndim, value.dtype, value.device) if isinstance(value, torch.Tensor) else type(value)
