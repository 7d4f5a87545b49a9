"""Whether two graphs or programs are the same up to the names of nodes and the order of what does not depend on each other."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from torch import fx

from ..errors import InputError
from ..program import Body, Program
from ..runtime import SparseModel
from .colours import Coloured, Graphs, Labels, unmatched
from .held import Held, graphs_in, held_by, held_by_graph

_BODY_FIELDS = ("tokens", "token_output", "updates", "token_axis", "twins", "given")


def isomorphic(a: Any, b: Any, *, metadata: bool = True, parameters: bool = True) -> bool:
    """Whether two graphs compute the same from the same inputs, read as data flow.

    Names of nodes and of bodies do not matter, nor does the order of independent operators, nor what symbols of sizes are called.
    Inputs in their order, targets, constants with their types, which operand stands where, keyword arguments, and the order of
    operators that draw random numbers do. Where an operator writes into a tensor, or a function or module that is not of torch may do
    so, the order of all operators counts. Of a GraphModule values of buffers, shapes of parameters and classes and options of the
    modules that it calls count, too; of a lone graph these are names. Where a called module, or one in it, is a GraphModule or a block of
    a sparse model, its graph is compared in the same way.

    Args:
        a: a torch.fx graph or module, a program, or a sparse model.
        b: what it is compared to, of the same kind.
        metadata: whether the shapes, dtypes and devices that nodes claim must be equal.
        parameters: whether parameters must have equal names, or only equal shapes.

    Raises:
        InputError: there is no graph in one of them, or one is a program and the other is not.
    """
    return structural_difference(a, b, metadata=metadata, parameters=parameters) is None


def structural_difference(a: Any, b: Any, *, metadata: bool = True, parameters: bool = True) -> str | None:
    """Why two graphs are not isomorphic, in a sentence that names a node; None if they are. Arguments as for :func:`isomorphic`."""
    a, b = (each.program if isinstance(each, SparseModel) else each for each in (a, b))
    if isinstance(a, Program) and isinstance(b, Program):
        return _of_programs(a, b, metadata, parameters)
    if isinstance(a, Program) or isinstance(b, Program):
        raise InputError(f"a is a {type(a).__name__} and b a {type(b).__name__}; compare two programs, or two graphs.")
    labels = Labels(metadata, parameters, {})
    return _of_held(_held(a), _held(b), labels, labels)


def _held(value: Any) -> Held:
    """A graph, the tensors and regions that it names, and the modules that it calls; those of a lone graph go by their names."""
    if isinstance(value, fx.GraphModule):
        return held_by_graph(value)
    if isinstance(value, fx.Graph):
        return Held(value, {}, {})
    raise InputError(f"{type(value).__name__} is no graph; give a torch.fx Graph or GraphModule, a Program or a SparseModel.")


def _of_programs(a: Program, b: Program, metadata: bool, parameters: bool) -> str | None:
    graphs = Graphs()

    def labels(program: Program, body: Body | None = None) -> Labels:
        return Labels(metadata, parameters, program.constants if body is None else body.constants, graphs=graphs)

    for what, of in _ASPECTS.items():
        if of(a) != of(b):
            return f"{what}: {of(a)} and {of(b)}"
    if reason := _of_graphs(a.graph, b.graph, labels(a), labels(b)):
        return f"outer graph: {reason}"
    for name, graph in a.prompts.items():
        if reason := _of_graphs(graph, b.prompts[name], labels(a), labels(b)):
            return f"{name}: {reason}"
    run_by = {node.target: node.meta["body"] for node in b.all_block_nodes}
    pairs = {node.target: (node.meta["body"], run_by[node.target]) for node in a.all_block_nodes}
    mine, theirs = dict(pairs.values()), {other: one for one, other in pairs.values()}
    for path, (one, other) in pairs.items():
        if mine[one] != other or theirs[other] != one:
            return f"{path} shares its body with other blocks in one of them than in the other"
    for one, other in dict.fromkeys(pairs.values()):
        left, right = a.bodies[one], b.bodies[other]
        if wrong := [name for name in _BODY_FIELDS if getattr(left, name) != getattr(right, name)]:
            return f"{one}: {wrong[0]} is {getattr(left, wrong[0])} and {getattr(right, wrong[0])}"
        if reason := _of_graphs(left.graph, right.graph, labels(a, left), labels(b, right)):
            return f"{one}: {reason}"
    return None


# What is compared of a program besides its graphs.
_ASPECTS: dict[str, Any] = {
    "blocks": lambda program: [str(node.target) for node in program.all_block_nodes],
    "trunk": lambda program: program.paths,
    "density": lambda program: program.density,
    "new layers": lambda program: [(layer.name, layer.shapes) for layer in program.layers],
    "graphs of the prompt": lambda program: list(program.prompts),
}


def _of_held(a: Held, b: Held, labels: Labels, others: Labels) -> str | None:
    return _of_graphs(a.graph, b.graph, labels.inside(a), others.inside(b))


def _of_graphs(a: fx.Graph, b: fx.Graph, labels: Labels, others: Labels) -> str | None:
    mine, theirs = Coloured(a, labels), Coloured(b, others)
    if reason := unmatched(mine, theirs):  # refuses nearly all that differ, at the cost of sorting
        return _of_called(mine, theirs, labels, others) or reason
    same = mine.is_connected_like(theirs)
    return None if same else "each node has a counterpart of its kind, but they are not connected alike"


def _of_called(a: Coloured, b: Coloured, labels: Labels, others: Labels) -> str | None:
    """The first call of a module that runs another graph than its counterpart; of the same name, if there is one."""
    pairs = itertools.product(_unlike(a, b), _unlike(b, a))
    for node, other in sorted(pairs, key=lambda pair: pair[0].target != pair[1].target):
        inner, outer = graphs_in(a.modules[str(node.target)]), graphs_in(b.modules[str(other.target)])
        for path in (path for path in inner if path in outer):
            one, two = held_by(inner[path]), held_by(outer[path])
            if one and two and (reason := _of_held(one, two, labels, others)):
                at = f" at {path}" if path else ""
                return f"%{node.name} of a runs another graph{at} than %{other.name} of b: {reason}"
    return None


def _unlike(coloured: Coloured, other: Coloured) -> list[fx.Node]:
    """Calls of known modules of which another graph has fewer like them."""
    spare = Counter(coloured.labels.values()) - Counter(other.labels.values())
    calls = [node for node in coloured.nodes if node.op == "call_module" and str(node.target) in coloured.modules]
    return [node for node in calls if coloured.labels[node] in spare]
