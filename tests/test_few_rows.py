"""Linear maps of few rows: equal to products in double precision, taken where they suit and nowhere else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from sparsify import lower
from sparsify.targets import few_rows
from sparsify.targets.inductor import _with_targets

from .helpers import inputs, sparse_plain
from .test_inductor import SMALL, backend

here = pytest.mark.skipif(
    not few_rows.IS_HERE, reason="this torch has no oneDNN or no MKL: few_rows.linear is aten's everywhere"
)
OUT, IN = 1024, 1032


def random(rows: tuple[int, ...], bias: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(*rows, IN, generator=generator), torch.randn(OUT, IN, generator=generator)
    return x, weight, torch.randn(OUT, generator=generator) if bias else None


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes that the operator was asked for."""
    shapes: list[torch.Size] = []
    operator = torch.ops.sparsify.linear_of_few_rows.default

    def watched(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        shapes.append(x.shape)
        return operator(x, *rest)

    monkeypatch.setattr(torch.ops.sparsify.linear_of_few_rows, "default", watched)
    return shapes


@here
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(16,), (36,), (4, 64), (2, 3, 7)])
def test_it_equals_the_product_in_double_precision(taken: list[torch.Size], rows: tuple[int, ...], bias: bool) -> None:
    x, weight, b = random(rows, bias)
    want = F.linear(x.double(), weight.double(), None if b is None else b.double())
    got = few_rows.linear(x, weight, b)
    assert taken == [x.shape] and got.shape == want.shape and got.is_contiguous()
    assert (got - want).abs().max() <= 2e-6 * want.abs().max()


@here
@torch.no_grad()
def test_rows_may_lie_in_any_order_in_memory(taken: list[torch.Size]) -> None:
    x, weight, bias = random((2, 24))
    for strange in (x.transpose(0, 1), x.mT.contiguous().mT, x[:, ::2], x[:, :1].expand(2, 20, IN), x.flip(-1)):
        want = F.linear(strange.double(), weight.double(), bias.double())  # type: ignore[union-attr]
        assert (few_rows.linear(strange, weight, bias) - want).abs().max() <= 2e-6 * want.abs().max()
    assert len(taken) == 5


@torch.no_grad()
@pytest.mark.parametrize(
    "rows, width", [((1,), IN), ((15,), IN), ((257,), IN), ((3, 100), IN), ((0,), IN), ((32,), 8), ((), IN)]
)
def test_other_sizes_are_left_to_aten(taken: list[torch.Size], rows: tuple[int, ...], width: int) -> None:
    x, weight = torch.randn(*rows, width), torch.randn(OUT, width)
    assert torch.equal(few_rows.linear(x, weight), F.linear(x, weight)) and not taken


@pytest.mark.parametrize("what", ["gradients", "bfloat16", "autocast", "a meta device", "a subclass"])
def test_what_is_no_plain_inference_in_float32_is_left_to_aten(taken: list[torch.Size], what: str) -> None:
    class Own(torch.Tensor):
        pass

    x, weight, _ = random((32,))
    if what == "gradients":
        weight.requires_grad_()
        few_rows.linear(x, weight).sum().backward()
        assert weight.grad is not None and not taken
        return
    if what == "bfloat16":
        x, weight = x.bfloat16(), weight.bfloat16()
    if what == "a meta device":
        x, weight = x.to("meta"), weight.to("meta")
    if what == "a subclass":
        weight = weight.as_subclass(Own)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"):
        assert few_rows.linear(x, weight).dtype == F.linear(x, weight).dtype
    assert not taken


def test_a_graph_keeps_all_but_its_linear_maps() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.tanh(self.one(x))) + x

    module = torch.export.export(Model(), (torch.randn(3, 4),)).module()
    before = [(node.op, node.name) for node in module.graph.nodes]
    changed = _with_targets(module.graph, few_rows.FEW_ROWS)
    changed.lint()
    assert [(node.op, node.name) for node in changed.nodes] == before
    assert sum(node.target is few_rows.linear for node in changed.nodes) == 2
    assert sum(node.target is torch.ops.aten.linear.default for node in module.graph.nodes) == 2, "the graph itself stays"
    x, twin = torch.randn(3, 4), Model()
    twin.load_state_dict(module.state_dict())
    changed_module = fx.GraphModule(module, changed)
    with torch.no_grad():
        assert torch.equal(changed_module.forward(x)[0], twin(x))


@here
@torch.no_grad()
@pytest.mark.parametrize("scope", ["blocks", "model"])
def test_static_code_takes_it_for_sparse_tokens_and_dynamic_code_does_not(monkeypatch: pytest.MonkeyPatch, scope: str) -> None:
    monkeypatch.setattr(few_rows, "LARGE", 1)
    calls: list[int] = []
    run = torch.ops.mkldnn._linear_pointwise.default
    monkeypatch.setattr(
        torch.ops.mkldnn._linear_pointwise, "default", lambda x, *rest: calls.append(x.shape[-2]) or run(x, *rest)
    )
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    x = inputs(2)
    tokens = math.prod(sparse.program.density.grid_at(500, (8, 8)))
    with backend("eager"):
        dynamic, static = (lower(sparse, "inductor", shapes=shapes, scope=scope) for shapes in ("dynamic", "per_grid"))
        want = sparse(*x)
        assert (dynamic(*x) - want).abs().max() <= 1e-5 and not calls
        assert (static(*x) - want).abs().max() <= 1e-5 and calls.count(tokens) >= 6
