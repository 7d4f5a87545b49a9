"""Models that are not what they seem: tied, hooked, frozen, cast, traced."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..plain_dit import PlainDiT
from .models import BatchNormBlock, Causal
from .tiny import SIDE, AnySize, tiny


def with_hooks() -> PlainDiT:
    """Hooks that change what a block returns, and what another is given."""
    model = tiny()
    model.blocks[2].register_forward_hook(lambda module, args, output: output * 1.2)
    model.blocks[0].register_forward_pre_hook(lambda module, args: (args[0] * 1, args[1]))
    return model


def tied_weights() -> PlainDiT:
    """One parameter in two blocks, in different modules."""
    model = tiny()
    model.blocks[2].mlp[0].weight = model.blocks[0].mlp[0].weight
    model.blocks[1].attn.qkv.weight = model.blocks[0].attn.qkv.weight
    return model


def shared_parts() -> PlainDiT:
    """One module within all blocks."""
    model = tiny()
    for block in model.blocks:
        block.mlp = model.blocks[0].mlp
    return model


def with_batch_norm(training: bool) -> PlainDiT:
    """Batch norms that have seen something."""
    model = tiny(block=BatchNormBlock)
    for block in model.blocks:
        block.over_batch = nn.BatchNorm1d(16)
        block.over_batch.running_mean.uniform_(-1, 1), block.over_batch.running_var.uniform_(0.5, 2)
    return model.train(training)


def with_spectral_norm() -> PlainDiT:
    """Parametrised weights; in evaluation mode they are a function of what is stored."""
    model = tiny()
    for block in model.blocks:
        nn.utils.parametrizations.weight_norm(block.mlp[0])
    return model


def causal() -> PlainDiT:
    """Attention to earlier tokens alone: which tokens are earlier changes with their number."""
    model = tiny()
    for block in model.blocks:
        block.attn.__class__ = Causal
    return model


def unwritten() -> PlainDiT:
    """A layer that does not know its width yet."""
    model = tiny()
    model.head = nn.LazyLinear(12)
    return model


def frozen() -> PlainDiT:
    """Half of the weights require no gradient."""
    model = tiny()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    return model


def with_nan() -> PlainDiT:
    """A weight of NaN ahead of the trunk."""
    model = tiny()
    with torch.no_grad():
        model.y_embedder.weight[1] = torch.nan
    return model


def on_meta() -> PlainDiT:
    """Weights without values."""
    return tiny().to("meta")


def traced() -> Any:
    """A TorchScript module: its Python code is gone."""
    x, t, y = torch.randn(2, 3, SIDE, SIDE), torch.tensor([5, 5]), torch.tensor([1, 2])
    return torch.jit.trace(tiny(), (x, t, y), check_trace=False)


def in_dtype(dtype: torch.dtype) -> PlainDiT:
    """A cast copy."""
    return tiny().to(dtype)


def any_size() -> PlainDiT:
    """For images of other sizes."""
    return tiny(AnySize)
