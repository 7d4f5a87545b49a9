"""Find the token grid of a model that runs in place: by what a change of the latent changes in the tokens.

There is no graph from the latent to the tokens to follow. Instead the model is run up to its first block, once as it is
and a few times with one place of the latent changed: the row that changes most is the token of that place. That tells
whether a grid is in row-major order, and how many rows of text stand in front of it.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from .calls import Leaf
from .errors import GridError
from .grid import read_grid
from .grid_readers import FixedGrid, GridOfLatent
from .pristine import pristine
from .program import Program
from .shapes import emit_size, new_size, shape_of, size_of
from .sizes import set_equal

_CHANGE = 3.0


class _ReachedError(Exception):
    """Carries the tokens out of the model once the first block is called."""


def find_grid_in_place(program: Program, model: nn.Module, inputs: Sequence[Leaf], given: Sequence[int] | None) -> None:
    """Set the grid of a program that was captured in place, and what stands beside it in the sequence.

    Raises:
        GridError: no candidate is confirmed by the tokens.
    """
    block = _main_block(program)
    body = program.body_of(block)
    tokens: fx.Node = max((block.args[p] for p in body.updates), key=lambda n: program.hint(shape_of(n)[1]))  # type: ignore[arg-type,assignment]
    length = program.hint(shape_of(tokens)[1])
    probe = _Probe(program, model, inputs, str(block.target), block.args.index(tokens))
    names = program.call.input_names
    for latent, reader in _candidates(program, inputs, given):
        sides = reader.sides(length, *([inputs[latent]] if isinstance(reader, GridOfLatent) else []))
        if not 0 < math.prod(sides) <= length or len(sides) != len([s for s in sides if s > 0]):
            continue
        before = probe.rows_before(latent, sides, reader)
        if before is None or before + math.prod(sides) > length:
            continue
        source = "given by the caller" if given is not None else f"axes of {names[latent]} divided by {reader.steps}"
        _set_grid(program, tokens, reader, program.placeholders[latent], before, length - math.prod(sides) - before)
        program.grid_source = f"{source}, confirmed by which tokens change with the latent"
        return
    raise GridError(
        f"the token grid cannot be found: no change of an input moves through the {length} tokens of {block.target} in row-major "
        f"order. Pass grid=(height, width) or (time, height, width) if they are in that order."
    )


def _main_block(program: Program) -> fx.Node:
    chain = max(program.chains.values(), key=len)
    return next(node for node in program.all_block_nodes if node.target == chain[0])


def _candidates(program: Program, inputs: Sequence[Leaf], given: Sequence[int] | None) -> Iterator[tuple[int, Any]]:
    """Inputs that may be the latent, with a way to read the grid."""
    for index, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim < 3:
            continue
        if given is not None:
            yield index, FixedGrid(tuple(given))
        elif value.ndim in (4, 5):
            for frames, patch in itertools.product((1, 2) if value.ndim == 5 else (1,), (2, 1, 4)):
                yield index, GridOfLatent((frames, patch, patch) if value.ndim == 5 else (patch, patch))


class _Probe:
    def __init__(self, program: Program, model: nn.Module, inputs: Sequence[Leaf], path: str, position: int) -> None:
        self._program, self._model, self._inputs, self._path, self._position = program, model, list(inputs), path, position
        self._base = self._tokens(self._inputs)

    def rows_before(self, latent: int, sides: tuple[int, ...], reader: Any) -> int | None:
        """How many rows stand before the grid, the same in every batch element, or None if the grid is not confirmed."""
        offsets = set()
        for place in ((0,) * len(sides), (0,) * (len(sides) - 1) + (sides[-1] - 1,), tuple(side - 1 for side in sides)):
            changed = self._inputs[latent].clone()  # type: ignore[union-attr]
            steps = reader.steps if isinstance(reader, GridOfLatent) else None
            if steps is not None:
                region = tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, steps, strict=True))
                changed[(slice(None), slice(None), *region)] += _CHANGE
            else:
                row, axis = _ravel(place, sides), 1 if changed.shape[1] == math.prod(sides) else changed.ndim - 1
                if changed.shape[axis] != math.prod(sides):
                    return None
                changed.select(axis, row).add_(_CHANGE)
            tokens = self._tokens([changed if i == latent else x for i, x in enumerate(self._inputs)])
            if tokens.shape != self._base.shape:
                return None
            difference = (tokens - self._base).abs().sum(-1)
            if not bool((difference.amax(1) > 0).all()):
                return None
            offsets |= {int(row) - _ravel(place, sides) for row in difference.argmax(1)}
        return offsets.pop() if len(offsets) == 1 and min(offsets) >= 0 else None

    def _tokens(self, inputs: Sequence[Leaf]) -> torch.Tensor:
        args, kwargs = self._program.call.unflatten(inputs)
        spec = self._program.in_place[self._path]

        def stop(*a: Any, **k: Any) -> Any:
            raise _ReachedError(spec.flatten(a, k)[self._position])

        with pristine(self._model, (args, kwargs)), torch.no_grad():
            self._model.get_submodule(self._path).forward = stop
            try:
                self._model(*args, **kwargs)
            except _ReachedError as reached:
                tokens: torch.Tensor = reached.args[0]
                return tokens.clone()
        raise GridError(f"{self._path} was not reached a second time; is the model's control flow random?")


def _ravel(place: Sequence[int], sides: Sequence[int]) -> int:
    row = 0
    for index, side in zip(place, sides, strict=True):
        row = row * side + index
    return row


def _set_grid(program: Program, tokens: fx.Node, reader: Any, latent: fx.Node, before: int, after: int) -> None:
    length = shape_of(tokens)[1]
    if isinstance(length, int):
        raise GridError(f"the blocks are tied to {length} tokens.")
    if before and after:
        raise GridError(
            f"{before} rows stand before the tokens of the grid and {after} behind them; only one side is supported here."
        )
    inputs = (latent,) if isinstance(reader, GridOfLatent) else ()
    program.grid = read_grid(program, length, reader, *inputs)
    product: Any = math.prod(program.grid)
    program.sequence = length
    if before or after:
        graph = program.graph
        grid = next(node for node in graph.nodes if node.name == "grid")
        with graph.inserting_before(next(iter(node for node in graph.nodes if "body" in node.meta))):
            whole, cells = emit_size(graph, length), emit_size(graph, product)
            rest = graph.call_function(operator.sub, (whole, cells))
            rest.meta["val"] = new_size(program.shape_env, "rest", before + after)
        grid.meta["rest"] = True
        product = product + size_of(rest.meta["val"])
        program.rows_before = {size_of(rest.meta["val"]): size_of(rest.meta["val"]) if before else 0}
    set_equal(program.shape_env, length, product)
