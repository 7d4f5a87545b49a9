"""The second way of capture: where the outer model cannot be traced, its blocks alone are, and run in its own Python code.

The program then has a graph of the trunk only: the model's inputs and everything that blocks are given from outside
are placeholders, and a block that was handed what another one returned is linked to it. The same passes rewrite it. When
the model is called, its own forward runs, and each block's call is answered from the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .calls import CallSpec, Leaf, OutputSpec
from .capture import capture_bodies, checkpointing_off
from .pristine import pristine
from .program import Body, Program
from .shapes import new_size
from .trunk import BlockCall, find_trunk

WAY = "blocks in place"


def capture_in_place(model: nn.Module, call: CallSpec, inputs: Sequence[Leaf], reason: str) -> tuple[Program, list[Leaf]]:
    """The program of ``model``'s trunk, and the values of its placeholders in this call.

    Raises:
        TrunkError: no trunk was found.
        CaptureError: a block cannot be traced.
    """
    args, kwargs = call.unflatten(inputs)
    blocks = find_trunk(model, args, kwargs, fake=False)
    with pristine(model):
        checkpointing_off(model)
        bodies, names = capture_bodies(blocks, returns_sizes=True)
    with pristine(model, (args, kwargs)):
        checkpointing_off(model)
        outside, read = _run_around(model, blocks, args, kwargs)
    graph, values = _Trunk(call, inputs, bodies).build(blocks, names, read)
    program = Program(
        graph, {}, bodies, [block.path for block in blocks], call, OutputSpec.of(())[0], _env_of(graph),
        way=f"{WAY}: {reason}", in_place={block.path: block.call for block in blocks}, outputs={b.path: b.output_spec for b in blocks},
        outside=outside,
    )  # fmt: skip
    program.given = {str(node.target): tuple(node.args) for node in program.all_block_nodes}
    program.read = [(b.path, index) for b in blocks for index, output in enumerate(b.outputs) if id(output) in read]
    return program, values


def _run_around(model: nn.Module, blocks: Sequence[BlockCall], args: Any, kwargs: Any) -> tuple[int, set[int]]:
    """Multiply-adds of everything but the blocks, per batch element, and the identities of their results that it reads.

    The model runs once more, with blocks that give what they gave before.
    """
    for block in blocks:
        block.module.forward = lambda *a, block=block, **k: block.output_spec.unflatten(block.outputs)
    results = {id(output) for block in blocks for output in block.outputs}
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _Readers(results) as readers:
        output = model(*args, **kwargs)
    readers.note(output)
    tensors = [x for x in blocks[0].inputs if isinstance(x, torch.Tensor)]
    return int(counter.get_total_flops() // 2 // max(1, tensors[0].shape[0])), readers.read


class _Readers(TorchDispatchMode):
    """Notes which of some tensors any operator reads."""

    def __init__(self, watched: set[int]) -> None:
        super().__init__()
        self.read: set[int] = set()
        self._watched = watched

    def note(self, values: Any) -> None:
        self.read |= self._watched & {id(leaf) for leaf in pytree.tree_leaves(values)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note((args, kwargs))
        return func(*args, **(kwargs or {}))


def _env_of(graph: fx.Graph) -> ShapeEnv:
    env: ShapeEnv = next(n.meta["val"].fake_mode.shape_env for n in graph.nodes if isinstance(n.meta.get("val"), torch.Tensor))
    return env


class _Trunk:
    """Builds the graph of the trunk. Sizes that are equal in the example call are one symbol."""

    def __init__(self, call: CallSpec, inputs: Sequence[Leaf], bodies: dict[str, Body]) -> None:
        self._call, self._inputs, self._bodies = call, inputs, bodies
        self._env = ShapeEnv()
        self._mode = FakeTensorMode(shape_env=self._env, allow_non_fake_inputs=True)
        self._symbols: dict[int, torch.SymInt] = {}
        self._graph = fx.Graph()
        self._nodes: dict[int, fx.Node] = {}  # by the identity of the value
        self._values: list[Leaf] = []

    def build(self, blocks: Sequence[BlockCall], names: Sequence[str], read: set[int]) -> tuple[fx.Graph, list[Leaf]]:
        """The graph, whose outputs are what the model's own code reads, and the values of its placeholders."""
        produced = {id(output) for block in blocks for output in block.outputs}
        for value, name in zip(self._inputs, self._call.input_names, strict=True):
            self._placeholder(value, name, (True,) * getattr(value, "ndim", 1))
        for block, body_name in zip(blocks, names, strict=True):
            for value, name, inner in zip(
                block.inputs, block.call.input_names, self._bodies[body_name].placeholders, strict=True
            ):
                if id(value) not in produced and (not isinstance(value, torch.Tensor) or id(value) not in self._nodes):
                    sizes = inner.meta["val"].shape if isinstance(value, torch.Tensor) else (inner.meta["val"],)
                    self._placeholder(value, f"{block.path}.{name}", [isinstance(size, torch.SymInt) for size in sizes])
        for block, body_name in zip(blocks, names, strict=True):
            self._block(block, body_name)
        outputs = [output for block in blocks for output in block.outputs if id(output) in read]
        self._graph.output(tuple(self._nodes[id(output)] for output in outputs))
        return self._graph, self._values

    def _placeholder(self, value: Leaf, name: str, is_open: Sequence[bool]) -> None:
        node = self._graph.placeholder("".join(c if c.isalnum() else "_" for c in name))
        node.meta["val"] = self._fake(value, is_open)
        self._nodes[self._key(value, name)] = node
        self._values.append(value)

    def _key(self, value: Leaf, name: str) -> int:
        return id(value) if isinstance(value, torch.Tensor) else hash(name)

    def _fake(self, value: Leaf, is_open: Sequence[bool]) -> Any:
        if not isinstance(value, torch.Tensor):
            return self._size(value) if is_open[0] else value
        with self._mode:
            sizes = [self._size(size) if free else size for size, free in zip(value.shape, is_open, strict=True)]
            return torch.empty(sizes, dtype=value.dtype, device=value.device)

    def _size(self, size: int) -> int | torch.SymInt:
        if size < 2:
            return size
        if size not in self._symbols:
            self._symbols[size] = new_size(self._env, "size", size)
        return self._symbols[size]

    def _block(self, block: BlockCall, body_name: str) -> None:
        args = []
        for value, name in zip(block.inputs, block.call.input_names, strict=True):
            args.append(self._nodes[self._key(value, f"{block.path}.{name}")])
        node = self._graph.call_module(block.path, tuple(args))
        node.meta["body"] = body_name
        results = [args[position].meta["val"] for position in block.updates]
        with self._mode:
            fakes = [fake.new_empty(fake.shape) for fake in results]
        node.meta["val"] = fakes[0] if len(fakes) == 1 else tuple(fakes)
        for index, output in enumerate(block.outputs):
            result = node
            if len(fakes) > 1:
                result = self._graph.call_function(operator.getitem, (node, index))
                result.meta["val"] = fakes[index]
            self._nodes[id(output)] = result
