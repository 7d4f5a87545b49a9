"""More images: complex rotary tables, text packed in front of the image, blocks of U-Nets, and Shap-E's sequence of latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .entry import Entry, noise
from .images import (
    CHANNELS,
    CLASSES,
    CONTEXT,
    DEPTH,
    GRIDS,
    HEAD,
    HEADED,
    HEADS,
    POOLED,
    SQUARES,
    WIDTH,
    _build,
    _grid,
    _image,
    _labels,
    _latent,
    _mask,
    _square,
    _text,
)

LENGTH = 24  # of the latent sequence of Shap-E, a learned position for each of it


def _make_lumina() -> nn.Module:
    return _build(
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

    return _image(
        batch,
        size,
        0.5,
        encoder_hidden_states=_text(batch),
        encoder_mask=_mask(batch),
        image_rotary_emb=get_2d_rotary_pos_embed_lumina(HEAD, 20, 20),
        cross_attention_kwargs={"base_sequence_length": 36},
    )


def _make_lumina_2() -> nn.Module:
    return _build(
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
    return _image(batch, size, 0.5, encoder_hidden_states=_text(batch), encoder_attention_mask=_mask(batch))


def _make_prx() -> nn.Module:
    return _build(
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
    return _image(batch, size, 0.5, encoder_hidden_states=_text(batch), attention_mask=_mask(batch).bool())


def _make_patched() -> nn.Module:
    return _build(
        "Transformer2DModel",
        **HEADED,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=DEPTH,
        attention_bias=True,
        sample_size=SQUARES[0][0] * 2,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=CLASSES,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )


def _inputs_patched(batch: int, size: int) -> dict[str, Any]:
    return _image(batch, size, 500, hidden_states=_latent(batch, SQUARES[size]), class_labels=_labels(batch))


def _make_single() -> nn.Module:
    return _build(
        "Transformer2DModel",
        **HEADED,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=DEPTH,
        cross_attention_dim=WIDTH,
        attention_bias=True,
        sample_size=12,
        patch_size=2,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=CONTEXT,
    )


def _inputs_single(batch: int, size: int) -> dict[str, Any]:
    sizes = {"resolution": None, "aspect_ratio": None}
    text = {"encoder_hidden_states": _text(batch), "encoder_attention_mask": _mask(batch)}
    return _image(batch, size, 500, added_cond_kwargs=sizes, **text)


def _make_continuous(name: str = "Transformer2DModel", **config: Any) -> nn.Module:
    return _build(
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
    latent = _latent(batch, GRIDS[size], patch=1, channels=2 * CHANNELS)
    text = {"encoder_hidden_states": _text(batch), "encoder_attention_mask": _mask(batch)}
    return _image(batch, size, 500, hidden_states=latent, timestep=torch.tensor(500), **text)


def _make_dreamlite() -> nn.Module:
    return _make_continuous("DreamLiteTransformer2DModel", qk_norm="rms_norm", num_kv_heads=2, ff_mult=3)


def _make_shap_e() -> nn.Module:
    return _build(
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
    latent = noise(batch, LENGTH, CHANNELS, seed=1)
    return _image(batch, size, 500, hidden_states=latent, proj_embedding=noise(batch, POOLED, seed=2))


MODELS: list[Entry] = [
    Entry("LuminaNextDiT2DModel", "cross-attention", _make_lumina, _inputs_lumina, _grid),
    Entry("Lumina2Transformer2DModel", "single stream", _make_lumina_2, _inputs_lumina_2, _grid),
    Entry("PRXTransformer2DModel", "cross-attention", _make_prx, _inputs_prx, _grid),
    Entry("Transformer2DModel", "class-conditional", _make_patched, _inputs_patched, _square),
    Entry("Transformer2DModel-single", "cross-attention", _make_single, _inputs_single, _grid),
    Entry("Transformer2DModel-continuous", "cross-attention", _make_continuous, _inputs_continuous, _grid),
    Entry("DreamLiteTransformer2DModel", "cross-attention", _make_dreamlite, _inputs_continuous, _grid),
    Entry("PriorTransformer", "other", _make_shap_e, _inputs_shap_e, lambda size: (LENGTH,), sizes=1),
]
