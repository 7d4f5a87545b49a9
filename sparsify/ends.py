"""An end of a density: a pruning rate ``r = 1 - n/N`` or a pooled grid such as ``(10, 10)``."""

from __future__ import annotations

import re

from .errors import InputError, PolicyError

Grid = tuple[int, ...]
End = float | Grid


def one_of(rate_name: str, rate: float | None, grid_name: str, grid: Grid | None) -> End:
    """The one of two that is given.

    Raises:
        PolicyError: none or both are given.
    """
    if (rate is None) == (grid is None):
        raise PolicyError(f"Density: give exactly one of {rate_name}= (a pruning rate) and {grid_name}= (a pooled grid).")
    return rate if grid is None else grid  # type: ignore[return-value]


def checked_end(name: str, end: object) -> End:
    """The end with plain types.

    Raises:
        PolicyError: it is neither a rate in [0, 1) nor one to three integers of at least 1.
    """
    if isinstance(end, (tuple, list)):
        if not is_grid(end):
            raise PolicyError(f"Density.{name} is {end!r}; a pooled grid is one to three integers of at least 1.")
        return tuple(end)
    if isinstance(end, bool) or not isinstance(end, (int, float)):
        raise PolicyError(f"Density.{name} is {end!r}; it must be a pruning rate in [0, 1) or a pooled grid like (8, 8).")
    if not 0 <= end < 1:  # also catches nan
        raise PolicyError(f"Density.{name} is {end}; a pruning rate lies in [0, 1): 0 keeps all tokens, 0.9 drops 90%.")
    return float(end)


def side_areas(name: str, end: End, dense: Grid) -> tuple[float, ...]:
    """Per axis, the squared share of the side of ``dense`` that an end keeps.

    Raises:
        PolicyError: the grid of this end has other axes than ``dense`` or is larger.
    """
    if not isinstance(end, tuple):
        # A rate is shared out evenly over the axes: each of k axes keeps (1 - r)^(1/k) of its side.
        return ((1 - end) ** (2 / len(dense)),) * len(dense)
    if len(end) != len(dense):
        raise PolicyError(f"Density.{name} {end} has {len(end)} axes but the token grid {dense} has {len(dense)}.")
    if any(n > side for n, side in zip(end, dense, strict=True)):
        raise PolicyError(
            f"Density.{name}: the pooled grid {end} is larger than the token grid {dense}; "
            f"each side must be at most that of the token grid."
        )
    return tuple((n / side) ** 2 for n, side in zip(end, dense, strict=True))


def end_text(end: End | list[int]) -> str:
    """``10x10`` or ``0.75``."""
    return "x".join(map(str, end)) if isinstance(end, (tuple, list)) else repr(end)


def parse_end(text: str) -> End:
    """The inverse of :func:`end_text`."""
    try:
        return tuple(map(int, text.split("x"))) if re.fullmatch(r"\d+(x\d+)*", text) and text != "0" else float(text)
    except ValueError as error:
        raise PolicyError(f"{text!r} is neither a pruning rate such as 0.75 nor a pooled grid such as 8x8.") from error


def plain(end: End) -> float | list[int]:
    """The end in JSON types."""
    return list(end) if isinstance(end, tuple) else end


def is_number(value: object) -> bool:
    """Whether a value is a number, and neither a truth value nor nan."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def check_whole(name: str, value: object, least: int = 1, besides: str = "") -> None:
    """Refuse what is no integer of at least ``least``; ``besides`` says what else the caller allows.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}; it must be an integer of at least {least}{besides}.")


def is_grid(value: object) -> bool:
    """Whether a value can be a pooled grid: one to three integers of at least 1, as a tuple or a list."""
    return (
        isinstance(value, (tuple, list))
        and 1 <= len(value) <= 3
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in value)
    )
