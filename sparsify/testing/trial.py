"""One example of a property check: a random model, a policy and a call; and all that is asked of a pass on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import PolicyError, RewriteError, VerificationError
from ..passes import Pass
from ..passes.options import pass_text
from ..passes.pipeline import SAVING_NAMES
from ..policy import Policy
from ..runtime import SparseModel
from ..text import program_text
from .failure import CheckFailure
from .isomorphism import structural_difference
from .properties import check_batch, check_exact, check_gradients, check_oracle, check_type
from .provenance import Watch
from .spec import DiTSpec
from .state import State, random_state, tensors_of
from .variant import Captured, Way, captured, freshen

Oracle = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Trial:
    """What one example consists of."""

    spec: DiTSpec
    policy: Policy
    batch: int = 2
    seed: int = 0
    timestep: float = 0

    def inputs(self, seed: int | None = None) -> dict[str, Tensor]:
        """The call, all rows at one timestep: of different ones the pooled grid would depend on the other rows."""
        return self.spec.example_inputs(self.batch, self.seed if seed is None else seed, self.timestep)


@dataclass(frozen=True)
class Claims:
    """What a pass is asked for besides what is asked of all."""

    exact: bool
    idempotent: bool
    oracle: Oracle | None = None
    before: tuple[Pass, ...] = ()
    may_lose: tuple[str, ...] = ()


@dataclass
class Outcome:
    """How many places were rewritten, and why others were not; why the policy's passes did not run, if they did not."""

    places: int = 0
    refusals: list[str] = field(default_factory=list)
    misfit: str | None = None


def examine(rewrite: Pass, trial: Trial, claims: Claims) -> Outcome:
    """Run a pass on one example and ask for every property.

    Raises:
        CheckFailure: one does not hold.
    """
    found = captured(trial.spec)
    state, numbers = State(tensors_of(found.model), found.model), random_state()
    outcome = Outcome()
    try:
        for way in ways(rewrite, trial.policy, claims):
            try:
                _examine(found, rewrite, trial, claims, way, outcome)
            except CheckFailure as failure:
                raise CheckFailure(failure.kind, f"{way.words}: {failure.message}") from failure
        if change := state.change() or ("changed the state of random numbers" if random_state() != numbers else None):
            raise CheckFailure(
                "model", f"it {change} of the model that it was given, or of the process; a pass leaves both as they are."
            )
    except CheckFailure:
        captured.cache_clear()  # whatever the pass has done to it
        raise
    return outcome


def ways(rewrite: Pass, policy: Policy, claims: Claims) -> tuple[Way, ...]:
    """By itself, and as ``sparsify(model, policy, passes=...)`` runs it."""
    savings = tuple(name for name in SAVING_NAMES if name != rewrite.name)
    behind = Way("behind the policy's passes", policy, claims.before if policy == Policy.dense() else (), savings)
    return Way("by itself", None, claims.before), behind


def _examine(found: Captured, rewrite: Pass, trial: Trial, claims: Claims, way: Way, outcome: Outcome) -> None:
    watches: list[Watch] = []

    def watch(program: Any) -> Watch:
        watches.append(Watch(program, rewrite.name))
        return watches[0]

    sparse = _rewritten(found, way, (rewrite,), outcome, watch)
    if sparse is None:
        outcome.misfit = _misfit(found, way)
        return
    program = sparse.program  # a call of another number of rows captures anew
    skips = [skip for skip in sparse.program.skips if skip.pass_name == rewrite.name]
    outcome.refusals += [f"{skip.where}: {skip.reason}" for skip in skips]
    places = sum(run.places for run in sparse.program.runs if run.text == pass_text(rewrite))
    outcome.places += places
    if watches[0].problem is not None:
        raise CheckFailure("provenance", f"{watches[0].problem}.")
    if not places:
        return
    _check_determinism(found, rewrite, way, sparse)
    _check_semantics(found, trial, claims, way, sparse)
    if claims.idempotent:
        twice = _rewritten(found, way, (rewrite, rewrite), outcome)
        if twice is not None and (reason := structural_difference(twice.program, program)):
            raise CheckFailure(
                "idempotence", f"a second run changes the program again; a is behind two runs and b behind one: {reason}."
            )


def _rewritten(found: Captured, way: Way, passes: tuple[Pass, ...], outcome: Outcome, watch: Any = None) -> SparseModel | None:
    """The rewritten model; None where passes do not fit it, with the reason among the refusals."""
    try:
        return found.sparse(way, passes, watch)
    except VerificationError as error:
        raise CheckFailure("verifier", str(error)) from error
    except (PolicyError, RewriteError) as error:
        outcome.refusals.append(str(error))
        return None
    except Exception as error:  # whatever a pass raises
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        raise CheckFailure("error", f"{type(error).__name__}: {error}{notes}") from error


def _misfit(found: Captured, way: Way) -> str | None:
    """Why the policy's passes do not run on this model without the pass either; None if they do, or if there are none."""
    if way.policy is None or way.policy == Policy.dense():
        return None
    try:
        found.sparse(way, ())
    except (PolicyError, RewriteError) as error:
        return str(error)
    return None


def _check_determinism(found: Captured, rewrite: Pass, way: Way, sparse: SparseModel) -> None:
    again = _rewritten(found, way, (rewrite,), Outcome())
    if again is None:
        raise CheckFailure("determinism", "a second run on the same program refused what the first one rewrote.")
    if reason := structural_difference(again, sparse):
        raise CheckFailure("determinism", f"two runs on the same program give different ones, a and b: {reason}.")
    for one, other in zip(*(_lines(each) for each in (again, sparse)), strict=True):
        if one != other:
            raise CheckFailure("determinism", f"two runs on the same program print differently:\n  {one}\n  {other}")


def _lines(sparse: SparseModel) -> list[str]:
    """The program as text, without shapes: symbols of sizes are named anew in each run, and their names order expressions."""
    lines = program_text(sparse.program).splitlines()
    return [re.sub(r"\b[su]\d+\b", "s", re.sub(r"^(  %\S+): .*? = ", r"\1 = ", line)) for line in lines]


def _check_semantics(found: Captured, trial: Trial, claims: Claims, way: Way, sparse: SparseModel) -> None:
    inputs = trial.inputs()
    reference: Any = found.sparse(way, ())
    reference = found.model if reference is None else reference
    shared = [name for name, _ in reference.named_parameters()]
    freshen(reference)
    freshen(sparse, shared)
    check_type(sparse, found.model, inputs)
    if claims.exact:
        check_exact(sparse, reference, inputs)
    if claims.oracle is not None and way.policy is None:
        check_oracle(sparse, found.model, inputs, claims.oracle)
    if not claims.exact:
        freshen(sparse, [name for name, _ in sparse.named_parameters() if name not in shared])
        check_type(sparse, found.model, inputs)
    check_batch(sparse, inputs, trial.inputs(trial.seed + 1), alone=way.policy is None)
    check_gradients(sparse, reference, inputs, claims.may_lose)
