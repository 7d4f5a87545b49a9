"""sparsify.testing: models compared by value and gradient, graphs compared up to renaming."""

from __future__ import annotations

import copy
import dataclasses
import random
import re
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from sparsify import InputError, Policy, sparsify
from sparsify.passes import Cleanup, Pass, copy_body, give
from sparsify.program import Program
from sparsify.testing import DiTSpec, assert_equivalent, graph_inputs, graphs, isomorphic, structural_difference

aten = torch.ops.aten


class Net(nn.Module):
    """Two layers with a hook for what goes wrong."""

    def __init__(self, spoil: Callable[[nn.Module, torch.Tensor, torch.Tensor], Any] | None = None) -> None:
        super().__init__()
        random_numbers = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random_numbers, dtype=torch.float64)
        self.register_buffer("count", torch.zeros(1))
        self.spoil = spoil

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor | None = None) -> Any:
        y = self.layers[1](torch.tanh(self.layers[0](x)))
        y = y if scale is None else y * scale
        return {"sample": y} if self.spoil is None else {"sample": self.spoil(self, x, y)}


def bad(spoil: Callable[[nn.Module, torch.Tensor, torch.Tensor], Any], match: str, **options: Any) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    with pytest.raises(AssertionError, match=match):
        assert_equivalent(Net(spoil), Net(), (x,), **options)


def bumped(y: torch.Tensor, at: tuple[int, int], by: float) -> torch.Tensor:
    return y + torch.zeros_like(y).index_put_((torch.tensor([at[0]]), torch.tensor([at[1]])), torch.tensor([by]).to(y))


def test_equal_models_are_equivalent_also_by_keyword_in_float32_and_with_random_numbers() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    assert_equivalent(Net(), Net(), (x,))
    assert_equivalent(Net(), Net(), {"x": x, "scale": torch.rand(4, dtype=torch.float64)})
    assert_equivalent(Net().float(), Net().float(), (x.float(),))
    assert_equivalent(lambda x: nn.functional.dropout(x), lambda x: nn.functional.dropout(x), (x,))


def test_a_wrong_value_is_named_with_place_values_error_and_tolerance() -> None:
    with pytest.raises(AssertionError) as error:
        x = torch.randn(3, 4, dtype=torch.float64)
        assert_equivalent(Net(lambda m, x, y: bumped(y, (2, 1), 1e-9)), Net(), (x,))
    y = Net()(x)["sample"]
    text = str(error.value)
    assert text.startswith("output['sample'] at [2, 1] is ") and f"where {y[2, 1].item()} is expected" in text
    assert "the difference is 1e-09, 1 of 12 values differ" in text
    allowed = 512 * 2 * torch.finfo(torch.float64).eps * float(y.abs().max())
    assert f"{allowed:.3g} is allowed (512 eps of float64 x depth 2 x the largest value {float(y.abs().max()):.3g})" in text


def test_the_tolerance_is_that_of_the_formula() -> None:
    x = torch.ones(1, 4, dtype=torch.float64)
    limit = 512 * torch.finfo(torch.float64).eps
    assert_equivalent(lambda x: x + 0.9 * limit, lambda x: x, (x,))
    assert_equivalent(lambda x: x + 4.5 * limit, lambda x: x, (x,), depth=5)
    assert_equivalent(lambda x: x + 1e-3, lambda x: x, (x,), atol=1e-2)
    for options in ({}, {"depth": 2}, {"rtol": 0.0}):
        with pytest.raises(AssertionError, match="the difference is"):
            assert_equivalent(lambda x: x + 2.1 * limit, lambda x: x, (x,), **options)
    half = x.bfloat16()
    assert_equivalent(lambda x: x * (1 + 2**-7), lambda x: x, (half,), gradients=False)
    with pytest.raises(AssertionError, match="2 eps of bfloat16"):
        assert_equivalent(lambda x: x * 1.04, lambda x: x, (half,), gradients=False)


def test_wrong_gradients_are_named() -> None:
    bad(lambda m, x, y: y.detach() + 0 * x, r"the gradient of input \[0\] at")
    bad(lambda m, x, y: y + 1e-3 * (x - x.detach()), r"the gradient of input \[0\] at \[\d, \d\] is ")
    bad(
        lambda m, x, y: y + 1e-3 * (m.layers[0].bias - m.layers[0].bias.detach()),
        r"the gradient of layers\.0\.bias at \[\d\] is ",
    )
    x = torch.randn(3, 4, dtype=torch.float64)
    assert_equivalent(Net(lambda m, x, y: y + (m.layers[0].bias - m.layers[0].bias.detach())), Net(), (x,), gradients="inputs")
    with pytest.raises(InputError, match='gradients="inputs"'):
        assert_equivalent(nn.Sequential(nn.Identity(), layer := nn.Linear(4, 4)), layer, (x.float(),))


def test_wrong_types_are_named() -> None:
    bad(lambda m, x, y: y.float(), "has the dtype torch.float32 where torch.float64 is expected")
    bad(lambda m, x, y: y[:2], r"has the shape \[2, 4\] where \[3, 4\]")
    bad(lambda m, x, y: (y,), r"output\['sample'\] is a tuple where a Tensor is expected")
    bad(lambda m, x, y: y.to("meta"), "has the device meta where cpu")
    x = torch.randn(2, dtype=torch.float64)
    for left, right, match in [
        (lambda x: {"a": x}, lambda x: {"b": x}, r"has \['a'\] where \['b'\]"),
        (lambda x: (x, 3), lambda x: (x, 4), r"output\[1\] is 3 where 4"),
        (lambda x: (x, None), lambda x: (x, x), r"output\[1\] is a NoneType where a Tensor"),
        (lambda x: (x > 9).long() + 1, lambda x: (x > 9).long(), "nothing is allowed for integers"),
    ]:
        with pytest.raises(AssertionError, match=match):
            assert_equivalent(left, right, (x,))


def test_outputs_of_dataclasses_are_looked_into() -> None:
    @dataclasses.dataclass
    class Out:
        sample: torch.Tensor
        other: Any = None

    x = torch.randn(2, dtype=torch.float64)
    assert_equivalent(lambda x: Out(x), lambda x: Out(x), (x,))
    with pytest.raises(AssertionError, match=r"output\.sample at \[0\]"):
        assert_equivalent(lambda x: Out(x + torch.tensor([1.0, 0.0])), lambda x: Out(x), (x,))


def test_nan_is_equal_to_nothing_unless_it_is_said() -> None:
    x = torch.tensor([1.0, float("nan"), float("inf")], dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"at \[1\] is nan where nan"):
        assert_equivalent(lambda x: x, lambda x: x, (x,), gradients=False)
    assert_equivalent(lambda x: x, lambda x: x, (x,), gradients=False, equal_nan=True)
    for wrong in (lambda x: x.nan_to_num(nan=0.0), lambda x: -x, lambda x: x.nan_to_num(nan=float("nan"), posinf=1e300)):
        with pytest.raises(AssertionError):
            assert_equivalent(wrong, lambda x: x, (x,), gradients=False, equal_nan=True)


def test_what_is_changed_is_named_and_put_back() -> None:
    def inputs_changed(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return y

    def weights_changed(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            m.layers[0].weight.data += 1
        return y

    def buffer_changed(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        m.count += 1
        return y

    def mode_changed(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        m.layers[1].eval()
        return y

    cases = {
        inputs_changed: r"a changed input \[0\]", weights_changed: r"a changed the parameter layers\.0\.weight",
        buffer_changed: "a changed the buffer count", mode_changed: r"a switched the training mode of layers\.1",
    }  # fmt: skip
    for spoil, match in cases.items():
        x, model, other = torch.randn(3, 4, dtype=torch.float64), Net(spoil), Net()
        before, given_before, state = copy.deepcopy(model.state_dict()), x.clone(), torch.get_rng_state()
        with pytest.raises(AssertionError, match=match):
            assert_equivalent(model, other, (x,), gradients=spoil is not inputs_changed)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(x, given_before) and torch.equal(state, torch.get_rng_state())
        assert model.layers[1].training and all(p.grad is None for p in model.parameters())


def test_a_sparse_model_is_compared_with_its_model() -> None:
    spec = DiTSpec(labels=True)
    model, inputs = spec.build(), spec.example_inputs()
    assert_equivalent(sparsify(model, Policy.dense()), model, inputs)
    policy = Policy(1, (), 1)
    with pytest.raises(AssertionError, match="the difference is"):
        assert_equivalent(sparsify(model, policy, inputs), model, inputs)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("rtol", value) for value in (float("nan"), float("inf"), -1.0, "1", True, 1j)),
        *(("atol", value) for value in (float("nan"), float("inf"), -1.0, "1", None)),
        *(("depth", value) for value in (0, -1, "a", 1.5, True)),
        ("gradients", "input"), ("gradients", 1), ("gradients", None), ("equal_nan", "no"),
    ],
)  # fmt: skip
def test_options_of_a_comparison_are_checked(field: str, value: Any) -> None:
    x = torch.ones(2, dtype=torch.float64)
    with pytest.raises(InputError, match=rf"^{field} is {re.escape(repr(value))}; it must be "):
        assert_equivalent(lambda x: x + 1, lambda x: x, (x,), **{field: value})


def test_large_integers_are_compared_exactly() -> None:
    def ones(value: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: torch.tensor([0, value, value])

    x = torch.ones(2)
    assert_equivalent(ones(2**53), ones(2**53), (x,))
    with pytest.raises(AssertionError, match=rf"at \[1\] is {2**53 + 1} where {2**53} .* the difference is 1, 2 of 3 values"):
        assert_equivalent(ones(2**53 + 1), ones(2**53), (x,))


def test_a_name_that_stands_for_another_tensor_is_noticed_and_put_back() -> None:
    def buffer_rebound(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        m.count = m.count + 1
        return y

    def parameter_rebound(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        m.layers[0].bias = nn.Parameter(m.layers[0].bias.detach() + 1)
        return y

    for spoil, match in (
        (buffer_rebound, "a changed the buffer count"),
        (parameter_rebound, r"a changed the parameter layers\.0\.bias"),
    ):
        model = Net(spoil)
        count, bias = model.count, model.layers[0].bias
        with pytest.raises(AssertionError, match=match):
            assert_equivalent(model, Net(), (torch.randn(3, 4, dtype=torch.float64),), gradients=False)
        assert model.count is count and model.layers[0].bias is bias and not count.any()


def test_random_numbers_of_python_and_numpy_are_the_same_for_both_and_put_back() -> None:
    x = torch.ones(2, dtype=torch.float64)
    before, numbers = random.getstate(), np.random.get_state(legacy=True)[1:3]  # type: ignore[index]

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x * random.random() + np.random.rand()

    assert_equivalent(noisy, lambda x: noisy(x), (x,))
    after = np.random.get_state(legacy=True)[1:3]  # type: ignore[index]
    assert random.getstate() == before and after[1] == numbers[1] and np.array_equal(after[0], numbers[0])


# --- graphs ----------------------------------------------------------------------------------------------------------


def shuffled(module: fx.GraphModule, seed: int) -> fx.GraphModule:
    """The same graph under other names, with independent nodes in another order."""
    choose, graph, made = random.Random(seed), fx.Graph(), dict[fx.Node, fx.Node]()
    waiting = [node for node in module.graph.nodes if node.op != "placeholder"]
    for index, node in enumerate(module.graph.find_nodes(op="placeholder")):
        made[node] = graph.placeholder(f"renamed{index}")
    while waiting:
        ready = [n for n in waiting if all(source in made for source in n.all_input_nodes) and n.op != "output"]
        node = choose.choice(ready) if ready else waiting[0]
        made[node] = graph.node_copy(node, made.__getitem__)
        if node.op != "output":
            made[node]._rename(f"n{choose.randrange(10**9)}")
        waiting.remove(node)
    for node, twin in made.items():
        twin.meta = dict(node.meta)
    return fx.GraphModule(module, graph)


@given(graphs(), st.integers(0, 99))
def test_graphs_are_well_formed_and_equal_to_their_shuffled_copies(module: fx.GraphModule, seed: int) -> None:
    module.graph.lint()
    inputs = graph_inputs(module)
    twin = shuffled(module, seed)
    outputs = module(*inputs)
    claimed = module.graph.output_node().args[0]
    for value, node in zip(*(x if isinstance(x, tuple) else (x,) for x in (outputs, claimed)), strict=True):
        assert (value.shape, value.dtype) == (node.meta["val"].shape, node.meta["val"].dtype)
    assert_equivalent(twin, module, inputs)
    assert structural_difference(module, twin) is None and isomorphic(twin, module)


@given(graphs(), st.data())
def test_one_changed_operator_is_found(module: fx.GraphModule, data: st.DataObject) -> None:
    twin = shuffled(module, 0)
    node = data.draw(st.sampled_from([node for node in twin.graph.nodes if node.op == "call_function"]))
    with twin.graph.inserting_after(node):
        new = twin.graph.call_function(aten.abs.default, (node,))
    new.meta = dict(node.meta)
    if isinstance(node.meta["val"], torch.Tensor):
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        assert not isomorphic(module, twin)


@pytest.mark.parametrize("value", [0, True, 1.5])
@pytest.mark.parametrize("name", ["max_inputs", "max_operators"])
def test_sizes_of_graphs_are_checked(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is {value}; it must be an integer of at least 1"):
        graphs(**{name: value})


def traced(function: Callable[..., Any], *shapes: tuple[int, ...]) -> fx.Graph:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function, tracing_mode="fake")(*(torch.zeros(shape) for shape in shapes)).graph
    return graph


PAIRS = {
    "swapped operands": (lambda x, y: x.sin() - y.cos(), lambda x, y: y.cos() - x.sin()),
    "swapped inputs": (lambda x, y: x - y, lambda x, y: y - x),
    "another number": (lambda x, y: x * 2.0 + y, lambda x, y: x * 3.0 + y),
    "another type of number": (lambda x, y: x * 2.0 + y, lambda x, y: x * 2 + y),
    "a keyword": (lambda x, y: nn.functional.gelu(x) + y, lambda x, y: nn.functional.gelu(x, approximate="tanh") + y),
    "shared or not": (lambda x, y: (lambda s: s + s)(x.sin()) * y, lambda x, y: (x.sin() + x.sin()) * y),
    "order of results": (lambda x, y: (x.sin(), y.cos()), lambda x, y: (y.cos(), x.sin())),
    "order of random numbers": (
        lambda x, y: torch.rand_like(x).sin() + torch.rand_like(x).cos() * y,
        lambda x, y: (lambda c, s: s.sin() + c.cos() * y)(torch.rand_like(x), torch.rand_like(x)),
    ),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_other_graphs_are_not_isomorphic(pair: tuple[Any, Any]) -> None:
    a, b = (traced(function, (2, 2), (2, 2)) for function in pair)
    assert not isomorphic(a, b) and not isomorphic(b, a)
    assert isomorphic(a, copy.deepcopy(a)) and isomorphic(b, copy.deepcopy(b))
    assert re.search(r"%\w+ of [ab] ", structural_difference(a, b) or "")


def test_the_order_of_independent_operators_does_not_matter_and_shapes_do() -> None:
    a = traced(lambda x, y: (lambda s, c: s - c)(x.sin(), y.cos()), (2, 3), (2, 3))
    b = traced(lambda x, y: (lambda c, s: s - c)(y.cos(), x.sin()), (2, 3), (2, 3))
    wider = traced(lambda x, y: x.sin() - y.cos(), (2, 4), (2, 4))
    assert isomorphic(a, b) and not isomorphic(a, wider) and isomorphic(a, wider, metadata=False)


def ring_graph(sizes: list[int]) -> fx.Graph:
    """Cycles of these sizes."""
    graph = fx.Graph()
    lows = [graph.call_function(aten.ones.default, ([1],)) for _ in range(sum(sizes))]
    start = 0
    for size in sizes:
        ring = lows[start : start + size]
        for index, one in enumerate(ring):
            graph.call_function(aten.maximum.default, (one, ring[(index + 1) % size]))
        start += size
    graph.output(())
    return graph


def test_equal_neighbourhoods_do_not_make_equal_graphs() -> None:
    """Every node of a 6-cycle looks like every node of two 3-cycles, to colours alike."""
    assert isomorphic(ring_graph([6]), ring_graph([6]))
    assert structural_difference(ring_graph([6]), ring_graph([3, 3])) is not None


def test_parameters_go_by_name_or_by_shape() -> None:
    class Two(nn.Module):
        def __init__(self, first: str, second: str) -> None:
            super().__init__()
            self.register_parameter(first, nn.Parameter(torch.ones(3)))
            self.register_parameter(second, nn.Parameter(torch.ones(2)))

    def graph_of(names: tuple[str, str]) -> fx.GraphModule:
        graph, root = fx.Graph(), Two(*names)
        nodes = [graph.get_attr(name) for name in names]
        for node, name in zip(nodes, names, strict=True):
            node.meta["val"] = getattr(root, name)
        graph.output(tuple(nodes))
        return fx.GraphModule(root, graph)

    a, b, c = graph_of(("p", "q")), graph_of(("r", "s")), graph_of(("q", "p"))
    assert not isomorphic(a, b) and isomorphic(a, b, parameters=False) and not isomorphic(a, c)
    with pytest.raises(InputError, match="is no graph"):
        isomorphic(a, nn.Linear(2, 2))


class Holds(nn.Module):
    """Calls what it is given, with modules, a parameter and a buffer."""

    def __init__(self, call: Callable[..., Any], size: int = 3, value: float = 1.0, **modules: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.register_buffer("table", torch.full((3,), value))
        for name, module in modules.items():
            self.add_module(name, module)
        self.call = call

    def forward(self, x: torch.Tensor) -> Any:
        return self.call(self, x)


def through_act(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.act(x)


def drop_two(m: Any, x: torch.Tensor) -> Any:
    one, other = nn.functional.dropout(x), nn.functional.dropout(x)
    return one.sin() - other.cos()


def drop_two_swapped(m: Any, x: torch.Tensor) -> Any:
    other, one = nn.functional.dropout(x), nn.functional.dropout(x)
    return one.sin() - other.cos()


def read_and_write(m: Any, x: torch.Tensor) -> Any:
    before = x.sin()
    return before, x.add_(1)


def write_and_read(m: Any, x: torch.Tensor) -> Any:
    after = x.add_(1)
    return x.sin(), after


def modules_in_order(m: Any, x: torch.Tensor) -> Any:
    one, other = m.a(x), m.b(x)
    return one - other


def modules_swapped(m: Any, x: torch.Tensor) -> Any:
    other, one = m.b(x), m.a(x)
    return one - other


DROPS = {"a": nn.Dropout(), "b": nn.Dropout()}
SYMBOLIC = {
    "class of a module": (Holds(through_act, act=nn.ReLU()), Holds(through_act, act=nn.GELU())),
    "option of a module": (Holds(through_act, act=nn.GELU()), Holds(through_act, act=nn.GELU("tanh"))),
    "size of a module": (Holds(through_act, act=nn.Linear(4, 4)), Holds(through_act, act=nn.Linear(4, 5))),
    "buffer": (Holds(lambda m, x: x + m.table), Holds(lambda m, x: x + m.table, value=2.0)),
    "shape of a parameter": (Holds(lambda m, x: x + m.weight), Holds(lambda m, x: x + m.weight, size=1)),
    "random functions": (Holds(drop_two), Holds(drop_two_swapped)),
    "random modules": (Holds(modules_in_order, **DROPS), Holds(modules_swapped, **DROPS)),
    "in-place operators": (Holds(read_and_write), Holds(write_and_read)),
}


@pytest.mark.parametrize("pair", SYMBOLIC.values(), ids=SYMBOLIC.keys())
def test_what_symbolic_traces_name_is_looked_at(pair: tuple[nn.Module, nn.Module]) -> None:
    a, b = map(fx.symbolic_trace, pair)
    for parameters in (False, True):
        assert not isomorphic(a, b, parameters=parameters) and not isomorphic(b, a, parameters=parameters)
        for each, module in zip((a, b), pair, strict=True):
            assert structural_difference(each, fx.symbolic_trace(copy.deepcopy(module)), parameters=parameters) is None


def test_the_order_of_modules_without_effects_does_not_matter() -> None:
    for layers in ({"a": nn.Linear(4, 4), "b": nn.GELU()}, {"a": nn.Dropout().eval(), "b": nn.LayerNorm(4)}):
        a, b = (fx.symbolic_trace(Holds(call, **layers)) for call in (modules_in_order, modules_swapped))  # type: ignore[arg-type]
        assert structural_difference(a, b) is None


def nested(call: Callable[..., Any], rename: str | None = None, **held: Any) -> fx.GraphModule:
    """A graph that calls another one as ``act``."""
    inner = fx.symbolic_trace(Holds(call, **held))
    if rename:
        for index, node in enumerate(inner.graph.nodes):
            node._rename(f"{rename}{index}")
        inner.recompile()
    return calls_act(inner)


def calls_act(module: nn.Module) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.call_module("act", (graph.placeholder("x"),)))
    return fx.GraphModule(Holds(through_act, act=module), graph)


def weighted(m: Any, x: torch.Tensor) -> Any:
    return x * m.weight + m.table


def test_graphs_of_called_modules_are_entered() -> None:
    sines, cosines = nested(lambda m, x: x.sin()), nested(lambda m, x: x.cos())
    for parameters in (False, True):
        assert isomorphic(sines, nested(lambda m, x: x.sin(), rename="other"), parameters=parameters)
        reason = structural_difference(sines, cosines, parameters=parameters) or ""
        assert re.fullmatch(r"%act of a runs another graph than %act of b: %sin of a \(call_method sin .*", reason)
    twice = structural_difference(calls_act(sines), calls_act(cosines)) or ""
    assert twice.count("%act of a runs another graph than %act of b: ") == 2 and "%sin of a" in twice
    assert structural_difference(calls_act(sines), calls_act(copy.deepcopy(sines))) is None


def test_graphs_inside_of_called_modules_are_entered() -> None:
    class Runs(nn.Module):
        def __init__(self, *graphs: nn.Module) -> None:
            super().__init__()
            self.parts = nn.ModuleList(graphs)

    same, sine, cosine = (nested(call) for call in (lambda m, x: x.sin(), lambda m, x: x.sin(), lambda m, x: x.cos()))
    for kind, path in ((nn.Sequential, "1"), (Runs, "parts.1")):
        a, b, c = (calls_act(kind(nn.ReLU(), inner)) for inner in (sine, cosine, same))
        assert structural_difference(a, c) is None
        assert (structural_difference(a, b) or "").startswith(
            f"%act of a runs another graph at {path} than %act of b: %act of a "
        )


def test_tensors_of_called_graphs_count_as_those_of_the_graph_itself() -> None:
    a, other_values = nested(weighted), nested(weighted)
    with torch.no_grad():
        other_values.act.weight.add_(1)
    assert structural_difference(a, other_values) is None
    assert "%weight of a" in (structural_difference(a, nested(weighted, size=1)) or "")
    assert "%table of a" in (structural_difference(a, nested(weighted, value=2.0)) or "")


def test_called_graphs_whose_nodes_look_alike_are_told_apart() -> None:
    def ring(sizes: list[int]) -> fx.GraphModule:
        return calls_act(fx.GraphModule(nn.Module(), ring_graph(sizes)))

    assert isomorphic(ring([6]), ring([6])) and not isomorphic(ring([6]), ring([3, 3]))


@dataclasses.dataclass(frozen=True)
class ReluInOne(Pass):
    """One block gets another activation, and is called as before."""

    name: ClassVar[str] = "relu-in-one"

    def match(self, program: Program) -> list[fx.Node]:
        return program.block_nodes[1:2]

    def rewrite(self, program: Program, place: fx.Node) -> None:
        body = copy_body(program.body_of(place), "relu")
        for node in body.graph.find_nodes(op="call_function", target=aten.gelu.default):
            with body.graph.inserting_before(node):
                node.replace_all_uses_with(self.make(body.graph, aten.relu.default, (node.args[0],), node))
            body.graph.erase_node(node)
        give(program, place, body)
        self.mark(place, place)


def test_blocks_of_a_sparse_models_graph_are_entered() -> None:
    spec = DiTSpec(depth=3)
    model, inputs = spec.build(), spec.example_inputs()
    dense = sparsify(model, Policy.dense(), inputs, passes=Cleanup()).graph_module
    changed = sparsify(model, Policy.dense(), inputs, passes=ReluInOne()).graph_module
    for parameters in (False, True):
        reason = structural_difference(dense, changed, parameters=parameters) or ""
        assert re.fullmatch(r"%blocks_1 of a runs another graph than %blocks_1 of b: %gelu of a \(.*", reason)
        for seed in (spec.seed, spec.seed + 1):  # the values of parameters do not count
            again = sparsify(
                dataclasses.replace(spec, seed=seed).build(), Policy.dense(), inputs, passes=Cleanup()
            ).graph_module
            assert structural_difference(dense, again, parameters=parameters) is None


def test_programs_are_compared_body_by_body() -> None:
    spec = DiTSpec(depth=3)
    model, inputs = spec.build(), spec.example_inputs()
    first = sparsify(model, Policy(1, (), 2), inputs)
    assert structural_difference(first, sparsify(model, Policy(1, (), 2), inputs)) is None
    other = sparsify(model, Policy(2, (), 1), inputs)
    assert re.search("body|block", structural_difference(first, other) or "")
    with pytest.raises(InputError, match="compare two programs"):
        isomorphic(first, first.program.graph)
