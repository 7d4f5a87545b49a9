"""Property-test a pass on random models: one call, and a failure that can be pasted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from torch import nn

from ..errors import InputError
from ..passes import BlockRange, Pass
from ..passes.options import pass_text, read_pass
from ..policy import Policy
from .arguments import Passes, check_policy, check_search, check_trial, claims_of, strategy_of
from .failure import CheckFailure
from .model_strategies import specs
from .paste import call_to_paste
from .policy_strategies import policies as policies_for
from .reading import spec_of
from .spec import DiTSpec
from .trial import Claims, Oracle, Outcome, Trial, examine

_MAX_SHRINKS = 40  # examples that are looked at for a smaller one that fails
_STEPS = st.sampled_from([0.5, 0.0, 0.1, 0.25, 0.75, 0.9])  # of the schedule, from the data to noise


def check_pass(
    rewrite: Pass,
    *,
    models: st.SearchStrategy[Any] | None = None,
    policies: st.SearchStrategy[Policy] | Callable[[nn.Module], st.SearchStrategy[Policy]] | None = None,
    exact: bool | None = None,
    idempotent: bool | None = None,
    oracle: Oracle | None = None,
    before: Passes = (),
    may_lose: Sequence[str] = (),
    max_examples: int = 20,
    seed: int | None = None,
) -> None:
    """Run a pass on random Diffusion Transformers, by itself and behind the passes of random policies, and check that

    * its options print as text and are read back (``text``), and it raises nothing but refusals (``error``);
    * the verifier accepts what it leaves (``verifier``);
    * every node that it makes says so, and every block that it gives another body (``provenance``);
    * a second run on the same program gives the same program and the same text (``determinism``);
    * results have the model's types and are finite, each row of a batch is what it is whatever the others are and
      however many, gradients are finite and reach what they reached (``type``, ``finite``, ``batch``, ``gradients``);
    * an exact pass changes no value and no gradient (``exact``), and running it twice is running it once (``idempotence``);
    * the model is as it was, and so are random numbers (``model``).

    New layers of passes that are not exact get random values first. The smallest model found on which the check fails is
    printed as a call of :func:`replay` to paste.

    Args:
        rewrite: an instance of the pass.
        models: a strategy of :func:`~sparsify.testing.specs` or :func:`~sparsify.testing.dits`. By default such that every block that
            the options of the pass name exists.
        policies: a strategy, or a function of the model that gives one. By default no policy or any that fits the model.
        exact: whether the model must stay the same. By default the ``prepares`` of the pass.
        idempotent: whether a second run must change nothing. By default as ``exact``.
        oracle: given the dense model and the dict of inputs, what the model with the pass by itself must return.
        before: passes that must run in front of it where no policy puts them there, such as a density.
        may_lose: patterns of parameters that need no gradient any more, such as ``"*.q.*"``.
        max_examples: how many models with a policy and a call each.
        seed: for other examples than those that are always taken.

    Raises:
        CheckFailure: an AssertionError with ``kind``, one of the words in brackets above, or ``unused``: nothing was rewritten at all, or
            no policy fitted its model.
        InputError: an argument is none of what is allowed.
    """
    claims = claims_of(rewrite, exact, idempotent, oracle, before, may_lose)
    check_search(models, policies, max_examples, seed)
    search = _Search(rewrite, claims)
    trials = _trials(models if models is not None else _models_for(rewrite), policies)
    options = settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )

    def test(trial: Trial) -> None:
        if search.fails(trial):
            raise _FoundError

    run = hypothesis.given(trials)(test)
    try:
        options(run if seed is None else hypothesis.seed(seed)(run))()
    except _FoundError:
        failure = search.outcomes[search.smallest]
        raise _with_code(failure, rewrite, search.smallest, claims) from failure
    _raise_if_unused(search, rewrite, claims)


def replay(
    rewrite: Pass,
    spec: DiTSpec,
    policy: Policy,
    *,
    batch: int = 2,
    seed: int = 0,
    timestep: float = 0,
    exact: bool | None = None,
    idempotent: bool | None = None,
    oracle: Oracle | None = None,
    before: Passes = (),
    may_lose: Sequence[str] = (),
) -> None:
    """One example of :func:`check_pass` again, as its failures print it: ``batch``, ``seed`` and ``timestep`` are those of the call.

    Raises:
        CheckFailure: the same as there; also if nothing was rewritten.
        InputError: an argument is none of what is allowed.
    """
    claims = claims_of(rewrite, exact, idempotent, oracle, before, may_lose)
    check_trial(spec, policy, batch, seed, timestep)
    search, trial = _Search(rewrite, claims), Trial(spec, policy, batch, seed, timestep)
    if search.fails(trial):
        failure = search.outcomes[trial]
        raise _with_code(failure, rewrite, trial, claims) from failure
    _raise_if_unused(search, rewrite, claims)


class _FoundError(Exception):
    """Tells hypothesis that an example fails; always raised at one place, so that all failures count as one."""


class _Search:
    """Examples looked at so far. Each is looked at once: hypothesis comes back to some, and a pass may not be deterministic."""

    def __init__(self, rewrite: Pass, claims: Claims) -> None:
        self.outcomes: dict[Trial, Any] = {}
        self.smallest: Any = None  # the latest that fails; hypothesis ends with the smallest
        self._rewrite, self._claims = rewrite, claims
        self._kind: str | None = None
        self._shrinks = 0

    def fails(self, trial: Trial) -> bool:
        """Whether an example fails, in the way of the first one that did."""
        if trial not in self.outcomes:
            if self._kind is not None:
                self._shrinks += 1
                if self._shrinks > _MAX_SHRINKS:
                    return False
            self.outcomes[trial] = self._outcome(trial)
        outcome = self.outcomes[trial]
        if not isinstance(outcome, CheckFailure):
            return False
        self._kind = self._kind or outcome.kind
        if outcome.kind != self._kind:
            return False
        self.smallest = trial
        return True

    def _outcome(self, trial: Trial) -> Outcome | CheckFailure:
        try:
            _check_text(self._rewrite)
            return examine(self._rewrite, trial, self._claims)
        except CheckFailure as failure:
            return failure


def _check_text(rewrite: Pass) -> None:
    text = pass_text(rewrite)
    try:
        read = read_pass(type(rewrite), text)
    except (ValueError, TypeError) as error:
        raise CheckFailure("text", f"it prints as {text!r}, which cannot be read back: {error}") from error
    if read != rewrite:
        raise CheckFailure("text", f"it prints as {text!r}, which is read back as {read!r}, and it is {rewrite!r}.")


def _models_for(rewrite: Pass) -> st.SearchStrategy[DiTSpec]:
    ranges = [getattr(rewrite, field.name) for field in dataclasses.fields(rewrite)]
    least = max([2, *(blocks.last + 1 for blocks in ranges if isinstance(blocks, BlockRange))])
    return st.integers(least, least + 2).flatmap(lambda depth: specs(depth=depth))


@st.composite
def _trials(draw: st.DrawFn, models: st.SearchStrategy[Any], policies: Any) -> Trial:
    drawn = draw(models)
    spec = drawn if isinstance(drawn, DiTSpec) else spec_of(drawn)
    if spec is None:
        raise InputError(
            f"models gives a {type(drawn).__name__}; check_pass takes specs() and dits(), whose models can be printed. Compare one model of "
            f"your own with sparsify(..., passes=...) by assert_equivalent."
        )
    if isinstance(policies, st.SearchStrategy):
        policy = draw(policies)
    elif policies is None:
        policy = draw(st.just(Policy.dense()) | policies_for(spec.build()))
    else:
        policy = draw(strategy_of(policies(spec.build())))
    check_policy(policy, "policies gives")
    batch, seed, step = draw(st.integers(2, 3)), draw(st.integers(0, 99)), draw(_STEPS)
    return Trial(spec, policy, batch, seed, step if spec.flow else round(step * spec.timesteps))


def _with_code(failure: CheckFailure, rewrite: Pass, trial: Trial, claims: Claims) -> CheckFailure:
    given = {"batch": trial.batch, "seed": trial.seed, "timestep": trial.timestep}
    given |= {"exact": claims.exact, "idempotent": claims.idempotent}
    given |= {name: value for name in ("oracle", "before", "may_lose") if (value := getattr(claims, name))}
    code = call_to_paste("replay", (rewrite, trial.spec, trial.policy), given)
    return CheckFailure(
        failure.kind,
        f"{pass_text(rewrite)} fails the check {failure.kind!r}. {failure.message}\n\nTo see it again:\n\n{code}\n",
    )


def _raise_if_unused(search: _Search, rewrite: Pass, claims: Claims) -> None:
    outcomes = [(trial, outcome) for trial, outcome in search.outcomes.items() if isinstance(outcome, Outcome)]
    if any(outcome.places for _, outcome in outcomes):
        if all(outcome.misfit for _, outcome in outcomes):
            trial, outcome = outcomes[0]
            message = (
                f"it never ran behind the policy's passes: no policy fits its model, such as {trial.policy!r}. {outcome.misfit}"
            )
            raise _with_code(CheckFailure("unused", message), rewrite, trial, claims)
        return
    trial, outcome = next(((t, o) for t, o in outcomes if o.refusals), outcomes[0])
    why = outcome.refusals[0] if outcome.refusals else "there is no place for it"
    message = f"it rewrote nothing in {len(outcomes)} example(s), so nothing was checked. One reason: {why.rstrip('.')}."
    raise _with_code(CheckFailure("unused", message), rewrite, trial, claims)
