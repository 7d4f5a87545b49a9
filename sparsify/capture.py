"""Capture a model: its outer graph with opaque trunk blocks, and one body per structure of block.

While the whole model is exported, the ``forward`` of each trunk block is replaced by one opaque operator, so that the
outer trace is short, and blocks can neither break it nor be broken by it; afterwards each operator node becomes a
``call_module`` of the block it stood for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn

from .calls import CallSpec, Leaf
from .errors import CaptureError
from .export import Captured, capture_module, flat_outputs
from .hidden import Hidden
from .pristine import pristine
from .program import Body, Program
from .sizes import bind_sizes
from .trunk import BlockCall, find_trunk


@torch.library.custom_op("sparsify::opaque_block", mutates_args=())
def _opaque_block(tensors: list[torch.Tensor], sizes: list[int], index: int, updates: list[int]) -> list[torch.Tensor]:
    raise CaptureError("an opaque block ran outside of capture.")


@_opaque_block.register_fake
def _(tensors: list[torch.Tensor], sizes: list[int], index: int, updates: list[int]) -> list[torch.Tensor]:
    return [tensors[position].new_empty(tensors[position].shape) for position in updates]


def capture(model: nn.Module, call: CallSpec, inputs: Sequence[Leaf]) -> Program:
    """The program of ``model`` in its present mode, for calls like ``call`` with ``inputs``.

    Raises:
        TrunkError: no trunk was found.
        CaptureError: the model or a block cannot be traced.
    """
    blocks = find_trunk(model, *call.unflatten(inputs))
    with pristine(model):
        checkpointing_off(model)
        bodies, body_names = capture_bodies(blocks)
        for index, block in enumerate(blocks):
            block.module.forward = _opaque_forward(index, block)
        outer = _capture_outer(model, call, inputs, blocks)
    _restore_blocks(outer, blocks, bodies, body_names)
    paths = [block.path for block in blocks]
    return Program(outer.graph, outer.constants, bodies, paths, call, outer.output_spec, outer.shape_env)


def checkpointing_off(model: nn.Module) -> None:
    """Recomputation is not part of what a model computes."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) is True:
            module.__dict__["gradient_checkpointing"] = False


def _capture_outer(model: nn.Module, call: CallSpec, inputs: Sequence[Leaf], blocks: Sequence[BlockCall]) -> Captured:
    """The model around its blocks, whose weights are hidden so that depth costs little, where only they read them."""
    hidden = Hidden({block.path: block.module for block in blocks if not block.read_outside})
    try:
        captured = capture_module(model, call, inputs, hidden)
    except CaptureError:
        if not hidden.touched:
            raise
    if hidden.touched:  # in another way than in the recorded run
        captured = capture_module(model, call, inputs)
    return captured


def _opaque_forward(index: int, block: BlockCall) -> Callable[..., Any]:
    is_tensor = [isinstance(x, torch.Tensor) for x in block.inputs]
    updates = [sum(is_tensor[:position]) for position in block.updates]  # counted among the tensors alone

    def opaque(*args: Any, **kwargs: Any) -> Any:
        inputs = block.call.flatten(args, kwargs)
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
        sizes = [x for x in inputs if not isinstance(x, torch.Tensor)]
        return block.output_spec.unflatten(torch.ops.sparsify.opaque_block(tensors, sizes, index, updates))

    return opaque


def capture_bodies(blocks: Sequence[BlockCall], returns_sizes: bool = False) -> tuple[dict[str, Body], list[str]]:
    """One body per structure, and for each block the name of its body.

    With ``returns_sizes`` blocks may return open sizes: the caller answers with those of the recorded call, and for it alone.
    """
    bodies: dict[str, Body] = {}
    names: list[str] = []
    known: dict[Hashable, str] = {}
    for block in blocks:
        if block.structure not in known:
            name = known[block.structure] = f"block{len(known)}"
            bodies[name] = _capture_body(name, block, returns_sizes)
        names.append(known[block.structure])
    return bodies, names


def _capture_body(name: str, block: BlockCall, returns_sizes: bool) -> Body:
    inputs = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) if isinstance(x, torch.Tensor) else x for x in block.inputs]
    captured = capture_module(block.module, block.call, inputs, returns_sizes=returns_sizes)
    constants = {f"{name}_{key}": value for key, value in captured.constants.items()}
    for node in captured.graph.find_nodes(op="get_attr"):
        if node.target in captured.constants:
            node.target = f"{name}_{node.target}"
    outputs = flat_outputs(captured.graph)
    if len(outputs) == 1:
        (output,) = captured.graph.find_nodes(op="output")
        output.args = (outputs[0],)
    conditions = [guard.expr for guard in captured.shape_env.guards]
    # The largest updated input, until the grid is known: then it is the one that carries the grid.
    largest = max(range(len(block.outputs)), key=lambda index: block.outputs[index].numel())
    return Body(name, captured.graph, constants, block.updates[largest], largest, block.updates, conditions=conditions)


def _restore_blocks(outer: Captured, blocks: Sequence[BlockCall], bodies: dict[str, Body], body_names: list[str]) -> None:
    """Turn every opaque operator into a call of the block it stands for."""
    nodes = outer.graph.find_nodes(op="call_function", target=torch.ops.sparsify.opaque_block.default)
    if [node.args[2] for node in nodes] != list(range(len(blocks))):
        raise CaptureError("the blocks do not run in the recorded order; is the model's control flow random?")
    for node in nodes:
        tensors, sizes, index, _ = node.args
        block = blocks[index]
        rest = {True: iter(tensors), False: iter(sizes)}
        inputs = tuple(next(rest[isinstance(x, torch.Tensor)]) for x in block.inputs)
        with outer.graph.inserting_before(node):
            call = outer.graph.call_module(block.path, inputs)
        call.meta = {"body": body_names[index]}
        bind_sizes(outer.shape_env, bodies[body_names[index]], call)
        if len(block.updates) > 1:
            node.replace_all_uses_with(call)
            call.meta["val"] = tuple(node.meta["val"])
        else:
            for result in list(node.users):
                call.meta["val"] = result.meta["val"]
                result.replace_all_uses_with(call)
                outer.graph.erase_node(result)
            call.meta.setdefault("val", node.meta["val"][0])
        outer.graph.erase_node(node)
    outer.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or "body" in node.meta)
