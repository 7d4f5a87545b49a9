"""What check_pass and replay are given, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from ..ends import check_whole, is_number
from ..errors import InputError
from ..passes import Pass, Pipeline
from ..policy import Policy
from .spec import DiTSpec
from .trial import Claims

Passes = Pass | str | Sequence[Pass | str]


def claims_of(rewrite: Any, exact: Any, idempotent: Any, oracle: Any, before: Any, may_lose: Any) -> Claims:
    """What a pass is asked for.

    Raises:
        InputError: an argument is none of what is allowed.
        PolicyError: ``before`` names no pipeline.
    """
    if not isinstance(rewrite, Pass):
        hint = " (give an instance, not the class)" if isinstance(rewrite, type) else ""
        raise InputError(f"rewrite is {rewrite!r}{hint}; it must be a pass, such as MyPass().")
    for name, value in (("exact", exact), ("idempotent", idempotent)):
        if not (value is None or isinstance(value, bool)):
            raise InputError(f"{name} is {value!r}; it must be True, False or None.")
    if not (oracle is None or callable(oracle)):
        raise InputError(f"oracle is {oracle!r}; it must be a function of the model and the dict of inputs, or None.")
    example = (may_lose,) if isinstance(may_lose, str) else ("*.q.*",)
    if isinstance(may_lose, str) or not isinstance(may_lose, Sequence) or not all(isinstance(each, str) for each in may_lose):
        raise InputError(f"may_lose is {may_lose!r}; it must be a sequence of patterns, such as {example!r}.")
    exact = rewrite.prepares if exact is None else exact
    return Claims(exact, exact if idempotent is None else idempotent, oracle, Pipeline.of(before).passes, tuple(may_lose))


def check_search(models: Any, policies: Any, max_examples: Any, seed: Any) -> None:
    """What examples are drawn from, and how many.

    Raises:
        InputError: an argument is none of what is allowed.
    """
    if not (models is None or isinstance(models, st.SearchStrategy)):
        hint = f"; give st.just({models!r})" if isinstance(models, DiTSpec) else ""
        raise InputError(f"models is {models!r}{hint}; it must be a strategy of specs or models, such as specs(), or None.")
    if not (policies is None or isinstance(policies, st.SearchStrategy)) and (
        isinstance(policies, type) or not callable(policies)
    ):
        raise InputError(
            f"policies is {policies!r}; it must be a strategy of policies, such as st.just(Policy.dense()), a function of the model that "
            f"gives one, or None."
        )
    check_whole("max_examples", max_examples, 1)
    if seed is not None:
        check_whole("seed", seed, 0, " or None")


def strategy_of(policies: Any) -> st.SearchStrategy[Policy]:
    """What a function of the model has given.

    Raises:
        InputError: it is no strategy.
    """
    if not isinstance(policies, st.SearchStrategy):
        raise InputError(
            f"policies, called with a model, gives {policies!r}; it must give a strategy, such as policies(model)."
        )
    return policies


def check_policy(policy: Any, words: str) -> None:
    """Refuse what is no policy.

    Raises:
        InputError: it is none.
    """
    if not isinstance(policy, Policy):
        raise InputError(f"{words} {policy!r}; it must be a Policy, such as Policy.dense().")


def check_trial(spec: Any, policy: Any, batch: Any, seed: Any, timestep: Any) -> None:
    """One example.

    Raises:
        InputError: an argument is none of what is allowed.
    """
    if not isinstance(spec, DiTSpec):
        raise InputError(
            f"spec is a {type(spec).__name__}; it must be a DiTSpec, such as DiTSpec(); that of dits() is model.spec."
        )
    check_policy(policy, "policy is")
    check_whole("batch", batch, 1)
    check_whole("seed", seed, 0)
    if not is_number(timestep) or not 0 <= timestep <= spec.timesteps:
        raise InputError(f"timestep is {timestep!r}; it must be a number in [0, {spec.timesteps}].")
