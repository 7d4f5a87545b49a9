"""JSON from files and command lines of unknown origin."""

from __future__ import annotations

import json
from typing import Any

LONGEST = 1_000_000  # characters; tables of densities and configurations have a few thousand


def read_json(text: Any) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is no text, no JSON, too long or too deep, or names a field twice.
    """
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"it is of type {type(text).__name__}, and must be text")
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text):,} characters; at most {LONGEST:,} are read")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice")
    return fields
