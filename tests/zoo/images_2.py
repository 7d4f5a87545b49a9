"""More images: complex rotary tables, text packed in front of the image, blocks of U-Nets, and Shap-E's sequence of latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .entry import Entry, noise, randomised

PATCH, CHANNELS, TEXT, CONTEXT, POOLED, CLASSES = 2, 11, 7, 26, 21, 17
GRIDS = ((6, 9), (5, 10))
SQUARES = ((6, 6), (10, 10))  # the classes that take the root of the number of tokens for both sides
DEPTH, HEADS, HEAD, WIDTH = 8, 4, 16, 64
LENGTH = 24  # of the latent sequence of Shap-E, a learned position for each of it

HEADED: dict[str, Any] = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}


def grid_of(size: int) -> tuple[int, ...]:
    return GRIDS[size]


def square_of(size: int) -> tuple[int, ...]:
    return SQUARES[size]


def build(name: str, **config: Any) -> nn.Module:
    import diffusers

    model = randomised(getattr(diffusers, name)(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # of unit gain, so that attention and conditions count
                parameter.mul_(2)
            if parameter.ndim == 4:  # a convolution, which sums over more than its last dimension
                parameter.mul_((parameter.shape[-1] / parameter[0].numel()) ** 0.5)
    return model


def latents(batch: int, grid: tuple[int, ...], patch: int = PATCH, channels: int = CHANNELS) -> torch.Tensor:
    return noise(batch, channels, grid[0] * patch, grid[1] * patch, seed=1)


def text(batch: int, length: int = TEXT, width: int = CONTEXT, seed: int = 2) -> torch.Tensor:
    return noise(batch, length, width, seed=seed)


def mask(batch: int, length: int = TEXT) -> torch.Tensor:
    """One where there is text; every second row is three shorter."""
    lengths = length - 3 * (torch.arange(batch) % 2)
    return (torch.arange(length)[None] < lengths[:, None]).long()


def inputs_of(batch: int, size: int, time: float, **more: Any) -> dict[str, Any]:
    """A latent image in patches and its timestep, an integer one where `time` is."""
    tensors = {"hidden_states": latents(batch, GRIDS[size]), "timestep": torch.full((batch,), time)}
    return {**tensors, "return_dict": False, **more}


def captioned(batch: int) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": text(batch), "encoder_attention_mask": mask(batch)}


def labelled(batch: int, size: int) -> dict[str, Any]:
    labels = (5 + 4 * torch.arange(batch)) % CLASSES
    return inputs_of(batch, size, 500, hidden_states=latents(batch, SQUARES[size]), class_labels=labels)


def _make_lumina() -> nn.Module:
    return build(
        "LuminaNextDiT2DModel",
        sample_size=24,
        in_channels=CHANNELS,
        hidden_size=WIDTH,
        num_layers=DEPTH,
        num_attention_heads=HEADS,
        num_kv_heads=2,
        multiple_of=32,
        cross_attention_dim=CONTEXT,
    )


def _inputs_lumina(batch: int, size: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    return inputs_of(
        batch,
        size,
        0.5,
        encoder_hidden_states=text(batch),
        encoder_mask=mask(batch),
        image_rotary_emb=get_2d_rotary_pos_embed_lumina(HEAD, 20, 20),
        cross_attention_kwargs={"base_sequence_length": 36},
    )


def _make_lumina_2() -> nn.Module:
    return build(
        "Lumina2Transformer2DModel",
        sample_size=24,
        in_channels=CHANNELS,
        hidden_size=WIDTH,
        num_layers=DEPTH,
        num_refiner_layers=2,
        num_attention_heads=HEADS,
        num_kv_heads=2,
        multiple_of=32,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(33, 23, 23),
        cap_feat_dim=CONTEXT,
    )


def _inputs_lumina_2(batch: int, size: int) -> dict[str, Any]:
    return inputs_of(batch, size, 0.5, **captioned(batch))


def _make_prx() -> nn.Module:
    return build(
        "PRXTransformer2DModel",
        in_channels=CHANNELS,
        context_in_dim=CONTEXT,
        hidden_size=WIDTH,
        mlp_ratio=2.0,
        num_heads=HEADS,
        depth=DEPTH,
        axes_dim=[HEAD // 2, HEAD // 2],
    )


def _inputs_prx(batch: int, size: int) -> dict[str, Any]:
    return inputs_of(batch, size, 0.5, encoder_hidden_states=text(batch), attention_mask=mask(batch).bool())


def _make_patched() -> nn.Module:
    return build(
        "Transformer2DModel",
        **HEADED,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=DEPTH,
        attention_bias=True,
        sample_size=SQUARES[0][0] * PATCH,
        patch_size=PATCH,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=CLASSES,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )


def _make_single() -> nn.Module:
    return build(
        "Transformer2DModel",
        **HEADED,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=DEPTH,
        cross_attention_dim=WIDTH,
        attention_bias=True,
        sample_size=12,
        patch_size=PATCH,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=CONTEXT,
    )


def _inputs_single(batch: int, size: int) -> dict[str, Any]:
    sizes = {"resolution": None, "aspect_ratio": None}
    return inputs_of(batch, size, 500, added_cond_kwargs=sizes, **captioned(batch))


def _make_continuous(name: str = "Transformer2DModel", **config: Any) -> nn.Module:
    return build(
        name,
        **HEADED,
        in_channels=2 * CHANNELS,
        num_layers=DEPTH,
        norm_num_groups=CHANNELS,
        cross_attention_dim=CONTEXT,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm",
        **config,
    )


def _inputs_continuous(batch: int, size: int) -> dict[str, Any]:
    """With one timestep for the batch: the norm looks it up and halves the first dimension of what it finds."""
    image = latents(batch, GRIDS[size], patch=1, channels=2 * CHANNELS)
    return inputs_of(batch, size, 500, hidden_states=image, timestep=torch.tensor(500), **captioned(batch))


def _make_dreamlite() -> nn.Module:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.unets.unet_dreamlite import DreamLiteAttnProcessor2_0

    model = _make_continuous("DreamLiteTransformer2DModel", qk_norm="rms_norm", num_kv_heads=2, ff_mult=3)
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(DreamLiteAttnProcessor2_0())  # as its U-Net does: the default one wants as many key heads
    return model


def _make_shap_e() -> nn.Module:
    return build(
        "PriorTransformer",
        **HEADED,
        num_layers=DEPTH,
        embedding_dim=CHANNELS,
        num_embeddings=LENGTH,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        embedding_proj_norm_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
        embedding_proj_dim=POOLED,
        clip_embed_dim=2 * CHANNELS,
    )


def _inputs_shap_e(batch: int, size: int) -> dict[str, Any]:
    sequence = noise(batch, LENGTH, CHANNELS, seed=1)
    return inputs_of(batch, size, 500, hidden_states=sequence, proj_embedding=noise(batch, POOLED, seed=2))


MODELS: list[Entry] = [
    Entry("LuminaNextDiT2DModel", "cross-attention", _make_lumina, _inputs_lumina, grid_of),
    Entry("Lumina2Transformer2DModel", "single stream", _make_lumina_2, _inputs_lumina_2, grid_of),
    Entry("PRXTransformer2DModel", "cross-attention", _make_prx, _inputs_prx, grid_of),
    Entry("Transformer2DModel", "class-conditional", _make_patched, labelled, square_of),
    Entry("Transformer2DModel-single", "cross-attention", _make_single, _inputs_single, grid_of),
    Entry("Transformer2DModel-continuous", "cross-attention", _make_continuous, _inputs_continuous, grid_of),
    Entry("DreamLiteTransformer2DModel", "cross-attention", _make_dreamlite, _inputs_continuous, grid_of),
    Entry("PriorTransformer", "other", _make_shap_e, _inputs_shap_e, lambda size: (LENGTH,), sizes=1),
]
