"""Drop-in checks with real pipelines: ``pipe.transformer = sparsify(pipe.transformer, policy)`` and images come out.

The pipelines are diffusers' own, with tiny random components; guidance, schedulers, latents and decoding are theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsify import SDTM, Density, Policy, SparseModel, sparsify

from .zoo.entry import randomised

diffusers = pytest.importorskip("diffusers")

STEPS = 4
POLICY = Policy(1, SDTM(1, 2, 1, 0), 1, Density.paper(r_min=0.5, r_max=0.85))


def _vae(channels: int, shift: float | None = None) -> Any:
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), latent_channels=channels, norm_num_groups=4, shift_factor=shift, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return randomised(vae, seed=1)


def class_conditional(scheduler: str) -> tuple[Any, dict[str, Any]]:
    """DiTPipeline; a guidance scale above 1 doubles the batch."""
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=6,
        sample_size=16,
        num_embeds_ada_norm=1000,
    )
    schedulers = {"DDIM": diffusers.DDIMScheduler, "DPM-Solver": diffusers.DPMSolverMultistepScheduler}
    pipe = diffusers.DiTPipeline(randomised(transformer), _vae(4), schedulers[scheduler]())
    return pipe, {"class_labels": [3, 7], "guidance_scale": 4.0, "output_type": "np"}


def text_to_image() -> tuple[Any, dict[str, Any]]:
    """StableDiffusion3Pipeline with flow-matching Euler steps and embedded prompts."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=6, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=20, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=randomised(transformer), vae=_vae(4, shift=0.1), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    text = torch.randn(2, 2, 7, 12, generator=torch.Generator().manual_seed(2))
    pooled = torch.randn(2, 2, 20, generator=torch.Generator().manual_seed(3))
    prompt = {"prompt_embeds": text[0], "pooled_prompt_embeds": pooled[0]}
    prompt |= {"negative_prompt_embeds": text[1], "negative_pooled_prompt_embeds": pooled[1]}
    return pipe, {**prompt, "guidance_scale": 5.0, "height": 32, "width": 32, "output_type": "np"}


CASES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "DiT, DDIM": lambda: class_conditional("DDIM"),
    "DiT, DPM-Solver": lambda: class_conditional("DPM-Solver"),
    "SD3, flow-matching Euler": text_to_image,
}


def images(pipe: Any, call: dict[str, Any]) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    return torch.from_numpy(pipe(**call, num_inference_steps=STEPS, generator=generator).images)


@pytest.mark.parametrize("case", CASES)
def test_the_dense_policy_draws_the_same_images(case: str) -> None:
    pipe, call = CASES[case]()
    want = images(pipe, call)
    assert want.std() > 1e-3  # else equal images would say nothing
    pipe.transformer = sparsify(pipe.transformer, Policy.dense())
    assert (images(pipe, call) - want).abs().max() <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_a_sparse_policy_draws_images(case: str) -> None:
    pipe, call = CASES[case]()
    want = images(pipe, call)
    seen: list[tuple[int, ...]] = []
    pipe.transformer = sparse = sparsify(pipe.transformer, POLICY)
    assert isinstance(sparse, SparseModel)
    got = images(pipe, call)
    assert got.shape == want.shape and bool(torch.isfinite(got).all())
    assert 1e-4 < (got - want).abs().max() <= 1.0  # untrained, so other images, but images
    # Guided calls have twice the batch, and every step but the last few asks for fewer tokens than the image has.
    block = sparse.get_submodule(sparse.program.paths[2])
    block.register_forward_pre_hook(
        lambda module, args: seen.append(tuple(args[sparse.program.body_of(sparse.program.block_nodes[2]).tokens].shape))
    )
    images(pipe, call)
    tokens = [shape[1] for shape in seen]
    assert len(tokens) == STEPS and {shape[0] for shape in seen} == {4}
    assert max(tokens) < sparse.report().blocks[2].tokens_dense and len(set(tokens)) > 1 and tokens == sorted(tokens)
