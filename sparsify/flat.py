"""One flat graph of a whole sparse program, for targets that compile a model as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from .ends import Grid
from .errors import LoweringError
from .ops import pool_tokens
from .portable import pool_tokens_portably
from .program import GRID, Body, Program
from .shapes import size_of
from .tree import share_registries

CARRIER = "pooled_grid"


def flat_module(program: Program, root: nn.Module, pooled: Grid | None = None) -> fx.GraphModule:
    """The program as one graph of operators, with every block written out and nothing decided while it runs.

    The dense grid, and integers among the inputs, are fixed to those of the capture. Unless ``pooled`` fixes it too, the
    pooled grid comes in as the *sizes* of one more input, behind the others: compilers treat sizes as open numbers
    everywhere, and a size is never read from a device.

    Args:
        program: captured as a whole and rewritten.
        root: the sparse model; the graph uses its parameters, not copies.
        pooled: the one pooled grid to write down.

    Returns:
        A module from the flat input tensors, and a tensor of the pooled grid's shape if that is open, to a tuple of tensors.

    Raises:
        LoweringError: the model runs in place, so that there is no graph of the whole.
    """
    flat = Flattener(program)
    for node in program.placeholders:
        value = node.meta["val"]
        is_tensor = isinstance(value, torch.Tensor)
        flat.values[node] = flat.graph.placeholder(node.name) if is_tensor else program.hint(size_of(value))
    if (density := program.density_node) is not None:
        flat.values[density] = _pooled_sides(flat.graph, len(density.args) - 1) if pooled is None else pooled
    for node in program.graph.find_nodes(op="call_module", target=GRID):
        flat.values[node] = program.grid_hint
    flat.run()
    return flat.module(root)


def _pooled_sides(graph: fx.Graph, rank: int) -> tuple[fx.Node, ...]:
    carrier = graph.placeholder(CARRIER)
    return tuple(graph.call_function(torch.ops.aten.sym_size.int, (carrier, axis)) for axis in range(rank))


def refuse_in_place(program: Program) -> None:
    """Whether there is a graph of the whole.

    Raises:
        LoweringError: the model runs in place, so that there is none.
    """
    if program.in_place:
        raise LoweringError(
            f"this model could not be captured as one graph ({program.way}), so only its blocks can be compiled: "
            f"use the target 'inductor' with scope='blocks'."
        )


class Flattener:
    """Writes a program out as one graph.

    ``values`` is what each of the outer graph's nodes is in the flat graph: a node, a number, or a tuple of these. What has a
    value before :meth:`run` is not written out; the inputs must have one. ``portable`` pooling takes open pooled grids.

    Raises:
        LoweringError: the model runs in place, so that there is no graph of the whole.
    """

    def __init__(self, program: Program, portable: bool = True) -> None:
        refuse_in_place(program)
        self.program, self._portable = program, portable
        self.graph = fx.Graph()
        self.constants: dict[str, Any] = dict(program.constants)
        self.values: dict[fx.Node, Any] = {}

    def run(self) -> None:
        """Write out all that has no value yet."""
        for node in self.program.graph.nodes:
            if node not in self.values:
                self.values[node] = self._outer(node)
        self.graph.eliminate_dead_code()
        self.graph.lint()

    def module(self, root: nn.Module) -> fx.GraphModule:
        """The flat graph with ``root``'s parameters, not copies of them."""
        module = fx.GraphModule(nn.Module(), fx.Graph(), class_name="FlatSparseModel")
        share_registries(module, root, self.constants)
        module.graph = self.graph
        return module

    def _outer(self, node: fx.Node) -> Any:
        if "body" in node.meta:
            body = self.program.body_of(node)
            return self._inline(body.graph, list(map(self._of, node.args)), f"{node.target}.", self._names_of_constants(body))
        if node.target in self.program.prompts:
            return self._inline(self.program.prompts[str(node.target)], list(map(self._of, node.args)), "", {})
        source = node.args[0] if node.args else None
        value = self.values[source] if isinstance(source, fx.Node) else None
        if isinstance(value, tuple):  # one result of a block, or one side of a grid
            return value[node.args[1]]  # type: ignore[index]
        return self._copied(node, self._of, "")

    def _of(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, self.values.__getitem__)

    def _inline(self, graph: fx.Graph, arguments: list[Any], prefix: str, constants: Mapping[str, str]) -> Any:
        """Write a graph out; what it names is under ``prefix``, except for ``constants``, which have other names."""
        values: dict[fx.Node, Any] = dict(zip(graph.find_nodes(op="placeholder"), arguments, strict=True))
        result: Any = None
        for node in graph.nodes:
            if node.op == "output":
                result = fx.node.map_arg(node.args[0], values.__getitem__)
            elif node.op == "get_attr" and node.target in constants:
                values[node] = self.graph.create_node("get_attr", constants[str(node.target)])
            elif node not in values:
                values[node] = self._copied(node, lambda argument: fx.node.map_arg(argument, values.__getitem__), prefix)
        return tuple(result) if isinstance(result, (tuple, list)) else result

    def _names_of_constants(self, body: Body) -> dict[str, str]:
        names = {name: f"{body.name}_{name}".replace(".", "_") for name in body.constants}
        self.constants |= {names[name]: value for name, value in body.constants.items()}
        return names

    def _copied(self, node: fx.Node, of: Callable[[Any], Any], prefix: str) -> Any:
        if node.op == "output":
            return self.graph.output(of(node.args[0]))
        target = node.target
        if node.op == "get_attr":
            target = f"{prefix}{node.target}"
        elif target is pool_tokens and self._portable:
            target = pool_tokens_portably
        return self.graph.create_node(node.op, target, of(node.args), of(node.kwargs), name=node.name)
