"""The parts of diffusers' ``BasicTransformerBlock`` that other ways of running one need, for DiT and for PixArt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

Map = Callable[[torch.Tensor], torch.Tensor]


class Parts(NamedTuple):
    """Norm and modulation before attention and before the MLP, and the gates after them."""

    before_attention: Map
    attention_gate: torch.Tensor
    before_mlp: Map
    mlp_gate: torch.Tensor


def parts_of(block: Any, timestep: torch.Tensor, class_labels: torch.Tensor | None, dtype: torch.dtype) -> Parts:
    """For these timesteps. DiT embeds them in every block; PixArt hands each block the finished modulation as ``timestep``."""
    if block.norm_type == "ada_norm_zero":
        embedded = block.norm1.emb(timestep, class_labels, hidden_dtype=dtype)
        modulation = block.norm1.linear(block.norm1.silu(embedded))[:, None].chunk(6, dim=-1)
        norms = block.norm1.norm, block.norm3
    else:
        modulation = (block.scale_shift_table[None] + timestep.reshape(timestep.shape[0], 6, -1)).chunk(6, dim=1)
        norms = block.norm1, block.norm2
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
    return Parts(
        lambda x: norms[0](x) * (1 + scale) + shift,
        gate,
        lambda x: norms[1](x) * (1 + mlp_scale) + mlp_shift,
        mlp_gate,
    )


def reason_against(model: nn.Module) -> str | None:
    """Why a model's blocks are not of this kind, or None."""
    blocks = getattr(model, "transformer_blocks", ())
    if hasattr(model, "single_transformer_blocks") or not all(isinstance(block, BasicTransformerBlock) for block in blocks):
        return (
            "published for blocks with one stream of tokens and no rotary positions; these have text in the stream and rotate"
        )
    return None
