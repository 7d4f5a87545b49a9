"""Keep the weights of opaque blocks from torch.export, which spends time on every weight of a model, read or not.

The model's own code sees them all the same. Should it read one outside of its block (as a model does that takes the
timestep's embedding from its first block), it would be traced as a constant: so that is noted, and such blocks are shown.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_REGISTRIES = ("_modules", "_parameters", "_buffers")
_UNWATCHED = frozenset(nn.Module().__dict__)


class Watch(TorchFunctionMode):
    """While it is on and not paused, whose parameters and buffers any operator or attribute of tensors is asked for.

    Attributes:
        seen: the names of these modules.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self._paused = False
        self._owners: dict[int, set[str]] = {}
        for name, module in modules.items():
            for tensor in (*module.parameters(), *module.buffers()):
                self._owners.setdefault(id(tensor), set()).add(name)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._paused:
            for leaf in pytree.tree_leaves((args, kwargs)):
                self.seen |= self._owners.get(id(leaf), set())
        return func(*args, **kwargs)

    def pausing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, run without taking notes."""

        @functools.wraps(function)
        def paused(*args: Any, **kwargs: Any) -> Any:
            before, self._paused = self._paused, True
            try:
                return function(*args, **kwargs)
            finally:
                self._paused = before

        return paused


class Hidden:
    """Modules whose insides are kept from whoever walks through the model they are part of.

    Attributes:
        touched: names of those modules that the model's code read from or wrote to while they were shown.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.touched: set[str] = set()
        self._modules = modules
        self._insides = [{key: vars(module)[key] for key in _REGISTRIES} for module in modules.values()]

    @contextlib.contextmanager
    def hide(self) -> Iterator[None]:
        """The modules seem to be empty."""
        for module in self._modules.values():
            vars(module).update({key: {} for key in _REGISTRIES})
        try:
            yield
        finally:
            self._put_back()

    @contextlib.contextmanager
    def show(self) -> Iterator[None]:
        """For the model's own code, in the middle of :meth:`hide`: they are as ever, and watched."""
        hidden = [{key: vars(module)[key] for key in _REGISTRIES} for module in self._modules.values()]
        self._put_back()
        watch, attributes = Watch(self._modules), self._attributes()
        try:
            with watch:
                yield
        finally:
            now = self._attributes()
            self.touched |= watch.seen | {name for name, before in attributes.items() if not _same(before, now[name])}
            for module, registries in zip(self._modules.values(), hidden, strict=True):
                vars(module).update(registries)

    def _put_back(self) -> None:
        for module, registries in zip(self._modules.values(), self._insides, strict=True):
            vars(module).update(registries)

    def _attributes(self) -> dict[str, list[Any]]:
        """What every module's code keeps on it, by the name of the hidden one around it; torch.export warns of tensors there."""
        return {
            name: [
                leaf
                for part in module.modules()
                for key, value in vars(part).items()
                if key not in _UNWATCHED
                for leaf in (key, *(pytree.tree_leaves(value) if isinstance(value, (dict, list, tuple)) else (value,)))
            ]
            for name, module in self._modules.items()
        }


def _same(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
