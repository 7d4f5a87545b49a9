"""Passes by name: those of the package, those registered in this process, and those that installed packages offer.

A package offers passes by an entry point each, in the group ``sparsify.passes``; it is loaded when its name is asked for::

    [project.entry-points."sparsify.passes"]
    my-pass = "my_package.my_pass:MyPass"
"""

from __future__ import annotations

import functools
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from ..errors import PolicyError
from .base import Pass

GROUP = "sparsify.passes"

P = TypeVar("P", bound=type[Pass])

_OWN: dict[str, type[Pass]] = {}  # of this package
_REGISTERED: dict[str, type[Pass]] = {}


def register_pass(cls: P) -> P:
    """Make a pass known by its name to pipelines in text and to the command line; also as a decorator.

    The same class may come again, as it does when its module is loaded anew.

    Raises:
        PolicyError: it is no pass, or its name is taken.
    """
    name = _name_of(cls, getattr(cls, "__qualname__", str(cls)))
    before = _OWN.get(name) or _REGISTERED.get(name)
    if before is not None and _path(before) != _path(cls):
        raise PolicyError(f"the pass name {name!r} of {_path(cls)} is taken by {_path(before)}.")
    if name not in _OWN:
        _REGISTERED[name] = cls
    return cls


def register_own(*classes: type[Pass]) -> None:
    """The passes of this package."""
    _OWN.update({cls.name: cls for cls in classes})


def pass_names() -> list[str]:
    """Every name that :func:`pass_named` knows; nothing is loaded for it."""
    return sorted({*_OWN, *_REGISTERED, *(point.name for point in _offered(tuple(sys.path)))})


def pass_named(name: str) -> type[Pass]:
    """The pass of this name.

    Raises:
        PolicyError: there is none, there are several, or its package cannot be loaded.
    """
    known = _OWN.get(name) or _REGISTERED.get(name)
    points = [point for point in _offered(tuple(sys.path)) if point.name == name]
    places = [_path(known)] if known is not None else []
    places += [f"{point.value} ({_package(point)})" for point in points if known is None or point.value != _path(known)]
    if len(places) > 1:
        raise PolicyError(f"the pass name {name!r} is taken {len(places)} times: by {' and by '.join(places)}.")
    if known is not None:
        return known
    if not points:
        raise PolicyError(f"there is no pass {name!r}; there are {pass_names()}.")
    return _loaded(points[0])


@functools.lru_cache(maxsize=1)
def _offered(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of all packages on the path, read once: a pipeline names many passes."""
    return tuple(dict.fromkeys(entry_points(group=GROUP)))


def _loaded(point: EntryPoint) -> type[Pass]:
    where = f"the pass {point.name!r}, {point.value} of {_package(point)},"
    try:
        found = point.load()
    except Exception as error:  # whatever a module of somebody else raises
        raise PolicyError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    name = _name_of(found, where)
    if name != point.name:
        raise PolicyError(f"{where} calls itself {name!r}; its entry point must have that name.")
    return found  # type: ignore[no-any-return]


def _name_of(cls: Any, where: str) -> str:
    if not isinstance(cls, type) or not issubclass(cls, Pass) or not isinstance(getattr(cls, "name", None), str):
        raise PolicyError(f"{where} is no pass: it must be a subclass of sparsify.passes.Pass with a name.")
    return cls.name


def _path(cls: type[Pass]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown package"
