"""Audio: one-dimensional latents, with tokens in front, sliding windows, partial rotary tables and masks of text."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .entry import Entry, noise, randomised

TEXT = 7
LENGTHS = (24, 30)


def _grid(size: int) -> tuple[int, ...]:
    return (LENGTHS[size],)


def _time(batch: int) -> torch.Tensor:
    return torch.full((batch,), 0.5)


def _mask(batch: int, length: int = TEXT) -> torch.Tensor:
    """True where there is text; every second row is three shorter."""
    lengths = length - 3 * (torch.arange(batch) % 2)
    return torch.arange(length)[None] < lengths[:, None]


def _make_stable_audio() -> nn.Module:
    from diffusers import StableAudioDiTModel

    return randomised(
        StableAudioDiTModel(
            sample_size=LENGTHS[0],
            in_channels=10,
            num_layers=8,
            attention_head_dim=16,
            num_attention_heads=4,
            num_key_value_attention_heads=2,
            out_channels=10,
            cross_attention_dim=20,
            time_proj_dim=18,
            global_states_input_dim=22,
            cross_attention_input_dim=11,
        )
    )


def _inputs_stable_audio(batch: int, size: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    length = LENGTHS[size]
    return {
        "hidden_states": noise(batch, 10, length, seed=1),
        "timestep": _time(batch),
        "encoder_hidden_states": noise(batch, TEXT, 11, seed=2),
        "global_hidden_states": noise(batch, 1, 22, seed=3),
        "rotary_embedding": get_1d_rotary_pos_embed(8, length + 1, use_real=True, repeat_interleave_real=False),
        "return_dict": False,
    }


def _make_stable_audio_3() -> nn.Module:
    from diffusers import StableAudio3DiTModel

    return randomised(
        StableAudio3DiTModel(
            io_channels=10,
            embed_dim=64,
            depth=8,
            num_heads=4,
            cond_token_dim=11,
            global_cond_dim=11,
            local_add_cond_dim=13,
            timestep_features_dim=18,
            ff_mult=2.0,
            num_memory_tokens=5,
        )
    )


def _inputs_stable_audio_3(batch: int, size: int) -> dict[str, Any]:
    duration = noise(batch, 11, seed=3)
    return {
        "hidden_states": noise(batch, 10, LENGTHS[size], seed=1),
        "timestep": _time(batch),
        "encoder_hidden_states": torch.cat([noise(batch, TEXT - 1, 11, seed=2), duration[:, None]], dim=1),
        "global_hidden_states": duration,
        "encoder_attention_mask": torch.cat([_mask(batch, TEXT - 1), torch.ones(batch, 1, dtype=torch.bool)], dim=1),
        "return_dict": False,
    }


def _make_ace_step() -> nn.Module:
    from diffusers import AceStepTransformer1DModel

    return randomised(
        AceStepTransformer1DModel(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            in_channels=33,
            audio_acoustic_hidden_dim=11,
            patch_size=2,
            sliding_window=5,
            encoder_hidden_size=20,
        )
    )


def _inputs_ace_step(batch: int, size: int) -> dict[str, Any]:
    length = 2 * LENGTHS[size]
    spans = (torch.arange(length) >= 9).float().expand(batch, length)[..., None].expand(batch, length, 11)
    return {
        "hidden_states": noise(batch, length, 11, seed=1),
        "timestep": _time(batch),
        "timestep_r": _time(batch),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=2),
        "context_latents": torch.cat([noise(batch, length, 11, seed=3), spans], dim=-1),
        "return_dict": False,
    }


def _make_longcat() -> nn.Module:
    from diffusers import LongCatAudioDiTTransformer

    return randomised(
        LongCatAudioDiTTransformer(dit_dim=64, dit_depth=8, dit_heads=4, dit_text_dim=20, latent_dim=10, ff_mult=2.0)
    )


def _inputs_longcat(batch: int, size: int) -> dict[str, Any]:
    length = LENGTHS[size]
    return {
        "hidden_states": noise(batch, length, 10, seed=1),
        "encoder_hidden_states": noise(batch, TEXT, 20, seed=2),
        "encoder_attention_mask": _mask(batch),
        "timestep": _time(batch),
        "attention_mask": torch.ones(batch, length, dtype=torch.bool),
        "latent_cond": noise(batch, length, 10, seed=3),
        "return_dict": False,
    }


def _make_minimax() -> nn.Module:
    from diffusers import MiniMaxMusic3Transformer1DModel

    return randomised(
        MiniMaxMusic3Transformer1DModel(
            in_channels=10,
            condition_dim=20,
            num_layers=8,
            num_attention_heads=4,
            attention_head_dim=16,
            ff_inner_dim=96,
            rotary_dim=8,
            fourier_embedding_dim=18,
        )
    )


def _inputs_minimax(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 10, LENGTHS[size], seed=1),
        "timestep": _time(batch),
        "encoder_hidden_states": noise(batch, LENGTHS[size], 20, seed=2),
        "return_dict": False,
    }


def _make_t5_film() -> nn.Module:
    from diffusers import T5FilmDecoder

    return randomised(
        T5FilmDecoder(
            input_dims=10, targets_length=40, d_model=64, num_layers=8, num_heads=4, d_kv=16, d_ff=96, dropout_rate=0.1
        )
    )


def _inputs_t5_film(batch: int, size: int) -> dict[str, Any]:
    notes = (noise(batch, TEXT, 64, seed=2), _mask(batch))
    previous = (noise(batch, 11, 64, seed=3), torch.ones(batch, 11, dtype=torch.bool))
    return {
        "encodings_and_masks": [notes, previous],
        "decoder_input_tokens": noise(batch, LENGTHS[size], 10, seed=1),
        "decoder_noise_time": _time(batch),
    }


def _sequence(size: int) -> dict[str, Any]:
    """The latent is (batch, length, channels), which packed image tokens are too: the caller has to say what it is."""
    return {"grid": (-1,)}


MODELS: list[Entry] = [
    Entry("StableAudioDiTModel", "audio", _make_stable_audio, _inputs_stable_audio, _grid),
    Entry("StableAudio3DiTModel", "audio", _make_stable_audio_3, _inputs_stable_audio_3, _grid),
    Entry("AceStepTransformer1DModel", "audio", _make_ace_step, _inputs_ace_step, _grid, options=_sequence),
    Entry("LongCatAudioDiTTransformer", "audio", _make_longcat, _inputs_longcat, _grid, options=_sequence),
    Entry("MiniMaxMusic3Transformer1DModel", "audio", _make_minimax, _inputs_minimax, _grid),
    Entry("T5FilmDecoder", "audio", _make_t5_film, _inputs_t5_film, _grid, options=_sequence),
]

LEFT_OUT: dict[str, str] = {
    "MiniMaxMusic3RVQDepthDecoder": (
        "no denoiser: forward(inputs_embeds) has no timestep and no noisy latent; causal attention over the residual codebooks "
        "of one audio frame (at most 8 steps), of which autoregressive sampling reads the last"
    ),
}
