"""One stream of text and image in lists or packed rows, refiners in front of the trunk, experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .entry import Entry, noise
from .images_2 import build

GRIDS = ((6, 8), (4, 10))
CHANNELS, CONTEXT, TEXT, PATCH, DEPTH = 5, 36, 7, 2, 8


def grid_of(size: int) -> tuple[int, ...]:
    return GRIDS[size]


def _latents(batch: int, size: int) -> torch.Tensor:
    h, w = GRIDS[size]
    return noise(batch, CHANNELS, h * PATCH, w * PATCH, seed=1)


def _make_z_image() -> nn.Module:
    return build(
        "ZImageTransformer2DModel",
        in_channels=CHANNELS,
        dim=48,
        n_layers=DEPTH,
        n_refiner_layers=2,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=CONTEXT,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 32, 32],
    )


def _inputs_z_image(batch: int, size: int) -> dict[str, Any]:
    images = [image[:, None] for image in _latents(batch, size)]
    texts = [noise(TEXT, CONTEXT, seed=10 + index) for index in range(batch)]
    return {"x": images, "t": torch.full((batch,), 0.5), "cap_feats": texts, "return_dict": False}


def _make_omnigen() -> nn.Module:
    return build(
        "OmniGenTransformer2DModel",
        in_channels=CHANNELS,
        hidden_size=60,  # not the length of any sequence here: 8 + 4 * 10 would be 48
        num_attention_heads=3,
        num_key_value_heads=3,
        intermediate_size=64,
        num_layers=DEPTH,
        pad_token_id=0,
        vocab_size=90,
        pos_embed_max_size=24,
        time_step_dim=22,
        rope_scaling={"short_factor": [1.0] * 10, "long_factor": [1.0] * 10},
    )


def _inputs_omnigen(batch: int, size: int) -> dict[str, Any]:
    h, w = GRIDS[size]
    length = TEXT + 1 + h * w
    return {
        "hidden_states": _latents(batch, size),
        "timestep": torch.full((batch,), 0.5),
        "input_ids": (torch.arange(TEXT)[None] + 3 * torch.arange(batch)[:, None]) % 89 + 1,
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(batch, length, length),
        "position_ids": torch.arange(length)[None].expand(batch, -1).contiguous(),
        "return_dict": False,
    }


def _make_hunyuan_image() -> nn.Module:
    return build(
        "HunyuanImageTransformer2DModel",
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=3,
        attention_head_dim=16,
        num_layers=4,
        num_single_layers=4,
        num_refiner_layers=1,
        text_embed_dim=CONTEXT,
        rope_axes_dim=(8, 8),
    )


def _inputs_hunyuan_image(batch: int, size: int) -> dict[str, Any]:
    h, w = GRIDS[size]
    present = torch.ones(batch, TEXT, dtype=torch.bool)
    present[-1, 5:] = False
    return {
        "hidden_states": noise(batch, CHANNELS, h, w, seed=1),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, TEXT, CONTEXT, seed=2),
        "encoder_attention_mask": present,
        "return_dict": False,
    }


def _make_hidream() -> nn.Module:
    return build(
        "HiDreamImageTransformer2DModel",
        patch_size=PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=4,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=3,
        caption_channels=[CONTEXT, 38],
        text_emb_dim=22,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(12, 16),
        llama_layers=list(range(8)),
    )


def _inputs_hidream(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, CHANNELS, 12, 16, seed=1),
        "timesteps": torch.full((batch,), 500),
        "encoder_hidden_states_t5": noise(batch, TEXT, CONTEXT, seed=2),
        "encoder_hidden_states_llama3": noise(8, batch, TEXT, 38, seed=3),
        "pooled_embeds": noise(batch, 22, seed=4),
        "return_dict": False,
    }


MODELS: list[Entry] = [
    Entry("ZImageTransformer2DModel", "single stream", _make_z_image, _inputs_z_image, grid_of),
    Entry("OmniGenTransformer2DModel", "single stream", _make_omnigen, _inputs_omnigen, grid_of),
    Entry("HunyuanImageTransformer2DModel", "joint streams", _make_hunyuan_image, _inputs_hunyuan_image, grid_of),
    Entry("HiDreamImageTransformer2DModel", "mixture of experts", _make_hidream, _inputs_hidream, grid_of, sizes=1),
]

LEFT_OUT: dict[str, str] = {}
