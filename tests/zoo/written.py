"""Models written by hand, as a repository of a paper would hold them: tokens in front and behind, tables, masks, experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import written_models as one
from . import written_models_2 as two
from . import written_models_3 as three
from .entry import Entry, noise, randomised

PATCH, CHANNELS, TEXT, CONTEXT, CLASSES = 2, 11, 7, 26, 17
WIDTH, HEADS, DEPTH = 64, 4, 8
IMAGES = ((6, 9), (5, 10))
VIDEOS = ((3, 5, 6), (5, 6, 7))
LENGTHS = (24, 30)

SHAPE: dict[str, Any] = {"width": WIDTH, "heads": HEADS, "depth": DEPTH, "channels": CHANNELS, "patch": PATCH}


def _make(build: Callable[..., nn.Module], **config: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = randomised(build(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(2)  # of unit gain, so that attention and conditions count
        return model

    return make


def _latents(batch: int, grid: tuple[int, ...]) -> torch.Tensor:
    *frames, h, w = grid
    return noise(batch, CHANNELS, *frames, h * PATCH, w * PATCH, seed=1)


def _time(batch: int) -> torch.Tensor:
    return torch.full((batch,), 0.5)


def _labelled(batch: int, size: int) -> dict[str, Any]:
    return {"x": _latents(batch, IMAGES[size]), "t": _time(batch), "y": torch.arange(batch) % CLASSES}


def _uvit(batch: int, size: int) -> dict[str, Any]:
    return {
        "x": _latents(batch, IMAGES[size]),
        "timesteps": torch.full((batch,), 500.0),
        "context": noise(batch, TEXT, CONTEXT, seed=2),
    }


def _captioned(batch: int, size: int) -> dict[str, Any]:
    lengths = TEXT - 3 * (torch.arange(batch) % 2)
    return {
        "x": _latents(batch, IMAGES[size]),
        "t": _time(batch),
        "cap_feats": noise(batch, TEXT, CONTEXT, seed=2),
        "cap_mask": (torch.arange(TEXT)[None] < lengths[:, None]).long(),
    }


def _audio(batch: int, size: int) -> dict[str, Any]:
    length = LENGTHS[size]
    return {
        "x": noise(batch, CHANNELS, length, seed=1),
        "t": _time(batch),
        "context": noise(batch, TEXT, CONTEXT, seed=2),
        "position_ids": torch.arange(length)[None] + 11 * torch.arange(batch)[:, None],
    }


def _forced(batch: int, size: int) -> dict[str, Any]:
    frames = VIDEOS[size][0]
    offset = 0.06 * torch.arange(frames)[None] + 0.01 * torch.arange(batch)[:, None]
    return {"x": _latents(batch, VIDEOS[size]), "t": _time(batch), "frame_offset": offset}


def _video(batch: int, size: int) -> dict[str, Any]:
    return {"x": _latents(batch, VIDEOS[size]), "t": _time(batch)}


def _image_grid(size: int) -> tuple[int, ...]:
    return IMAGES[size]


def _video_grid(size: int) -> tuple[int, ...]:
    return VIDEOS[size]


def _audio_grid(size: int) -> tuple[int, ...]:
    return (LENGTHS[size],)


_SIT = _make(one.SiT, grid=IMAGES[0], classes=CLASSES, **SHAPE)
_UVIT = _make(one.UViT, grid=IMAGES[0], text=(TEXT, CONTEXT), **SHAPE)
_REGISTER = _make(one.RegisterDiT, kv_heads=2, classes=CLASSES, **SHAPE)
_COMPLEX = _make(two.ComplexRoPEDiT, text_width=CONTEXT, axes=(4, 6, 6), **SHAPE)
_SOFTMAX = _make(two.HandSoftmaxDiT, classes=CLASSES, **SHAPE)
_LINEAR = _make(two.LinearAttentionDiT, classes=CLASSES, **SHAPE)
_EXPERTS = _make(two.MoEDiT, classes=CLASSES, experts=13, **SHAPE)
_AUDIO = _make(three.AudioDiT1D, width=WIDTH, heads=HEADS, depth=DEPTH, channels=CHANNELS, context=CONTEXT, longest=128)
_FORCED = _make(three.TokenTimestepDiT, longest=12, **SHAPE)
_WINDOW = _make(three.WindowMaskVideoDiT, axes=(4, 6, 6), window=1, **SHAPE)

MODELS: list[Entry] = [
    Entry("SiT", "class-conditional", _SIT, _labelled, _image_grid, sizes=1),
    Entry("UViT", "long skips", _UVIT, _uvit, _image_grid, sizes=1),
    Entry("RegisterDiT", "class-conditional", _REGISTER, _labelled, _image_grid),
    Entry("ComplexRoPEDiT", "single stream", _COMPLEX, _captioned, _image_grid),
    Entry("HandSoftmaxDiT", "class-conditional", _SOFTMAX, _labelled, _image_grid),
    Entry("LinearAttentionDiT", "linear attention", _LINEAR, _labelled, _image_grid),
    Entry("MoEDiT", "mixture of experts", _EXPERTS, _labelled, _image_grid),
    Entry("AudioDiT1D", "audio", _AUDIO, _audio, _audio_grid),
    Entry("TokenTimestepDiT", "video", _FORCED, _forced, _video_grid),
    Entry("WindowMaskVideoDiT", "video", _WINDOW, _video, _video_grid),
]

LEFT_OUT: dict[str, str] = {}
