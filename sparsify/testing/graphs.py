"""Strategies of small random graphs, to test what reads and rewrites graphs: patterns, passes, comparisons."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..ends import check_whole
from ..shapes import annotate

aten = torch.ops.aten

_SIZES = st.sampled_from([2, 3, 4])
_NUMBERS = st.sampled_from([2.0, 0.5, -1.0, 3.0])


def graphs(*, max_inputs: int = 3, max_operators: int = 8) -> st.SearchStrategy[fx.GraphModule]:
    """Well-formed graphs of ATen operators on float64 tensors of up to three axes, with what each node yields in its metadata.

    Arithmetic of tensors and numbers, activations, softmax, linear layers with parameters of their own, transposes, products of
    matrices, sums and means, and chunks, of which single ones are read. They shrink to one operator on one input.

    Args:
        max_inputs: at most so many inputs, at least 1.
        max_operators: at most so many operators, at least 1.

    Raises:
        InputError: one of them is no integer of at least 1.
    """
    for name, value in (("max_inputs", max_inputs), ("max_operators", max_operators)):
        check_whole(name, value)
    return _graphs(max_inputs, max_operators)


def graph_inputs(module: fx.GraphModule, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random inputs for a graph of :func:`graphs`, in order."""
    random = torch.Generator().manual_seed(seed)
    fakes = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    return tuple(torch.randn(tuple(fake.shape), generator=random, dtype=fake.dtype) for fake in fakes)


@dataclass
class _Sketch:
    """A graph while it is drawn: the values there are, and the parameters of its linear layers."""

    draw: st.DrawFn
    mode: FakeTensorMode = field(default_factory=FakeTensorMode)
    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: list[fx.Node] = field(default_factory=list)

    def add(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return annotate(self.graph.call_function(target, args, kwargs), self.mode)

    def parameter(self, *shape: int) -> fx.Node:
        name = f"weight{len(self.root._parameters)}"
        random = torch.Generator().manual_seed(len(self.root._parameters))
        self.root.register_parameter(name, nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64)))
        node = self.graph.get_attr(name)
        node.meta["val"] = self.fake(shape)
        return node

    def fake(self, shape: Sequence[int]) -> torch.Tensor:
        with self.mode:
            return torch.empty(tuple(shape), dtype=torch.float64)

    def axis_of(self, node: fx.Node) -> int:
        return self.draw(st.integers(0, node.meta["val"].ndim - 1))


@st.composite
def _graphs(draw: st.DrawFn, max_inputs: int, max_operators: int) -> fx.GraphModule:
    sketch = _Sketch(draw)
    shape = draw(st.lists(_SIZES, min_size=2, max_size=3))
    for index in range(draw(st.integers(1, max_inputs))):
        node = sketch.graph.placeholder(f"x{index}")
        node.meta["val"] = sketch.fake(shape)
        sketch.values.append(node)
    for _ in range(draw(st.integers(1, max_operators))):
        source = draw(st.sampled_from(sketch.values[::-1]))
        choices = [write for write in _OPERATORS if source.meta["val"].ndim > 0 or write in _OF_ANYTHING]
        sketch.values.append(draw(st.sampled_from(choices))(sketch, source))
    results = [node for node in sketch.values if node.op == "call_function" and not node.users]
    sketch.graph.output(results[0] if len(results) == 1 else tuple(results))
    return fx.GraphModule(sketch.root, sketch.graph)


def _activation(sketch: _Sketch, x: fx.Node) -> fx.Node:
    operators = [aten.relu.default, aten.silu.default, aten.sigmoid.default, aten.tanh.default, aten.neg.default]
    return sketch.add(sketch.draw(st.sampled_from(operators)), x)


def _gelu(sketch: _Sketch, x: fx.Node) -> fx.Node:
    return sketch.add(aten.gelu.default, x, approximate=sketch.draw(st.sampled_from(["none", "tanh"])))


def _with_number(sketch: _Sketch, x: fx.Node) -> fx.Node:
    return sketch.add(sketch.draw(_ARITHMETIC), x, sketch.draw(_NUMBERS))


def _with_tensor(sketch: _Sketch, x: fx.Node) -> fx.Node:
    shape = x.meta["val"].shape
    fitting = [node for node in sketch.values if node.meta["val"].shape == shape]
    return sketch.add(sketch.draw(_ARITHMETIC), x, sketch.draw(st.sampled_from(fitting)))


def _softmax(sketch: _Sketch, x: fx.Node) -> fx.Node:
    return sketch.add(aten.softmax.int, x, sketch.axis_of(x))


def _linear(sketch: _Sketch, x: fx.Node) -> fx.Node:
    rows, columns = sketch.draw(_SIZES), int(x.meta["val"].shape[-1])
    weight = sketch.parameter(rows, columns)
    return sketch.add(aten.linear.default, x, weight, *([sketch.parameter(rows)] if sketch.draw(st.booleans()) else []))


def _transpose(sketch: _Sketch, x: fx.Node) -> fx.Node:
    return sketch.add(aten.transpose.int, x, sketch.axis_of(x), sketch.axis_of(x))


def _reduce(sketch: _Sketch, x: fx.Node) -> fx.Node:
    target = sketch.draw(st.sampled_from([aten.sum.dim_IntList, aten.mean.dim]))
    return sketch.add(target, x, [sketch.axis_of(x)], sketch.draw(st.booleans()))


def _gram(sketch: _Sketch, x: fx.Node) -> fx.Node:
    """Products of all pairs of rows, as in attention."""
    if x.meta["val"].ndim < 2:
        return sketch.add(aten.mul.Tensor, x, x)
    return sketch.add(aten.matmul.default, x, sketch.add(aten.transpose.int, x, -2, -1))


def _chunk(sketch: _Sketch, x: fx.Node) -> fx.Node:
    axis = sketch.axis_of(x)
    chunks = sketch.add(aten.chunk.default, x, 2, axis)
    index = sketch.draw(st.integers(0, len(chunks.meta["val"]) - 1))
    return sketch.add(operator.getitem, chunks, index)


_ARITHMETIC = st.sampled_from([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor])
_OF_ANYTHING = (_activation, _gelu, _with_number, _with_tensor)
_OPERATORS = (*_OF_ANYTHING, _softmax, _linear, _transpose, _reduce, _gram, _chunk)
