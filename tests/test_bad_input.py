"""Every bad input ends in an error that names what is wrong, and leaves the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sparsify import (
    SDTM,
    Density,
    GridError,
    InputError,
    LoweringError,
    Policy,
    PolicyError,
    RewriteError,
    SparsifyError,
    TrunkError,
    lower,
    sparsify,
)

from .helpers import POLICY, inputs, plain, sparse_plain


class NoTrunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Convolutions(nn.Module):
    """Repeated blocks, but no attention in them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()
        for block in self.inner.blocks:
            block.attn = nn.Identity()

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.inner(x, t, y)


class SharedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = plain(2)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        c = self.inner.conditioning(t, y)
        tokens = self.inner.embed(x)
        for _ in range(3):
            for block in self.inner.blocks:
                tokens = block(tokens, c)
        return self.inner.finish(tokens, c)


class TokensGiven(nn.Module):
    """Takes tokens as they are: no axes are merged anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = plain().blocks

    def forward(self, tokens: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        c = torch.sin(t[:, None].float() * torch.arange(1, 33))
        for block in self.blocks:
            tokens = block(tokens, c)
        return tokens


class NoTimestep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()

    def forward(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        c = self.inner.t_mlp[2](a[:, None] * b[:, None] + torch.zeros(32))
        tokens = self.inner.embed(x)
        for block in self.inner.blocks:
            tokens = block(tokens, c)
        return self.inner.finish(tokens, c)


def tokens_given() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 24, 32), torch.tensor([5, 5])


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[SparsifyError], str]] = {
    "policy and depth disagree": (plain, {"policy": Policy.paper("DiT-XL/2", 512)}, PolicyError, "covers 28 blocks .* the trunk has 6"),
    "too few blocks": (lambda: plain(3), {"policy": Policy.auto()}, PolicyError, "depth is 3"),
    "no trunk": (NoTrunk, {"example_inputs": (torch.ones(2, 3, 4),)}, TrunkError, "no trunk found: NoTrunk"),
    "shared blocks": (SharedBlock, {}, TrunkError, "runs 3 times in one call; blocks that share weights"),
    "no attention": (Convolutions, {}, RewriteError, "changed nothing(.|\n)*no attention over the trunk's tokens"),
    "no grid": (TokensGiven, {"example_inputs": tokens_given()}, GridError, "Pass grid="),
    "grid and tokens disagree": (TokensGiven, {"example_inputs": tokens_given(), "grid": (5, 5)}, GridError, r"grid \(5, 5\) has 25 tokens but the trunk has 24"),
    "grid of nonsense": (TokensGiven, {"example_inputs": tokens_given(), "grid": (24, 0)}, GridError, "integers of at least 1"),
    "pooled grid larger than the grid": (plain, {"policy": Policy(0, SDTM(), 0, Density.constant(grid=(8, 9)))}, PolicyError, r"\(8, 9\) is larger than the token grid \(8, 8\)"),
    "wrong number of axes": (plain, {"policy": Policy(0, SDTM(), 0, Density.constant(grid=(4,)))}, PolicyError, "has 1 axes but the token grid"),
    "no timestep": (NoTimestep, {"example_inputs": (torch.randn(2, 3, 16, 16), torch.ones(2), torch.ones(2))}, InputError, "Pass timestep="),
    "unknown timestep": (plain, {"timestep": "when"}, InputError, "timestep='when' is no tensor input"),
    "missing input": (plain, {"example_inputs": (torch.ones(2, 3, 16, 16),)}, InputError, "missing a required argument: 't'"),
    "unknown input": (plain, {"example_inputs": {"x": torch.ones(1), "z": 1}}, InputError, "do not fit the model's signature"),
    "inputs of another kind": (plain, {"example_inputs": 5}, InputError, "example_inputs is a int"),
    "not a policy": (plain, {"policy": "auto"}, PolicyError, "policy is a str"),
    "not a module": (lambda: print, {}, InputError, "model is a builtin_function_or_method"),  # type: ignore[dict-item,return-value]
    "sparsified already": (lambda: sparse_plain()[1], {}, RewriteError, "sparsified already"),
    "sparsified inside": (lambda: nn.Sequential(sparse_plain()[1]), {}, RewriteError, "sparsified already"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_input_is_named_and_the_model_is_unchanged(case: tuple) -> None:
    make, options, error, message = case
    model = make()
    is_module = isinstance(model, nn.Module)
    before = {key: value.clone() for key, value in model.state_dict().items()} if is_module else {}
    attributes = [sorted(vars(module)) for module in model.modules()] if is_module else []
    arguments = {"policy": POLICY, "example_inputs": inputs()} | options
    with pytest.raises(error, match=message):
        sparsify(model, arguments.pop("policy"), **arguments)
    if is_module:
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
        assert [sorted(vars(module)) for module in model.modules()] == attributes


def test_grid_given_by_the_caller_is_used() -> None:
    policy = Policy(1, SDTM(1, 2, 1, 1), 0, Density.constant(grid=(2, 3)))
    sparse = sparsify(TokensGiven(), policy, example_inputs=tokens_given(), grid=(4, 6))
    assert sparse.report().grid == (4, 6)
    assert sparse(*tokens_given()).shape == (2, 24, 32)


def test_calls_that_do_not_fit_the_capture() -> None:
    _, sparse = sparse_plain()
    x, t, y = inputs()
    with pytest.raises(InputError, match=r"timestep 1001.* is outside \[0, 1000\]"):
        sparse(x, t + 501, y)
    with pytest.raises(InputError, match="timestep -1"):
        sparse(x, t - 501, y)
    with pytest.raises(InputError, match="missing a required argument"):
        sparse(x, t)
    with pytest.raises(InputError, match=r"input \['t'\] is 5 \(int\) but was a tensor"):
        sparse(x, 5, y)
    with pytest.raises(InputError, match="differ in structure"):
        sparse(x, [t, t], y)
    given = inputs(3)
    assert sparse(*given).shape == (3, 3, 16, 16), "and it still works"


def test_a_constant_that_changes_is_captured_anew_and_a_new_tensor_is_named() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()

        def forward(self, x: Any, t: Any, y: Any, scale: float = 1.0, extra: Any = None) -> Any:
            return {"sample": self.inner(x, t, y) * scale}

    sparse, given = sparsify(Optional(), POLICY, example_inputs=inputs()), inputs()
    once = sparse(*given)["sample"]
    assert torch.equal(sparse(*given, scale=1.0)["sample"], once)
    assert torch.equal(sparse(*given, scale=2.0)["sample"], 2 * once)
    with pytest.raises(InputError, match=r"input \['extra'\] is a tensor but was None"):
        sparse(*inputs(), extra=torch.ones(1))


def test_sizes_the_model_cannot_take_end_in_the_models_own_error() -> None:
    model, sparse = sparse_plain()
    given = inputs(2, (24, 16))
    with pytest.raises(RuntimeError, match="must match the size"):
        model(*given)
    with pytest.raises(RuntimeError, match="must match the size"):
        sparse(*given)
    assert sparse(*inputs()).isfinite().all()


def test_part_of_a_policy_that_is_refused_is_in_the_report() -> None:
    model = plain()
    model.blocks[0].attn = copy.deepcopy(model.blocks[0].attn)
    model.blocks[0].attn.forward = lambda x: x.cumsum(dim=1) * 0.1
    sparse = sparsify(model, Policy(1, SDTM(1, 2, 1, 1), 0), example_inputs=inputs())
    (skip,) = sparse.report().skipped
    assert (skip.pass_name, skip.where) == ("pool-attention", "blocks.0")
    assert sparse.report().blocks[0].role == "dense" and sparse.report().blocks[1].role == "generate"


def test_lowering_errors() -> None:
    model, sparse = sparse_plain()
    with pytest.raises(LoweringError, match=r"target 'cuda' does not exist; there are \['aot_inductor', 'eager', 'inductor'"):
        lower(sparse, "cuda")
    with pytest.raises(
        LoweringError, match="target inductor has no option \\['speed'\\]; its options are \\['shapes', 'mode'\\]"
    ):
        lower(sparse, "inductor", speed=3)
    with pytest.raises(LoweringError, match="not a PlainDiT"):
        lower(model)  # type: ignore[arg-type]
