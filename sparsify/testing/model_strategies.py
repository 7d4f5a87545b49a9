"""Strategies of random DiTs: legal specs, the plainest first, and the models that they build."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hypothesis import strategies as st

from ..errors import InputError
from .model import DiT
from .rules import LIMITS, RULES, Rule, first_refusal
from .spec import DiTSpec, choices_of, wrong_value

_NUMBERS = {
    "depth": tuple(range(2, 9)),
    "heads": (1, 2, 4),
    "head_width": (4, 6, 8, 16),
    "mlp_ratio": (1, 2, 4),
    "patch": (1, 2),
    "text_tokens": (1, 2, 3, 5),
}
_ORDER = ("depth", "grid", *(f.name for f in fields(DiTSpec) if f.name not in ("depth", "grid", "seed")), "seed")


def specs(**fixed: Any) -> st.SearchStrategy[DiTSpec]:
    """Legal specs, small: at most 32 channels, 81 tokens and 8 blocks; they shrink to ``DiTSpec()``.

    Args:
        fixed: fields of :class:`DiTSpec` that are not drawn, such as ``rope=True``.

    Raises:
        InputError: a field is unknown, its value not allowed, or the fixed ones do not go together; nothing is drawn then.
    """
    if unknown := fixed.keys() - set(_ORDER):
        raise InputError(f"DiTSpec has no field {sorted(unknown)}; its fields are {', '.join(_ORDER)}.")
    known = _checked(fixed)
    return _specs(known)


def dits(**fixed: Any) -> st.SearchStrategy[DiT]:
    """Random Diffusion Transformers in float64 and evaluation mode, with their spec as ``model.spec``.

    A failing example prints as ``DiTSpec(...).build()``, which builds it again.

    Args:
        fixed: as for :func:`specs`.

    Raises:
        InputError: as for :func:`specs`.
    """
    return specs(**fixed).map(DiTSpec.build)


def _checked(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The fixed fields, if any spec has them."""
    known = dict(fixed)
    for name, value in fixed.items():
        if reason := wrong_value(name, value):
            raise InputError(f"DiTSpec: {reason}")
    if isinstance(known.get("grid"), list):
        known["grid"] = tuple(known["grid"])
    if reason := first_refusal(RULES, known):
        raise InputError(f"DiTSpec: {reason}")
    return known


@st.composite
def _specs(draw: st.DrawFn, fixed: Mapping[str, Any]) -> DiTSpec:
    """Field by field, each from the values that go with those before it and with all that are fixed.

    A field takes as many choices as ever, however few values are left for it: examples with fewer choices count as simpler,
    and the default spec is to be the simplest.
    """
    values = dict(fixed)
    for name in _ORDER:
        if name in values:
            continue
        if name == "seed":
            values[name] = draw(_SEEDS)
        elif name == "grid":
            values[name] = _grid(*draw(_GRIDS), _legal("grid", ((2, 2), (2,), (2, 2, 2)), values))
        else:
            legal = _legal(name, _values(name, values), values)
            values[name] = legal[draw(_PICKS[name]) % len(legal)]
    return DiTSpec(**values)


def _values(name: str, values: Mapping[str, Any]) -> Sequence[Any]:
    """All values that a field is drawn from, the simplest first."""
    if name == "single":
        return (0, *range(2, values["depth"] + 1))
    return _NUMBERS.get(name) or choices_of(name)


def _legal(name: str, options: Sequence[Any], values: Mapping[str, Any]) -> Sequence[Any]:
    """The options that break no rule; those that keep the model small, if there are such."""
    legal = [option for option in options if first_refusal(_about(name, RULES), {**values, name: option}) is None]
    small = [option for option in legal if first_refusal(_about(name, LIMITS), {**values, name: option}) is None]
    if not legal:
        raise InputError(f"DiTSpec: no {name} goes with {dict(values)}.")
    return small or legal[:1]


@functools.cache
def _about(name: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if name in rule.fields)


def _grid(pick: int, length: int, sides: Sequence[int], legal: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """A grid with as many axes as one of the ``legal`` ones, and something to pool in it."""
    axes = len(legal[pick % len(legal)])
    if axes == 1:
        return (length,)
    *time, height, width = sides if axes == 2 else [min(side, 4) for side in sides]
    return (*time[: axes - 2], height, max(width, 2) if height == 1 else width)


_SIDES = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 9, 1])
_GRIDS = st.tuples(st.integers(0, 2), st.integers(2, 60), st.tuples(_SIDES, _SIDES, _SIDES))
_SEEDS = st.integers(0, 2**16)
_PICKS = {name: st.integers(0, len(_values(name, {"depth": 8})) - 1) for name in _ORDER if name not in ("grid", "seed")}
