"""Inputs of one call of a random DiT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from .spec import DiTSpec

CHANNELS, TEXT_WIDTH, CLASSES = 3, 6, 5


def latent_sides(spec: DiTSpec) -> tuple[int, ...]:
    """Sides of the latent behind the token grid."""
    return tuple(side * patch for side, patch in zip(spec.grid, patch_sides(spec), strict=True))


def patch_sides(spec: DiTSpec) -> tuple[int, ...]:
    """Latents along each side of a token; a frame of a video is no more than that frame."""
    return (1, spec.patch, spec.patch) if len(spec.grid) == 3 else (spec.patch,) * len(spec.grid)


def example_inputs(
    spec: DiTSpec, batch: int, seed: int, timestep: float | Sequence[float] | None, scale: float
) -> dict[str, Tensor]:
    """See :meth:`DiTSpec.example_inputs`."""
    random = torch.Generator().manual_seed(seed)
    tokens = math.prod(spec.grid)

    def noise(*shape: int) -> Tensor:
        return scale * torch.randn(batch, *shape, generator=random, dtype=torch.float64)

    found = {"x": noise(CHANNELS, *latent_sides(spec)), "t": _timesteps(spec, batch, timestep, random)}
    if spec.labels:
        found["y"] = torch.randint(0, CLASSES, (batch,), generator=random)
    if spec.text != "none":
        found["text"] = noise(spec.text_tokens, TEXT_WIDTH)
    if spec.mask == "keys":
        found["mask"] = _key_mask(batch, tokens, random)
    if spec.mask == "bias":
        found["mask"] = noise(tokens, tokens)
    return found


def _timesteps(spec: DiTSpec, batch: int, given: float | Sequence[float] | None, random: torch.Generator) -> Tensor:
    longest, dtype = spec.timesteps, torch.float64 if spec.flow else torch.int64
    drawn = torch.rand(batch, generator=random, dtype=torch.float64) * longest
    if given is None:
        return drawn.to(dtype)
    rows = list(given) if isinstance(given, Sequence) else [given] * batch
    if len(rows) != batch or not all(0 <= t <= longest for t in rows):
        raise InputError(f"timestep is {given!r}; it must be a number in [0, {longest}], or {batch} of them, one for each row.")
    return torch.tensor(rows, dtype=dtype)


def _key_mask(batch: int, tokens: int, random: torch.Generator) -> Tensor:
    """Each row sees a token at least and does not see another, so that the mask is known for one by its values."""
    mask = torch.rand(batch, tokens, generator=random) < 0.7
    order = torch.rand(batch, tokens, generator=random).argsort(dim=1)
    return mask.scatter(1, order[:, :1], True).scatter(1, order[:, 1:2], False)
