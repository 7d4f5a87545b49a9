"""A density as one word, such as ``paper(10x10..6x6)``, for pipelines, tables and command lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .ends import end_text, parse_end, plain
from .errors import PolicyError

_WORD = re.compile(r"(paper|constant|linear|cosine|table)\(([^/@]+)(?:@(\d+))?(?:/([\d.e+-]+))?\)(\+time)?(\+reversed)?")


def text_of_density(fields: Mapping[str, Any]) -> str:
    """The word for the fields of a density (``Density.to_dict``)."""
    if fields["schedule"] == "table":
        inside = ";".join(f"{t}:{end_text(end)}" for t, end in fields["steps"])
    else:
        ends = [fields["finest"], fields["coarsest"]]
        inside = "..".join(map(end_text, ends[:1] if fields["schedule"] == "constant" else ends))
    levels = f"@{fields['levels']}" if fields.get("levels") else ""
    timesteps = "" if fields["timesteps"] == 1000 else f"/{fields['timesteps']}"
    flags = ("+time" if fields.get("pools_time") else "") + ("+reversed" if fields.get("reversed") else "")
    return f"{fields['schedule']}({inside}{levels}{timesteps}){flags}"


def density_of_text(text: str) -> dict[str, Any]:
    """The fields that a word stands for.

    Raises:
        PolicyError: the text is no such word.
    """
    match = _WORD.fullmatch(text)
    if match is None:
        raise PolicyError(
            f"density {text!r} is not like paper(0.61..0.86), paper(10x10..6x6), constant(8x8) or table(0:8x8;500:0.9)."
        )
    schedule, inside, levels, timesteps, time, backwards = match.groups()
    fields: dict[str, Any] = {"schedule": schedule, "timesteps": _number(timesteps or "1000")}
    fields |= {"pools_time": bool(time), "reversed": bool(backwards), "levels": _number(levels) if levels else None}
    if schedule == "table":
        steps = [step.partition(":") for step in inside.split(";")]
        fields["steps"] = [[_number(t), plain(parse_end(end))] for t, _, end in steps]
        first, last = fields["steps"][0][1], fields["steps"][-1][1]
        return fields | {"finest": last if backwards else first, "coarsest": first if backwards else last}
    finest, _, coarsest = inside.partition("..")
    return fields | {"finest": parse_end(finest), "coarsest": parse_end(coarsest or finest)}


def _number(text: str) -> float:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise PolicyError(f"{text!r} is no timestep; it must be a number such as 500 or 0.5.") from error
