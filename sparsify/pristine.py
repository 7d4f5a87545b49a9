"""Leave the user's model exactly as it was: capture runs its Python code, and code has side effects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# Registries whose entries capture may add or replace; a shallow copy of each is enough to restore it.
_REGISTRIES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


@contextlib.contextmanager
def pristine(model: nn.Module) -> Iterator[None]:
    """Restore every attribute, buffer, hook and training flag of ``model``, and the random state, on the way out.

    Attributes matter because many models cache tables on themselves: a cache filled while tracing holds fake
    tensors and would break the model's next real call. For the same reason ``functools`` caches of the model's own
    methods are emptied.
    """
    before = [(module, *_snapshot(module)) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for module, attributes, registries in before:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                for name, entries in registries.items():
                    registry = module.__dict__[name]
                    if _differs(registry, entries):
                        registry.clear()
                        registry.update(entries)
            for cls in {type(module) for module, _, _ in before}:
                _clear_method_caches(cls)


def _snapshot(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    return dict(module.__dict__), {name: dict(module.__dict__[name]) for name in _REGISTRIES}


def _differs(registry: dict[str, Any], entries: dict[str, Any]) -> bool:
    """Compare by identity: tensors have no truth value."""
    return registry.keys() != entries.keys() or any(registry[k] is not entries[k] for k in entries)


def _clear_method_caches(cls: type) -> None:
    for base in cls.__mro__:
        for attribute in vars(base).values():
            clear = getattr(attribute, "cache_clear", None)
            if callable(clear):
                clear()
