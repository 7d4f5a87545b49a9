"""Video: packed latents, joint streams with padded text, history in front of the video, convolutions between tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .entry import Entry, noise, randomised
from .more_videos_2 import CHANNELS, GRIDS, HEADS, TEXT, at, calmed, grid_of, latents, padded, rows
from .more_videos_2 import MODELS as WITH_MORE_STREAMS

IMAGE = 13


def _make_ltx() -> nn.Module:
    from diffusers import LTXVideoTransformer3DModel

    return randomised(
        LTXVideoTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=HEADS,
            attention_head_dim=16,
            cross_attention_dim=64,
            num_layers=8,
            caption_channels=20,
        )
    )


def _inputs_ltx(batch: int, size: int) -> dict[str, Any]:
    frames, height, width = GRIDS[size]
    return {
        "hidden_states": rows(batch, size),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=2),
        "timestep": at(batch),
        "encoder_attention_mask": padded(batch),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
        "return_dict": False,
    }


def _make_mochi() -> nn.Module:
    from diffusers import MochiTransformer3DModel

    return randomised(
        MochiTransformer3DModel(
            num_attention_heads=HEADS,
            attention_head_dim=16,
            num_layers=8,
            pooled_projection_dim=36,
            in_channels=CHANNELS,
            text_embed_dim=24,
            time_embed_dim=18,
            max_sequence_length=TEXT,
        )
    )


def _inputs_mochi(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(batch, size),
        "encoder_hidden_states": noise(batch, TEXT, 24, seed=2),
        "timestep": at(batch),
        "encoder_attention_mask": padded(batch).bool(),
        "return_dict": False,
    }


def _sizes_hunyuan() -> dict[str, Any]:
    return {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": HEADS,
        "attention_head_dim": 16,
        "num_layers": 4,
        "num_single_layers": 4,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 20,
        "pooled_projection_dim": 18,
        "rope_axes_dim": (4, 6, 6),
    }


def _make_hunyuan() -> nn.Module:
    from diffusers import HunyuanVideoTransformer3DModel

    return randomised(HunyuanVideoTransformer3DModel(**_sizes_hunyuan()))


def _inputs_hunyuan(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(batch, size),
        "timestep": at(batch),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=2),
        "encoder_attention_mask": padded(batch),
        "pooled_projections": noise(batch, 18, seed=3),
        "guidance": at(batch, 6000.0),
        "return_dict": False,
    }


def _make_framepack() -> nn.Module:
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    extra = {"has_image_proj": True, "image_proj_dim": 22, "has_clean_x_embedder": True}
    return randomised(HunyuanVideoFramepackTransformer3DModel(**_sizes_hunyuan(), **extra))


def _inputs_framepack(batch: int, size: int) -> dict[str, Any]:
    """The next frames come last in time and in the sequence, after three histories, each coarser than the one after it."""
    frames, height, width = GRIDS[size]
    clean, twice, four_times = (noise(batch, CHANNELS, n, 2 * height, 2 * width, seed=4 + n) for n in (2, 2, 16))
    first, old, middle, last, new = torch.arange(20 + frames).split([1, 16, 2, 1, frames])
    return {
        **_inputs_hunyuan(batch, size),
        "image_embeds": noise(batch, IMAGE, 22, seed=4),
        "indices_latents": new,
        "latents_clean": clean,
        "indices_latents_clean": torch.cat([first, last]),
        "latents_history_2x": twice,
        "indices_latents_history_2x": middle,
        "latents_history_4x": four_times,
        "indices_latents_history_4x": old,
    }


def _make_hunyuan_15() -> nn.Module:
    from diffusers import HunyuanVideo15Transformer3DModel

    return randomised(
        HunyuanVideo15Transformer3DModel(
            in_channels=2 * CHANNELS + 1,
            out_channels=CHANNELS,
            num_attention_heads=HEADS,
            attention_head_dim=16,
            num_layers=8,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=20,
            text_embed_2_dim=22,
            image_embed_dim=26,
            rope_axes_dim=(4, 6, 6),
        )
    )


def _inputs_hunyuan_15(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(batch, size, 2 * CHANNELS + 1, patch=1),
        "timestep": at(batch),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=2),
        "encoder_attention_mask": padded(batch),
        "encoder_hidden_states_2": noise(batch, 11, 22, seed=3),
        "encoder_attention_mask_2": padded(batch, 11),
        "image_embeds": noise(batch, IMAGE, 26, seed=4),
        "return_dict": False,
    }


def _make_cosmos() -> nn.Module:
    from diffusers import CosmosTransformer3DModel

    return randomised(
        CosmosTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=HEADS,
            attention_head_dim=16,
            num_layers=8,
            mlp_ratio=2.0,
            text_embed_dim=20,
            adaln_lora_dim=18,
            max_size=(15, 26, 28),
            concat_padding_mask=False,  # it needs torchvision
        )
    )


def _inputs_cosmos(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(batch, size),
        "timestep": at(batch, 0.5),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=2),
        "fps": 30,
        "return_dict": False,
    }


def _make_easy_animate() -> nn.Module:
    from diffusers import EasyAnimateTransformer3DModel

    return randomised(
        EasyAnimateTransformer3DModel(
            num_attention_heads=HEADS,
            attention_head_dim=16,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            patch_size=2,
            num_layers=8,
            time_embed_dim=18,
            add_norm_text_encoder=True,
            text_embed_dim=20,
        )
    )


def _inputs_easy_animate(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(batch, size),
        "timestep": at(batch),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=2),
        "return_dict": False,
    }


def _make_motif() -> nn.Module:
    from diffusers import MotifVideoTransformer3DModel

    return randomised(
        MotifVideoTransformer3DModel(
            in_channels=2 * CHANNELS + 1,
            out_channels=CHANNELS,
            num_attention_heads=HEADS,
            attention_head_dim=16,
            num_layers=4,
            num_single_layers=8,
            num_decoder_layers=4,
            mlp_ratio=2.0,
            text_embed_dim=20,
            rope_axes_dim=(4, 6, 6),
            enable_text_cross_attention_dual=True,
            enable_text_cross_attention_single=True,
        )
    )


def _inputs_motif(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(batch, size, 2 * CHANNELS + 1),
        "timestep": at(batch),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=2),
        "encoder_attention_mask": padded(batch),
        "return_dict": False,
    }


def _make_sana_video() -> nn.Module:
    from diffusers import SanaVideoTransformer3DModel

    model = SanaVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=16,
        num_layers=8,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=16,
        cross_attention_dim=64,
        caption_channels=20,
        mlp_ratio=1.5,
        rope_max_seq_len=32,
    )
    return calmed(randomised(model))


def _inputs_sana_video(batch: int, size: int) -> dict[str, Any]:
    return {**_inputs_easy_animate(batch, size), "encoder_attention_mask": padded(batch)}


MODELS: list[Entry] = [
    Entry("LTXVideoTransformer3DModel", "video", _make_ltx, _inputs_ltx, grid_of),
    Entry("MochiTransformer3DModel", "video", _make_mochi, _inputs_mochi, grid_of),
    Entry("HunyuanVideoTransformer3DModel", "video", _make_hunyuan, _inputs_hunyuan, grid_of),
    Entry("HunyuanVideo15Transformer3DModel", "video", _make_hunyuan_15, _inputs_hunyuan_15, grid_of),
    Entry("HunyuanVideoFramepackTransformer3DModel", "video", _make_framepack, _inputs_framepack, grid_of),
    Entry("CosmosTransformer3DModel", "video", _make_cosmos, _inputs_cosmos, grid_of),
    Entry("EasyAnimateTransformer3DModel", "video", _make_easy_animate, _inputs_easy_animate, grid_of),
    Entry("MotifVideoTransformer3DModel", "video", _make_motif, _inputs_motif, grid_of),
    Entry("SanaVideoTransformer3DModel", "linear attention", _make_sana_video, _inputs_sana_video, grid_of),
    *WITH_MORE_STREAMS,
]

LEFT_OUT: dict[str, str] = {
    "TransformerTemporalModel": (
        "no denoiser: a layer of the UNets, whose tokens are the frames at one pixel, with the pixels on the batch axis;"
        " its blocks have no adaptive norm, so the timestep does nothing"
    ),
}
