"""torch.compile of the blocks, of which all of one structure and role share one compiled function, or of the whole model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..clock import Timed
from ..density import Density
from ..errors import LoweringError
from ..flat import refuse_in_place
from ..program import Program
from ..runtime import SparseModel
from ..stage import Stage
from ..tree import copied_with, function_of, outer_module
from .compiled import KINDS, ForAllShapes, ForEachShape, Function, Shapes
from .few_rows import FEW_ROWS
from .regions import REGIONS
from .whole import whole_on_host

Scope = Literal["blocks", "model"]


def lower_inductor(sparse: SparseModel, shapes: Shapes = "dynamic", mode: str = "default", scope: Scope = "blocks") -> Compiled:
    """Compile the model's blocks or the whole of it, with ``fullgraph``; the density stays on the host.

    What is compiled is compiled when it is first called. Parameters are looked up at each call, so that training and loading
    take effect.

    Args:
        sparse: the model, captured; it is not changed.
        shapes: ``dynamic``: one artifact for all grids and batch sizes from two up; ``per_grid``: static shapes, one
            artifact for each grid and batch size.
        mode: as for ``torch.compile``.
        scope: ``blocks``: every kind of block once, however deep the model, and what stands between blocks as it is;
            ``model``: all of it as one graph, which takes as long to compile as the dense model, and runs a few percent
            faster, since memory is planned and small operators are fused across blocks. With ``per_grid`` that is once for
            each grid; with ``dynamic`` once, and once more for grids with a side of one.

    Returns:
        A callable with the model's signature.

    Raises:
        LoweringError: an option has a value that is not allowed, or the model runs in place and ``scope`` is ``model``.
    """
    modes: dict[str, dict[str, Any]] = torch._inductor.list_mode_options()
    _check("shapes", shapes, KINDS)
    _check("mode", mode, modes)
    _check("scope", scope, get_args(Scope))
    if scope == "model" and sparse._stages:
        refuse_in_place(sparse.program)
    units = _Units(sparse, shapes, mode, scope)
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

    def __init__(self, sparse: SparseModel, shapes: Shapes, mode: str, scope: Scope) -> None:
        self._sparse, self._shapes, self._options, self._scope = sparse, shapes, {"mode": mode}, scope
        self._units: dict[Any, ForAllShapes | ForEachShape] = {}

    def plan(self, stage: Stage) -> Function:
        """A function from a call's flat inputs to what the model returns."""
        program, sparse = stage.program, self._sparse
        if self._scope == "model":

            def bind(graph: fx.Graph, owner: nn.Module) -> Function:
                return self._unit(stage, graph).bound(owner, "model")

            return self._finished(program, whole_on_host(program, sparse, bind, portable=self._shapes == "dynamic"))
        units = {name: self._unit(stage, body.graph) for name, body in program.bodies.items()}
        calls = {}
        for node in program.all_block_nodes:
            path = str(node.target)
            calls[path] = units[node.meta["body"]].bound(sparse.get_submodule(path), path)
        if program.in_place:
            return sparse.in_place(stage, calls)
        return self._finished(program, _with_calls(program.graph, calls))

    def _finished(self, program: Program, graph: fx.Graph) -> Function:
        outer = outer_module(program, self._sparse, graph)
        return lambda *inputs: program.output_spec.unflatten(outer(*inputs))

    def _unit(self, stage: Stage, graph: fx.Graph) -> ForAllShapes | ForEachShape:
        """What is equal shares one function; captures of another mode or dtype don't, so that no code object has many."""
        targets = {**REGIONS, **FEW_ROWS} if self._shapes == "per_grid" else REGIONS
        graph = _with_targets(graph, targets)
        code = graph.python_code("self")
        key = (stage.mode, stage.kind, code.src, tuple(code.globals.items()))
        if key not in self._units:
            self._units[key] = KINDS[self._shapes](function_of(graph), self._options)
        return self._units[key]


def _with_calls(graph: fx.Graph, calls: Mapping[str, Function]) -> fx.Graph:
    """The outer graph with every block's module as a call of its function."""

    def change(node: fx.Node) -> None:
        if "body" in node.meta:
            node.op, node.target = "call_function", calls[str(node.target)]

    return copied_with(graph, change)


def _with_targets(graph: fx.Graph, targets: Mapping[Any, Function]) -> fx.Graph:
    """A graph with other functions for some of its operators."""

    def change(node: fx.Node) -> None:
        if node.op == "call_function":
            node.target = targets.get(node.target, node.target)

    return copied_with(graph, change)


def _check(option: str, value: object, allowed: Collection[object]) -> None:
    if value not in list(allowed):
        raise LoweringError(f"{option} is {value!r}; target inductor takes {', '.join(map(repr, allowed))}.")
