"""Batches out of nothing: random latents at timesteps spread over the schedule, for want of data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..calls import split_inputs
from ..density import Density
from ..discretise import is_discrete
from ..ends import check_whole
from ..errors import InputError
from ..passes.prompt_once import latent_inputs
from .variants import Variants


def random_batches(
    model: nn.Module,
    inputs: Any,
    count: int,
    density: Density,
    *,
    grid: tuple[int, ...] | None = None,
    timestep: str | None = None,
    seed: int = 0,
) -> list[Any]:
    """``count`` calls like ``inputs`` with other latents and timesteps; everything else, such as a prompt, stays.

    Latents are drawn from the normal distribution at every timestep. That is what a denoiser sees at pure noise; nearer to the
    data it is a stand-in, and errors measured on it tell less than those on noised data.

    Args:
        model: the dense model.
        inputs: one call's inputs, a tuple or a dict.
        count: how many calls.
        density: whose range the timesteps are spread over evenly.
        grid: as for ``sparsify``.
        timestep: as for ``sparsify``.
        seed: of a generator of its own.

    Raises:
        InputError: ``count`` is no positive integer, or the timestep is no tensor among the inputs.
    """
    check_whole("count", count)
    program = Variants(model, inputs, density.timesteps, grid, timestep).program
    args, kwargs = split_inputs(inputs)
    named = dict(zip((node.name for node in program.placeholders), program.call.flatten(args, kwargs), strict=False))
    if not isinstance(named.get(str(program.timestep)), torch.Tensor):
        raise InputError(f"the timestep {program.timestep!r} is no tensor among the inputs; give batches instead.")
    latents = {node.name for node in latent_inputs(program)} & named.keys()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        t = density.timesteps * (index + 0.5) / count
        new: dict[int, Any] = {}
        for name in sorted(latents):
            old: Any = named[name]
            new[id(old)] = torch.randn(old.shape, generator=generator).to(old)
        step: Any = named[str(program.timestep)]
        new[id(step)] = torch.full_like(step, int(t) if is_discrete(density.timesteps) else t)
        found.append(pytree.tree_map(lambda leaf, new=new: new.get(id(leaf), leaf), inputs))
    return found
