"""The compiled model equals a plain eager SparseDiT with the same weights: outputs and gradients of every parameter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import nn

from sparsify import SDTM, Density, Policy, SparseModel, sparsify

from . import oracle
from .helpers import slow
from .plain_dit import PlainDiT, randomised

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def randomise_restores(sparse: SparseModel) -> None:
    """Away from W1 = 0, W2 = I, so that every restore weight shows in the output."""
    for name, parameter in sparse.named_parameters():
        if name.startswith("sparsify_restore"):
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.3 / parameter.shape[-1] ** 0.5)


def restores(sparse: SparseModel) -> list[tuple[torch.Tensor, ...]]:
    return [
        (pair["sparse"].weight, pair["sparse"].bias, pair["dense"].weight, pair["dense"].bias)
        for pair in sparse.sparsify_restore
    ]


def oracle_trunk(
    sparse: SparseModel, policy: Policy, blocks: Any, tokens: torch.Tensor, run: oracle.Run, grid: Any, pooled: Any
):
    modules = [(m.generate, m.sparse, m.recover, m.dense) for m in policy.sdtm]
    return oracle.sparse_trunk(list(blocks), tokens, run, grid, pooled, policy.poolingformer, modules, restores(sparse))


def compare(sparse: SparseModel, twin: nn.Module, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Outputs agree, and so do the gradients that a random cotangent gives to every parameter of model and restores."""
    tolerance = TOLERANCE[actual.dtype]
    assert (actual - expected).abs().max() <= tolerance
    assert expected.abs().max() > 0.05, "a test against zeros proves nothing"
    cotangent = torch.randn_like(actual) / actual.numel() ** 0.5
    mine = dict(sparse.named_parameters())
    theirs = dict(twin.named_parameters()) | {n: p for n, p in mine.items() if n.startswith("sparsify_restore")}
    names = sorted(mine)
    assert names == sorted(theirs)
    got = torch.autograd.grad(actual, [mine[n] for n in names], cotangent, allow_unused=True)
    want = torch.autograd.grad(expected, [theirs[n] for n in names], cotangent, allow_unused=True)
    for name, g, w in zip(names, got, want, strict=True):
        if g is None or w is None:
            # The oracle projects queries and keys that a poolingformer block does not need; their gradient is zero.
            assert all(x is None or not x.any() for x in (g, w)), name
        else:
            scale = max(1.0, float(w.abs().max()))
            assert (g - w).abs().max() <= tolerance * scale, name


POLICIES = {
    "paper-like": Policy(1, SDTM(1, 2, 1, 1), 1, Density.paper(r_min=0.5, r_max=0.9)),
    "two modules": Policy(0, SDTM(1, 0, 1, 0) * 2, 2, Density.constant(grid=(3, 3))),
    "many of each": Policy(2, SDTM(2, 0, 2, 0), 0, Density.constant(rate=0.7)),
    "one token": Policy(1, SDTM(1, 1, 1, 1), 1, Density.constant(grid=(1, 1))),
}


STYLES = ("fused", "manual", "manual-after", "separate")
# Every policy and every style runs every time; all pairs of them, and float32 after the stricter float64, in test-all.
PAIRS = [
    pytest.param(policy, style, id=f"{name}-{style}", marks=() if i in (0, j) else pytest.mark.slow)
    for i, (name, policy) in enumerate(POLICIES.items())
    for j, style in enumerate(STYLES)
]
DTYPES = pytest.mark.parametrize("dtype", [slow(torch.float32), torch.float64], ids=["float32", "float64"])


@DTYPES
@pytest.mark.parametrize(("policy", "style"), PAIRS)
def test_plain_dit_equals_the_eager_oracle(policy: Policy, style: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    policy = (
        policy
        if policy.depth == 6
        else Policy(policy.poolingformer, policy.sdtm, policy.dense + 6 - policy.depth, policy.density)
    )
    model = randomised(PlainDiT(depth=6, style=style)).to(dtype).eval()
    check_plain_dit(model, policy, dtype, batch=3, timesteps=(10, 900))


SIZES = [(depth, image) for depth in (4, 9, 12) for image in ((16, 16), (12, 20), (6, 26))]


@pytest.mark.parametrize(("depth", "image"), [size if i % 4 == 0 else slow(*size) for i, size in enumerate(SIZES)], ids=str)
def test_plain_dit_at_other_depths_and_rectangular_images(depth: int, image: tuple[int, int]) -> None:
    torch.manual_seed(1)
    model = randomised(PlainDiT(depth=depth, image=image)).double().eval()
    for batch in (1, 4):
        check_plain_dit(model, Policy.fit(depth), torch.float64, batch, timesteps=(0, 600, 999))


def check_plain_dit(model: PlainDiT, policy: Policy, dtype: torch.dtype, batch: int, timesteps: tuple[int, ...]) -> None:
    h, w = (side * model.patch for side in model.grid)
    x = torch.randn(batch, 3, h, w, dtype=dtype)
    y = torch.randint(0, 5, (batch,))
    twin = copy.deepcopy(model)
    sparse = sparsify(model, policy, example_inputs=(x, torch.full((batch,), 5), y))
    randomise_restores(sparse)
    for step in timesteps:
        t = torch.full((batch,), step)
        pooled = policy.density.grid_at(step, model.grid)
        c = twin.conditioning(t, y)
        tokens = oracle_trunk(sparse, policy, twin.blocks, twin.embed(x), oracle.plain_dit_run(c), model.grid, pooled)
        compare(sparse, twin, sparse(x, t, y), twin.finish(tokens, c))


def tiny_diffusers_dit(depth: int = 6) -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=depth, sample_size=16,
        norm_num_groups=4, num_embeds_ada_norm=10,
    )  # fmt: skip


@DTYPES
def test_diffusers_dit_equals_the_eager_oracle(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    model = randomised(tiny_diffusers_dit()).to(dtype).eval()
    twin = copy.deepcopy(model)
    policy = Policy(1, SDTM(1, 1, 1, 1), 1, Density.paper(r_min=0.5, r_max=0.9))
    x, y = torch.randn(2, 4, 16, 16, dtype=dtype), torch.tensor([3, 7])
    sparse = sparsify(model, policy, example_inputs={"hidden_states": x, "timestep": torch.tensor([9, 9]), "class_labels": y})
    randomise_restores(sparse)
    for step in (9, 700):
        t = torch.tensor([step, step])
        pooled = policy.density.grid_at(step, (8, 8))
        run = oracle.diffusers_dit_run(t, y)
        tokens = oracle_trunk(sparse, policy, twin.transformer_blocks, twin.pos_embed(x), run, (8, 8), pooled)
        embedded = twin.transformer_blocks[0].norm1.emb(t, y, hidden_dtype=dtype)
        shift, scale = twin.proj_out_1(torch.nn.functional.silu(embedded))[:, None].chunk(2, dim=-1)
        patches = twin.proj_out_2(twin.norm_out(tokens) * (1 + scale) + shift).reshape(2, 8, 8, 2, 2, 8)
        expected = torch.einsum("nhwpqc->nchpwq", patches).reshape(2, 8, 16, 16)
        compare(sparse, twin, sparse(hidden_states=x, timestep=t, class_labels=y).sample, expected)


def tiny_pixart(depth: int = 6) -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=depth, sample_size=16,
        norm_num_groups=4, cross_attention_dim=32, caption_channels=24, use_additional_conditions=False,
    )  # fmt: skip


@DTYPES
@pytest.mark.parametrize("size", [slow((16, 16)), (12, 24)], ids=str)
def test_pixart_equals_the_eager_oracle(size: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    model = randomised(tiny_pixart()).to(dtype).eval()
    twin = copy.deepcopy(model)
    policy = Policy(1, SDTM(1, 2, 1, 0), 1, Density.paper(r_min=0.5, r_max=0.9))
    x, text = torch.randn(2, 4, *size, dtype=dtype), torch.randn(2, 7, 24, dtype=dtype)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    inputs = {
        "hidden_states": x, "encoder_hidden_states": text, "encoder_attention_mask": mask,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip
    sparse = sparsify(model, policy, example_inputs=inputs | {"timestep": torch.tensor([1, 1])})
    randomise_restores(sparse)
    grid = (size[0] // 2, size[1] // 2)
    for step in (1, 990):
        t = torch.tensor([step, step])
        modulation, embedded = twin.adaln_single(t, inputs["added_cond_kwargs"], batch_size=2, hidden_dtype=dtype)
        bias = ((1 - mask.to(dtype)) * -10000.0)[:, None]
        run = oracle.pixart_run(modulation, twin.caption_projection(text), bias)
        pooled = policy.density.grid_at(step, grid)
        tokens = oracle_trunk(sparse, policy, twin.transformer_blocks, twin.pos_embed(x), run, grid, pooled)
        shift, scale = (twin.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        patches = twin.proj_out(twin.norm_out(tokens) * (1 + scale) + shift).reshape(2, *grid, 2, 2, 8)
        expected = torch.einsum("nhwpqc->nchpwq", patches).reshape(2, 8, *size)
        compare(sparse, twin, sparse(timestep=t, **inputs).sample, expected)
