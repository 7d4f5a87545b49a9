"""The models that are timed: real sizes with the paper's policies, and small ones of the same kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from sparsify import Density, Policy
from sparsify.models import dit, flux_stack, pixart

_RATES = 0.61, 0.86  # the paper's for 256x256 images


@dataclass(frozen=True)
class Case:
    """A model to time: ``make`` returns it with keyword inputs at batch 1."""

    title: str
    make: Callable[[], tuple[nn.Module, dict[str, Any]]]
    policy: Policy


_FLUX = Policy.auto(Density.paper(*_RATES, timesteps=1.0))  # its timesteps lie between 0 (data) and 1 (noise)
CASES = {
    "dit-256": Case("DiT-XL/2 256x256", partial(dit, "DiT-XL/2", 256), Policy.paper("DiT-XL/2", 256)),
    "dit-512": Case("DiT-XL/2 512x512", partial(dit, "DiT-XL/2", 512), Policy.paper("DiT-XL/2", 512)),
    "pixart-256": Case("PixArt-alpha XL/2 256x256", partial(pixart, 256), Policy.auto(Density.paper(*_RATES))),
    "pixart-512": Case("PixArt-alpha XL/2 512x512", partial(pixart, 512), Policy.auto(Density.paper(*_RATES))),
    "flux": Case("Flux width, 2 + 4 blocks, 512x512", partial(flux_stack, 512), _FLUX),
}
_SMALL = Policy.auto(Density.paper(*_RATES))
QUICK = {
    "dit-256": Case("DiT-S/2 128x128, 6 blocks", partial(dit, "DiT-S/2", 128, 6), _SMALL),
    "dit-512": Case("DiT-S/2 256x256, 6 blocks", partial(dit, "DiT-S/2", 256, 6), _SMALL),
    "pixart-256": Case("PixArt width, 5 blocks, 64x64", partial(pixart, 64, 5, 8), _SMALL),
    "pixart-512": Case("PixArt width, 5 blocks, 128x128", partial(pixart, 128, 5, 8), _SMALL),
    "flux": Case("Flux, 2 heads, 2 + 4 blocks, 128x128", partial(flux_stack, 128, heads=2, text_tokens=16), _FLUX),
}


def cases(quick: bool) -> dict[str, Case]:
    """By name, in real or in small sizes."""
    return QUICK if quick else CASES
