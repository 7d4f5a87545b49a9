"""A Python function as ATen operators: torch's own tracing is the oracle for what each call becomes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from sparsify import PolicyError
from sparsify.calls import CallSpec
from sparsify.export import capture_module
from sparsify.passes.aten import aten_graph
from sparsify.passes.pattern import Pattern

aten = torch.ops.aten


def written(graph: fx.Graph) -> list[tuple[Any, str]]:
    """Each operator with all its arguments by name; other nodes by their places, so that names do not matter."""
    places = {node: f"%{place}" for place, node in enumerate(graph.nodes)}
    found = []
    for node in graph.nodes:
        if node.op not in ("placeholder", "output"):
            assert node.op == "call_function"
            args, kwargs = node.args, node.kwargs
            if node.target is not operator.getitem:
                names = [argument.name for argument in node.target._schema.arguments]
                defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}
                args, kwargs = (), defaults | dict(zip(names, args, strict=False)) | kwargs
            found.append((node.target, repr(fx.node.map_arg((args, kwargs), places.__getitem__))))
    return found


FUNCTIONS: list[Callable[..., Any]] = [
    lambda x: x * 2,
    lambda x: 2 * x,
    lambda x: x + 1.5,
    lambda x: 2 + x,
    lambda x: x - 2,
    lambda x: 2 - x,
    lambda x: x / 4,
    lambda x: 4 / x,
    lambda x: x**2,
    lambda x: 2**x,
    lambda x: x > 0,
    lambda x: x == 2,
    lambda x: x % 2,
    lambda x: -x,
    lambda x, y: x + y,
    lambda x, y: y - x,
    lambda x, y: y / x,
    lambda x, y: x @ y,
    lambda x, y: x.masked_fill(y > 0, 0.5),
    lambda x, y: torch.where(x > 0, y, 0.0),
    lambda x, y: x.lerp(y, 0.25),
    lambda x, y: torch.cat([x, y], 1),
    lambda x: x.permute(1, 0),
    lambda x: x.permute([1, 0]),
    lambda x: x.reshape(4),
    lambda x: x.reshape(1, 2, -1),
    lambda x: x.flatten(0),
    lambda x: x.transpose(0, 1),
    lambda x: aten.slice.Tensor(x, 1, 0, 1),
    lambda x: F.softmax(x, -1, _stacklevel=5),
    lambda x: F.silu(x, inplace=False),
    lambda x: F.dropout(x, 0.5, True),
    lambda x: F.dropout(x, p=0.5, training=False),
    lambda x: x.mean(-1, keepdim=True),
    lambda x: x.mean(dim=-1),
    lambda x: x.sum(1),
    lambda x: x.softmax(dim=-1),
    lambda x: x.unflatten(1, [1, 2]),
    lambda x, y: torch.concat([x, y]),
    lambda x: x.chunk(2, -1)[0],
    lambda x: x.unbind(1)[1],
    lambda x: x.exp().sin(),
    lambda x: torch.sub(2, x),
    lambda x: torch.add(2, x, alpha=3),
    lambda x: torch.sub(x, 2, alpha=3),
    lambda x: x.flip(0, 1),
    lambda x: x.roll(1, 0),
    lambda x: x.roll((1, 1), (0, 1)),
    lambda x: x.var(),
    lambda x: x.var(False),
    lambda x: x.var(1),
    lambda x: x.std(-1, keepdim=True),
    lambda x: torch.var_mean(x, -1)[0],
    lambda x: x.split([1, 1], -1)[0],
    lambda x: x.split(1, -1)[0],
    lambda x, y: x.where(y > 0, 0.0),
    lambda x, y: x.where(y > 0, y),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_calls_become_what_torch_runs(function: Callable[..., Any]) -> None:
    tensors = [torch.rand(2, 2) for _ in range(function.__code__.co_argcount)]
    traced = make_fx(function, pre_dispatch=True)(*tensors).graph
    traced.eliminate_dead_code()
    assert written(aten_graph(function)) == written(traced)


class Several(nn.Module):
    """Calls that are captured in another form than they run in, or that take lists where one number is given."""

    calls: ClassVar[dict[str, Callable[..., Any]]] = {
        "layer_norm": lambda x: F.layer_norm(x, (8,)),
        "group_norm": lambda x: F.group_norm(x, 2),
        "view": lambda x: x.view(-1),
        "view of sizes": lambda x: x.view(2, 64, 2),
        "one of two": lambda x: x.chunk(2, -1)[0],
        "pooled": lambda x: F.avg_pool2d(x, 2),
        "pooled to one": lambda x: F.adaptive_avg_pool2d(x, 1),
        "padded": lambda x: F.conv2d(x, x, stride=2, padding=1),
    }

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [call(x) for call in self.calls.values()]


@pytest.fixture(scope="module")
def captured() -> fx.Graph:
    model = Several()
    call, leaves = CallSpec.of(model.forward, (torch.rand(2, 2, 8, 8),), {})
    return capture_module(model, call, leaves).graph


@pytest.mark.parametrize("name", Several.calls)
def test_calls_become_what_is_captured(captured: fx.Graph, name: str) -> None:
    assert len(Pattern(Several.calls[name]).find(captured)) == 1


def test_arguments_become_placeholders_of_their_names() -> None:
    graph = aten_graph(lambda left, right: left + right)
    assert [node.name for node in graph.find_nodes(op="placeholder")] == ["left", "right"]


def test_results_are_nested_as_the_function_nests_them() -> None:
    graph = aten_graph(lambda x: (x.exp(), [x.sin()]))
    first, (second,) = graph.output_node().args[0]
    assert (first.target, second.target) == (aten.exp.default, aten.sin.default)


def test_what_no_result_needs_is_left_out() -> None:
    assert [target for target, _ in written(aten_graph(lambda x: (x.exp(), x.sin())[1]))] == [aten.sin.default]


def test_operators_may_be_written_as_they_are_printed() -> None:
    ((target, arguments),) = written(aten_graph(lambda x: aten.gelu.default(x, approximate="tanh")))
    assert target == aten.gelu.default
    assert arguments == "((), {'self': '%0', 'approximate': 'tanh'})"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x, "must return what its operators yield, not x"),
        (lambda x: None, "must return what its operators yield, not None"),
        (lambda x: 3, "must return what its operators yield, not 3"),
        (lambda x, y: (x + y, x), "must return what its operators yield"),
        (lambda x, y: x + 1, "does not use its argument 'y'"),
        (lambda x: F.softmax(x, -1, nope=3), "cannot be traced: softmax"),  # TypeError
        (lambda x: x if x.sum() > 0 else -x, "cannot be traced: symbolically traced"),  # ValueError
        (lambda x: x.reshape(len(x), -1), "cannot be traced: 'len' is not supported"),  # RuntimeError
        (lambda x: x.reshape(x.shape[0], -1), "getattr in a pattern is no ATen operator"),
        (lambda x: x[:, 1], "getitem in a pattern is no ATen operator"),
        (lambda x: x & 1, "and_ in a pattern is no ATen operator"),
        (lambda x: F.silu(x, inplace=True), "fits no overload of aten.silu"),
        (lambda x: x.reshape(2, 0.5), "fits no overload of aten.reshape"),
        (lambda x: x.reshape(), "fits no overload of aten.reshape"),
        (lambda x: x.reshape(0.5), "fits no overload of aten.reshape"),
        (lambda x: x.reshape(0.5, 2), "fits no overload of aten.reshape"),
        (lambda x: x.exp(2), "fits no overload of aten.exp"),
        (lambda x: x.mean(1, 2), "fits no overload of aten.mean"),
        (lambda x, y: torch.sub(input=x, other=y), "fits no overload of aten.sub"),
    ],
)
def test_what_is_no_pattern_is_refused(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        aten_graph(function)
    assert words in str(caught.value)


def test_a_refusal_names_the_function() -> None:
    def my_pattern(x: torch.Tensor) -> None:
        """Returns nothing."""

    with pytest.raises(PolicyError, match="my_pattern must return"):
        aten_graph(my_pattern)


def test_a_refusal_has_the_first_line_of_the_reason_alone() -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("first\nsecond")

    with pytest.raises(PolicyError) as caught:
        aten_graph(fails)
    assert str(caught.value).endswith("cannot be traced: first")
