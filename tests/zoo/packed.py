"""Text to image on packed latents (batch, tokens, channels): double-stream blocks, then single-stream ones; the grid is in ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .entry import Entry, noise
from .images_2 import build

GRIDS = ((6, 8), (4, 10))
CHANNELS, CONTEXT, TEXT, POOLED, HEADS, HEAD = 20, 36, 7, 28, 3, 16
SHARED: dict[str, Any] = {
    "in_channels": CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD,
    "joint_attention_dim": CONTEXT,
}
DOUBLE: dict[str, Any] = {**SHARED, "num_layers": 4, "num_single_layers": 4}


def _maker(name: str, **config: Any) -> Callable[[], nn.Module]:
    return lambda: build(name, **config)


def _ids(size: int, axes: int = 3) -> torch.Tensor:
    """Where each packed token stands, as the pipelines write it: an index of the image, then row and column."""
    h, w = GRIDS[size]
    ids = torch.zeros(h, w, axes)
    ids[..., 1] += torch.arange(h)[:, None]
    ids[..., 2] += torch.arange(w)[None]
    return ids.flatten(0, 1)


def _present(batch: int) -> torch.Tensor:
    """Which tokens of the text are there; the last prompt is shorter."""
    present = torch.ones(batch, TEXT, dtype=torch.bool)
    present[-1, 5:] = False
    return present


def _packed(batch: int, size: int, time: float = 0.5) -> dict[str, Any]:
    h, w = GRIDS[size]
    return {
        "hidden_states": noise(batch, h * w, CHANNELS, seed=1),
        "encoder_hidden_states": noise(batch, TEXT, CONTEXT, seed=2),
        "timestep": torch.full((batch,), time),
        "return_dict": False,
    }


def _with_ids(batch: int, size: int) -> dict[str, Any]:
    return {**_packed(batch, size), "img_ids": _ids(size), "txt_ids": torch.zeros(TEXT, 3)}


def _flux(batch: int, size: int) -> dict[str, Any]:
    pooled = noise(batch, POOLED, seed=3)
    return {**_with_ids(batch, size), "pooled_projections": pooled, "guidance": torch.full((batch,), 3.5)}


def _flux2(batch: int, size: int) -> dict[str, Any]:
    text = torch.zeros(TEXT, 4)
    text[:, 3] = torch.arange(TEXT)
    ids = {"img_ids": _ids(size, 4), "txt_ids": text}
    return {**_packed(batch, size), **ids, "guidance": torch.full((batch,), 3.5)}


def _bria(batch: int, size: int) -> dict[str, Any]:
    return {**_with_ids(batch, size), "timestep": torch.full((batch,), 500.0)}


def _qwen(batch: int, size: int) -> dict[str, Any]:
    return {**_packed(batch, size), "encoder_hidden_states_mask": _present(batch), "img_shapes": [[(1, *GRIDS[size])]] * batch}


def _given(size: int) -> dict[str, Any]:
    return {"grid": GRIDS[size]}


AXES = {"axes_dims_rope": (4, 6, 6)}
_SMALL_CHROMA = {"approximator_num_channels": 16, "approximator_hidden_dim": 24, "approximator_layers": 2}


def _entry(name: str, inputs: Callable[[int, int], dict[str, Any]], family: str = "joint streams", **config: Any) -> Entry:
    return Entry(name, family, _maker(name, **config), inputs, lambda size: GRIDS[size])


MODELS: list[Entry] = [
    _entry("FluxTransformer2DModel", _flux, **DOUBLE, **AXES, pooled_projection_dim=POOLED, guidance_embeds=True),
    _entry("ChromaTransformer2DModel", _with_ids, **DOUBLE, **AXES, **_SMALL_CHROMA),
    _entry("Flux2Transformer2DModel", _flux2, **DOUBLE, axes_dims_rope=(4, 4, 4, 4), timestep_guidance_channels=32),
    _entry("BriaTransformer2DModel", _bria, **DOUBLE, **AXES),
    _entry("OvisImageTransformer2DModel", _with_ids, **DOUBLE, **AXES, out_channels=CHANNELS),
    _entry("LongCatImageTransformer2DModel", _with_ids, **DOUBLE, **AXES),
    Entry(
        "QwenImageTransformer2DModel",
        "joint streams",
        _maker("QwenImageTransformer2DModel", **SHARED, **AXES, num_layers=8, out_channels=5),
        _qwen,
        lambda size: GRIDS[size],
        options=_given,
    ),
]

LEFT_OUT: dict[str, str] = {}
