"""Graphs without complex numbers compute what the complex ones do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsify import sparsify
from sparsify.errors import LoweringError
from sparsify.flat import flat_module
from sparsify.ops import as_rotation, pool_tokens, restore_tokens
from sparsify.real import without_complex

from .zoo.check import policy_for
from .zoo.written import MODELS as WRITTEN


class Real(TorchDispatchMode):
    """Lets no complex tensor come about."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert not any(isinstance(x, torch.Tensor) and x.is_complex() for x in tree_leaves((args, kwargs, result))), str(func)
        return result


class Of(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor], **buffers: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.function(*args, *self.buffers())


def graph_of(function: Callable[..., torch.Tensor], *inputs: torch.Tensor, **buffers: torch.Tensor) -> fx.GraphModule:
    """What export makes of a function, with its operators as they are written."""
    program = torch.export.export(Of(function, **buffers), inputs, strict=False).run_decompositions({})
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def check(
    function: Callable[..., torch.Tensor], *inputs: torch.Tensor, tolerance: float = 2e-6, **buffers: torch.Tensor
) -> None:
    module = graph_of(function, *inputs, **buffers)
    want = module(*inputs)
    with pytest.raises(AssertionError), Real():
        module(*inputs)
    real = without_complex(module)
    with Real():
        got = real(*inputs)
    assert (got - want).abs().max() <= tolerance * max(1.0, float(want.abs().max()))


def numbers(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


STEPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "times itself moved": lambda z: z * z.roll(1, 1),
    "over itself": lambda z: z / (z.flip(1) + 3),
    "times a real tensor": lambda z: z * z.abs(),
    "a real tensor over it": lambda z: z.real / (z + 4),
    "plus a real tensor": lambda z: z + z.real,
    "a real tensor minus it": lambda z: z.imag - z,
    "times a number": lambda z: z * (0.5 - 2j),
    "plus a number": lambda z: 1 + z + 2j,
    "conjugate": lambda z: z.conj().resolve_conj(),
    "exponential": lambda z: torch.exp(z / (1 + z.abs())),
    "normed": lambda z: z / (1 + z.abs()),
    "from polar": lambda z: torch.polar(z.abs(), z.angle()),
    "from parts": lambda z: torch.complex(z.imag, z.real),
    "joined with a real tensor": lambda z: torch.cat((z, z.real), 1)[:, 1:],
    "stacked": lambda z: torch.stack((z, z.abs(), 2 * z), 1)[:, 2],
    "chosen": lambda z: torch.where(z.real > 0, z, z.imag),
    "transposed back": lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
    "shifted dims": lambda z: z.permute(2, 0, 1).reshape(z.shape[2], -1).t().view(z.shape),
    "halves swapped": lambda z: torch.cat(z.chunk(2, -1)[::-1], -1),
    "rows by number": lambda z: z[:, torch.tensor([2, 0, 1])],
    "expanded": lambda z: z + z.mean(1, keepdim=True).expand_as(z),
    "squeezed": lambda z: z.unsqueeze(1).squeeze(1) - z[:, :1].squeeze(1).unsqueeze(1),
    "product of matrices": lambda z: (z @ z.transpose(1, 2)) @ z / 8,
    "sum with a new tensor": lambda z: z + torch.ones(3, 1, dtype=z.dtype) + torch.zeros_like(z),
    "cast there and back": lambda z: z.to(torch.complex128).to(torch.complex64),
    "from a cast": lambda z: z * z.real.to(torch.complex64),
}


@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4))
def test_chains_of_complex_operators(names: list[str]) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        z = numbers(x)
        for name in names:
            z = STEPS[name](z)
            z = z / (1 + z.abs())  # neither overflows nor loses digits
        return torch.view_as_real(z).flatten(-2)

    check(function, torch.randn(2, 3, 8), tolerance=1e-5)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_operator(name: str) -> None:
    check(lambda x: torch.view_as_real(STEPS[name](numbers(x))), torch.randn(2, 3, 8))


def test_rotary_table_made_inside_and_given_as_a_buffer() -> None:
    table = torch.polar(torch.ones(5, 4), torch.randn(5, 4))
    check(lambda x, table: torch.view_as_real(numbers(x) * table).flatten(-2), torch.randn(2, 5, 8), table=table)

    def inside(x: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(torch.arange(5), torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64))
        rotated = numbers(x.double()) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(rotated).flatten(-2).float()

    check(inside, torch.randn(2, 5, 8))


def test_token_operators_take_pairs() -> None:
    table = torch.polar(torch.rand(1, 16, 4) + 0.5, torch.randn(1, 16, 4))

    def written(how: str) -> fx.GraphModule:
        graph = fx.Graph()
        x, z = graph.placeholder("x"), graph.get_attr("table")
        for function, args, kwargs in (
            (pool_tokens, ((4, 4), (2, 3)), {"how": how}),
            (as_rotation, ("complex",), {}),
            (restore_tokens, ((2, 3), (4, 4)), {}),
        ):
            z = graph.call_function(function, (z, *args), kwargs)
        z = graph.call_function(torch.ops.aten.view_as_real.default, (z,))
        graph.output(graph.call_function(torch.ops.aten.mul.Tensor, (z, x)))
        module = fx.GraphModule({"table": table}, graph)
        return module

    for how in ("mean", "centre", "nearest"):
        module = written(how)
        want = module(torch.tensor(2.0))
        real = without_complex(module)
        with Real():
            got = real(torch.tensor(2.0))
        assert torch.allclose(got, want, atol=1e-6)


def test_a_real_graph_is_left_alone_and_a_changed_one_shares_its_weights() -> None:
    real = graph_of(lambda x: x.sin(), torch.randn(2))
    assert without_complex(real) is real
    module = graph_of(lambda x, w: torch.view_as_real(numbers(x * w)), torch.randn(2, 4), w=torch.randn(4))
    before = str(module.graph)
    rewritten = without_complex(module)
    assert [id(value) for value in rewritten.state_dict(keep_vars=True).values()] == [id(module.w)]
    assert str(module.graph) == before


@pytest.mark.parametrize(
    ("function", "dtype", "message"),
    [
        (lambda x: torch.view_as_real(x), torch.complex64, "input .* is complex"),
        (lambda x: numbers(x), torch.float32, "output .* is complex"),
        (lambda x: torch.view_as_real(torch.linalg.inv(numbers(x))), torch.float32, "no rule"),
    ],
)
def test_what_has_no_rule_is_refused(function: Callable[..., torch.Tensor], dtype: torch.dtype, message: str) -> None:
    module = graph_of(function, torch.randn(4, 4, 8, dtype=dtype) if dtype.is_complex else torch.randn(4, 8))
    with pytest.raises(LoweringError, match=message):
        without_complex(module)


def test_a_whole_model_with_complex_rotary_tables() -> None:
    entry = next(entry for entry in WRITTEN if entry.name == "ComplexRoPEDiT")
    inputs = entry.inputs(2, 0)
    sparse = sparsify(entry.make(), policy_for(8), inputs, **entry.options(0))
    flat = flat_module(sparse.program, sparse)
    real = without_complex(flat)
    assert {id(value) for value in real.parameters()} == {id(value) for value in flat.parameters()}
    given = (*sparse.program.call.flatten((), inputs), torch.empty(2, 3))
    with torch.no_grad():
        want = flat(*given)
        with Real():
            got = real(*given)
    assert len(got) == len(want) and all((a - b).abs().max() <= 1e-5 for a, b in zip(got, want, strict=True))
