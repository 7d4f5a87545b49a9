"""Each pass by its printed IR and its refusals; provenance; the verifier."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsify import Density
from sparsify.attention import SDPA, Attention
from sparsify.ops import restore_tokens
from sparsify.passes import (
    BlockRange,
    Cleanup,
    FuseAttention,
    InsertDensity,
    Pipeline,
    PoolAttention,
    SparseDense,
)
from sparsify.text import graph_text, program_text
from sparsify.verify import verify

from .helpers import analysed, plain

aten = torch.ops.aten
DENSITY = InsertDensity(Density.constant(grid=(3, 3)))


def functions(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


# --- pool-attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["separate", "manual-after"])
def test_pool_attention_leaves_no_queries_and_keys(style: str) -> None:
    program = analysed(plain(style=style))
    FuseAttention().run(program)
    assert PoolAttention(BlockRange(0, 1)).run(program) == 2
    assert [node.meta["body"] for node in program.block_nodes] == ["block0.pooling"] * 2 + ["block0"] * 4
    text = re.sub("  # .*", "", graph_text(program.bodies["block0.pooling"].graph))
    assert "@attn.v.weight" in text and "@attn.proj.weight" in text
    assert not any(word in text for word in ("attn.q", "attn.k", "scaled_dot", "softmax"))
    (mean,) = program.bodies["block0.pooling"].graph.find_nodes(op="call_function", target=aten.mean.dim)
    assert mean.args[1:] == ([-2], True)
    assert mean.meta["provenance"].pass_name == "pool-attention"
    assert mean.meta["provenance"].origin.startswith("scaled_dot_product_attention")
    verify(program, "test")


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[True, False, True, True]]),
        torch.tensor([[0.0, -torch.inf, 0.3, -0.2]], dtype=torch.float64),
        torch.rand(2, 1, 4, 4, dtype=torch.float64),
        torch.tensor([[True] * 4, [False] * 4, [True, False, False, True], [False] * 4]),
    ],
    ids=["boolean", "additive", "for each query", "queries that see nothing"],
)
def test_masked_pooling_is_attention_with_equal_logits(mask: torch.Tensor) -> None:
    """The oracle is attention itself with queries of zero."""
    values = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mode = FakeTensorMode()
    graph = fx.Graph()
    value, given = graph.placeholder("value"), graph.placeholder("mask")
    value.meta["val"], given.meta["val"] = mode.from_tensor(values), mode.from_tensor(mask)
    attention = Attention.of(graph.call_function(SDPA, (value, value, value, given)))
    graph.output(PoolAttention(BlockRange(0, 0))._mean_of_values(graph, attention))
    graph.eliminate_dead_code()
    got = fx.GraphModule(torch.nn.Module(), graph)(values, mask)
    want = torch.nn.functional.scaled_dot_product_attention(torch.zeros_like(values), values, values, mask)
    assert (got - want).abs().max() < 1e-12


# --- fuse-attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("style", "scale"), [("manual", 1.0), ("manual-after", 8**-0.5)])
def test_fuse_attention_recognises_what_is_written_out(style: str, scale: float) -> None:
    program = analysed(plain(style=style))
    assert "aten.softmax.int" in functions(program.bodies["block0"].graph)
    assert FuseAttention().run(program) == 1
    graph = program.bodies["block0"].graph
    (node,) = graph.find_nodes(op="call_function", target=SDPA)
    assert node.kwargs["scale"] == pytest.approx(scale)
    assert not {"aten.softmax.int", "aten.matmul.default"} & set(functions(graph))
    verify(program, "test")
    assert FuseAttention().run(program) == 0


def written(score: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.projections(x)
        out = score(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))

    return forward


@pytest.mark.parametrize(
    "score",
    [
        lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(dim=-2) @ v,
        lambda q, k, v: ((q @ k.transpose(-2, -1)) ** 2).softmax(dim=-1) @ v,
        lambda q, k, v: (w := (q @ k.transpose(-2, -1)).softmax(dim=-1)) @ v + w.mean(),
    ],
    ids=["softmax over queries", "squared logits", "weights used twice"],
)
def test_fuse_attention_leaves_what_only_looks_like_attention(score, monkeypatch: pytest.MonkeyPatch) -> None:
    from .plain_dit import Attention

    monkeypatch.setattr(Attention, "forward", written(score))
    program = analysed(plain())
    assert FuseAttention().run(program) == 0
    assert DENSITY.run(program) == 1
    assert SparseDense(BlockRange(0, 5)).run(program) == 0
    assert "in a way that is not recognised as attention" in program.skips[-1].reason


# --- density and sparse-dense ------------------------------------------------------------------------------------------


def test_density_stands_at_the_entry() -> None:
    program = analysed(plain())
    assert DENSITY.run(program) == 1
    kinds = [(node.op, str(node.target)) for node in program.graph.nodes if node.op != "get_attr"]
    assert kinds[:3] == [("placeholder", name) for name in ("x", "t", "y")]
    position = [target for _, target in kinds].index("sparsify_density")
    assert all("sym_size" in target or "floordiv" in target for _, target in kinds[3:position])
    assert [node.name for node in program.pooled_nodes] == ["pooled_height", "pooled_width"]
    assert all(node.target is operator.getitem for node in program.pooled_nodes)
    assert DENSITY.run(program) == 0
    assert "density node already" in program.skips[-1].reason
    verify(program, "test")


def test_sparse_dense_in_golden_ir() -> None:
    program = analysed(plain(style="separate"))
    Pipeline(
        (FuseAttention(), DENSITY, PoolAttention(BlockRange(0, 0)), SparseDense(BlockRange(1, 5), 1, 2, 1), Cleanup())
    ).run(program)
    lines = [
        line.split(": ", 1)[0].strip() + " = " + line.split(" = ", 1)[1]
        for line in graph_text(program.graph).splitlines()
        if " = " in line
    ]
    start = next(i for i, line in enumerate(lines) if "blocks.0" in line)
    end = next(i for i, line in enumerate(lines) if "blocks.5" in line)
    assert [line.split("  # ")[0] for line in lines[start : end + 1]] == [
        "%blocks_0 = block0.pooling @ blocks.0(%add_1, %add)",
        "%pool_tokens = pool_tokens(%blocks_0, [%floordiv, %floordiv_1], [%pooled_height, %pooled_width])",
        "%blocks_1 = block0.split @ blocks.1(%pool_tokens, %add, %blocks_0)",
        "%blocks_2 = block0 @ blocks.2(%blocks_1, %add)",
        "%blocks_3 = block0 @ blocks.3(%blocks_2, %add)",
        "%restore_tokens = restore_tokens(%blocks_3, [%pooled_height, %pooled_width], [%floordiv, %floordiv_1])",
        "%linear_default = linear.default(%restore_tokens, @sparsify_restore.0.sparse.weight, @sparsify_restore.0.sparse.bias)",
        "%linear_default_1 = linear.default(%blocks_0, @sparsify_restore.0.dense.weight, @sparsify_restore.0.dense.bias)",
        "%add_tensor = add.Tensor(%linear_default, %linear_default_1)",
        "%blocks_4 = block0.split @ blocks.4(%add_tensor, %add, %blocks_3)",
        "%blocks_5 = block0 @ blocks.5(%blocks_4, %add)",
    ]


def test_split_keeps_queries_residual_and_mlp_on_one_stream() -> None:
    program = analysed(plain(style="separate"))
    Pipeline((DENSITY, SparseDense(BlockRange(0, 5)))).run(program)
    body = program.bodies["block0.split"]
    assert [node.name for node in body.placeholders] == ["x", "c", "x_keys"]
    (attention,) = self_attentions_with_any_keys(body.graph)
    sources = {name: upstream(getattr(attention, name)) for name in ("query", "key", "value")}
    assert ("x" in sources["query"], "x_keys" in sources["query"]) == (True, False)
    for name in ("key", "value"):
        assert ("x" in sources[name], "x_keys" in sources[name]) == (False, True)
    text = graph_text(body.graph)
    assert text.count("@attn.q.weight") == text.count("@attn.k.weight") == text.count("@mlp.0.weight") == 1
    assert text.count("@modulation.1.weight") == 1, "what does not depend on the tokens is computed once"


def self_attentions_with_any_keys(graph: fx.Graph):
    return [Attention.of(node) for node in graph.find_nodes(op="call_function", target=SDPA)]


def upstream(node: fx.Node) -> set[str]:
    seen, queue = set(), [node]
    while queue:
        for source in queue.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return {n.name for n in seen if n.op == "placeholder"}


def test_sparse_dense_refuses_with_reasons() -> None:
    program = analysed(plain())
    module = SparseDense(BlockRange(0, 5))
    assert module.run(program) == 0
    assert "run the density pass first" in program.skips[-1].reason
    DENSITY.run(program)
    assert module.run(program) == 1
    assert module.run(program) == 0
    assert "part of a sparse-dense module already" in program.skips[-1].reason


def test_tokens_read_outside_of_the_chain_are_restored_first() -> None:
    program = analysed(plain())
    DENSITY.run(program)
    nodes = program.block_nodes
    with program.graph.inserting_after(nodes[5]):
        leak = program.graph.call_function(aten.add.Tensor, (nodes[5], nodes[1]))
    leak.meta["val"] = nodes[5].meta["val"]
    nodes[5].replace_all_uses_with(leak, delete_user_cb=lambda user: user is not leak)
    assert SparseDense(BlockRange(0, 5)).run(program) == 1
    program.stage = "sparse"
    assert leak.args[1].target is restore_tokens and leak.args[1].args[0] is nodes[1]
    verify(program, "test")


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: torch.nn.functional.avg_pool1d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2),
        lambda x: x.cumsum(dim=1) / x.shape[1],
        lambda x: x.roll(1, dims=1),
        lambda x: x - x.flip(1),
        lambda x: x.softmax(dim=1) * 10,
    ],
    ids=["convolution", "cumulative sum", "roll", "flip", "softmax over tokens"],
)
def test_blocks_that_mix_tokens_besides_attention_are_refused(mix, monkeypatch: pytest.MonkeyPatch) -> None:
    from .plain_dit import Block

    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, c: mix(forward(self, x, c)))
    program = analysed(plain())
    DENSITY.run(program)
    assert SparseDense(BlockRange(0, 5)).run(program) == 0
    assert "something besides attention mixes tokens" in program.skips[-1].reason


# --- cleanup -----------------------------------------------------------------------------------------------------------


def test_cleanup_removes_what_does_nothing_and_nothing_else() -> None:
    program = analysed(plain(dropout=0.5))
    graph = program.bodies["block0"].graph
    before = functions(graph)
    assert "aten.dropout.default" in before
    Cleanup().run(program)
    after = functions(graph)
    assert "aten.dropout.default" not in after and len(after) < len(before)
    assert set(before) - set(after) <= {"aten.dropout.default", "aten.slice.Tensor", "aten.to.dtype"}
    again = program_text(program)
    Cleanup().run(program)
    assert program_text(program) == again


def test_cleanup_keeps_dropout_that_acts() -> None:
    program = analysed(plain(dropout=0.5).train())
    Cleanup().run(program)
    assert "aten.dropout.default" in functions(program.bodies["block0"].graph)
