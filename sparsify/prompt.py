"""The prompt nodes at run time: their results are kept for as long as what they were made from stays as it is."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

KEPT = 4  # prompts at a time, such as the positive and the negative one of guidance

_steps = 0  # of all optimisers: fused ones write to weights without counting it


def _count_step(*_: Any) -> None:
    global _steps  # the hook is the process's
    _steps += 1


register_optimizer_step_post_hook(_count_step)


@dataclass(frozen=True)
class Kept:
    """The results for one prompt, with what keeps their key from meaning anything else."""

    results: tuple[torch.Tensor, ...]
    versions: tuple[int, ...]
    inputs: list[weakref.ref[torch.Tensor]]
    storages: list[StorageWeakRef]

    @property
    def is_untouched(self) -> bool:
        """Whether nobody has written to the results."""
        return self.versions == _versions(self.results)


class PromptModule(nn.Module):
    """Runs a graph that depends on the prompt and the weights alone, once for each prompt.

    A result is used again only if the input tensors are the same objects on the same memory as then, and neither they, nor the
    weights, nor the result have been written to since, as torch's version counters tell, and no optimiser has made a step.
    It is not kept where that cannot be told (inference tensors, subclasses, transforms), where gradients are to flow, or while a
    graph is being traced or captured. It goes when one of the inputs goes or a weight changes.
    """

    def __init__(self, run: fx.GraphModule) -> None:
        super().__init__()
        self._run = (run,)  # in a tuple, because its weights are registered elsewhere
        self._owners = list(_owners(run))
        self._weights: tuple[Any, ...] = ()
        self._storages: list[StorageWeakRef] = []
        self._kept: dict[Any, Kept] = {}

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The values that the rest of the graph reads."""
        (run,) = self._run
        weights = [owner[name] for owner, name in self._owners]
        if torch.compiler.is_compiling() or not _can_keep([*inputs, *weights]):
            result: tuple[torch.Tensor, ...] = run(*inputs)
            return result
        state = (_steps, *map(_identity, weights))
        if state != self._weights:  # results of other weights are of no use any more
            self._kept.clear()
            self._weights, self._storages = state, _storages(weights)
        key = (_situation(inputs[0].device), *map(_identity, inputs))
        found = self._kept.pop(key, None)
        if found is None or not found.is_untouched:
            with torch.inference_mode(False), torch.no_grad():  # results of that mode have no versions
                result = run(*inputs)
            gone = [weakref.ref(x, lambda _: self._kept.pop(key, None)) for x in inputs]
            found = Kept(result, _versions(result), gone, _storages(inputs))
        while len(self._kept) >= KEPT:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[key] = found  # the latest comes last
        return found.results

    def forget(self) -> None:
        """Compute everything anew at the next call."""
        self._kept.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return nn.Module()  # the copied model makes its own, on its own weights


def _can_keep(tensors: Sequence[torch.Tensor]) -> bool:
    if torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
        return False
    if _get_current_dispatch_mode() is not None or get_proxy_mode() is not None:
        return False  # who watches operators is to see them
    if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    if torch.is_grad_enabled() and any([x.requires_grad for x in tensors]):
        return False
    return all([type(x) in (torch.Tensor, nn.Parameter) and not (x.is_inference() or x.is_meta) for x in tensors])


def _identity(x: torch.Tensor) -> tuple[Any, ...]:
    """Equal only for the same tensor on the same memory with the same contents, while its storage is referred to weakly."""
    return id(x), x._version, x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride()


def _storages(tensors: Sequence[torch.Tensor]) -> list[StorageWeakRef]:
    """They hold no memory, but while they are there no other storage gets the same address."""
    return [StorageWeakRef(x.untyped_storage()) for x in tensors]


def _situation(device: torch.device) -> tuple[Any, ...]:
    """What decides about results, or about who may read them, besides tensors."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type), stream


def _versions(tensors: Sequence[torch.Tensor]) -> tuple[int, ...]:
    return tuple([x._version for x in tensors])


def _owners(run: fx.GraphModule) -> Iterator[tuple[dict[str, Any], str]]:
    """Where each tensor that the graph names is registered; looked up there, it is found after a move too."""
    for node in run.graph.find_nodes(op="get_attr"):
        path, _, name = str(node.target).rpartition(".")
        module = run.get_submodule(path)
        registries = (module._parameters, module._buffers, module.__dict__)
        yield next(registry for registry in registries if name in registry), name
