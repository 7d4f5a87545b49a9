"""Undo what a model writes into its weights and inputs while it runs for real: some normalise a weight, or scale their input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Undo(TorchDispatchMode):
    """Within this mode, the first write into one of some tensors keeps a copy of it; at the end the copies are put back.

    Nothing is copied for a model that writes nothing, however large it is.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._tensors: dict[int, list[torch.Tensor]] = {}
        for tensor in tensors:
            if tensor.layout == torch.strided and not tensor.is_meta:
                self._tensors.setdefault(_storage(tensor), []).append(tensor)
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            for value in pytree.tree_leaves((args, kwargs)):
                if isinstance(value, torch.Tensor) and value.layout == torch.strided:
                    self._keep(_storage(value))
        return func(*args, **(kwargs or {}))

    def _keep(self, storage: int) -> None:
        self._kept += [(tensor, tensor.detach().clone()) for tensor in self._tensors.pop(storage, ())]

    def __exit__(self, *error: Any) -> Any:
        result = super().__exit__(*error)
        with torch.no_grad():
            for tensor, value in self._kept:
                tensor.detach().copy_(value)
        return result


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
