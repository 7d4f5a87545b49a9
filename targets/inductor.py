"""torch.compile of the blocks and of what stands between them; equal ones share one compiled function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..clock import Timed
from ..density import Density
from ..errors import LoweringError
from ..ops import pool_tokens
from ..portable import pool_tokens_portably
from ..runtime import SparseModel
from ..segments import graph_of, segments_of, with_calls
from ..stage import Stage
from ..tree import Container, function_of, outer_module, sharing
from .compiled import KINDS, ForAllShapes, ForEachShape, Function, Shapes


def lower_inductor(sparse: SparseModel, shapes: Shapes = "dynamic", mode: str = "default") -> Compiled:
    """Compile the trunk's blocks and what stands between them, each with ``fullgraph``; the density is left to the host.

    Every kind of block is compiled once, however deep the model. It is compiled when it is first called; parameters are
    looked up at each call, so that training and loading take effect. A model that runs in place has its blocks compiled.

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
        # Adaptive pooling is compiled for one grid only.
        self._change = {pool_tokens: pool_tokens_portably} if shapes == "dynamic" else {}

    def plan(self, stage: Stage) -> Function:
        """A function from a call's flat inputs to what the model returns."""
        program, sparse = stage.program, self._sparse
        blocks = {str(node.target): self._block(stage, node) for node in program.all_block_nodes}
        if program.in_place:
            return sparse.in_place(stage, blocks)
        segments = {segment: self._segment(stage, *graph_of(segment, self._change)) for segment in segments_of(program)}
        outer = outer_module(program, sparse, with_calls(program, blocks, segments))
        return lambda *inputs: program.output_spec.unflatten(outer(*inputs))

    def _block(self, stage: Stage, node: fx.Node) -> Function:
        body = stage.program.body_of(node)
        return self._unit(stage, body.graph).bound(self._sparse.get_submodule(str(node.target)), str(node.target))

    def _segment(self, stage: Stage, graph: fx.Graph, paths: list[str]) -> Function:
        owner = Container()
        for index, path in enumerate(paths):
            # The sparse model itself would be traced with all that it does on attribute access.
            owner._modules[f"m{index}"] = (
                self._sparse.get_submodule(path) if path else sharing(self._sparse, stage.program.constants)
            )
        return self._unit(stage, graph).bound(owner, "segment")

    def _unit(self, stage: Stage, graph: fx.Graph) -> ForAllShapes | ForEachShape:
        """What is equal shares one function; captures of another mode or dtype don't, so that no code object has many."""
        code = graph.python_code("self")
        key = (stage.mode, stage.kind, code.src, tuple(code.globals.items()))
        if key not in self._units:
            self._units[key] = KINDS[self._shapes](function_of(graph), self._options)
        return self._units[key]


def _check(option: str, value: object, allowed: Mapping[str, object]) -> None:
    if value not in list(allowed):
        raise LoweringError(f"{option} is {value!r}; target inductor takes {', '.join(map(repr, allowed))}.")
