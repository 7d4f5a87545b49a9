"""Values as code to paste, with the imports that it needs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from ..policy import Policy


def call_to_paste(function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A call of a function of ``sparsify.testing`` with all imports, one argument a line."""
    used: dict[Any, None] = {}
    given: list[str] = []
    lines = [code_of(value, used) for value in args]
    for name, value in kwargs.items():
        if _is_nameless(value):
            given.append(f"# {name} is the one that was given: {_described(value)}")
        lines.append(f"{name}={name if _is_nameless(value) else code_of(value, used)}")
    imports: dict[str, set[str]] = {"sparsify.testing": {function}}
    local = []
    for thing in used:
        module = _home_of(thing)
        if module is None:
            local.append(f"# {thing.__name__} is defined in {thing.__qualname__.rpartition('.')[0] or thing.__module__}")
        else:
            imports.setdefault(module, set()).add(thing.__name__)
    head = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]
    body = "".join(f"    {line},\n" for line in lines)
    return "\n".join([*head, *sorted(local), *given]) + f"\n\n{function}(\n{body})"


def _is_nameless(value: Any) -> bool:
    """Whether a function has no name to call it by: a lambda, a partial one, or an object that can be called."""
    if not callable(value) or isinstance(value, type) or dataclasses.is_dataclass(value):
        return False
    return not str(getattr(value, "__name__", "")).isidentifier()


def _described(value: Any) -> str:
    if isinstance(value, functools.partial):
        return f"functools.partial of {_described(value.func)}"
    if (code := getattr(value, "__code__", None)) is not None:
        return f"{value.__qualname__}, line {code.co_firstlineno} of {value.__module__}"
    return (
        f"an object of {type(value).__module__}.{type(value).__qualname__}" if _is_nameless(value) else str(value.__qualname__)
    )


def code_of(value: Any, used: dict[Any, None]) -> str:
    """A value as code; classes and functions that it names go to ``used``. A nameless function deep in a value is ``...``."""
    if _is_nameless(value):
        return "..."
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{float(value)}')"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{code_of(key, used)}: {code_of(item, used)}' for key, item in value.items())}}}"
    if isinstance(value, Policy) and value.kind != "explicit":
        used[Policy] = None
        return f"Policy.{value.kind}()"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        used[type(value)] = None
        shown = [(field, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]
        given = [(field.name, item) for field, item in shown if item != field.default]
        return f"{type(value).__name__}({', '.join(f'{name}={code_of(item, used)}' for name, item in given)})"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        used[type(value)] = None
        return f"{type(value).__name__}({', '.join(code_of(item, used) for item in value)})"
    if isinstance(value, (tuple, list)):
        inside = ", ".join(code_of(item, used) for item in value)
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if callable(value) and hasattr(value, "__qualname__"):
        used[value] = None
        return str(value.__name__)
    return repr(value)


def _home_of(thing: Any) -> str | None:
    """The module to import a class or function from; None where it can only be had where it was defined."""
    import sparsify
    import sparsify.passes

    for module in (sparsify, sparsify.passes):
        if getattr(module, thing.__name__, None) is thing:
            return module.__name__
    if thing.__qualname__ != thing.__name__ or thing.__module__ == "__main__":
        return None
    return "sparsify.testing" if thing.__module__.startswith("sparsify.testing.") else str(thing.__module__)
