"""The search: measure blocks and modules one by one, propose policies from a forecast, measure the best of them.

Whatever is returned was measured on the calibration batches beside ``Policy.fit`` at the same budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ..density import Density
from ..errors import InputError, PolicyError, RewriteError
from ..policy import DEFAULT_RATES, Policy
from ..pristine import pristine
from ..runtime import SparseModel
from .additive import Additive, Observation, Stretch
from .batches import Batches, checked
from .costs import RoleCosts
from .laboratory import Laboratory
from .paths import best_paths
from .propose import Forecast, proposals
from .result import BlockMeasure, Point, Search, SpanMeasure, with_front
from .scale import Filled, Scale
from .settings import Settings
from .uniformity import Uniformity, uniformities
from .variants import Variants
from .words import policy_of, trial_words, word_of

_ROUNDS = 3  # of proposals for the budget that is asked for; each knows what the ones before have measured
_ON_CURVE = 2  # proposals that are measured for each of the other budgets
_NEAR = 4  # measured policies whose neighbours are proposed
_TRIALS_AT = 0.7  # single modules are tried as dense as Policy.fit at the budget, but not denser than at this one
_FLOOR = 0.05  # of the squared error of Policy.fit is at least that of its modules


def search(
    model: nn.Module,
    batches: Iterable[Any],
    budget: float = 0.45,
    *,
    density: Density | None = None,
    calibrate: bool = True,
    candidates: int = 12,
    spans: Sequence[int] = (0, 3),
    curve: Sequence[float] = (0.3, 0.6, 0.8, 1.0),
    grid: Sequence[int] | None = None,
    timestep: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Search:
    """Choose segments and densities of a sparse model under a budget, by what they do to its outputs.

    Measured are the uniformity of every block's attention, the error of the model's outputs when one block alone is
    poolingformer, and when a few blocks alone are a sparse-dense module (the roles of SparseDiT, arXiv 2412.06028, section 3).
    From these a forecast proposes policies, whose densities are scaled until the budget is just met. The best proposals and
    ``Policy.fit`` at the same budget are measured, and the best is picked: on these batches it is never worse than
    ``Policy.fit``.

    Args:
        model: the dense model, with trained weights. It is left as it was; measuring is done in evaluation mode.
        batches: a few calls' inputs, each a tuple or a dict as ``example_inputs`` of ``sparsify``, at timesteps all over the
            schedule. Every policy is run on all of them.
        budget: sparse GFLOPs (``report.gflops``, mean over the schedule) over dense ones, above 0 and at most 1.
        density: the shape of the schedule, whose ratio of finest to coarsest end is kept; the paper's with rates 0.61 to 0.86 if
            left out. For flow matching give it ``timesteps=1.0``.
        calibrate: measure with restore layers fitted by ``SparseModel.calibrate`` on the same batches, as they would be used; if not,
            as they start, when they drop what sparse blocks have computed.
        candidates: how many proposals to measure for the budget.
        spans: numbers of sparse blocks of the modules that are tried alone, from every block on.
        curve: other budgets to measure a few policies for, to see the trade-off.
        grid: as for ``sparsify``.
        timestep: as for ``sparsify``.
        on_progress: called with how many policies of how many are measured.

    Returns:
        The policy, the trade-off curve and the measurements, to print, plot or write as JSON.

    Raises:
        InputError: an option is out of range, there are no batches, or they differ in their inputs, or the dense model's
            outputs are not finite.
        PolicyError: the budget cannot be reached, or the model is too shallow.
        SparsifyError: as for ``sparsify``.
    """
    template = Density.paper(*DEFAULT_RATES) if density is None else density
    settings = Settings(budget, template, calibrate, candidates, tuple(spans), tuple(curve))
    calls = checked(batches)
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; it must be a torch.nn.Module, such as pipe.transformer.")
    if any(isinstance(module, SparseModel) for module in model.modules()):
        raise RewriteError(f"{type(model).__name__} is sparsified already; search with the original model.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(f"{type(model).__name__} is on the meta device and has no weights to measure with; use real ones.")
    with pristine(model), torch.no_grad():
        model.eval()
        variants = Variants(model, calls[0], template.timesteps, grid, timestep)
        known = Batches.of(model, calls, variants.program, template)
        return _Run(settings, variants, known, on_progress or _quiet).search()


class _Run:
    """One search, with all that it has measured so far."""

    def __init__(
        self, settings: Settings, variants: Variants, batches: Batches, on_progress: Callable[[int, int], None]
    ) -> None:
        self._settings, self._variants, self._batches = settings, variants, batches
        self._depth = len(variants.program.paths)
        self._trials = trial_words(self._depth, settings.spans)
        self._fit = word_of(Policy.fit(self._depth), self._depth)
        self._scale = Scale(settings.density, variants.program.grid_hint)
        self._costs = RoleCosts(variants.program)
        self._points: list[Point] = [Point(Policy.dense(), self._costs.whole, 1.0, 0.0, "dense", 1.0)]
        self._measured: dict[tuple[str, float], float] = {}  # errors of what covers the whole trunk, by word and level
        fits = 1 + len(settings.others)
        total = len(self._trials) + fits + settings.candidates + _ON_CURVE * len(settings.others)
        density = self._scale.density(0.5)
        self._laboratory = Laboratory(variants, batches, settings.calibrate, density, on_progress, total)

    def search(self) -> Search:
        """Everything in order."""
        settings = self._settings
        self._learn_costs()
        self._check_reachable()
        attention = uniformities(self._variants, self._batches)
        for budget in [settings.budget, *settings.others]:
            self._measure(self._fit, budget, "fit")
        level = self._level_of_trials()
        alone = self._measure_trials(level)
        for round_ in range(_ROUNDS):
            count = settings.candidates // _ROUNDS + (round_ < settings.candidates % _ROUNDS)
            self._explore(settings.budget, count, self._forecast(alone, level))
        for budget in settings.others:
            self._explore(budget, _ON_CURVE, self._forecast(alone, level))
        self._laboratory.done()
        return self._result(attention, alone, str(self._scale.density(level)))

    # --- costs --------------------------------------------------------------------------------------------------

    def _learn_costs(self) -> None:
        for word in [self._fit, *self._trials]:
            if self._costs.lacks(word) and (stage := self._laboratory.structure(word).stage) is not None:
                self._costs.learn(word, stage.program)

    def _filled(self, word: str, budget: float) -> Filled | None:
        cost = self._laboratory.cost(word)
        return None if cost is None else self._scale.fill(cost, budget * self._costs.whole)

    def _check_reachable(self) -> None:
        costs = self._costs.at(self._scale.grids(0.0))
        word = best_paths(dict.fromkeys(costs, [0.0] * self._depth), costs)[0].word
        cost = self._laboratory.cost(word)
        if cost is None:  # there will be another reason why nothing is within the budget
            return
        least = self._scale.mean(cost, 0.0) / self._costs.whole
        if self._settings.budget < least:
            raise PolicyError(
                f"budget is {self._settings.budget}; the least that the {self._depth} blocks can get to is {least:.3f} of the dense "
                f"{self._costs.whole:.4g} GFLOPs, with {policy_of(word, self._scale.density(0.0))}. Ask for more than that."
            )

    # --- measuring ----------------------------------------------------------------------------------------------

    def _level_of_trials(self) -> float:
        filled = self._filled(self._fit, min(self._settings.budget, _TRIALS_AT))
        return 0.0 if filled is None else filled.level

    def _measure_trials(self, level: float) -> list[tuple[str, float, str]]:
        """Word, error and reason of a refusal, of single blocks and modules."""
        density, laboratory = self._scale.density(level), self._laboratory
        return [(word, *laboratory.measure(word, density, laboratory.build(word, density, ()))) for word in self._trials]

    def _measure(self, word: str, budget: float, source: Literal["search", "fit"]) -> bool:
        """Measure a policy at the densest level that a budget allows; whether there is one that was not measured yet."""
        filled = self._filled(word, budget)
        if filled is None or (word, filled.level) in self._measured:
            return False
        density = filled.density if "G" in word else self._settings.density
        error, _ = self._laboratory.measure(word, density, self._laboratory.structure(word))
        self._measured[word, filled.level] = error
        if math.isfinite(error):
            policy = Policy.fit(self._depth, density) if word == self._fit else policy_of(word, density)
            self._points.append(Point(policy, filled.gflops, filled.gflops / self._costs.whole, error, source, budget))
        return True

    def _explore(self, budget: float, count: int, forecast: Forecast) -> None:
        """Measure the best of what is proposed for a budget and not measured yet."""
        within = [point for point in self._points if point.fraction <= budget and point.source != "dense"]
        asked = [point for point in self._points if point.budget == self._settings.budget and point.source != "dense"]
        best = [point for found in (within, asked) for point in sorted(found, key=lambda point: point.error)[:_NEAR]]
        near = list(dict.fromkeys(word_of(point.policy, self._depth) for point in best))
        for word in proposals(forecast, budget * self._costs.whole, near):
            if count and self._measure(word, budget, "search"):
                count -= 1

    # --- forecast and result ------------------------------------------------------------------------------------

    def _forecast(self, alone: Sequence[tuple[str, float, str]], level: float) -> Forecast:
        observations = [Observation(word, error) for word, error, _ in alone]
        pooling = Additive.fit(observations, self._depth).squares["P"]
        fits = [(at, e**2) for (word, at), e in self._measured.items() if word == self._fit and math.isfinite(e)]
        pooled = sum(pooling[block] for block, letter in enumerate(self._fit) if letter == "P")
        stretch = Stretch([(at, max(square - pooled, _FLOOR * square)) for at, square in fits], level)
        observations += [Observation(word, error, stretch.at(at)) for (word, at), error in self._measured.items()]
        return Forecast(Additive.fit(observations, self._depth), self._costs, self._scale, stretch)

    def _result(self, attention: Sequence[Uniformity], alone: Sequence[tuple[str, float, str]], density: str) -> Search:
        curve = with_front(self._points)
        pick = self._picked(curve, alone)
        roles = pick.policy.roles(self._depth)
        spans = [
            SpanMeasure(word.index("G"), word.rindex("R"), _finite(error), why) for word, error, why in alone[self._depth :]
        ]
        blocks = []
        for index, (path, (distance, why)) in enumerate(zip(self._variants.program.paths, attention, strict=True)):
            _, pooling, refused = alone[index]
            within = [s.error for s in spans if s.first <= index <= s.last and s.error is not None]
            remarks = "; ".join(part for part in (why, refused) if part)
            module = min(within, default=None)
            blocks.append(BlockMeasure(path, distance, _finite(pooling), module, roles[index].name, remarks))
        name = type(self._variants.model).__name__
        return Search(
            name, self._settings.budget, self._costs.whole, pick, curve, tuple(blocks), tuple(spans), density,
            len(self._batches.calls), self._settings.calibrate,
        )  # fmt: skip

    def _picked(self, curve: Sequence[Point], alone: Sequence[tuple[str, float, str]]) -> Point:
        """The best point within the budget that ``sparsify`` makes with its own density, too."""
        within = [point for point in curve if point.fraction <= self._settings.budget * (1 + 1e-12)]
        for point in sorted(within, key=lambda point: (point.error, point.gflops)):
            word = word_of(point.policy, self._depth)
            if point.source == "dense" or self._laboratory.build(word, point.policy.density).stage is not None:
                return point
        raise PolicyError(
            f"no policy within budget={self._settings.budget} could be measured: every one was refused or gave outputs that are not "
            f"finite. The first: {next((why for _, _, why in alone if why), 'not known')}"
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _quiet(done: int, total: int) -> None:
    """No progress to show."""
