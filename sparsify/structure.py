"""When two blocks are the same program with other weights, so that one capture serves both."""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

_MODULE_INTERNALS = frozenset(nn.Module().__dict__)
_DEPTH = 6  # of plain objects hanging off a module (attention processors, configs)


def fingerprint(block: nn.Module) -> Hashable:
    """A value that is equal for two blocks only if tracing them gives the same graph.

    It covers the classes, every plain attribute and every parameter's shape and dtype. What it does not understand it
    compares by identity, which costs a second capture but is never wrong.
    """
    paths = {id(module): name for name, module in block.named_modules()}
    return tuple(
        (
            name,
            type(module),
            tuple(
                (key, tuple(map(id, hooks.values()))) for key, hooks in vars(module).items() if key.endswith("_hooks") and hooks
            ),
            tuple((key, _tensor(p)) for key, p in module._parameters.items()),
            tuple((key, _tensor(b), key in module._non_persistent_buffers_set) for key, b in module._buffers.items()),
            tuple((key, _plain(value, _DEPTH, paths)) for key, value in _attributes(module)),
        )
        for name, module in block.named_modules(remove_duplicate=False)
    )


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    return sorted((k, v) for k, v in vars(module).items() if k not in _MODULE_INTERNALS)


def _tensor(tensor: torch.Tensor | None) -> Hashable:
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.device)


def _plain(value: Any, depth: int, paths: dict[int, str]) -> Hashable:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size)):
        return (type(value), value)
    if isinstance(value, nn.Module) and id(value) in paths:
        return ("module", paths[id(value)])  # one of the block's own; any other is compared by identity
    if not depth or isinstance(value, nn.Module):
        return ("identity", id(value))
    if isinstance(value, (list, tuple)):
        return (type(value), tuple(_plain(item, depth - 1, paths) for item in value))
    if isinstance(value, dict):
        return (type(value), tuple((key, _plain(item, depth - 1, paths)) for key, item in value.items()))
    if isinstance(value, types.MethodType):
        return ("method", value.__func__, _plain(value.__self__, depth - 1, paths))
    if _is_plain_object(value):
        return (type(value), tuple((key, _plain(item, depth - 1, paths)) for key, item in sorted(vars(value).items())))
    return ("identity", id(value))


def _is_plain_object(value: Any) -> bool:
    """An attention processor or a config, say; not a function, a partial or a tensor, which hold more than attributes."""
    opaque = isinstance(value, (types.FunctionType, functools.partial, torch.Tensor)) or type(value).__module__ == "builtins"
    return hasattr(value, "__dict__") and not opaque
