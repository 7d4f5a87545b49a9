"""Text to image, newer classes: per-block text, tokens before batch, routed experts, ids that carry text and image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .entry import Entry, noise
from .packed import CHANNELS, CONTEXT, GRIDS, HEAD, HEADS, TEXT, _ids, _maker, _packed, _present

AXES = (4, 6, 6)


def _image(batch: int, size: int, channels: int, patch: int) -> torch.Tensor:
    h, w = GRIDS[size]
    return noise(batch, channels, h * patch, w * patch, seed=1)


def _fibo(batch: int, size: int) -> dict[str, Any]:
    layers = [noise(batch, TEXT, 28, seed=10 + i) for i in range(8)]
    ids = {"img_ids": _ids(size), "txt_ids": torch.zeros(TEXT, 3)}
    return {**_packed(batch, size, 500.0), **ids, "text_encoder_layers": layers}


def _flux3(batch: int, size: int) -> dict[str, Any]:
    text = torch.zeros(TEXT, 4)
    text[:, 3] = torch.arange(TEXT)
    return {**_packed(batch, size), "img_ids": _ids(size, 4), "txt_ids": text}


def _krea(batch: int, size: int) -> dict[str, Any]:
    return {
        **_packed(batch, size),
        "encoder_hidden_states": noise(batch, TEXT, 2, CONTEXT, seed=2),
        "encoder_attention_mask": _present(batch),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), _ids(size)]),
    }


def _ideogram(batch: int, size: int) -> dict[str, Any]:
    """Text, then image, in one input: each row says which of its tokens is what."""
    h, w = GRIDS[size]
    length = TEXT + h * w
    text = torch.arange(TEXT)[:, None].expand(-1, 3)
    positions = torch.cat([text, _ids(size).long() + 100]).expand(batch, -1, -1)
    kind = torch.cat([torch.full((TEXT,), 3), torch.full((h * w,), 2)]).expand(batch, -1)
    return {
        "hidden_states": noise(batch, length, CHANNELS, seed=1),
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": noise(batch, length, CONTEXT, seed=2),
        "position_ids": positions.clone(),
        "segment_ids": torch.ones(batch, length, dtype=torch.long),
        "indicator": kind.clone(),
        "return_dict": False,
    }


def _glm(batch: int, size: int) -> dict[str, Any]:
    h, w = GRIDS[size]
    tokens = torch.randint(0, 50, (batch, h * w), generator=torch.Generator().manual_seed(4))
    return {
        "hidden_states": _image(batch, size, 4, 2),
        "encoder_hidden_states": noise(batch, TEXT, CONTEXT, seed=2),
        "prior_token_id": tokens,
        "prior_token_drop": torch.zeros(batch, dtype=torch.bool),
        "timestep": torch.full((batch,), 500),
        "target_size": torch.tensor([[h * 16.0, w * 16.0]]).expand(batch, -1).clone(),
        "crop_coords": torch.zeros(batch, 2),
        "return_dict": False,
    }


def _ernie(batch: int, size: int) -> dict[str, Any]:
    lengths = torch.full((batch,), TEXT)
    lengths[-1] = 5
    return {
        "hidden_states": _image(batch, size, CHANNELS, 1),
        "timestep": torch.full((batch,), 500.0),
        "text_bth": noise(batch, TEXT, CONTEXT, seed=2),
        "text_lens": lengths,
        "return_dict": False,
    }


def _nucleus(batch: int, size: int) -> dict[str, Any]:
    shapes = [(1, *GRIDS[size])] * batch
    return {**_packed(batch, size), "encoder_hidden_states_mask": _present(batch), "img_shapes": shapes}


def _qwen(batch: int, size: int) -> dict[str, Any]:
    """The tokens of the picture stand in the text in slots of four."""
    h, w = GRIDS[size]
    slots = torch.cat([torch.zeros(TEXT), torch.ones(h * w // 4)]).bool().expand(batch, -1)
    return {
        **_packed(batch, size),
        "encoder_hidden_states_mask": _present(batch),
        "img_shapes": [[(1, h, w)]] * batch,
        "img_mask": slots.clone(),
    }


def _given(size: int) -> dict[str, Any]:
    return {"grid": GRIDS[size]}


def _entry(name: str, inputs: Callable[[int, int], dict[str, Any]], family: str, **config: Any) -> Entry:
    options = config.pop("options", lambda size: {})
    return Entry(name, family, _maker(name, **config), inputs, lambda size: GRIDS[size], options=options)


_HEADS: dict[str, Any] = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}
_DOUBLE: dict[str, Any] = {**_HEADS, "in_channels": CHANNELS, "joint_attention_dim": CONTEXT, "num_layers": 4}
_KREA_TEXT: dict[str, Any] = {
    "text_hidden_dim": CONTEXT, "num_text_layers": 2, "text_num_attention_heads": 2, "text_num_key_value_heads": 2,
    "text_intermediate_size": 24, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
}  # fmt: skip
MODELS: list[Entry] = [
    _entry(
        "BriaFiboTransformer2DModel", _fibo, "joint streams", **_DOUBLE, num_single_layers=4, axes_dims_rope=AXES,
        text_encoder_dim=28,
    ),
    _entry(
        "Flux3Transformer2DModel", _flux3, "joint streams", **_DOUBLE, num_single_layers=4, axes_dims_rope=(4, 4, 4, 4),
        timestep_channels=32,
    ),
    _entry(
        "Krea2Transformer2DModel", _krea, "single stream", in_channels=CHANNELS, num_layers=8, attention_head_dim=HEAD,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=40, timestep_embed_dim=32, axes_dims_rope=AXES,
        **_KREA_TEXT,
    ),
    _entry(
        "Ideogram4Transformer2DModel", _ideogram, "single stream", in_channels=CHANNELS, num_layers=8, **_HEADS,
        intermediate_size=40, adaln_dim=24, llm_features_dim=CONTEXT, mrope_section=(4, 2, 2), options=_given,
    ),
    _entry(
        "GlmImageTransformer2DModel", _glm, "joint streams", in_channels=4, out_channels=4, num_layers=8, **_HEADS,
        text_embed_dim=CONTEXT, time_embed_dim=32, condition_dim=8, prior_vq_quantizer_codebook_size=50,
    ),
    _entry(
        "ErnieImageTransformer2DModel", _ernie, "single stream", hidden_size=HEADS * HEAD, num_attention_heads=HEADS,
        num_layers=8, ffn_hidden_size=40, in_channels=CHANNELS, out_channels=CHANNELS, text_in_dim=CONTEXT,
        rope_axes_dim=AXES, options=_given,
    ),
    _entry(
        "NucleusMoEImageTransformer2DModel", _nucleus, "mixture of experts", patch_size=2, in_channels=CHANNELS, out_channels=5,
        num_layers=8, **_HEADS, joint_attention_dim=CONTEXT, axes_dims_rope=AXES, num_experts=4, moe_intermediate_dim=24,
        capacity_factors=2.0, options=_given,
    ),
    _entry(
        "QwenImage21Transformer2DModel", _qwen, "single stream", in_channels=CHANNELS, out_channels=CHANNELS, num_layers=8,
        **_HEADS, context_in_dim=CONTEXT, axes_dims_rope=AXES, options=_given,
    ),
]  # fmt: skip

LEFT_OUT: dict[str, str] = {}
