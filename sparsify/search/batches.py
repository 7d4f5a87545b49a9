"""Calibration batches: a few calls of the dense model, what it gives for them, and how far a sparse model is from that."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..calls import split_inputs
from ..density import Density
from ..errors import ConstantError, InputError
from ..program import Program


def checked(batches: Any) -> list[Any]:
    """The batches as a list, each one call's inputs as ``sparsify`` takes them; a single dict is one batch.

    Raises:
        InputError: there are none, one is no set of inputs, or they have other names than the first.
    """
    if isinstance(batches, torch.Tensor) or not isinstance(batches, Iterable):
        raise InputError(
            f"batches is a {type(batches).__name__}; it must be a list of calls' inputs, each a dict of keyword inputs or a tuple."
        )
    calls = [batches] if isinstance(batches, Mapping) else list(batches)
    if not calls:
        raise InputError("batches is empty; give a few calls' inputs, each a dict or a tuple, at timesteps over the schedule.")
    for index, call in enumerate(calls):
        if not isinstance(call, (Mapping, tuple, list)):
            raise InputError(
                f"batches[{index}] is a {type(call).__name__}; it must be one call's inputs, a dict of keyword inputs or a tuple. "
                f"Write [inputs] for a single call."
            )
        if (names := _names(call)) != (first := _names(calls[0])):
            raise InputError(
                f"batches[{index}] has the inputs {names}, batches[0] has {first}; give all calls the same inputs."
            )
    return calls


@dataclass(frozen=True)
class Batches:
    """Calls of the dense model with its outputs.

    Attributes:
        calls: as given.
        expected: of each call, the floating-point tensors that the model returns.
        weights: what part of the schedule's timesteps each call stands for.
        timesteps: of each call, the mean over its batch; none where they cannot be told.
    """

    calls: tuple[Any, ...]
    expected: tuple[tuple[torch.Tensor, ...], ...]
    weights: tuple[float, ...]
    timesteps: tuple[float, ...]

    @classmethod
    def of(cls, model: nn.Module, calls: Sequence[Any], program: Program, density: Density) -> Batches:
        """Run the dense model on every call.

        Raises:
            InputError: an output is not finite, or zero everywhere, so that no error can be measured against it.
        """
        expected = []
        for index, call in enumerate(calls):
            outputs = _outputs(model, call)
            if not all(bool(torch.isfinite(x).all()) for x in outputs):
                raise InputError(
                    f"batches[{index}]: the dense model's output holds NaN or infinity; check its inputs and weights."
                )
            if not any(bool(x.any()) for x in outputs):
                raise InputError(
                    f"batches[{index}]: the dense model's output is zero everywhere, as that of an untrained model is; load its weights."
                )
            expected.append(outputs)
        timesteps = _timesteps(program, calls)
        if len(set(timesteps)) == 1:
            warnings.warn(
                f"all batches are at timestep {timesteps[0]:g}, where the schedule has one pooled grid; give batches at timesteps "
                f"all over the schedule.",
                stacklevel=4,
            )
        weights = nearest_shares(timesteps, density.timesteps) if timesteps else [1 / len(calls)] * len(calls)
        return cls(tuple(calls), tuple(expected), tuple(weights), tuple(timesteps))

    def error(self, sparse: Callable[..., Any]) -> float:
        """The relative L2 error of a model's outputs, mean over the calls with their weights; infinite if they are not finite."""
        total = 0.0
        for call, expected, weight in zip(self.calls, self.expected, self.weights, strict=True):
            found = _outputs(sparse, call)
            squares = [(_square(x - y), _square(y)) for x, y in zip(found, expected, strict=True)]
            total += weight * math.sqrt(sum(e for e, _ in squares) / sum(s for _, s in squares))
        return total if math.isfinite(total) else math.inf


def nearest_shares(timesteps: Sequence[float], longest: float) -> list[float]:
    """For each of some timesteps, the share of [0, ``longest``] that is nearest to it; equal ones share alike."""
    places = sorted(set(timesteps))
    borders = [0.0, *((a + b) / 2 for a, b in pairwise(places)), longest]
    shares = {t: (above - below) / longest for t, (below, above) in zip(places, pairwise(borders), strict=True)}
    return [shares[t] / timesteps.count(t) for t in timesteps]


def _timesteps(program: Program, calls: Sequence[Any]) -> list[float]:
    names = [node.name for node in program.placeholders][: len(program.call.input_names)]
    if program.timestep not in names:
        return []
    at = names.index(program.timestep)
    try:
        flat = [program.call.flatten(*split_inputs(call))[at] for call in calls]
    except ConstantError:  # a call that is captured by itself
        return []
    return [float(t.float().mean()) if isinstance(t, torch.Tensor) else float(t) for t in flat]


def _outputs(model: Callable[..., Any], call: Any) -> tuple[torch.Tensor, ...]:
    args, kwargs = split_inputs(call)
    leaves = pytree.tree_leaves(model(*args, **kwargs))
    return tuple(x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point())


def _square(x: torch.Tensor) -> float:
    return float(x.float().square().sum(dtype=torch.float32 if x.device.type == "mps" else torch.float64))


def _names(call: Any) -> Any:
    return sorted(map(str, call)) if isinstance(call, Mapping) else f"{len(call)} by position"
