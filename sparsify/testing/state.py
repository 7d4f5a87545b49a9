"""What a call must leave as it was: tensors, training flags and the random state."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import NotCapturedError


class State:
    """A record of tensors and modes, to be asked later what has changed, and to be put back.

    Args:
        tensors: by what they are called in a message.
        modules: whose training flags are kept, too.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *modules: nn.Module) -> None:
        self._before = [(name, tensor, tensor.detach().clone(), tensor.requires_grad) for name, tensor in tensors.items()]
        self._flags = [(path, module, module.training) for each in modules for path, module in each.named_modules()]

    def change(self) -> str | None:
        """What is not as it was, or None."""
        for name, tensor, value, grad in self._before:
            if tensor.shape != value.shape or not identical(tensor.detach(), value):
                return f"changed {name}"
            if tensor.requires_grad != grad:
                return f"switched requires_grad of {name}"
        changed = (path for path, module, flag in self._flags if module.training != flag)
        path = next(changed, None)
        return None if path is None else f"switched the training mode of {path or 'the model'}"

    def restore(self) -> None:
        """Put values and flags back; a tensor that has another shape by now is left alone."""
        with torch.no_grad():
            for _, tensor, value, _ in self._before:
                if tensor.shape == value.shape and not identical(tensor.detach(), value):
                    tensor.copy_(value)
        for _, module, flag in self._flags:
            module.training = flag


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; none of a sparse model that is still waiting for its first call."""
    try:
        found: dict[str, Tensor] = {f"the parameter {name}": tensor for name, tensor in module.named_parameters()}
    except NotCapturedError:
        return {}
    return found | {f"the buffer {name}": tensor for name, tensor in module.named_buffers()}


def random_state() -> tuple[object, ...]:
    """The state of the random numbers of torch, on the CPU, and of Python, as values to compare."""
    return bytes(torch.get_rng_state().numpy()), random.getstate()


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same values, NaN where the other has NaN."""
    if a.is_meta or b.is_meta:
        return a.is_meta and b.is_meta
    return bool(((a == b) | ((a != a) & (b != b))).all())
