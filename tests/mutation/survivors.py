"""Why a mutant may survive: `survivors.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from .results import Result

REASONS = Path(__file__).with_name("survivors.toml")
Key = tuple[str, str, str]


def read_reasons(file: Path) -> dict[Key, str]:
    """Reasons by module, line and what the line was changed to, so that they hold when the line moves.

    Raises:
        ValueError: an entry lacks something, or says nothing.
    """
    found = {}
    for path, entries in tomllib.loads(file.read_text()).items() if file.exists() else ():
        for entry in entries:
            if missing := {"before", "after", "reason"} - {key for key, text in entry.items() if text or key == "after"}:
                raise ValueError(f"{file}: an entry of {path} lacks {', '.join(sorted(missing))}: {entry}")
            found[path, entry["before"], entry["after"]] = entry["reason"]
    return found


def reason_for(result: Result, reasons: Mapping[Key, str]) -> str | None:
    """The reason that is on file, or None."""
    return reasons.get((result.path, result.before, result.after))
