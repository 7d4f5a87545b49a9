"""Policies for trunks of several chains, in execution order or one each; and the full check of what they did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sparsify.passes.separate as separate
from sparsify import SDTM, Density, Policy, PolicyError, VerificationError, sparsify

from .helpers import POLICY, inputs, plain
from .plain_dit import Attention, Block
from .zoo.written import MODELS

UVIT = next(entry for entry in MODELS if entry.name == "UViT")
HALF = Density.constant(rate=0.75)


def test_one_policy_covers_all_chains_in_the_order_of_execution() -> None:
    report = sparsify(UVIT.make(), Policy(1, SDTM(1, 5, 1, 0), 1, HALF), UVIT.inputs(2, 0)).report()
    assert report.chains == {"in_blocks": 4, "mid_block": 1, "out_blocks": 4}
    assert [block.path for block in report.blocks] == [
        *(f"in_blocks.{i}" for i in range(4)), "mid_block.0", *(f"out_blocks.{i}" for i in range(4)),
    ]  # fmt: skip
    assert [block.role for block in report.blocks] == ["pooling", "generate", *["sparse"] * 5, "recover", "dense"]
    assert "in_blocks x4 -> mid_block x1 -> out_blocks x4" in str(report)


@pytest.mark.slow
def test_a_policy_for_each_chain_leaves_chains_without_one_as_they_are() -> None:
    policies = {"in_blocks": Policy(1, SDTM(1, 1, 1, 0), 0, HALF), "out_blocks": Policy(0, SDTM(1, 1, 1, 1), 0, HALF)}
    model, arguments = UVIT.make(), UVIT.inputs(2, 0)
    sparse = sparsify(model, policies, arguments, verify="full")
    roles = [block.role for block in sparse.report().blocks]
    assert roles == ["pooling", "generate", "sparse", "recover", "dense", "generate", "sparse", "recover", "dense"]
    only = sparsify(model, {"out_blocks": policies["out_blocks"]}, arguments)
    assert [block.role for block in only.report().blocks][:5] == ["dense"] * 5
    # The same modules in one policy give the same numbers.
    one = sparsify(model, Policy(0, (SDTM(1, 1, 1, 2), SDTM(1, 1, 1, 1)), 0, HALF), arguments)
    two = sparsify(model, {"in_blocks": Policy(0, SDTM(1, 1, 1, 1), 0, HALF), "out_blocks": policies["out_blocks"]}, arguments)
    assert torch.equal(one(**arguments), two(**arguments))


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"blocks": POLICY}, "policy names the chain 'blocks'; the trunk's chains are 'in_blocks' .4 blocks., 'mid_block'"),
        ({"in_blocks": Policy.paper("DiT-XL/2", 512)}, "policy for the chain 'in_blocks': Policy covers 28 blocks"),
        (
            {"in_blocks": Policy(0, SDTM(1, 1, 1, 1), 0, HALF), "out_blocks": Policy(0, SDTM(1, 1, 1, 1), 0, Density.constant(rate=0.5))},
            "the chains have different densities, .* the trunk has one pooled grid",
        ),
        ({}, "policy is a dict, or holds one; it must be a Policy"),
        ({"in_blocks": "auto"}, "policy is a str, or holds one; it must be a Policy"),
    ],
    ids=["unknown", "depth", "densities", "empty", "kind"],
)  # fmt: skip
def test_policies_that_do_not_fit_the_chains(policies: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        sparsify(UVIT.make(), policies, UVIT.inputs(2, 0))


class Alternating(nn.Module):
    """Even blocks from one list and odd ones from another."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = plain()
        blocks = list(self.whole.blocks)
        self.whole.blocks = nn.ModuleList()
        self.even, self.odd = nn.ModuleList(blocks[::2]), nn.ModuleList(blocks[1::2])

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        c, tokens = self.whole.conditioning(t, y), self.whole.embed(x)
        for even, odd in zip(self.even, self.odd, strict=True):
            tokens = odd(even(tokens, c), c)
        return self.whole.finish(tokens, c)


def test_alternating_chains_share_one_policy() -> None:
    model = Alternating().eval()
    report = sparsify(model, POLICY, inputs(), verify="full").report()
    assert [block.path for block in report.blocks][:3] == ["even.0", "odd.0", "even.1"]
    with pytest.raises(PolicyError, match="the chain 'even' alternates with another one; give one Policy for all 6 blocks"):
        sparsify(model, {"even": Policy(0, SDTM(1, 1, 1, 0), 0)}, inputs())


# --- verify="full" -----------------------------------------------------------------------------------------------------


class Summing(Block):
    """Mixes tokens by a running sum, besides attention."""

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return super().forward(x + x.cumsum(1) / 10, c)


def test_full_check_finds_a_block_whose_queries_alone_give_another_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    for block in model.blocks:
        block.__class__ = Summing
    monkeypatch.setattr(separate, "refusal_to_split", lambda *args: None)  # the check that would refuse it
    sparsify(model, POLICY, inputs())  # the graphs are legal: nothing else notices
    with pytest.raises(VerificationError, match=r"blocks\.1, on its own weights and inputs: something besides attention"):
        sparsify(model, POLICY, inputs(), verify="full")


def test_full_check_finds_a_middle_block_that_stays_dense() -> None:
    class Causal(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.projections(x)
            out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.proj(out.transpose(1, 2).flatten(2))

    model = plain(8)
    model.blocks[5].attn.__class__ = Causal
    policy = Policy(0, SDTM(1, 2, 1, 0) * 2, 0, HALF)
    assert len(sparsify(model, policy, inputs()).report().skipped) == 1
    with pytest.raises(
        VerificationError, match=r"blocks\.4 gets 64 tokens at the pooled grid \(4, 4\), not fewer than the dense 64"
    ):
        sparsify(model, policy, inputs(), verify="full")


def test_full_check_needs_numbers_and_a_known_name() -> None:
    from sparsify import InputError

    model = plain().to("meta")
    meta = tuple(x.to("meta") for x in inputs())
    with pytest.raises(InputError, match="are on the meta device; use real ones"):
        sparsify(model, POLICY, meta, verify="full")
    with pytest.raises(InputError, match="verify is 'all'; it must be 'standard' or 'full'"):
        sparsify(plain(), POLICY, inputs(), verify="all")  # type: ignore[arg-type]


def test_a_failed_check_of_a_later_capture_leaves_the_model_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    sparse = sparsify(model, POLICY, inputs(), verify="full")
    fixed = inputs()
    want = sparse(*fixed)
    monkeypatch.setattr(separate, "refusal_to_split", lambda *args: None)
    for block in model.blocks:
        block.__class__ = Summing
    with pytest.raises(VerificationError):
        sparse.train()(*fixed)
    assert torch.equal(sparse.eval()(*fixed), want) and len(sparse._stages) == 1
