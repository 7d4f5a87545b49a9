"""The moving average of the weights, from which images are sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """An exponential moving average of parameters.

    Args:
        parameters: by name; whole ones, or the shards of this process.
        decay: per step, from 0 to below 1.
        warmup: let it follow faster at first: at step s, counted from 0, the decay is at most (1 + s) / (10 + s).

    Attributes:
        values: the averages by name, of the same shapes and in the same shards; at first the parameters as they are.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float, warmup: bool = True) -> None:
        self._parameters = dict(parameters)
        self._decay, self._warmup = decay, warmup
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def decay_at(self, step: int) -> float:
        """The decay of a step, counted from 0."""
        return min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the parameters as they are after this step into the average."""
        average = get_ema_multi_avg_fn(self.decay_at(step))
        average([local(value) for value in self.values.values()], [local(p) for p in self._parameters.values()], 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the model has the averages for its weights, to sample from it or to save it."""
        before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(before)

    @torch.no_grad()
    def _write(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            local(parameter).copy_(local(values[name]))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or of one in shards that of this process, on the same memory; to be called without gradients."""
    shard: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard
