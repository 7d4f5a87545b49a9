"""Published models in their published sizes, with random weights and the inputs of one call: for the CLI and benchmarks.

They are diffusers' classes in the paper's configurations; the compiler itself knows none of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .errors import InputError

# width per head, heads, depth
_DIT = {"DiT-S/2": (64, 6, 12), "DiT-B/2": (64, 12, 12), "DiT-L/2": (64, 16, 24), "DiT-XL/2": (72, 16, 28)}


def dit(name: str = "DiT-XL/2", resolution: int = 512, depth: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """``DiTTransformer2DModel`` for ImageNet latents at ``resolution`` pixels (latents are an eighth of that).

    Returns:
        The model in evaluation mode, and keyword inputs at batch 1.
    """
    from diffusers import DiTTransformer2DModel

    if name not in _DIT:
        raise InputError(f"name is {name!r}; there are {sorted(_DIT)}.")
    if resolution < 16 or resolution % 16:
        raise InputError(f"resolution is {resolution}; it must be a multiple of 16 (latents of an eighth, patches of 2).")
    head, heads, blocks = _DIT[name]
    size = resolution // 8
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head,
        in_channels=4,
        out_channels=8,
        num_layers=blocks if depth is None else depth,
        sample_size=size,
        num_embeds_ada_norm=1000,
    ).eval()
    inputs = {
        "hidden_states": torch.randn(1, 4, size, size),
        "timestep": torch.full((1,), 500),
        "class_labels": torch.full((1,), 207),
    }
    return model, inputs


def pixart(resolution: int = 512, depth: int = 28, text_tokens: int = 120) -> tuple[nn.Module, dict[str, Any]]:
    """``PixArtTransformer2DModel`` in the configuration of PixArt-alpha XL/2.

    Returns:
        The model in evaluation mode, and keyword inputs at batch 1.
    """
    from diffusers import PixArtTransformer2DModel

    size = resolution // 8
    model = PixArtTransformer2DModel(
        sample_size=size,
        num_layers=depth,
        caption_channels=4096,
        use_additional_conditions=False,
    ).eval()
    inputs = {
        "hidden_states": torch.randn(1, 4, size, size),
        "encoder_hidden_states": torch.randn(1, text_tokens, 4096),
        "encoder_attention_mask": torch.ones(1, text_tokens),
        "timestep": torch.full((1,), 500),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return model, inputs


def flux_stack(
    resolution: int = 512, double: int = 2, single: int = 4, heads: int = 24, text_tokens: int = 512
) -> tuple[nn.Module, dict[str, Any]]:
    """``FluxTransformer2DModel`` in the widths of Flux.1 but with few of its 19 double and 38 single stream blocks.

    A block costs what it costs in Flux.1; all of them would need 48 GB in float32. With the default counts it is 5 GB.

    Returns:
        The model in evaluation mode, and keyword inputs at batch 1.
    """
    from diffusers import FluxTransformer2DModel

    if resolution < 16 or resolution % 16:
        raise InputError(f"resolution is {resolution}; it must be a multiple of 16 (latents of an eighth, packed two by two).")
    model = FluxTransformer2DModel(num_layers=double, num_single_layers=single, num_attention_heads=heads).eval()
    side = resolution // 16
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    inputs = {
        "hidden_states": torch.randn(1, side * side, 64),
        "encoder_hidden_states": torch.randn(1, text_tokens, 4096),
        "pooled_projections": torch.randn(1, 768),
        "timestep": torch.full((1,), 0.5),
        "img_ids": torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float(),
        "txt_ids": torch.zeros(text_tokens, 3),
    }
    return model, inputs
