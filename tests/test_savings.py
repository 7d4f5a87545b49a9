"""The exact savings that change one graph: printed IR, what they leave alone, and equality on random modules in float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from sparsify import Density
from sparsify.ops import restore_tokens
from sparsify.passes import (
    BlockRange,
    Cleanup,
    FuseAttention,
    InsertDensity,
    LinearBeforeCopy,
    MeanBeforeLinear,
    NarrowLinear,
    Pass,
    PoolAttention,
    Share,
    SparseDense,
)
from sparsify.passes.base import remove_dead
from sparsify.program import Program
from sparsify.text import graph_text
from sparsify.verify import verify

from .helpers import analysed, few, lone_block, plain, run_block

aten = torch.ops.aten
WIDTH = 12


def text_of(graph: fx.Graph) -> list[str]:
    """Printed IR with the sizes by what they are: B, and N tokens."""
    return [re.sub(r"\bs\d+\b", "N", line).strip() for line in graph_text(graph).splitlines()]


def counts(graph: fx.Graph, target: object) -> int:
    return len(graph.find_nodes(op="call_function", target=target))


def check_exact(rewrite: Pass, module: nn.Module, *others: torch.Tensor, tokens: tuple[int, ...] = (5, 8, 1)) -> Program:
    """The pass applies, the graph verifies, and its results and gradients are the module's at several numbers of tokens."""
    module = module.double()
    program = lone_block(module, torch.randn(2, 7, WIDTH, dtype=torch.float64), *others)
    assert rewrite.run(program) >= 1, program.skips
    for count in tokens:
        x = torch.randn(2, count, WIDTH, dtype=torch.float64, requires_grad=True)
        got, want = run_block(program, module, x, *others), module(x, *others)
        assert want.abs().max() > 0.01
        assert (got - want).abs().max() <= 1e-12 * max(1.0, float(want.detach().abs().max()))
        wrt = [x, *module.parameters()]
        cotangent = torch.randn_like(want)
        pairs = zip(*(torch.autograd.grad(y, wrt, cotangent, allow_unused=True) for y in (got, want)), strict=True)
        for g, w in pairs:
            assert (torch.zeros(()) if g is None else g).sub(torch.zeros(()) if w is None else w).abs().max() <= 1e-11
    assert rewrite.run(program) == 0, "a second run finds nothing"
    return program


# --- mean-before-linear ------------------------------------------------------------------------------------------------


def pooled(style: str, **options: Any) -> Program:
    program = analysed(plain(style=style, **options))
    FuseAttention().run(program)
    PoolAttention(BlockRange(0, 1)).run(program)
    return program


def test_mean_before_linear_leaves_one_vector_per_image() -> None:
    program = pooled("separate")
    assert MeanBeforeLinear().run(program) == 1
    Cleanup().run(program)  # dropout of nothing
    graph = program.bodies["block0.pooling"].graph
    lines = [line for line in text_of(graph) if "mean-before-linear" in line]
    assert lines == [
        "%mean_dim_1: f32[N, 1, 32] = mean.dim(%layer_norm, [1], True)  # mean-before-linear from mean_dim",
        "%mul_tensor: f32[N, 1, 32] = mul.Tensor(%mean_dim_1, %add)  # mean-before-linear from mul",
        "%add_tensor: f32[N, 1, 32] = add.Tensor(%mul_tensor, %unsqueeze_2)  # mean-before-linear from add_1",
        "%linear_default: f32[N, 1, 32] = linear.default(%add_tensor, @attn.v.weight, @attn.v.bias)"
        "  # mean-before-linear from linear_3",
        "%unflatten_int: f32[N, 1, 4, 8] = unflatten.int(%linear_default, -1, [4, -1])  # mean-before-linear from unflatten_2",
        "%transpose_int: f32[N, 4, 1, 8] = transpose.int(%unflatten_int, 1, 2)  # mean-before-linear from transpose_2",
        "%transpose_int_1: f32[N, 1, 4, 8] = transpose.int(%transpose_int, 1, 2)  # mean-before-linear from transpose_3",
        "%reshape_default: f32[N, 1, 32] = reshape.default(%transpose_int_1, [%sym_size_int_5, 1, 32])"
        "  # mean-before-linear from reshape",
        "%linear_default_1: f32[N, 1, 32] = linear.default(%reshape_default, @attn.proj.weight, @attn.proj.bias)"
        "  # mean-before-linear from linear_4",
        "%mul_tensor_1: f32[N, 1, 32] = mul.Tensor(%unsqueeze, %linear_default_1)  # mean-before-linear from mul_1",
    ]
    assert "%add_2: f32[N, N, 32] = add.Tensor(%x, %mul_tensor_1)" in text_of(graph), "the addition copies it to all tokens"
    verify(program, "test")


def test_mean_before_linear_leaves_dropout_to_each_token() -> None:
    """With dropout behind the projection every token loses other channels; what is before it is shared all the same."""
    model = plain(style="separate", dropout=0.5).train()
    program = analysed(model)
    PoolAttention(BlockRange(0, 0)).run(program)
    MeanBeforeLinear().run(program)
    text = "\n".join(text_of(program.bodies["block0.pooling"].graph))
    assert re.search(
        r"%(expand\w+): f32\[N, N, 32\] = expand.default.*\n\s*%dropout\w*: f32\[N, N, 32\] = dropout.default\(%\1,", text
    )
    verify(program, "test")


class MeanBetween(nn.Module):
    """Random maps of each token, a mean over all tokens, and random maps of its copies."""

    def __init__(self, below: list[str], above: list[str]) -> None:
        super().__init__()
        self.below, self.above = below, above
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(len(below) + len(above)))
        self.fused = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(len(below) + len(above)))
        self.vector = nn.Parameter(torch.randn(2, 1, WIDTH))

    def step(self, kind: str, index: int, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        match kind:
            case "linear":
                return self.layers[index](x)
            case "scale":
                return x * (1 + self.vector)
            case "shift":
                return self.vector - x / 2
            case "gelu":
                return F.gelu(x)
            case "chunk":
                return self.fused[index](x).chunk(3, dim=-1)[1]
            case "heads":
                return (
                    self.fused[index](x).reshape(batch, tokens, 3, 2, -1).permute(2, 0, 3, 1, 4)[2].transpose(1, 2).flatten(2)
                )
            case "matmul":
                return x @ self.layers[index].weight
        raise ValueError(kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for index, kind in enumerate(self.below):
            y = self.step(kind, index, y)
        y = y.mean(dim=1, keepdim=True).expand(-1, x.shape[1], -1)
        for index, kind in enumerate(self.above):
            y = self.step(kind, len(self.below) + index, y)
        return x + y


KINDS = st.lists(st.sampled_from(["linear", "scale", "shift", "gelu", "chunk", "heads", "matmul"]), max_size=4)


@few(3)
@given(KINDS, KINDS)
def test_mean_before_linear_is_exact(below: list[str], above: list[str]) -> None:
    module = MeanBetween([*below, "linear"], above)
    program = check_exact(MeanBeforeLinear(), module)
    gelus = below.count("gelu")
    if "gelu" not in below + above:
        shapes = [
            node.meta["val"].shape[1]
            for node in program.bodies["block0"].graph.find_nodes(op="call_function", target=aten.linear.default)
        ]
        assert set(shapes) == {1}, "no projection of all tokens is left"
    assert counts(program.bodies["block0"].graph, aten.gelu.default) >= gelus


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x + F.gelu(self.layer(x)).mean(1, keepdim=True).expand_as(x),
        lambda self, x: x + F.gelu(self.layer(x).mean(1, keepdim=True)).expand(-1, x.shape[1], -1),
        lambda self, x: x * (m := self.layer(x).mean(1, keepdim=True)).expand(-1, x.shape[1], -1) + m,
        lambda self, x: x + ((x > 0) * x[:1, :1]).mean(1, keepdim=True).expand(-1, x.shape[1], -1),
        lambda self, x: x + self.layer(x).mean(2, keepdim=True).expand(-1, -1, x.shape[2]),
    ],
    ids=["nonlinear before", "not copied at once", "read by others", "of what is counted", "over the channels"],
)
def test_mean_before_linear_leaves_other_means(forward) -> None:
    module = type("Other", (nn.Module,), {"forward": forward})()
    module.layer = nn.Linear(WIDTH, WIDTH)
    program = lone_block(module, torch.randn(2, 7, WIDTH))
    before = graph_text(program.bodies["block0"].graph)
    assert MeanBeforeLinear().run(program) == 0
    assert graph_text(program.bodies["block0"].graph) == before


@pytest.mark.parametrize("saving", [MeanBeforeLinear, LinearBeforeCopy, NarrowLinear, Share])
def test_savings_make_no_other_model(saving: type[Pass]) -> None:
    """A model that these alone have changed is the one it was: ``sparsify`` must not take it for a sparse one."""
    assert saving().prepares


# --- linear-before-copy ------------------------------------------------------------------------------------------------


def with_module() -> Program:
    program = analysed(plain())
    InsertDensity(Density.constant(grid=(3, 3))).run(program)
    SparseDense(BlockRange(0, 3), 1, 2, 1).run(program)
    program.stage = "sparse"
    return program


def test_linear_before_copy_maps_sparse_tokens() -> None:
    program = with_module()
    assert LinearBeforeCopy().run(program) == 1
    lines = [re.sub(r"f32\[.*?\] ", "", line) for line in text_of(program.graph)]
    start = next(i for i, line in enumerate(lines) if line.startswith("%linear_default_2"))
    assert lines[start : start + 2] == [
        "%linear_default_2: = linear.default(%blocks_2, @sparsify_restore.0.sparse.weight, @sparsify_restore.0.sparse.bias)"
        "  # linear-before-copy from linear_default",
        "%restore_tokens_1: = restore_tokens(%linear_default_2, [%pooled_height, %pooled_width], [%floordiv, %floordiv_1])"
        "  # linear-before-copy from restore_tokens",
    ]
    assert counts(program.graph, restore_tokens) == 1
    verify(program, "test")
    assert LinearBeforeCopy().run(program) == 0


@few(3)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_linear_maps_and_copies_change_places(h: int, w: int, more_h: int, more_w: int, text: bool) -> None:
    """What the pass relies on, with text in front of the tokens too."""
    grid, rows = (h * more_h + (more_h > 1), w * more_w), 3 if text else 0
    few = torch.randn(2, rows + h * w, WIDTH, dtype=torch.float64)
    layer = nn.Linear(WIDTH, 5).double()
    early = restore_tokens(layer(few), (h, w), grid, 1, rows)
    late = layer(restore_tokens(few, (h, w), grid, 1, rows))
    assert (early - late).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "kind", ["contracts the tokens", "not a linear map", "maps the tokens", "maps the tokens, counted from behind"]
)
def test_linear_before_copy_leaves_others(kind: str) -> None:
    program = with_module()
    (copies,) = program.graph.find_nodes(op="call_function", target=restore_tokens)
    (linear,) = copies.users
    if kind == "not a linear map":
        linear.target, linear.args = aten.gelu.default, (copies,)
    elif kind.startswith("maps the tokens"):  # (batch, channels, tokens): what a linear map works on is the last axis
        copies.args = (*copies.args[:3], -1 if "behind" in kind else 2)
    else:
        linear.target, linear.args = aten.matmul.default, (linear.args[1], copies)
    assert LinearBeforeCopy().run(program) == 0


# --- narrow-linear -----------------------------------------------------------------------------------------------------


def test_narrow_linear_computes_the_rows_that_are_read() -> None:
    program = analysed(plain(style="fused"))
    InsertDensity(Density.constant(grid=(3, 3))).run(program)
    PoolAttention(BlockRange(0, 0)).run(program)
    SparseDense(BlockRange(1, 4), 1, 2, 1).run(program)
    program.stage = "sparse"
    assert NarrowLinear().run(program) == 3
    slices = {
        name: [line.split(" = ")[1].split("  #")[0] for line in text_of(body.graph) if "slice" in line and "weight" in line]
        for name, body in program.bodies.items()
    }
    assert slices == {
        "block0": [],
        "block0.pooling": ["slice.Tensor(@attn.qkv.weight, 0, 64, 96)"],
        "block0.split": ["slice.Tensor(@attn.qkv.weight, 0, 0, 32)", "slice.Tensor(@attn.qkv.weight, 0, 32, 96)"],
    }
    verify(program, "test")
    assert NarrowLinear().run(program) == 0


class Fused(nn.Module):
    """A projection of ``parts`` parts of which some are read, in one of the ways people take them apart."""

    def __init__(self, how: str, parts: int, read: list[int], bias: bool) -> None:
        super().__init__()
        self.how, self.parts, self.read = how, parts, read
        self.layer = nn.Linear(WIDTH, parts * WIDTH, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        y = self.layer(x)
        match self.how:
            case "chunk":
                pieces = y.chunk(self.parts, dim=-1)
            case "split":
                pieces = y.split([WIDTH] * self.parts, dim=-1)
            case "slices":
                pieces = [y[..., i * WIDTH : (i + 1) * WIDTH] for i in range(self.parts)]
            case "unbind":
                heads = y.reshape(batch, tokens, self.parts, 3, WIDTH // 3).permute(2, 0, 3, 1, 4).unbind(0)
                pieces = [piece.transpose(1, 2).flatten(2) for piece in heads]
            case "merged axes":
                heads = y.reshape(batch * tokens, self.parts, 3, -1).unbind(1)
                pieces = [piece.reshape(batch, tokens, WIDTH) for piece in heads]
            case "stated size":
                pieces = (
                    y.view(batch, 1, tokens, self.parts * WIDTH).flatten(1, 2).view(batch, tokens, -1).chunk(self.parts, -1)
                )
            case "twice":
                heads = y.unflatten(-1, (self.parts, WIDTH)).reshape(batch, tokens, self.parts, 3, -1).unbind(2)
                pieces = [piece.flatten(2) for piece in heads]
            case "index":
                heads = y.unflatten(-1, (self.parts, 3, -1)).transpose(1, 2)
                pieces = [heads[:, i].flatten(2) for i in range(self.parts)]
        return sum((pieces[i] * (k + 1) for k, i in enumerate(self.read)), x)


@few(3)
@given(
    st.sampled_from(["chunk", "split", "slices", "unbind", "index", "merged axes", "stated size", "twice"]),
    st.integers(2, 4).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1, max_size=n))),
    st.booleans(),
)
def test_narrow_linear_is_exact(how: str, parts: tuple[int, set[int]], bias: bool) -> None:
    count, chosen = parts
    read = sorted(chosen)
    module, needed = Fused(how, count, read, bias), read[-1] - read[0] + 1
    if needed == count:
        program = lone_block(module, torch.randn(2, 7, WIDTH))
        assert NarrowLinear().run(program) == 0
        return
    program = check_exact(NarrowLinear(), module)
    (linear,) = program.bodies["block0"].graph.find_nodes(op="call_function", target=aten.linear.default)
    assert linear.meta["val"].shape[-1] == needed * WIDTH


@pytest.mark.parametrize(
    "tail", [lambda y: y.chunk(3, -1)[0] + y.mean(), lambda y: y.flip(-1)[..., :WIDTH], lambda y: y.softmax(-1)[..., :WIDTH]]
)
def test_narrow_linear_leaves_what_reads_all_rows(tail) -> None:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, 3 * WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + tail(self.layer(x))

    assert NarrowLinear().run(lone_block(All(), torch.randn(2, 7, WIDTH))) == 0


# --- share -------------------------------------------------------------------------------------------------------------


class Repeats(nn.Module):
    """The same expressions several times, and some that only look the same."""

    def __init__(self, repeats: list[str]) -> None:
        super().__init__()
        self.repeats = repeats
        self.layer, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for kind in self.repeats:
            match kind:
                case "layer":
                    y = y + self.layer(x)
                case "other":
                    y = y + self.other(x)
                case "norm":
                    y = y * F.layer_norm(x, (WIDTH,))
                case "power":
                    y = y + x**2
                case "power of a float":
                    y = y + x**2.0
        return y


@few(3)
@given(st.lists(st.sampled_from(["layer", "other", "norm", "power", "power of a float"]), min_size=2, max_size=6))
def test_share_is_exact(repeats: list[str]) -> None:
    module = Repeats([*repeats, repeats[0]])
    program = check_exact(Share(), module)
    graph = program.bodies["block0"].graph
    assert counts(graph, aten.linear.default) == len({"layer", "other"} & set(repeats))
    assert counts(graph, aten.layer_norm.default) == len({"norm"} & set(repeats))


def test_share_keeps_random_numbers_apart() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.rand_like(x) - torch.rand_like(x) + F.dropout(x, 0.5, True) - F.dropout(x, 0.5, True)

    program = lone_block(Noisy(), torch.randn(2, 7, WIDTH))
    assert Share().run(program) == 0


def test_share_prints_one_modulation_of_two() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, 2 * WIDTH)

        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            shift, scale = self.layer(F.silu(c))[:, None].chunk(2, -1)
            x = F.layer_norm(x, (WIDTH,)) * (1 + scale) + shift
            shift, scale = self.layer(F.silu(c))[:, None].chunk(2, -1)
            return x * (1 + scale) + shift

    program = check_exact(Share(), Twice(), torch.randn(2, WIDTH, dtype=torch.float64))
    remove_dead(program.bodies["block0"].graph)
    operators = [line.split(" = ")[1].split("(")[0] for line in text_of(program.bodies["block0"].graph) if " = " in line]
    assert operators == [
        "input", "input", "silu.default", "linear.default", "slice.Tensor", "unsqueeze.default", "chunk.default", "getitem", "getitem",
        "layer_norm.default", "add.Tensor", "mul.Tensor", "add.Tensor", "mul.Tensor", "add.Tensor",
    ]  # fmt: skip
