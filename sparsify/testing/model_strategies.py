"""Strategies of random DiTs: legal specs, the plainest first, and the models that they build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hypothesis import strategies as st

from ..errors import InputError
from .model import DiT
from .rules import LIMITS, POOLABLE, RULES, Rule, first_refusal
from .spec import DiTSpec, choices_of, wrong_value

_LARGEST = {2: 9, 3: 4}  # side, by the number of axes
_NUMBERS = {
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
    """Field by field, each from the values that go with those before it and with all that are fixed."""
    values = dict(fixed)
    for name in _ORDER:
        if name not in values:
            values[name] = draw(_field(name, values))
    return DiTSpec(**values)


def _field(name: str, values: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if name == "seed":
        return st.integers(0, 2**16)
    if name == "grid":
        ranks = [len(grid) for grid in _legal("grid", ((2, 2), (2,), (2, 2, 2)), values)]
        return st.sampled_from(ranks).flatmap(_grids)
    return st.sampled_from(_legal(name, _values(name, values), values))


def _values(name: str, values: Mapping[str, Any]) -> Sequence[Any]:
    if name == "depth":
        return range(2, 9)
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


def _about(name: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if name in rule.fields)


def _grids(axes: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Grids with something to pool in them; they shrink to sides of two, and sides of one are the last resort."""
    if axes == 1:
        return st.tuples(st.integers(2, 60))
    side = st.sampled_from([*range(2, _LARGEST[axes] + 1), 1])
    return st.tuples(*[side] * axes).filter(lambda grid: POOLABLE.refusal({"grid": grid}) is None)
