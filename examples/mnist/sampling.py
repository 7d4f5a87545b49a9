"""Draw digits with the conditional model, without guidance: DDIM (Song et al., arXiv 2010.02502).

For a model that predicts velocities, whose paths are straight lines, DDIM's steps are those of Euler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

BETAS = "squaredcos_cap_v2"  # a model of noise has to be trained with it: "noise_schedule": "cosine" in its settings
Model = Callable[..., torch.Tensor]
STEPS = 50
BATCH = 50  # small enough for a processor's caches: a fifth faster than 250


def labels_of(count: int) -> torch.Tensor:
    """As many of each digit as can be, in turns: 0, 1, ... 9, 0, ..."""
    return torch.arange(count) % 10


def noise_of(count: int, seed: int) -> torch.Tensor:
    """The starting noise (count, 1, 32, 32): the same for every model that is compared."""
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def drawn(
    model: Model, noise: torch.Tensor, labels: torch.Tensor, objective: str, steps: int = STEPS, batch: int = BATCH
) -> Iterator[torch.Tensor]:
    """Images in [-1, 1], batch by batch.

    Args:
        model: ``model(x, timestep, label)`` to noise and variance, or to velocity.
        noise: (N, 1, 32, 32).
        labels: (N,).
        objective: what the model was trained for, ``"diffusion"`` or ``"flow"``.
        steps: of the sampler, out of the 1000 of the training.
        batch: how many are drawn at once.
    """
    for x, label in zip(noise.split(batch), labels.split(batch), strict=True):
        scheduler = _scheduler(objective)
        scheduler.set_timesteps(steps)
        for step in scheduler.timesteps:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                output = model(x, step.expand(len(x)), label)
            x = scheduler.step(output[:, :1].float(), step, x).prev_sample
        yield x.clamp(-1, 1)


def _scheduler(objective: str) -> Any:
    if objective == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDIMScheduler(beta_schedule=BETAS, clip_sample=True, timestep_spacing="trailing")
