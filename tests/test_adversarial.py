"""Models that do what the common ones do not, looked at more closely than a row of ``tests.adversarial`` can."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify import SDTM, CaptureError, Density, GridError, Policy, RewriteError, sparsify
from sparsify.testing import DiTSpec, assert_equivalent

from .helpers import POLICY, inputs, plain
from .oracle import plain_dit_run
from .plain_dit import Attention, Block, PlainDiT, randomised
from .test_exact import oracle_trunk


def scale_by(factor: float) -> Callable[..., torch.Tensor]:
    return lambda module, args, output: output * factor


def hooks_on_blocks(model: PlainDiT) -> None:
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(scale_by(1 + index / 10))


def hook_inside_one_block(model: PlainDiT) -> None:
    model.blocks[3].attn.register_forward_hook(scale_by(3.0))


def modules_in_a_plain_list(model: PlainDiT) -> None:
    class Extra(Block):
        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return super().forward(x, c) + self.extra[0](x)

    for block in model.blocks:
        block.__class__, block.extra = Extra, [nn.Linear(32, 32)]


def bound_methods_of_other_objects(model: PlainDiT) -> None:
    class Scale:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    class Scaled(Block):
        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return self.act(super().forward(x, c))

    for index, block in enumerate(model.blocks):
        block.__class__, block.act = Scaled, Scale(1 + index / 10).__call__


@pytest.mark.parametrize(
    "change", [hooks_on_blocks, hook_inside_one_block, modules_in_a_plain_list, bound_methods_of_other_objects]
)
def test_dense_policy_is_still_the_model(change: Callable[[PlainDiT], None]) -> None:
    model = plain()
    change(model)
    sparse = sparsify(model, Policy.dense(), example_inputs=inputs())
    given = inputs(3)
    assert torch.equal(sparse(*given), model(*given))


@pytest.mark.parametrize("example", [1, 2])
def test_code_that_asks_for_the_batch_size(example: int) -> None:
    class Centred(PlainDiT):
        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x - x.mean(0, keepdim=True) if x.shape[0] > 1 else x * 2, t, y)

    model = randomised(Centred()).eval()
    sparse = sparsify(model, Policy.dense(), example_inputs=inputs(example))
    for batch in (1, 2, 1, 3):
        given = inputs(batch)
        assert torch.equal(sparse(*given), model(*given))
    assert len(sparse._stages) == 2


def test_python_randomness_is_refused() -> None:
    class Drop(Block):
        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return x if self.training and random.random() < 0.5 else super().forward(x, c)

    model = plain().train()
    for block in model.blocks:
        block.__class__ = Drop
    state = random.getstate()
    with pytest.raises(CaptureError, match="Python's random module"):
        sparsify(model, POLICY, example_inputs=inputs())
    assert random.getstate() == state


def written_out(logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(self: Attention, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.projections(x)
        bias = x[..., :1].transpose(1, 2)[:, None]  # one number a key
        out = logits(q @ k.transpose(-2, -1), bias).softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).flatten(2))

    return forward


@pytest.mark.parametrize(
    ("logits", "recognised"),
    [
        (lambda qk, bias: qk * 0.3 + bias, True),
        (lambda qk, bias: qk / 3 * 2 + bias, True),
        (lambda qk, bias: (qk + bias) * 0.3, False),
        (lambda qk, bias: torch.add(qk, bias, alpha=5), False),
        (lambda qk, bias: qk + bias + bias, False),
    ],
    ids=["scale, mask", "two scales, mask", "mask, scale", "alpha", "two masks"],
)
def test_scale_and_mask_around_attention(logits: Any, recognised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attention, "forward", written_out(logits))
    model = plain().double()
    x, t, y = inputs()
    pooling_only = Policy(1, (), 5)
    if not recognised:
        with pytest.raises(RewriteError, match="no attention over the trunk's tokens"):
            sparsify(model, pooling_only, example_inputs=(x.double(), t, y))
        return
    sparse = sparsify(model, pooling_only, example_inputs=(x.double(), t, y), savings=False)  # blocks as they are called
    c, tokens = model.conditioning(t, y), model.embed(x.double())
    assert (sparse.get_submodule("blocks.5")(tokens, c) - model.blocks[5](tokens, c)).abs().max() <= 1e-12


def test_an_operator_between_recover_blocks_is_not_lost() -> None:
    class Between(PlainDiT):
        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            c, x = self.conditioning(t, y), self.embed(x)
            for index, block in enumerate(self.blocks):
                x = block(x, c)
                x = x * 5 if index == 4 else x
            return self.finish(x, c)

    policy, given = Policy(0, SDTM(1, 3, 2, 0), 0, Density.constant(grid=(3, 3))), inputs()
    model = randomised(Between()).eval()
    sparse = sparsify(model, policy, example_inputs=given)
    x, t, y = given
    c, plain_run = model.conditioning(t, y), plain_dit_run(model.conditioning(t, y))

    def run(block: Any, queries: torch.Tensor, keys: torch.Tensor, pooling: bool) -> torch.Tensor:
        return plain_run(block, queries, keys, pooling) * (5 if block is model.blocks[4] else 1)

    tokens = oracle_trunk(sparse, policy, model.blocks, model.embed(x), run, (8, 8), (3, 3))
    assert (sparse(*given) - model.finish(tokens, c)).abs().max() <= 1e-5


class WithTable(Block):
    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.table[:, : x.shape[1]], c)


class WithCounter(Block):
    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.arange(x.shape[1])[None, :, None] / 100, c)


class WithTriangle(Block):
    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return super().forward(x, c) + F.scaled_dot_product_attention(x, x, x, mask)


class WithBranch(Block):
    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return super().forward(x * 2 if x.shape[1] >= 40 else x, c)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (WithTable, "one entry per token but depends on their number alone"),
        (WithCounter, "one entry per token but depends on their number alone"),
        (WithTriangle, "one entry per token but depends on their number alone"),
        (WithBranch, "its code takes another path for"),
    ],
)
def test_positions_and_conditions_inside_blocks_are_refused(block: type[Block], reason: str) -> None:
    model = plain()
    for module in model.blocks:
        module.__class__ = block
        module.register_buffer("table", torch.randn(1, 64, 32))
    with pytest.raises(RewriteError, match=reason):
        sparsify(model, Policy(0, SDTM(1, 3, 1, 1), 0), example_inputs=inputs())
    given = inputs()
    assert torch.equal(sparsify(model, Policy.dense(), example_inputs=given)(*given), model(*given))


def test_tokens_in_windows_need_a_grid() -> None:
    class Windows(PlainDiT):
        def embed(self, x: torch.Tensor) -> torch.Tensor:
            z = self.x_embedder(x)
            b, c, h, w = z.shape
            z = z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
            return z.reshape(b, (h // 2) * (w // 2), 4, c).reshape(b, h * w, c)

    with pytest.raises(GridError, match="not the axes of an input"):
        sparsify(randomised(Windows()).eval(), POLICY, example_inputs=inputs())


# Tokens of one column: tracing takes the width for one token, and their number has no axes of the latent in it.
COLUMN = DiTSpec(depth=3, grid=(4, 1), patch=2, positions="learned", mask="keys")


@pytest.mark.parametrize("grid", [(4, 1), (-1, 1), (1, 4), (1, 4, 1)])
def test_one_column_of_tokens_on_a_given_grid_is_pooled_as_a_sequence(grid: tuple[int, ...]) -> None:
    model, given = COLUMN.build(), COLUMN.example_inputs(batch=3)
    line, pooled = ((4,), (2,)), tuple(2 if side in (4, -1) else 1 for side in grid)
    made, expected = (
        sparsify(model, Policy(0, SDTM(1, 1, 1, 0), 0, Density.constant(grid=sparse)), COLUMN.example_inputs(), grid=dense)
        for dense, sparse in ((grid, pooled), line)
    )
    with torch.no_grad():
        for sparse in (made, expected):
            for name, parameter in sparse.named_parameters():
                if name.startswith("sparsify_"):
                    parameter.fill_(0.25)
    assert_equivalent(made, expected, given)
    with pytest.raises(AssertionError):
        assert_equivalent(made, model, given)


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ((2, 2), r"grid \(2, 2\) has the right number of tokens, but .* the trunk has 4 \(.*or pass \(4,\) to pool along"),
        ((2, -1), r"grid \(2, -1\) has the right number of tokens, but "),
        ((3, 1), r"grid \(3, 1\) has 3 tokens but the trunk has 4 \("),
    ],
)
def test_other_grids_for_one_column_of_tokens_are_refused_truly(grid: tuple[int, ...], reason: str) -> None:
    with pytest.raises(GridError, match=reason):
        sparsify(COLUMN.build(), Policy.dense(), COLUMN.example_inputs(), grid=grid)


def test_a_line_is_not_taken_for_the_axes_that_a_model_has() -> None:
    spec = DiTSpec(depth=3, grid=(2, 2), patch=2)
    with pytest.raises(GridError, match=r"grid \(4, 1\) is not the grid \(2, 2\) that the model makes"):
        sparsify(spec.build(), Policy.dense(), spec.example_inputs(), grid=(4, 1))


def test_token_order_of_a_transposed_image() -> None:
    class Transposed(PlainDiT):
        def embed(self, x: torch.Tensor) -> torch.Tensor:
            return self.x_embedder(x).transpose(2, 3).flatten(2).transpose(1, 2)

    sparse = sparsify(randomised(Transposed(image=(12, 20))).eval(), POLICY, example_inputs=inputs(2, (12, 20)))
    assert sparse.report().grid == (10, 6)


def test_explicit_casts_hold_under_autocast() -> None:
    class Precise(Block):
        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            h = self.modulation[1](c)[:, :32].float()
            return super().forward(x, c) + ((h * 1000 + 1) - h * 1000)[:, None]

    model = plain()
    for block in model.blocks:
        block.__class__ = Precise
    sparse = sparsify(model, Policy(1, (), 5), example_inputs=inputs(), savings=False)  # blocks as they are called
    x, c = torch.randn(2, 64, 32), torch.randn(2, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sparse.get_submodule("blocks.5")(x, c), model.blocks[5](x, c))
