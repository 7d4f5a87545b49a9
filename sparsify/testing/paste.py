"""Values as code to paste, with the imports that it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..policy import Policy


def call_to_paste(function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A call of a function of ``sparsify.testing`` with all imports, one argument a line."""
    used: dict[Any, None] = {}
    lines = [code_of(value, used) for value in args]
    lines += [f"{name}={code_of(value, used)}" for name, value in kwargs.items()]
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
    return "\n".join([*head, *sorted(local)]) + f"\n\n{function}(\n{body})"


def code_of(value: Any, used: dict[Any, None]) -> str:
    """A value as code; classes and functions that it names go to ``used``."""
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
