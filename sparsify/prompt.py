"""The prompt nodes at run time: their results are kept for as long as what they were made from stays as it is."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

KEPT = 4  # prompts at a time, such as the positive and the negative one of guidance


class PromptModule(nn.Module):
    """Runs a graph that depends on the prompt and the weights alone, once for each prompt.

    A result is used again only if the input tensors are the same objects as then, and neither they, nor the weights, nor the
    result have been written to since, as torch's version counters tell. It is not kept where that cannot be told (inference
    tensors, subclasses, transforms), where gradients are to flow, or while a graph is being traced. It goes when one of the inputs
    goes.
    """

    def __init__(self, run: fx.GraphModule) -> None:
        super().__init__()
        self._run = (run,)  # in a tuple, because its weights are registered elsewhere
        self._weights = list(_owners(run))
        self._kept: dict[Any, tuple[tuple[torch.Tensor, ...], tuple[int, ...], list[Any]]] = {}

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The values that the rest of the graph reads."""
        (run,) = self._run
        if torch.compiler.is_compiling() or not self._can_keep(inputs):
            result: tuple[torch.Tensor, ...] = run(*inputs)
            return result
        key = (self._state(inputs[0].device.type), tuple([_identity(x) for x in inputs]))
        if (found := self._kept.get(key)) is not None and _versions(found[0]) == found[1]:
            return found[0]
        with torch.inference_mode(False), torch.no_grad():  # results of that mode have no versions
            result = run(*inputs)
        while len(self._kept) >= KEPT:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[key] = (result, _versions(result), [weakref.ref(x, lambda _: self._kept.pop(key, None)) for x in inputs])
        return result

    def forget(self) -> None:
        """Compute everything anew at the next call."""
        self._kept.clear()

    def _can_keep(self, inputs: Sequence[torch.Tensor]) -> bool:
        tensors = [*inputs, *[owner[name] for owner, name in self._weights]]
        if torch._C._are_functorch_transforms_active():
            return False
        if torch.is_grad_enabled() and any([x.requires_grad for x in tensors]):
            return False
        return all([type(x) in (torch.Tensor, nn.Parameter) and not (x.is_inference() or x.is_meta) for x in tensors])

    def _state(self, device: str) -> tuple[Any, ...]:
        """The weights, and what else decides about results."""
        weights = [_identity(owner[name]) for owner, name in self._weights]
        return (tuple(weights), torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return nn.Module()  # the copied model makes its own, on its own weights


def _identity(x: torch.Tensor) -> tuple[int, int, int]:
    return id(x), x._version, x.data_ptr()


def _versions(tensors: Sequence[torch.Tensor]) -> tuple[int, ...]:
    return tuple([x._version for x in tensors])


def _owners(run: fx.GraphModule) -> Iterator[tuple[dict[str, Any], str]]:
    """Where each tensor that the graph names is registered; looked up there, it is found after a move too."""
    for node in run.graph.find_nodes(op="get_attr"):
        path, _, name = str(node.target).rpartition(".")
        module = run.get_submodule(path)
        registries = (module._parameters, module._buffers, module.__dict__)
        yield next(registry for registry in registries if name in registry), name
