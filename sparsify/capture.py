"""Capture a model: its outer graph with opaque trunk blocks, and one body per structure of block.

While the whole model is exported, the ``forward`` of each trunk block is replaced by one opaque operator, so that the
outer trace is short, and blocks can neither break it nor be broken by it; afterwards each operator node becomes a
``call_module`` of the block it stood for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import fx, nn

from .calls import CallSpec
from .errors import CaptureError
from .export import Captured, capture_module, flat_outputs
from .pristine import pristine
from .program import Body, Program
from .trunk import BlockCall, Trunk, find_trunk


@torch.library.custom_op("sparsify::opaque_block", mutates_args=())
def _opaque_block(tensors: list[torch.Tensor], index: int, updates: list[int]) -> list[torch.Tensor]:
    raise CaptureError("an opaque block ran outside of capture.")


@_opaque_block.register_fake
def _(tensors: list[torch.Tensor], index: int, updates: list[int]) -> list[torch.Tensor]:
    return [tensors[position].new_empty(tensors[position].shape) for position in updates]


def capture(model: nn.Module, call: CallSpec, tensors: Sequence[torch.Tensor]) -> Program:
    """The program of ``model`` in its present mode, for calls like ``call`` with ``tensors``.

    Raises:
        TrunkError: no trunk was found.
        CaptureError: the model or a block cannot be traced.
    """
    random_state = random.getstate()
    trunk = find_trunk(model, *call.unflatten(tensors))
    if random.getstate() != random_state:
        random.setstate(random_state)
        raise CaptureError(
            f"{type(model).__name__} draws from Python's random module as it runs; a graph would freeze the draw."
        )
    with pristine(model):
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False) is True:
                module.__dict__["gradient_checkpointing"] = False  # recomputation is not part of what the model computes
        bodies, body_names = _capture_bodies(trunk)
        for index, block in enumerate(trunk.blocks):
            block.module.forward = _opaque_forward(index, block, trunk.updates)
        outer = capture_module(model, call, tensors)
    _restore_blocks(outer, trunk, body_names)
    paths = [block.path for block in trunk.blocks]
    return Program(outer.graph, outer.constants, bodies, paths, call, outer.output_spec, outer.shape_env)


def _opaque_forward(index: int, block: BlockCall, updates: list[int]) -> Callable[..., Any]:
    forward = block.module.forward

    def opaque(*args: Any, **kwargs: Any) -> Any:
        call, tensors = CallSpec.of(forward, args, kwargs)
        if any(isinstance(constant, (torch.SymInt, torch.SymFloat)) for constant in call.constants):
            raise CaptureError(f"{block.path} takes a size as a number; pass sizes by tensors' shapes.")
        outputs = torch.ops.sparsify.opaque_block(tensors, index, updates)
        return block.output_spec.unflatten(outputs)

    return opaque


def _capture_bodies(trunk: Trunk) -> tuple[dict[str, Body], list[str]]:
    """One body per structure, and for each block the name of its body."""
    bodies: dict[str, Body] = {}
    names: list[str] = []
    known: dict[Hashable, str] = {}
    for block in trunk.blocks:
        if block.structure not in known:
            name = known[block.structure] = f"block{len(known)}"
            bodies[name] = _capture_body(name, block, trunk)
        names.append(known[block.structure])
    return bodies, names


def _capture_body(name: str, block: BlockCall, trunk: Trunk) -> Body:
    inputs = [torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in block.inputs]
    captured = capture_module(block.module, block.call, inputs)
    constants = {f"{name}_{key}": value for key, value in captured.constants.items()}
    for node in captured.graph.find_nodes(op="get_attr"):
        if node.target in captured.constants:
            node.target = f"{name}_{node.target}"
    outputs = flat_outputs(captured.graph)
    if len(outputs) == 1:
        (output,) = captured.graph.find_nodes(op="output")
        output.args = (outputs[0],)
    conditions = [guard.expr for guard in captured.shape_env.guards]
    return Body(name, captured.graph, constants, trunk.token_input, trunk.token_output, trunk.updates, conditions=conditions)


def _restore_blocks(outer: Captured, trunk: Trunk, body_names: list[str]) -> None:
    """Turn every opaque operator into a call of the block it stands for."""
    nodes = outer.graph.find_nodes(op="call_function", target=torch.ops.sparsify.opaque_block.default)
    if [node.args[1] for node in nodes] != list(range(len(trunk.blocks))):
        raise CaptureError("the blocks do not run in the recorded order; is the model's control flow random?")
    for node in nodes:
        tensors, index, _ = node.args
        with outer.graph.inserting_before(node):
            block = outer.graph.call_module(trunk.blocks[index].path, tuple(tensors))
        block.meta = {"body": body_names[index]}
        results = list(node.users)
        if len(trunk.updates) > 1:
            node.replace_all_uses_with(block)
            block.meta["val"] = tuple(node.meta["val"])
        else:
            for result in results:
                block.meta["val"] = result.meta["val"]
                result.replace_all_uses_with(block)
                outer.graph.erase_node(result)
        outer.graph.erase_node(node)
    outer.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or "body" in node.meta)
    _check_chain(outer.graph, trunk)


def _check_chain(graph: fx.Graph, trunk: Trunk) -> None:
    """Every block must be fed, directly or through operators, by the tokens of the one before it."""
    import networkx

    flow = networkx.DiGraph((source, node) for node in graph.nodes for source in node.all_input_nodes)
    blocks = {node.target: node for node in graph.find_nodes(op="call_module")}
    for below, above in itertools.pairwise(trunk.blocks):
        tokens = blocks[above.path].args[trunk.token_input]
        if blocks[below.path] is not tokens and not networkx.has_path(flow, blocks[below.path], tokens):
            raise CaptureError(f"{above.path} does not take its tokens from {below.path}; they form no chain.")
