"""Video with sound, cameras or packed rows: several streams of different lengths, recurrences over frames, no batch axis."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .entry import Entry, noise, randomised

TEXT = 7
HEADS = 4
CHANNELS = 9
GRIDS = ((5, 6, 8), (3, 10, 6))
SOUND = (11, 14)


def grid_of(size: int) -> tuple[int, ...]:
    return GRIDS[size]


def latents(batch: int, size: int, channels: int = CHANNELS, patch: int = 2) -> torch.Tensor:
    frames, height, width = GRIDS[size]
    return noise(batch, channels, frames, patch * height, patch * width, seed=1)


def rows(batch: int, size: int, channels: int = CHANNELS) -> torch.Tensor:
    """Latents that the pipeline has packed, one row a token."""
    return noise(batch, math.prod(GRIDS[size]), channels, seed=1)


def at(batch: int, value: float = 500.0) -> torch.Tensor:
    return torch.full((batch,), value)


def padded(batch: int, length: int = TEXT) -> torch.Tensor:
    """One where there is text; every second row is three shorter."""
    lengths = length - 3 * (torch.arange(batch) % 2)
    return (torch.arange(length)[None] < lengths[:, None]).long()


def calmed(model: nn.Module) -> nn.Module:
    """Convolutions scaled by all that they sum over; ``randomised`` goes by the last axis, one side of the kernel."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= (module.weight.shape[-1] / module.weight[0].numel()) ** 0.5
    return model


def _sizes_ltx_2() -> dict[str, Any]:
    return {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": HEADS,
        "attention_head_dim": 16,
        "cross_attention_dim": 64,
        "audio_in_channels": 13,
        "audio_out_channels": 13,
        "audio_num_attention_heads": HEADS,
        "audio_attention_head_dim": 12,
        "audio_cross_attention_dim": 48,
        "num_layers": 8,
        "caption_channels": 20,
        "rope_type": "split",
    }


def _make_ltx_2() -> nn.Module:
    from diffusers import LTX2VideoTransformer3DModel

    return randomised(LTX2VideoTransformer3DModel(**_sizes_ltx_2()))


def _inputs_ltx_2(batch: int, size: int) -> dict[str, Any]:
    frames, height, width = GRIDS[size]
    return {
        "hidden_states": rows(batch, size),
        "audio_hidden_states": noise(batch, SOUND[size], 13, seed=2),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=3),
        "audio_encoder_hidden_states": noise(batch, TEXT, 20, seed=4),
        "timestep": at(batch),
        "encoder_attention_mask": padded(batch),
        "audio_encoder_attention_mask": padded(batch),
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": 24.0,
        "audio_num_frames": SOUND[size],
        "return_dict": False,
    }


def _make_refiner() -> nn.Module:
    from diffusers import SanaWMLTX2RefinerTransformer3DModel

    return randomised(SanaWMLTX2RefinerTransformer3DModel(**_sizes_ltx_2()))


def _inputs_refiner(batch: int, size: int) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2AudioVideoRotaryPosEmbed

    rope = SanaWMLTX2AudioVideoRotaryPosEmbed(dim=16 * HEADS, rope_type="split", num_attention_heads=HEADS)
    return {
        "hidden_states": rows(batch, size),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=3),
        "timestep": at(batch),
        "video_rotary_emb": rope(rope.prepare_video_coords(batch, *GRIDS[size], device=torch.device("cpu"))),
        "encoder_attention_mask": padded(batch),
        "return_dict": False,
    }


def _make_sana_wm() -> nn.Module:
    from diffusers import SanaWMTransformer3DModel

    model = SanaWMTransformer3DModel(
        in_channels=CHANNELS,
        num_layers=8,
        hidden_size=64,
        num_attention_heads=HEADS,
        linear_head_dim=16,
        chunk_plucker_channels=12,
        caption_channels=20,
        mlp_ratio=1.5,
    )
    return calmed(randomised(model))


def _inputs_sana_wm(batch: int, size: int) -> dict[str, Any]:
    frames, height, width = GRIDS[size]
    turn = 0.1 * torch.arange(frames) + 0.2 * torch.arange(batch)[:, None]
    pose = torch.eye(4).repeat(batch, frames, 1, 1)
    pose[..., 0, 0], pose[..., 0, 2] = turn.cos(), turn.sin()
    pose[..., 2, 0], pose[..., 2, 2] = -turn.sin(), turn.cos()
    pose[..., :3, 3] = 0.1 * noise(batch, frames, 3, seed=4)
    lens = torch.tensor([width, width, width / 2, height / 2]).expand(batch, frames, 4)
    return {
        "hidden_states": latents(batch, size, patch=1),
        "timestep": torch.full((batch, 1, frames), 500.0),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=2),
        "mask": padded(batch),
        "camera_conditions": torch.cat([pose.flatten(2), lens], dim=-1),
        "chunk_plucker": noise(batch, 12, frames, height, width, seed=3),
        "return_dict": False,
    }


def _make_minimax_h3() -> nn.Module:
    from diffusers import MiniMaxH3Transformer3DModel

    return randomised(
        MiniMaxH3Transformer3DModel(
            num_attention_heads=HEADS,
            attention_head_dim=16,
            hidden_size=48,
            num_layers=8,
            ffn_dim=80,
            in_channels=CHANNELS,
            audio_in_channels=13,
            text_dim=20,
            freq_dim=18,
            time_embed_hidden_dim=40,
            time_embed_dim=22,
            rope_freq_dim=2,
        )
    )


def _inputs_minimax_h3(batch: int, size: int) -> dict[str, Any]:
    """Rows of text, then of sound, then of video: all that describes them is shared by the batch."""
    frames, height, width = GRIDS[size]
    sound = SOUND[size]
    first, length = TEXT + sound, TEXT + sound + math.prod(GRIDS[size])
    scale = 32 / math.sqrt(height * width)
    axes = TEXT + torch.arange(frames) * 20 / 3, torch.arange(height) * scale, torch.arange(width) * scale
    positions = torch.zeros(length, 3, dtype=torch.float64)
    positions[:first, 0] = torch.cat([torch.arange(TEXT), TEXT + torch.arange(sound)])
    positions[first:] = torch.cartesian_prod(*(axis.double() for axis in axes))
    index = torch.arange(length)
    return {
        "hidden_states": rows(batch, size, 4 * CHANNELS),
        "audio_hidden_states": noise(batch, sound, 13, seed=2),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=3),
        "timestep": at(1, 0.5),
        "timestep_indices": torch.zeros(length, dtype=torch.long),
        "token_tags": torch.tensor([1, 2, 0]).repeat_interleave(torch.tensor([TEXT, sound, length - first])),
        "position_ids": positions,
        "video_indices": index[first:],
        "audio_indices": index[TEXT:first],
        "text_indices": index[:TEXT],
        "return_dict": False,
    }


def _make_cosmos_3() -> nn.Module:
    from diffusers import Cosmos3OmniTransformer

    return randomised(
        Cosmos3OmniTransformer(
            head_dim=16,
            hidden_size=64,
            intermediate_size=96,
            latent_channel=CHANNELS,
            num_attention_heads=HEADS,
            num_hidden_layers=8,
            num_key_value_heads=2,
            patch_latent_dim=4 * CHANNELS,
            rope_axes_dim=(4, 2, 2),
            vocab_size=50,
        )
    )


def _inputs_cosmos_3(batch: int, size: int) -> dict[str, Any]:
    """One prompt and one video in one sequence: the class has no batch axis, so there is one at every batch."""
    frames, _, _ = GRIDS[size]
    tokens = math.prod(GRIDS[size])
    axes = [torch.arange(side) for side in GRIDS[size]]
    places = torch.cartesian_prod(*axes).T + torch.tensor([[15000 + TEXT], [0], [0]])
    video = TEXT + torch.arange(tokens)
    return {
        "input_ids": torch.arange(TEXT) * 5 % 50,
        "text_indexes": torch.arange(TEXT),
        "position_ids": torch.cat([torch.arange(TEXT).expand(3, TEXT), places], dim=1),
        "und_len": TEXT,
        "sequence_length": TEXT + tokens,
        "vision_tokens": [latents(1, size)],
        "vision_token_shapes": [GRIDS[size]],
        "vision_sequence_indexes": video,
        "vision_mse_loss_indexes": video,
        "vision_timesteps": at(tokens),
        "vision_noisy_frame_indexes": [torch.arange(frames)],
        "return_dict": False,
    }


MODELS: list[Entry] = [
    Entry("LTX2VideoTransformer3DModel", "video", _make_ltx_2, _inputs_ltx_2, grid_of),
    Entry("SanaWMLTX2RefinerTransformer3DModel", "video", _make_refiner, _inputs_refiner, grid_of),
    Entry("SanaWMTransformer3DModel", "linear attention", _make_sana_wm, _inputs_sana_wm, grid_of),
    Entry("MiniMaxH3Transformer3DModel", "video", _make_minimax_h3, _inputs_minimax_h3, grid_of),
    Entry("Cosmos3OmniTransformer", "video", _make_cosmos_3, _inputs_cosmos_3, grid_of),
]
