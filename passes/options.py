"""A pass as text, such as ``pool-attention{blocks=0-1}``, and back."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable
from typing import Any

from ..errors import PolicyError
from .base import Pass
from .registry import pass_named

_ONE = r"([\w-]+)(?:\{([^{}]*)\})?"
_ITEM = re.compile(_ONE + r"(?:,|$)")
# How an option of each type is read from text; str() writes it. Other types have a ``parse`` of their own.
_READERS: dict[object, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    bool: lambda text: {"true": True, "false": False}[text.lower()],
}


def pass_text(rewrite: Pass) -> str:
    """A pass with its options."""
    options = " ".join(f"{f.name}={getattr(rewrite, f.name)}" for f in dataclasses.fields(rewrite))
    return f"{rewrite.name}{{{options}}}" if options else rewrite.name


def passes_from_text(text: str) -> tuple[Pass, ...]:
    """Passes separated by commas.

    Raises:
        PolicyError: an unknown pass or option, or text of another form.
    """
    items = _ITEM.findall(text)
    if ",".join(name + (f"{{{options}}}" if options else "") for name, options in items) != text.replace("{}", ""):
        raise PolicyError(f"pipeline {text!r} is not like 'pool-attention{{blocks=0-1}},cleanup'.")
    return tuple(_pass_of(pass_named(name), options) for name, options in items)


def read_pass(cls: type[Pass], text: str) -> Pass:
    """One pass of a class that is known, registered or not.

    Raises:
        PolicyError: the text is of another form, or of another pass.
    """
    match = re.fullmatch(_ONE, text)
    if match is None or match[1] != cls.name:
        raise PolicyError(f"{text!r} is not like '{cls.name}' or '{cls.name}{{option=value}}'.")
    return _pass_of(cls, match[2] or "")


def _pass_of(cls: type[Pass], options: str) -> Pass:
    name, types = cls.name, _types(cls)
    values: dict[str, Any] = {}
    for option in options.split():
        key, equals, value = option.partition("=")
        if not equals or key not in types:
            raise PolicyError(f"pass {name} has no option {option!r}; its options are {sorted(types) or 'none'}.")
        if key in values:
            raise PolicyError(f"pass {name} has the option {key!r} twice; give it once.")
        values[key] = _read(name, option, value, types[key])
    try:
        return cls(**values)
    except TypeError as error:
        raise PolicyError(f"pass {name}: {error}; its options are {sorted(types)}.") from error


def _read(name: str, option: str, value: str, kind: Any) -> Any:
    reader = _READERS.get(kind) or getattr(kind, "parse", None)
    label = getattr(kind, "__name__", str(kind))
    if reader is None:
        raise PolicyError(f"pass {name}: {option!r} cannot be written as text: {label} has no parse(text).")
    try:
        return reader(value)
    except (ValueError, KeyError) as error:
        raise PolicyError(f"pass {name}: {option!r} is not a value of type {label} ({error}).") from error


def _types(cls: type[Pass]) -> dict[str, Any]:
    """The type of each option."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a class within a function, whose names are gone: what is usual there is known by name
        hints = {}
    return {f.name: hints.get(f.name, _BY_NAME.get(str(f.type), f.type)) for f in dataclasses.fields(cls)}


_BY_NAME: dict[str, Any] = {kind.__name__: kind for kind in _READERS if isinstance(kind, type)}
