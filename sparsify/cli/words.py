"""How the command line writes and reads words."""

from __future__ import annotations

import argparse

from rich.console import Console

from ..density import Density
from ..errors import PolicyError


def console(stderr: bool = False) -> Console:
    """As wide as the terminal, and wide enough for the tables where the output goes to a file."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=118)


def a_grid(text: str) -> tuple[int, ...]:
    """``32x32`` as sides."""
    try:
        return tuple(int(side) for side in text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 32x32") from error


def some_grids(text: str) -> list[tuple[int, ...]]:
    """``10x10,6x6`` as grids."""
    return [a_grid(word) for word in text.split(",")]


def a_count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def a_share(text: str) -> float:
    """A number above 0 and at most 1."""
    try:
        share = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0.45") from error
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return share


def a_density(text: str) -> Density:
    """``paper(0.61..0.86)`` as a density."""
    try:
        return Density.parse(text)
    except PolicyError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def a_batch(text: str) -> tuple[int, int]:
    """``4`` or ``2-16`` as a least and a largest batch size."""
    least, dash, most = text.partition("-")
    try:
        return a_count(least), a_count(most if dash else least)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a batch size such as 4, or a range such as 2-16") from error


def some_savings(text: str) -> bool | list[str]:
    """``all``, ``none``, or ``share,prompt-once`` as names."""
    return {"all": True, "none": False}.get(text, [word for word in text.split(",") if word])
