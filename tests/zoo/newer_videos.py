"""Text to video and image editing, newer classes: two streams of other lengths, timesteps per frame, faces between blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .entry import Entry, noise
from .images_2 import build
from .videos import CHANNELS, CONTEXT, GRIDS, HEAD, HEADS, PATCH, TEXT, _latents, _present, _tables, _text

WIDTH = HEADS * HEAD
LENGTH = 10  # of the sound that goes with a video


def _joy(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": _latents(batch, size),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": _text(batch),
        "return_dict": False,
    }


def _joy_plus(batch: int, size: int) -> dict[str, Any]:
    """Patches of one target, as its pipeline packs them."""
    t, h, w = GRIDS[size]
    return {
        **_joy(batch, size),
        "hidden_states": noise(batch, t * h * w, CHANNELS, 1, PATCH, PATCH, seed=1),
        "encoder_hidden_states_mask": _present(batch),
        "shape_list": [[(t, h, w)]] * batch,
    }


def _consis(batch: int, size: int) -> dict[str, Any]:
    return {
        **_joy(batch, size),
        "hidden_states": _latents(batch, size).transpose(1, 2).contiguous(),
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": _tables(size, HEAD),
    }


def _kandinsky5(batch: int, size: int) -> dict[str, Any]:
    t, h, w = GRIDS[size]
    return {
        **_joy(batch, size),
        "hidden_states": noise(batch, t, h * PATCH, w * PATCH, CHANNELS, seed=1),
        "pooled_projections": noise(batch, 28, seed=3),
        "visual_rope_pos": [torch.arange(t), torch.arange(h), torch.arange(w)],
        "text_rope_pos": torch.arange(TEXT),
    }


def _kandinsky6(batch: int, size: int) -> dict[str, Any]:
    t, h, w = GRIDS[size]
    return {
        **_joy(batch, size),
        "hidden_states": noise(batch, t, h * PATCH, w * PATCH, CHANNELS, seed=1),
        "pooled_projections": noise(batch, 28, seed=3),
        "audio_hidden_states": noise(batch, LENGTH, 11, seed=4),
    }


def _anyflow(batch: int, size: int) -> dict[str, Any]:
    frames = GRIDS[size][0]
    return {
        **_joy(batch, size),
        "hidden_states": _latents(batch, size).transpose(1, 2).contiguous(),
        "timestep": torch.full((batch, frames), 500.0),
        "r_timestep": torch.full((batch, frames), 250.0),
    }


def _helios(batch: int, size: int) -> dict[str, Any]:
    return {**_joy(batch, size), "timestep": torch.full((batch,), 500)}


def _animate(batch: int, size: int) -> dict[str, Any]:
    """The first frame is the character; the others have a pose and four pictures of a face each."""
    t, h, w = GRIDS[size]
    return {
        **_helios(batch, size),
        "hidden_states": _latents(batch, size, 12),
        "pose_hidden_states": noise(batch, 4, t - 1, h * PATCH, w * PATCH, seed=4),
        "face_pixel_values": noise(batch, 3, 4 * (t - 1), 16, 16, seed=5),
    }


def _entry(name: str, inputs: Callable[[int, int], dict[str, Any]], family: str = "video", **config: Any) -> Entry:
    options = config.pop("options", lambda size: {})
    return Entry(name, family, lambda: build(name, **config), inputs, lambda size: GRIDS[size], options=options)


_HEADS: dict[str, Any] = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}
_SIDES: dict[str, Any] = {"in_channels": CHANNELS, "out_channels": CHANNELS}
_JOY: dict[str, Any] = {
    **_SIDES, "hidden_size": WIDTH, "num_attention_heads": HEADS, "text_dim": CONTEXT, "num_layers": 8, "rope_dim_list": [4, 6, 6],
}  # fmt: skip
_WAN: dict[str, Any] = {**_HEADS, "text_dim": CONTEXT, "freq_dim": 32, "ffn_dim": 40, "num_layers": 8}
_KANDINSKY: dict[str, Any] = {
    "in_visual_dim": CHANNELS, "out_visual_dim": CHANNELS, "in_text_dim": CONTEXT, "in_text_dim2": 28, "time_dim": 32,
    "model_dim": WIDTH, "ff_dim": 40, "num_text_blocks": 1, "num_visual_blocks": 8, "axes_dims": (4, 6, 6),
}  # fmt: skip
_SOUND: dict[str, Any] = {"visual_cond": False, "in_audio_dim": 11, "out_audio_dim": 11}
MODELS: list[Entry] = [
    _entry("JoyImageEditTransformer3DModel", _joy, "joint streams", **_JOY),
    _entry("JoyImageEditPlusTransformer3DModel", _joy_plus, "joint streams", **_JOY, options=lambda size: {"grid": GRIDS[size]}),
    _entry(
        "ConsisIDTransformer3DModel", _consis, **_HEADS, **_SIDES, time_embed_dim=32, text_embed_dim=CONTEXT, num_layers=8,
        sample_width=12, sample_height=8, sample_frames=9, max_text_seq_length=TEXT, use_rotary_positional_embeddings=True,
    ),
    _entry("Kandinsky5Transformer3DModel", _kandinsky5, **_KANDINSKY),
    _entry("Kandinsky6Transformer3DModel", _kandinsky6, **_KANDINSKY, **_SOUND),
    _entry("AnyFlowTransformer3DModel", _anyflow, **_WAN, **_SIDES),
    _entry("HeliosTransformer3DModel", _helios, **_WAN, **_SIDES, rope_dim=(4, 6, 6)),
    _entry(
        "WanAnimateTransformer3DModel", _animate, **_WAN, in_channels=12, latent_channels=4, out_channels=4,
        image_dim=None, motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=16, face_encoder_num_heads=2, inject_face_latents_blocks=4,
    ),
]  # fmt: skip

LEFT_OUT: dict[str, str] = {
    "BriaFibo2Transformer2DModel": "not tried yet: it reads text lengths with .tolist(), and some blocks alone have cross-attention",
    "RFD4ProteinaTransformer": "no denoiser of a grid: its tokens are the residues and atoms of a protein, with a bias per pair",
    "AnyFlowFARTransformer3DModel": "its forward needs a flex-attention BlockMask per chunk and compressed chunks of another patch "
    "size, which have no common grid",
    "Kandinsky6SRTransformer3DModel": "its tokens stand in tiles of 8 x 8 under a block-sparse flex-attention mask: they are sparse "
    "already, and in no row-major order",
    "WanAnimate2Transformer3DModel": "takes a key-value cache that an earlier call fills and a flex-attention BlockMask",
}
