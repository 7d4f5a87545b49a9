"""What a pass may ask of blocks: on which grid their tokens lie, and whether they can do with other tokens or other attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx

from ..attention import (
    aligned_inputs,
    mixes_tokens,
    moving_axes,
    refusal_of_counts,
    refusal_of_positions,
    refusal_to_mix,
    self_attentions,
    unrecognised_mixing,
)
from ..density import Grid
from ..probe import refusal_to_split
from ..program import Program
from ..shapes import emit_size, shape_of, size_of
from ..sizes import binding
from .subset import subset_of


def grids_of(program: Program, block: fx.Node) -> list[Grid]:
    """Every grid that a block's tokens can lie on: the dense one alone, or the pooled ones of the schedule.

    Empty where its tokens are no grid: text stands beside them, they are folded with time, or the grid is not known.
    """
    if program.grid and sympy.expand(_count(program, block) - math.prod(program.grid)) == 0:
        return [program.grid_hint]
    if program.density is not None and _is_pooled(program, block):
        return list(program.density.grids(program.grid_hint))
    return []


def sides_of(program: Program, block: fx.Node) -> list[fx.Node | int]:
    """The sides of the grid that a block's tokens lie on: numbers, or nodes in front of the block."""
    if _is_pooled(program, block):
        return list(program.pooled_nodes)
    with program.graph.inserting_before(block):
        return program.grid_nodes or [emit_size(program.graph, side) for side in program.grid]


def refusal_to_drop(program: Program, blocks: Sequence[fx.Node], count: int) -> str | None:
    """Why blocks that follow one another cannot see only ``count`` of their tokens (on the dense grid), or None.

    They must hand their tokens to one another and to nobody else, and take them as a list: one size follows the number of
    tokens, and every table has a row for each.
    """
    for block in blocks:
        if grids_of(program, block) != [program.grid_hint]:
            return f"{block.target}: its tokens are not those of the dense grid, and nothing else"
        if reason := _refusal_to_drop(program, block, count):
            return f"{block.target}: {reason}"
    for below, above in itertools.pairwise(blocks):
        tokens = program.tokens_out(below)
        if tokens is None or program.tokens_in(above) is not tokens:
            return f"{above.target} does not take the tokens of {below.target} as they are"
        if others := [user for user in tokens.users if user is not above]:
            return f"the tokens of {below.target} are read by {others[0].name} too, besides {above.target}"
    return None if program.tokens_out(blocks[-1]) is not None else f"nothing reads the tokens of {blocks[-1].target}"


def refusal_to_regroup(program: Program, block: fx.Node) -> str | None:
    """Why a block's tokens cannot attend to other groups of themselves than to all, or None.

    Its attention must be recognised, without a mask, and among the block's own tokens and nothing else.
    """
    body = program.body_of(block)
    if reason := refusal_to_mix(body) or unrecognised_mixing(body):
        return reason
    if body.twins:
        return "its queries and keys are different tokens"
    if len(body.moving) != 1:
        return "it does not take its tokens as one list"
    attentions = self_attentions(body)
    if not attentions:
        return "no attention over the trunk's tokens was recognised in the block"
    tokens = shape_of(body.token_node)[body.token_axis]
    for attention in attentions:
        if attention.mask is not None:
            return f"{attention.node.name} has the mask {attention.mask.name}"
        if {shape_of(attention.query)[-2], shape_of(attention.key)[-2]} != {tokens}:
            return f"{attention.node.name} joins other tokens to those of the grid"
    return None


def _refusal_to_drop(program: Program, block: fx.Node, count: int) -> str | None:
    body = program.body_of(block)
    if reason := refusal_to_mix(body) or unrecognised_mixing(body) or refusal_of_positions(body):
        return reason
    if len(body.moving) != 1 or body.twins or body.token_axis != 1:
        return "it does not take its tokens as one list"
    (symbol,) = body.moving
    for position in aligned_inputs(body):
        node = body.placeholders[position]
        if not isinstance(node.meta["val"], torch.Tensor):
            return f"its input {node.name} is the number of tokens"
        if odd := [size for axis in moving_axes(body, node) if (size := shape_of(node)[axis]) != symbol]:
            return f"its input {node.name} has an axis of {odd[0]} rows for {symbol} tokens"
    sizes = {inner: program.hint(size) for inner, size in binding(body, block).items()}
    if reason := refusal_of_counts(body, sizes | {symbol: count}):
        return reason
    return None if mixes_tokens(body) else refusal_to_split(body, body, subset_of(program, block, body))


def _count(program: Program, block: fx.Node) -> Any:
    """How many tokens a block gets, as an expression."""
    return sympy.sympify(shape_of(program.tokens_in(block))[program.body_of(block).token_axis])


def _is_pooled(program: Program, block: fx.Node) -> bool:
    sides = [size_of(node.meta["val"]) for node in program.pooled_nodes]
    return bool(sides) and sympy.expand(_count(program, block) - math.prod(sides)) == 0
