"""Where a sparse program restores dense tokens: ``X_m = W1 up(X_s) + W2 X`` and the block behind it (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import fx

from .errors import RewriteError
from .program import Program

aten = torch.ops.aten


class RestorePoint(NamedTuple):
    """The nodes of one restore layer.

    Attributes:
        name: of the layer, such as ``sparsify_restore.0``.
        sparse: the linear map ``W1``.
        copied: ``sparse`` itself, or its copies on the dense grid where ``linear-before-copy`` has moved it in front of them.
        dense: the linear map ``W2``.
        merged: the sum of both.
        block: the block that takes the sum for its tokens.
    """

    name: str
    sparse: fx.Node
    copied: fx.Node
    dense: fx.Node
    merged: fx.Node
    block: fx.Node

    def features(self, values: Mapping[fx.Node, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """``up(X_s)`` and ``X``, both of the shape of the sum, from the values that were computed before it."""
        few = values[_tokens_of(self.sparse)]
        if self.copied is not self.sparse:
            args = fx.node.map_arg(self.copied.args[1:], values.__getitem__)
            few = self.copied.target(few, *args)  # type: ignore[operator]
        return few, values[_tokens_of(self.dense)]

    def rows_of(self, tokens: torch.Tensor, values: Mapping[fx.Node, Any]) -> torch.Tensor:
        """Of tokens like those that ``block`` takes, without the text that may stand beside the grid."""
        rows = _tokens_of(self.dense)
        if rows.target is not aten.slice.Tensor or values[rows].shape == tokens.shape:
            return tokens
        args = fx.node.map_arg(rows.args[1:], values.__getitem__)
        sliced: torch.Tensor = rows.target(tokens, *args)
        return sliced


def restore_points(program: Program) -> list[RestorePoint]:
    """Those of a program, bottom to top.

    Raises:
        RewriteError: another pass has changed the form of one.
    """
    return [_point(program, restore.name) for restore in program.restores]


def _point(program: Program, name: str) -> RestorePoint:
    sparse, dense = (_linear_of(program, f"{name}.{part}.weight") for part in ("sparse", "dense"))
    (merged,) = dense.users if len(dense.users) == 1 else (None,)
    if merged is None or merged.target is not aten.add.Tensor or merged.args[1] is not dense:
        raise RewriteError(
            f"{name}: the sum of its two linear maps is not in the graph in the form that sparse-dense gives it."
        )
    copied: Any = merged.args[0]
    if copied is not sparse and copied.args[0] is not sparse:
        raise RewriteError(f"{name}: between its linear map and the sum stands more than copies: {copied.format_node()}.")
    return RestorePoint(name, sparse, copied, dense, merged, _block_behind(program, merged))


def _linear_of(program: Program, parameter: str) -> fx.Node:
    users: list[fx.Node] = [user for node in program.graph.find_nodes(op="get_attr", target=parameter) for user in node.users]
    if len(users) != 1 or users[0].target is not aten.linear.default:
        raise RewriteError(f"{parameter} is expected to be read by one linear map, and is read by {users or 'none'}.")
    return users[0]


def _block_behind(program: Program, node: fx.Node) -> fx.Node:
    """The block that takes the tokens of ``node``, alone or joined with text."""
    for user in node.users:
        if "body" in user.meta and program.tokens_in(user) is node:
            return user
        if user.target is aten.cat.default:
            return _block_behind(program, user)
    raise RewriteError(f"no block takes the restored tokens {node.name}.")


def _tokens_of(linear: fx.Node) -> fx.Node:
    tokens: fx.Node = linear.all_input_nodes[0]
    return tokens
