"""What a call must leave as it was: tensors, training flags and the random state."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotCapturedError
from ..pristine import foreign_draws


class State:
    """A record of tensors and modes, to be asked later what has changed, and to be put back.

    Args:
        tensors: by what they are called in a message.
        modules: whose training flags are kept, too, and which tensor each of their names stands for.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *modules: nn.Module) -> None:
        self._before = [(name, tensor, tensor.detach().clone(), tensor.requires_grad) for name, tensor in tensors.items()]
        self._flags = [(path, module, module.training) for each in modules for path, module in each.named_modules()]
        self._bindings = [binding for each in modules for binding in _bindings(each)]

    def change(self) -> str | None:
        """What is not as it was, or None."""
        for name, tensor, value, grad in self._before:
            if tensor.shape != value.shape or not identical(tensor.detach(), value):
                return f"changed {name}"
            if tensor.requires_grad != grad:
                return f"switched requires_grad of {name}"
        for what, names, key, bound in self._bindings:
            if not _same(names.get(key), bound):
                return f"changed {what}"
        changed = (path for path, module, flag in self._flags if module.training != flag)
        path = next(changed, None)
        return None if path is None else f"switched the training mode of {path or 'the model'}"

    def restore(self) -> None:
        """Put tensors under their names, values and flags back; a tensor that has another shape by now keeps its values."""
        for _, names, key, bound in self._bindings:
            if names.get(key) is not bound:
                names[key] = bound
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


_Binding = tuple[str, dict[str, Any], str, Tensor | None]


def _bindings(module: nn.Module) -> list[_Binding]:
    """What each name of a parameter or buffer stands for: a forward that assigns to it leaves the old tensor as it was."""
    try:
        next(module.parameters(), None)
    except NotCapturedError:
        return []  # a sparse model that fills itself at its first call
    return [
        (f"the {kind} {path}{'.' if path else ''}{name}", names, name, tensor)
        for path, each in module.named_modules()
        for kind, names in (("parameter", each._parameters), ("buffer", each._buffers))
        for name, tensor in names.items()
    ]


def _same(now: Tensor | None, before: Tensor | None) -> bool:
    """Whether a name stands for the same as before: the tensor itself, or one of equal type and values."""
    if now is before or now is None or before is None:
        return now is before
    if (type(now), now.shape, now.dtype, now.device) != (type(before), before.shape, before.dtype, before.device):
        return False
    return now.requires_grad == before.requires_grad and identical(now.detach(), before.detach())


def random_state() -> tuple[object, ...]:
    """The state of the random numbers of torch, on the CPU, of Python and of numpy, as values to compare."""
    numpy = sys.modules.get("numpy")  # which sparsify does without; what has not been imported has drawn nothing
    state = () if numpy is None else numpy.random.get_state()
    return bytes(torch.get_rng_state().tolist()), random.getstate(), tuple(map(_plain, state))


def _plain(part: Any) -> object:
    return part.tobytes() if hasattr(part, "tobytes") else part


@contextlib.contextmanager
def random_numbers_kept(devices: Sequence[int] = ()) -> Iterator[None]:
    """Puts the random numbers of torch, on the CPU and on these CUDA devices, of Python and of numpy back in the end."""
    with foreign_draws(), torch.random.fork_rng(devices=devices):
        yield


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same values, NaN where the other has NaN."""
    if a.is_meta or b.is_meta:
        return a.is_meta and b.is_meta
    return bool(((a == b) | ((a != a) & (b != b))).all())
