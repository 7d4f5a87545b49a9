"""Text to video: spatial and temporal blocks in turn, cross-attention with rotary tables, joint sequences of text and frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .entry import Entry, noise
from .images_2 import build

GRIDS = ((3, 4, 6), (4, 5, 4))
CHANNELS, CONTEXT, TEXT, HEADS, HEAD, PATCH, DEPTH = 5, 36, 7, 3, 16, 2, 8


def _latents(batch: int, size: int, channels: int = CHANNELS) -> torch.Tensor:
    t, h, w = GRIDS[size]
    return noise(batch, channels, t, h * PATCH, w * PATCH, seed=1)


def _text(batch: int) -> torch.Tensor:
    return noise(batch, TEXT, CONTEXT, seed=2)


def _present(batch: int) -> torch.Tensor:
    """Which tokens of the text are there; the last prompt is shorter."""
    mask = torch.ones(batch, TEXT)
    mask[-1, 5:] = 0
    return mask


def _wan(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": _latents(batch, size),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": _text(batch),
        "return_dict": False,
    }


def _vace(batch: int, size: int) -> dict[str, Any]:
    t, h, w = GRIDS[size]
    control = noise(batch, 9, t, h * PATCH, w * PATCH, seed=4)
    return {**_wan(batch, size), "control_hidden_states": control, "control_hidden_states_scale": torch.tensor([0.8, 1.2])}


def _latte(batch: int, size: int) -> dict[str, Any]:
    return {**_wan(batch, size), "enable_temporal_attentions": True}


def _tables(size: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotary embedding over (time, height, width), as the pipeline makes them."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    t, h, w = GRIDS[size]
    cos, sin = get_3d_rotary_pos_embed(width, ((0, 0), (h, w)), (h, w), t, grid_type="linspace")
    return cos, sin


def _cogvideo(batch: int, size: int) -> dict[str, Any]:
    given = {**_wan(batch, size), "hidden_states": _latents(batch, size).transpose(1, 2).contiguous()}
    return {**given, "image_rotary_emb": _tables(size, HEAD)}


def _allegro(batch: int, size: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    t, h, w = GRIDS[size]
    tables = get_3d_rotary_pos_embed_allegro(24, ((0, 0), (h, w)), (h, w), t)
    places = torch.cartesian_prod(*(grid.long() for grid in tables[3:])).T.reshape(3, 1, -1).contiguous()
    whole = torch.ones(batch, t, h * PATCH, w * PATCH)
    given = {**_wan(batch, size), "attention_mask": whole, "encoder_attention_mask": _present(batch)}
    return {**given, "encoder_hidden_states": _text(batch)[:, None], "image_rotary_emb": (tables[:3], tuple(places))}


WAN: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": CONTEXT,
    "freq_dim": 24,
    "ffn_dim": 80,
    "num_layers": DEPTH,
    "rope_max_seq_len": 32,
}


def _entry(
    name: str, inputs: Callable[[int, int], dict[str, Any]], family: str = "video", sizes: int = 2, **config: Any
) -> Entry:
    def make() -> nn.Module:
        return build(name, **config)

    return Entry(name, family, make, inputs, lambda size: GRIDS[size], sizes)


HEADED: dict[str, Any] = {"num_attention_heads": HEADS, "attention_head_dim": HEAD, "in_channels": CHANNELS}

MODELS: list[Entry] = [
    _entry("WanTransformer3DModel", _wan, "cross-attention", **WAN),
    _entry("SkyReelsV2Transformer3DModel", _wan, "cross-attention", **WAN),
    _entry("ChronoEditTransformer3DModel", _wan, "cross-attention", **WAN),
    _entry("WanVACETransformer3DModel", _vace, "cross-attention", **WAN, vace_layers=[0, 4], vace_in_channels=9),
    _entry(
        "LatteTransformer3DModel",
        _latte,
        "cross-attention",
        1,  # a learned position for each of its frames
        **HEADED,
        out_channels=CHANNELS,
        num_layers=4,
        cross_attention_dim=HEADS * HEAD,
        caption_channels=CONTEXT,
        sample_size=12,
        patch_size=PATCH,
        video_length=3,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    ),
    _entry(
        "CogVideoXTransformer3DModel",
        _cogvideo,
        "joint streams",
        **HEADED,
        out_channels=CHANNELS,
        time_embed_dim=22,
        text_embed_dim=CONTEXT,
        num_layers=DEPTH,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=True,
    ),
    _entry(
        "AllegroTransformer3DModel",
        _allegro,
        "cross-attention",
        **{**HEADED, "attention_head_dim": 24},
        out_channels=CHANNELS,
        num_layers=DEPTH,
        cross_attention_dim=HEADS * 24,
        caption_channels=CONTEXT,
        sample_height=8,
        sample_width=12,
        sample_frames=3,
    ),
]

LEFT_OUT: dict[str, str] = {}
