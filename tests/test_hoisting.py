"""What leaves the blocks: values that all of them have in common, and those that come from the prompt alone."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sparsify import SDTM, Density, Policy, SparseModel, sparsify
from sparsify.passes import OnceForBlocks, PromptOnce
from sparsify.text import graph_text
from sparsify.verify import verify

from .helpers import analysed, few, inputs, plain
from .plain_dit import PlainDiT, randomised
from .test_exact import randomise_restores, tiny_diffusers_dit

aten = torch.ops.aten
POLICY = Policy(1, SDTM(1, 1, 1, 0), 1, Density.paper(r_min=0.5, r_max=0.9))
WIDTH, TEXT = 16, 6


class Block(nn.Module):
    """Attention over tokens, then over text, with its ways of using time and text switched on one by one."""

    def __init__(self, kinds: frozenset[str]) -> None:
        super().__init__()
        self.kinds = kinds
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(TEXT, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ada = nn.Linear(8, 2 * WIDTH)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if "embeds time" in self.kinds:
            phases = t[:, None] / 100 * torch.exp(-torch.arange(4, dtype=x.dtype))
            shift, scale = self.ada(torch.cat([phases.sin(), phases.cos()], -1))[:, None].chunk(2, -1)
            x = x * (1 + scale) + shift
        q, k, v = self.qkv(F.layer_norm(x, (WIDTH,))).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])
        if "noise" in self.kinds:
            text = F.dropout(text, 0.5, self.training)
        k, v = self.kv(text.tanh() if "tanh" in self.kinds else text).chunk(2, -1)
        if "text sees tokens" in self.kinds:
            k = k + x.mean(1, keepdim=True)
        bias = ((1 - mask.to(x.dtype)) * -1e4)[:, None] if "mask" in self.kinds else None
        return x + self.out(F.scaled_dot_product_attention(self.q(x), k, v, attn_mask=bias))


class TextDiT(nn.Module):
    def __init__(self, kinds: frozenset[str]) -> None:
        super().__init__()
        self.kinds = kinds
        self.embed, self.caption, self.head = nn.Conv2d(3, WIDTH, 2, 2), nn.Linear(TEXT, TEXT), nn.Linear(WIDTH, 12)
        self.blocks = nn.ModuleList(Block(kinds) for _ in range(5))
        if "shared weights" in kinds:
            for block in self.blocks:
                block.ada, block.kv = self.blocks[0].ada, self.blocks[0].kv

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        b, _, h, w = x.shape
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        text = self.caption(text)
        if "text with time" in self.kinds:
            text = text + t[:, None, None] / 1000
        for block in self.blocks:
            tokens = block(tokens, t, text, mask)
        image = self.head(tokens).reshape(b, h // 2, w // 2, 2, 2, 3).permute(0, 5, 1, 3, 2, 4).reshape(b, 3, h, w)
        return image, F.dropout(text, 0.3, self.training) * 1.0


def a_call(t: float = 300.0, seed: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64, generator=generator)
    text = torch.randn(2, 5, TEXT, dtype=torch.float64, generator=generator)
    return x, torch.full((2,), t, dtype=torch.float64), text, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def both(kinds: frozenset[str], training: bool = False) -> tuple[SparseModel, SparseModel]:
    """With all savings and with none, the same weights."""
    model = randomised(TextDiT(kinds)).double().train(training)
    made = [sparsify(copy.deepcopy(model), POLICY, a_call(), savings=savings) for savings in (True, False)]
    for sparse in made:
        torch.manual_seed(3)
        randomise_restores(sparse)
    return made[0], made[1]


KINDS = ("embeds time", "noise", "tanh", "text sees tokens", "mask", "shared weights", "text with time")


@few(2)
@given(st.sets(st.sampled_from(KINDS)), st.booleans())
def test_results_and_gradients_stay(kinds: set[str], training: bool) -> None:
    sparse, plain_ = both(frozenset(kinds), training)
    verify(sparse.program, "all savings")
    for t in (300.0, 900.0):
        results = []
        for model in (sparse, plain_):
            torch.manual_seed(7)  # both draw the same numbers for dropout, if each draws as often as the model does
            results.append(model(*a_call(t)))
        (image, text), (want_image, want_text) = results
        if "noise" not in kinds or not training:
            assert (image - want_image).abs().max() <= 1e-12
            assert (text - want_text).abs().max() <= 1e-12
            names = [name for name, _ in sparse.named_parameters()]
            got = torch.autograd.grad(image.square().sum(), [sparse.get_parameter(n) for n in names], allow_unused=True)
            want = torch.autograd.grad(want_image.square().sum(), [plain_.get_parameter(n) for n in names], allow_unused=True)
            for name, g, w in zip(names, got, want, strict=True):
                zero = torch.zeros(())
                assert ((zero if g is None else g) - (zero if w is None else w)).abs().max() <= 1e-9, name
        with torch.no_grad():
            assert (sparse.eval()(*a_call(t))[0] - plain_.eval()(*a_call(t))[0]).abs().max() <= 1e-12
        sparse.train(training)
        plain_.train(training)


def in_blocks(sparse: SparseModel, target: object) -> int:
    return sum(len(body.graph.find_nodes(op="call_function", target=target)) for body in sparse.program.bodies.values())


def prompt_names(sparse: SparseModel) -> list[list[str]]:
    return [[node.name for node in graph.find_nodes(op="placeholder")] for graph in sparse.program.prompts.values()]


def parameters_of(sparse: SparseModel) -> set[str]:
    return {str(n.target) for g in sparse.program.prompts.values() for n in g.find_nodes(op="get_attr")}


def test_keys_and_values_of_text_leave_the_blocks() -> None:
    sparse, _ = both(frozenset({"tanh", "mask"}))
    assert prompt_names(sparse) == [["text"]], "the latents, the timestep and a short mask stay"
    assert parameters_of(sparse) == {"caption.weight", "caption.bias"} | {
        f"blocks.{i}.kv.{kind}" for i in range(5) for kind in ("weight", "bias")
    }
    (graph,) = sparse.program.prompts.values()
    lines = [re.sub(r"%\w+: f64\[.*?\] = |%\w+, ", "", line).strip() for line in graph_text(graph).splitlines()]
    assert [re.sub(r"_default(_\d+)?$", "", line) for line in lines[:3]] == [
        "input",
        "linear.default(@caption.weight, @caption.bias)  # prompt-once from linear",
        "tanh.default(%linear_default)  # prompt-once from tanh",
    ]
    assert [line.split("(")[0] for line in lines[3:-1]] == ["linear.default"] * 5
    assert in_blocks(sparse, aten.tanh.default) == 0, "what all blocks do to the text is done once"


@pytest.mark.parametrize(
    ("kinds", "leaves"),
    [
        ({"text with time"}, False),
        ({"text sees tokens"}, True),
    ],
    ids=["text that changes with the time", "text that is mixed with tokens later"],
)
def test_what_is_not_the_prompts_alone_stays(kinds: set[str], leaves: bool) -> None:
    sparse, _ = both(frozenset(kinds))
    assert any("kv" in name for name in parameters_of(sparse)) == leaves
    assert "caption.weight" in parameters_of(sparse) or not leaves


def test_random_numbers_are_drawn_at_every_call() -> None:
    sparse, _ = both(frozenset({"noise"}), training=True)
    assert not any("kv" in name for name in parameters_of(sparse))
    with torch.no_grad():
        assert (sparse(*a_call())[0] - sparse(*a_call())[0]).abs().max() > 1e-6


def test_what_the_model_returns_is_its_callers() -> None:
    """The captions come back as they are; nobody else may hold that tensor."""
    sparse, _ = both(frozenset())
    call = a_call()
    with torch.no_grad():
        first = sparse(*call)
        first[1].zero_()
        second = sparse(*call)
    assert second[1].abs().max() > 0
    assert torch.equal(first[0], second[0])


def test_once_for_blocks_prints_what_it_moved() -> None:
    model = randomised(tiny_diffusers_dit(5)).eval()
    call = {"hidden_states": torch.randn(2, 4, 16, 16), "timestep": torch.tensor([9, 9]), "class_labels": torch.tensor([3, 7])}
    sparse = sparsify(model, POLICY, call, savings=["once-for-blocks"])
    moved = [line.split("# ")[1] for line in graph_text(sparse.program.graph).splitlines() if "once-for-blocks" in line]
    assert moved[:3] == [f"once-for-blocks from {name}" for name in ("arange", "mul", "div")]
    for body in sparse.program.bodies.values():
        text = graph_text(body.graph)
        assert "_given: " in text and "sin.default" not in text
        assert "@norm1.emb.timestep_embedder.linear_1.weight" in text, "each block's own weights stay with it"
    verify(sparse.program, "test")


def test_modulation_of_each_blocks_own_weights_stays() -> None:
    program = analysed(plain())
    assert OnceForBlocks().run(program) == 1
    moved = [line for line in graph_text(program.graph).splitlines() if "once-for-blocks" in line]
    assert len(moved) == 1 and "silu.default(%add)" in moved[0], "the condition before its own layer in every block"
    assert OnceForBlocks().run(program) == 0
    assert PromptOnce().run(program) == 0, "an embedding of a label is not worth keeping"
    program.stage = "sparse"
    verify(program, "test")


class SharedModulation(nn.Module):
    """All blocks have the same modulation layer."""

    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.inner = PlainDiT(depth=depth)
        for block in self.inner.blocks:
            block.modulation = self.inner.blocks[0].modulation

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.inner(x, t, y)


def test_modulation_that_blocks_share_is_computed_once() -> None:
    model = SharedModulation()
    randomised(model)
    x, t, y = inputs()
    sparse = sparsify(model.eval(), POLICY, (x, t, y))
    plain = sparsify(model.eval(), POLICY, (x, t, y), savings=False)
    linears = sparse.program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    modulations = [node for node in linears if node.meta["val"].shape[-1] == 6 * 32]
    assert len(modulations) == 1
    assert not any("modulation" in str(n.target) for body in sparse.program.bodies.values() for n in body.graph.nodes)
    assert sparse.report().gflops < plain.report().gflops
    with torch.no_grad():
        assert (sparse(x, t, y) - plain(x, t, y)).abs().max() <= 2e-6


def test_sinusoids_of_the_timestep_are_made_once() -> None:
    model = randomised(tiny_diffusers_dit(5)).eval()
    call = {"hidden_states": torch.randn(2, 4, 16, 16), "timestep": torch.tensor([9, 9]), "class_labels": torch.tensor([3, 7])}
    sparse = sparsify(model, POLICY, call)
    sines = [
        node for graph in sparse.program.graphs.values() for node in graph.nodes if node.target is torch.ops.aten.sin.default
    ]
    assert len(sines) == 1 and sines[0].graph is sparse.program.graph
