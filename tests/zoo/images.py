"""Text to image and class to image: cross-attention, joint and single streams, long skips, linear attention, masks of text."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .entry import Entry, noise
from .images_2 import (
    CHANNELS,
    CLASSES,
    CONTEXT,
    DEPTH,
    GRIDS,
    HEAD,
    HEADED,
    HEADS,
    PATCH,
    POOLED,
    SQUARES,
    TEXT,
    WIDTH,
    build,
    captioned,
    grid_of,
    inputs_of,
    labelled,
    latents,
    mask,
    square_of,
    text,
)
from .images_2 import MODELS as MORE


def _micro(batch: int, size: int) -> dict[str, torch.Tensor]:
    """What CogView is told of the image: its sizes in pixels and where it was cropped."""
    pixels = torch.tensor(GRIDS[size]).float() * PATCH * 8
    shift = torch.arange(batch)[:, None].float()
    whole = pixels.expand(batch, 2)
    return {"original_size": whole + 16 * shift, "target_size": whole.clone(), "crop_coords": 4 * shift.expand(batch, 2)}


def _make_dit() -> nn.Module:
    return build(
        "DiTTransformer2DModel",
        **HEADED,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=DEPTH,
        sample_size=SQUARES[0][0] * PATCH,
        num_embeds_ada_norm=CLASSES,
    )


def _make_pixart() -> nn.Module:
    return build(
        "PixArtTransformer2DModel",
        num_attention_heads=HEADS,
        attention_head_dim=12,  # of the width, each embedding of the sizes takes a third
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=DEPTH,
        cross_attention_dim=48,
        caption_channels=CONTEXT,
        sample_size=12,
        use_additional_conditions=True,
    )


def _inputs_pixart(batch: int, size: int) -> dict[str, Any]:
    height, width = GRIDS[size]
    sizes = {
        "resolution": torch.tensor([[16.0 * height, 16.0 * width]]).repeat(batch, 1),
        "aspect_ratio": torch.tensor([[height / width]]).repeat(batch, 1),
    }
    return inputs_of(batch, size, 500, added_cond_kwargs=sizes, **captioned(batch))


def _make_hunyuan() -> nn.Module:
    return build(
        "HunyuanDiT2DModel",
        **HEADED,
        in_channels=CHANNELS,
        patch_size=PATCH,
        sample_size=12,
        hidden_size=WIDTH,
        num_layers=DEPTH,
        mlp_ratio=2.0,
        cross_attention_dim=CONTEXT,
        cross_attention_dim_t5=40,
        pooled_projection_dim=POOLED,
        text_len=TEXT,
        text_len_t5=8,
    )


def _inputs_hunyuan(batch: int, size: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    height, width = GRIDS[size]
    return inputs_of(
        batch,
        size,
        500.0,
        encoder_hidden_states=text(batch),
        text_embedding_mask=mask(batch),
        encoder_hidden_states_t5=text(batch, 8, 40, seed=3),
        text_embedding_mask_t5=mask(batch, 8),
        image_meta_size=torch.tensor([[128.0, 128.0, 16.0 * height, 16.0 * width, 0.0, 0.0]]).repeat(batch, 1),
        style=torch.zeros(batch, dtype=torch.long),
        image_rotary_emb=get_2d_rotary_pos_embed(HEAD, ((0, 0), (height, width)), (height, width), output_type="pt"),
    )


def _make_sana() -> nn.Module:
    return build(
        "SanaTransformer2DModel",
        **HEADED,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=DEPTH,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=HEAD,
        cross_attention_dim=WIDTH,
        caption_channels=CONTEXT,
        sample_size=12,
    )


def _inputs_sana(batch: int, size: int) -> dict[str, Any]:
    return inputs_of(batch, size, 500.0, hidden_states=latents(batch, GRIDS[size], patch=1), **captioned(batch))


def _make_sd3(**config: Any) -> nn.Module:
    return build(
        "SD3Transformer2DModel",
        **HEADED,
        sample_size=24,
        in_channels=CHANNELS,
        num_layers=DEPTH,
        joint_attention_dim=CONTEXT,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=POOLED,
        out_channels=CHANNELS,
        pos_embed_max_size=13,
        **config,
    )


def _make_sd3_dual() -> nn.Module:
    return _make_sd3(dual_attention_layers=tuple(range(DEPTH // 2)), qk_norm="rms_norm")


def _inputs_sd3(batch: int, size: int) -> dict[str, Any]:
    return inputs_of(batch, size, 500.0, encoder_hidden_states=text(batch), pooled_projections=noise(batch, POOLED, seed=3))


def _make_auraflow() -> nn.Module:
    return build(
        "AuraFlowTransformer2DModel",
        **HEADED,
        sample_size=24,
        in_channels=CHANNELS,
        num_mmdit_layers=DEPTH // 2,
        num_single_dit_layers=DEPTH // 2,
        joint_attention_dim=CONTEXT,
        caption_projection_dim=WIDTH,
        out_channels=CHANNELS,
        pos_embed_max_size=13 * 13,
    )


def _inputs_auraflow(batch: int, size: int) -> dict[str, Any]:
    return inputs_of(batch, size, 0.5, encoder_hidden_states=text(batch))


def _make_cogview(name: str) -> nn.Module:
    return build(
        name,
        **HEADED,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=DEPTH,
        text_embed_dim=CONTEXT,
        time_embed_dim=40,
        condition_dim=14,
        pos_embed_max_size=13,
        sample_size=24,
    )


def _make_cogview3() -> nn.Module:
    return _make_cogview("CogView3PlusTransformer2DModel")


def _inputs_cogview3(batch: int, size: int) -> dict[str, Any]:
    return inputs_of(batch, size, 500, encoder_hidden_states=text(batch), **_micro(batch, size))


def _make_cogview4() -> nn.Module:
    return _make_cogview("CogView4Transformer2DModel")


def _inputs_cogview4(batch: int, size: int) -> dict[str, Any]:
    return inputs_of(batch, size, 500.0, encoder_hidden_states=text(batch), **_micro(batch, size))


MODELS: list[Entry] = [
    Entry("DiTTransformer2DModel", "class-conditional", _make_dit, labelled, square_of),
    Entry("PixArtTransformer2DModel", "cross-attention", _make_pixart, _inputs_pixart, grid_of),
    Entry("HunyuanDiT2DModel", "long skips", _make_hunyuan, _inputs_hunyuan, grid_of),
    Entry("SanaTransformer2DModel", "linear attention", _make_sana, _inputs_sana, grid_of),
    Entry("SD3Transformer2DModel", "joint streams", _make_sd3, _inputs_sd3, grid_of),
    Entry("SD3Transformer2DModel-dual", "joint streams", _make_sd3_dual, _inputs_sd3, grid_of),
    Entry("AuraFlowTransformer2DModel", "joint streams", _make_auraflow, _inputs_auraflow, grid_of),
    Entry("CogView3PlusTransformer2DModel", "joint streams", _make_cogview3, _inputs_cogview3, grid_of),
    Entry("CogView4Transformer2DModel", "joint streams", _make_cogview4, _inputs_cogview4, grid_of),
    *MORE,
]

LEFT_OUT: dict[str, str] = {
    "Transformer2DModel of patches with norm_type 'ada_norm'": (
        "its own forward fails: with one timestep for the batch, TypeError: Embedding.forward() got an unexpected keyword"
        " argument 'hidden_dtype'; with one for each row, RuntimeError: The size of tensor a (64) must match the size of"
        " tensor b (128) at non-singleton dimension 2"
    ),
    "PriorTransformer of unCLIP": "no token grid: it denoises one embedding, read off the last of a few tokens",
    "DreamLiteTransformer2DModel with use_self_attention=False": "no token mixes with another within its blocks",
}
