"""Each rule for pairs of real numbers, on graphs of a few nodes, against the same graph in complex arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsify.errors import LoweringError
from sparsify.ops import as_rotation, pool_tokens, restore_tokens
from sparsify.real import Pair, with_graph, without_complex

aten = torch.ops.aten
Write = Callable[[Callable[..., Any], fx.Node, fx.Node], Any]  # of how to make a node, a complex value and a real one


class OnlyReal(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert not any(isinstance(x, torch.Tensor) and x.is_complex() for x in tree_leaves((args, kwargs, result))), str(func)
        return result


def graph_of(write: Write, **constants: torch.Tensor) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")

    def node(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return graph.get_attr(target) if isinstance(target, str) else graph.call_function(target, args, kwargs)

    result = write(node, node(aten.view_as_complex.default, x), node(aten.select.int, x, -1, 1))
    graph.output((result,))
    return fx.GraphModule(constants, graph)


def check(write: Write, x: torch.Tensor | None = None, **constants: torch.Tensor) -> fx.GraphModule:
    """The graph without complex numbers gives what the graph gives; complex results are compared as pairs."""
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64) if x is None else x
    module = graph_of(write, **constants)
    (want,) = module(x)
    if isinstance(want, torch.Tensor) and want.is_complex():
        return check(lambda node, z, r: node(aten.view_as_real.default, write(node, z, r)), x, **constants)
    real = without_complex(module)
    with OnlyReal():
        (got,) = real(x)
    if not isinstance(want, torch.Tensor):
        assert got == want
        return real
    assert got.shape == want.shape and got.dtype == want.dtype
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12) or (got.dtype != torch.float64 and torch.allclose(got, want))
    return real


MOVES: dict[str, tuple[Any, ...]] = {
    "view": (aten.view.default, [6, 4]), "reshape": (aten.reshape.default, [3, -1]), "unsqueeze": (aten.unsqueeze.default, 1),
    "expand": (aten.expand.default, [5, 2, 3, 4]), "permute": (aten.permute.default, [2, 0, 1]),
    "transpose": (aten.transpose.int, 0, 1), "flatten": (aten.flatten.using_ints, 0, 1),
    "unflatten": (aten.unflatten.int, 2, [2, 2]), "slice": (aten.slice.Tensor, 1, 0, 2), "select": (aten.select.int, 1, 1),
    "narrow": (aten.narrow.default, 2, 1, 2), "repeat": (aten.repeat.default, [2, 1, 1]), "roll": (aten.roll.default, [1], [1]),
    "flip": (aten.flip.default, [2]), "clone": (aten.clone.default,), "detach": (aten.detach.default,),
    "neg": (aten.neg.default,), "sum": (aten.sum.dim_IntList, [1], True), "mean": (aten.mean.dim, [2]),
    "cumsum": (aten.cumsum.default, 1), "zeros_like": (aten.zeros_like.default,), "getitem": (operator.getitem, 1),
    "conj_physical": (aten.conj_physical.default,), "resolve": (aten.resolve_conj.default,),
    "pool": (pool_tokens, (3,), (2,)), "restore": (restore_tokens, (3,), (5,)), "rotation": (as_rotation, "complex"),
    "nearest": (pool_tokens, (3,), (2,), 1, 0, 0, "nearest"), "exp": (aten.exp.default,), "abs": (aten.abs.default,),
    "angle": (aten.angle.default,), "real": (aten.real.default,), "imag": (aten.imag.default,),
    "size": (aten.sym_size.int, 1), "times a number": (aten.mul.Tensor, 0.5 - 2j), "plus a number": (aten.add.Tensor, 1 + 2j),
    "minus a real number": (aten.sub.Tensor, 3.0), "over a number": (aten.div.Tensor, 3 - 4j),
    "over a real number": (aten.div.Tensor, 4.0),
    "another precision": (aten._to_copy.default,),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MOVES))
def test_an_operator_on_one_complex_value(name: str) -> None:
    target, *rest = MOVES[name]
    check(lambda node, z, r: node(target, z, *rest))


TWO: dict[str, Write] = {
    "product": lambda node, z, r: node(aten.mul.Tensor, z, node(aten.flip.default, z, [1])),
    "real times complex": lambda node, z, r: node(aten.mul.Tensor, r, z),
    "complex times real": lambda node, z, r: node(aten.mul.Tensor, z, r),
    "quotient": lambda node, z, r: node(aten.div.Tensor, z, node(aten.flip.default, z, [1])),
    "real over complex": lambda node, z, r: node(aten.div.Tensor, r, z),
    "complex over real": lambda node, z, r: node(aten.div.Tensor, z, r),
    "sum": lambda node, z, r: node(aten.add.Tensor, z, node(aten.flip.default, z, [1])),
    "scaled sum": lambda node, z, r: node(aten.add.Tensor, z, node(aten.flip.default, z, [1]), alpha=3),
    "complex plus real": lambda node, z, r: node(aten.add.Tensor, z, r),
    "real plus complex": lambda node, z, r: node(aten.add.Tensor, r, z),
    "real minus complex": lambda node, z, r: node(aten.sub.Tensor, r, z),
    "a number over complex": lambda node, z, r: node(aten.div.Tensor, node(aten.full_like.default, z, 2.0), z),
    "matrices": lambda node, z, r: node(aten.matmul.default, z, node(aten.transpose.int, z, 1, 2)),
    "other matrices": lambda node, z, r: node(aten.bmm.default, node(aten.transpose.int, z, 1, 2), z),
    "conjugate": lambda node, z, r: node(aten.clone.default, node(aten.resolve_conj.default, node(aten._conj.default, z))),
    "joined": lambda node, z, r: node(aten.cat.default, [z, node(aten.neg.default, z)], 1),
    "joined with a real one": lambda node, z, r: node(aten.cat.default, [node(aten.mul.Tensor, z, 2), z], -1),
    "stacked": lambda node, z, r: node(aten.stack.default, [z, z], 1),
    "a part of a split": lambda node, z, r: node(operator.getitem, node(aten.split.Tensor, z, 2, 1), 1),
    "one of a list": lambda node, z, r: node(operator.getitem, node(aten.unbind.int, z, 1), 2),
    "chosen": lambda node, z, r: node(aten.where.self, node(aten.gt.Scalar, r, 0), z, node(aten.neg.default, z)),
    "chosen, or real": lambda node, z, r: node(aten.where.self, node(aten.gt.Scalar, r, 0), z, r),
    "real, or chosen": lambda node, z, r: node(aten.where.self, node(aten.gt.Scalar, r, 0), r, z),
    "polar": lambda node, z, r: node(aten.polar.default, node(aten.abs.default, z), r),
    "from parts": lambda node, z, r: node(aten.complex.default, r, node(aten.real.default, z)),
    "ones": lambda node, z, r: node(aten.mul.Tensor, z, node(aten.ones.default, [3, 1], dtype=torch.complex128)),
    "zeros": lambda node, z, r: node(aten.add.Tensor, z, node(aten.zeros.default, [3, 1], dtype=torch.complex128)),
    "full": lambda node, z, r: node(aten.add.Tensor, z, node(aten.full.default, [3, 1], 2.5, dtype=torch.complex128)),
    "ones like it": lambda node, z, r: node(aten.add.Tensor, z, node(aten.ones_like.default, z)),
    "cast down": lambda node, z, r: node(aten._to_copy.default, z, dtype=torch.complex64),
    "cast of a real one": lambda node, z, r: node(aten.add.Tensor, z, node(aten._to_copy.default, r, dtype=torch.complex128)),
    "cast to real": lambda node, z, r: node(aten._to_copy.default, z, dtype=torch.float32),
    "cast by position": lambda node, z, r: node(aten.to.dtype, z, torch.complex64),
    "cast of a real one by position": lambda node, z, r: node(aten.mul.Tensor, z, node(aten.to.dtype, r, torch.complex128)),
    "a mask by a real input": lambda node, z, r: node(aten.index_select.default, z, 1, node("rows")),
    "a constant": lambda node, z, r: node(aten.mul.Tensor, z, node("table")),
    "a real constant": lambda node, z, r: node(aten.mul.Tensor, z, node("scale")),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TWO))
def test_an_operator_on_two_values(name: str) -> None:
    constants = {
        "table": torch.randn(3, 4, dtype=torch.complex128),
        "scale": torch.randn(3, 4, dtype=torch.float64),
        "rows": torch.tensor([2, 0]),
    }
    check(TWO[name], **constants)


def test_an_assertion_about_a_complex_dtype_is_dropped() -> None:
    def write(node: Callable[..., Any], z: fx.Node, r: fx.Node) -> fx.Node:
        node(aten._assert_tensor_metadata.default, z, None, None, torch.complex128)
        return node(aten.abs.default, z)

    real = check(write)
    assert not real.graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default)


@pytest.mark.parametrize("conjugated", [False, True])
def test_complex_constants_become_two_with_the_numbers_they_had(conjugated: bool) -> None:
    table = torch.randn(3, 4, dtype=torch.complex128)
    table = table.conj() if conjugated else table
    real = check(lambda node, z, r: node(aten.mul.Tensor, z, node("table")), table=table)
    assert torch.equal(real.table_real, table.real) and torch.equal(real.table_imag, table.imag)
    assert real.table_real.data_ptr() != table.real.data_ptr(), "they keep what was, whoever writes into the table"


def test_what_nothing_reads_is_not_computed() -> None:
    """The real part of a product needs no imaginary part of it."""
    real = check(lambda node, z, r: node(aten.real.default, node(aten.mul.Tensor, z, node(aten.flip.default, z, [1]))))
    assert all(node.users for node in real.graph.nodes if node.op == "call_function")
    assert len(real.graph.find_nodes(op="call_function", target=aten.mul.Tensor)) == 2


def test_a_real_factor_costs_two_products() -> None:
    real = check(lambda node, z, r: node(aten.mul.Tensor, z, r))
    assert len(real.graph.find_nodes(op="call_function", target=aten.mul.Tensor)) == 2


def test_a_module_without_complex_numbers_is_given_back() -> None:
    module = fx.symbolic_trace(nn.Linear(3, 3))
    assert without_complex(module) is module


def test_parameters_and_other_constants_are_shared_and_the_module_is_as_it_was() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, dtype=torch.float64))
            self.register_buffer("table", torch.randn(4, dtype=torch.complex128))

    graph = fx.Graph()
    x = graph.placeholder("x")
    z: fx.Node = x
    for name in ("weight", "table", "plain"):
        z = graph.call_function(aten.mul.Tensor, (z, graph.get_attr(name)))
    graph.output(graph.call_function(aten.view_as_real.default, (z,)))
    root = Model()
    root.plain = torch.randn(4, dtype=torch.float64)
    module = fx.GraphModule(root, graph)
    before, given = str(module.graph), torch.randn(2, 4, dtype=torch.float64)
    real = without_complex(module)
    assert str(module.graph) == before
    assert real.weight is module.weight and real.plain is module.plain
    assert torch.allclose(real(given), module(given), rtol=1e-12)
    module.weight.data.mul_(2)
    assert torch.allclose(real(given), module(given), rtol=1e-12)


def test_a_module_with_another_graph_shares_what_that_graph_may_name() -> None:
    module = fx.symbolic_trace(nn.Linear(2, 2))
    graph = fx.Graph()
    graph.output(graph.call_function(torch.add, (graph.get_attr("bias"), graph.get_attr("extra"))))
    made = with_graph(module, graph, {"extra": torch.ones(2)})
    assert made is not module and type(made).__name__ == type(module).__name__
    assert made.bias is module.bias and torch.equal(made(), module.bias + 1)
    assert "add" not in str(module.graph) and not hasattr(module, "extra")


def test_nodes_keep_what_is_known_of_them() -> None:
    module = graph_of(lambda node, z, r: node(aten.mul.Tensor, node(aten.sin.default, r), node(aten.abs.default, z)))
    (sine,) = module.graph.find_nodes(op="call_function", target=aten.sin.default)
    sine.meta["mark"] = "the sine"
    (found,) = without_complex(module).graph.find_nodes(op="call_function", target=aten.sin.default)
    assert found.meta["mark"] == "the sine"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_input_is_refused(dtype: torch.dtype) -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(aten.abs.default, (graph.placeholder("z"),)))
    next(iter(graph.nodes)).meta["val"] = torch.empty(2, dtype=dtype, device="meta")
    with pytest.raises(LoweringError, match="input z is complex"):
        without_complex(fx.GraphModule({}, graph))


@pytest.mark.parametrize("target", [aten.view_as_real.default, aten.real.default, aten.imag.default])
def test_reading_parts_of_an_input_that_nobody_described_is_refused(target: Any) -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(target, (graph.placeholder("z"),)))
    with pytest.raises(LoweringError, match="reads complex numbers from an input"):
        without_complex(fx.GraphModule({}, graph))


def test_a_complex_output_or_an_operator_without_a_rule_is_refused() -> None:
    with pytest.raises(LoweringError) as caught:
        without_complex(graph_of(lambda node, z, r: z))
    assert str(caught.value) == "an output of this model is complex, which this target has no numbers for.", "nothing else"
    with pytest.raises(LoweringError, match=r"aten.sin.default works on complex numbers here, .* no rule"):
        without_complex(graph_of(lambda node, z, r: node(aten.abs.default, node(aten.sin.default, z))))


def test_a_pair_goes_to_several_nodes_and_no_rule_can_write_into_it() -> None:
    with pytest.raises(FrozenInstanceError):
        Pair(1, 2).real = 3  # type: ignore[misc]


def test_outputs_of_any_nesting_keep_it() -> None:
    graph = fx.Graph()
    z = graph.call_function(aten.view_as_complex.default, (graph.placeholder("x"),))
    graph.output({"modulus": graph.call_function(aten.abs.default, (z,)), "none": [None, 3]})
    given = torch.randn(3, 2)
    found = without_complex(fx.GraphModule({}, graph))(given)
    assert torch.allclose(found["modulus"], torch.view_as_complex(given).abs()) and found["none"] == [None, 3]


def test_inputs_of_any_nesting_keep_it() -> None:
    class Nested(nn.Module):
        def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return aten.view_as_real.default(aten.mul.Tensor(aten.view_as_complex.default(pair[0]), pair[1]))

    module = fx.symbolic_trace(Nested(), concrete_args={"pair": (fx.PH, fx.PH)})
    given = torch.randn(3, 2), torch.randn(3)
    assert torch.allclose(without_complex(module)(given), module(given))
