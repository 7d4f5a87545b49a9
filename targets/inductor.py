"""torch.compile of the blocks: all of one structure and role share one compiled function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..clock import Timed
from ..density import Density
from ..errors import LoweringError
from ..runtime import SparseModel
from ..stage import Stage
from ..tree import function_of, outer_module
from .compiled import KINDS, ForAllShapes, ForEachShape, Function, Shapes


def lower_inductor(sparse: SparseModel, shapes: Shapes = "dynamic", mode: str = "default") -> Compiled:
    """Compile the trunk's blocks, each with ``fullgraph``; the density and what stands between blocks stay as they are.

    Every kind of block is compiled once, however deep the model, when it is first called. Parameters are looked up at each
    call, so that training and loading take effect.

    Args:
        sparse: the model, captured; it is not changed.
        shapes: ``dynamic``: one artifact for all grids and batch sizes from two up; ``per_grid``: static shapes, one
            artifact for each grid and batch size.
        mode: as for ``torch.compile``.

    Returns:
        A callable with the model's signature.

    Raises:
        LoweringError: an option has a value that is not allowed.
    """
    modes: dict[str, dict[str, Any]] = torch._inductor.list_mode_options()
    _check("shapes", shapes, KINDS)
    _check("mode", mode, modes)
    units = _Units(sparse, shapes, mode)
    graphs = bool(modes[mode].get("triton.cudagraphs"))
    plans: dict[Stage, Function] = {}

    def run(*args: Any, **kwargs: Any) -> Any:
        stage, inputs = sparse.prepare(args, kwargs)
        if stage not in plans:
            plans[stage] = units.plan(stage)
        if not graphs:
            return plans[stage](*inputs)
        # A CUDA graph writes to the same memory in every run: a run begins here, and its results are the caller's to keep.
        torch.compiler.cudagraph_mark_step_begin()
        return pytree.tree_map_only(torch.Tensor, torch.clone, plans[stage](*inputs))

    return Compiled(sparse, run)


class Compiled(Timed):
    """What ``torch.compile`` runs; it keeps the sparse model's time."""

    def __init__(self, sparse: SparseModel, run: Function) -> None:
        self._clock, self._sparse, self._run = sparse._clock, sparse, run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns for these arguments."""
        return self._run(*args, **kwargs)

    def _density(self) -> Density:
        return self._sparse._density()


class _Units:
    """The compiled functions of one lowered model."""

    def __init__(self, sparse: SparseModel, shapes: Shapes, mode: str) -> None:
        self._sparse, self._shapes, self._options = sparse, shapes, {"mode": mode}
        self._units: dict[Any, ForAllShapes | ForEachShape] = {}

    def plan(self, stage: Stage) -> Function:
        """A function from a call's flat inputs to what the model returns."""
        program, sparse = stage.program, self._sparse
        calls = {}
        for node in program.all_block_nodes:
            path = str(node.target)
            calls[path] = self._unit(stage, program.body_of(node).graph).bound(sparse.get_submodule(path), path)
        if program.in_place:
            return sparse.in_place(stage, calls)
        outer = outer_module(program, sparse, _with_calls(program.graph, calls))
        return lambda *inputs: program.output_spec.unflatten(outer(*inputs))

    def _unit(self, stage: Stage, graph: fx.Graph) -> ForAllShapes | ForEachShape:
        """What is equal shares one function; captures of another mode or dtype don't, so that no code object has many."""
        code = graph.python_code("self")
        key = (stage.mode, stage.kind, code.src, tuple(code.globals.items()))
        if key not in self._units:
            self._units[key] = KINDS[self._shapes](function_of(graph), self._options)
        return self._units[key]


def _with_calls(graph: fx.Graph, calls: Mapping[str, Function]) -> fx.Graph:
    """The outer graph with every block's module as a call of its function."""
    copy, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        values[node] = copy.node_copy(node, values.__getitem__)
        if "body" in node.meta:
            values[node].op, values[node].target = "call_function", calls[str(node.target)]
    return copy


def _check(option: str, value: object, allowed: Mapping[str, object]) -> None:
    if value not in list(allowed):
        raise LoweringError(f"{option} is {value!r}; target inductor takes {', '.join(map(repr, allowed))}.")
