"""Build and measure one set of roles after the other: what it costs, and the error of the model's outputs with it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

from ..density import Density
from ..ends import Grid
from ..errors import InputError, RewriteError
from ..passes import PoolAttention, SparseDense
from ..passes.pipeline import SAVING_NAMES
from ..stage import Stage
from .batches import Batches
from .costs import exact_cost
from .variants import Variants
from .words import plan_of


class Structure(NamedTuple):
    """The sparse program of some roles, good for every density; or why there is none."""

    stage: Stage | None
    refusal: str = ""


class Laboratory:
    """Measures roles on calibration batches, and counts how often.

    Args:
        variants: of the model.
        batches: with what the dense model gives.
        calibrate: whether restore layers are fitted first.
        density: any that fits the token grid; what is built with it is good for others.
        on_progress: called after each measurement with how many are done, of ``total``.
        total: how many there are going to be.
    """

    def __init__(
        self,
        variants: Variants,
        batches: Batches,
        calibrate: bool,
        density: Density,
        on_progress: Callable[[int, int], None],
        total: int,
    ) -> None:
        self._variants, self._batches, self._calibrate, self._density = variants, batches, calibrate, density
        self._on_progress, self._total, self._count = on_progress, total, 0
        self.structure = functools.cache(self._structure)
        self.cost = functools.cache(self._cost)

    def measure(self, word: str, density: Density, structure: Structure) -> tuple[float, str]:
        """The error of the outputs, and an empty text; or infinity, and why it cannot be built or measured."""
        found = self._measured(word, density, structure)
        self._count += 1
        self._on_progress(min(self._count, self._total), self._total)
        return found

    def done(self) -> None:
        """Nothing more is coming; there may have been fewer proposals than asked for."""
        self._on_progress(self._total, self._total)

    def build(self, word: str, density: Density, savings: Collection[str] = SAVING_NAMES) -> Structure:
        """The program of some roles, as ``sparsify`` makes it; without savings it is made faster and computes the same."""
        try:
            stage = self._variants.stage(plan_of(word, density), savings)
        except RewriteError as error:
            return Structure(None, " ".join(str(error).split("\n")[-1].split()))
        refused = [skip for skip in stage.program.skips if skip.pass_name in (PoolAttention.name, SparseDense.name)]
        if refused:
            return Structure(None, f"{refused[0].pass_name} at {refused[0].where}: {refused[0].reason}")
        return Structure(stage)

    def _structure(self, word: str) -> Structure:
        return self.build(word, self._density)

    def _cost(self, word: str) -> Callable[[Grid], float] | None:
        """GFLOPs by pooled grid, or None where the roles were refused."""
        stage = self.structure(word).stage
        return None if stage is None else exact_cost(stage.program)

    def _measured(self, word: str, density: Density, structure: Structure) -> tuple[float, str]:
        if structure.stage is None:
            return math.inf, structure.refusal
        sparse = self._variants.sparse(structure.stage, plan_of(word, density))
        if self._calibrate and sparse.program.restores:
            try:
                sparse.calibrate(self._batches.calls)
            except InputError as error:
                return math.inf, f"its restore layers cannot be calibrated: {error}"
        found = self._batches.error(sparse)
        return found, "" if math.isfinite(found) else "its outputs are not finite"
