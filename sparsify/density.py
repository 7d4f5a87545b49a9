"""Density: how many tokens the sparse blocks see at each denoising timestep (paper, "timestep-wise density").

A density names its two ends, the *finest* pooled grid near the data and the *coarsest* at pure noise, and a schedule
between them, or lists the grids from which timestep on. Each end is a pruning rate or a pooled grid (``ends.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from .density_text import density_of_text, text_of_density
from .discretise import discretised, sampled
from .ends import End, Grid, checked_end, is_number, one_of, plain, side_areas
from .errors import InputError, PolicyError

_MOST = 100_000  # timesteps or levels; each whole timestep is looked at
_ROUNDING = 1e-9  # floor() must not lose a whole token to binary rounding: 16 * sqrt(100 / 256) is 10

# How far towards the coarsest end, by how much of the noise there is; both from 0 to 1.
_WEIGHTS: dict[str, Callable[[float], float]] = {
    "paper": lambda noise: max(0.0, (4 * noise - 1) / 3),
    "constant": lambda noise: 0.0,
    "linear": lambda noise: noise,
    "cosine": lambda noise: (1 - math.cos(math.pi * noise)) / 2,
}
Schedule = Literal["paper", "constant", "linear", "cosine", "table"]


@dataclass(frozen=True)
class Density:
    """A map from timestep to pooled grid.

    Attributes:
        schedule: ``"paper"``, ``"constant"``, ``"linear"``, ``"cosine"`` or ``"table"``.
        finest: the end with the most tokens, a pruning rate in [0, 1) or a pooled grid.
        coarsest: the end with the fewest tokens; equal to ``finest`` for a constant density.
        timesteps: T; timesteps lie in [0, T]. 1000 for the usual discrete ones, 1.0 for flow matching.
        pools_time: whether rates and grids of a video's (time, height, width) tokens pool its time axis too; if not, every
            frame is pooled and all frames are kept.
        reversed: whether t = 0 is pure noise and t = T the data, as some flow-matching models have it.
        levels: how many steps the schedule is rounded to, from two up; None leaves that to whole tokens.
        steps: of a table, from which timestep on which end holds, in ascending order.
    """

    schedule: Schedule
    finest: End
    coarsest: End
    timesteps: float = 1000
    pools_time: bool = False
    reversed: bool = False
    levels: int | None = None
    steps: tuple[tuple[float, End], ...] = ()

    def __post_init__(self) -> None:
        if self.schedule not in (*_WEIGHTS, "table"):
            allowed = ", ".join(map(repr, (*_WEIGHTS, "table")))
            raise PolicyError(f"Density.schedule is {self.schedule!r}; allowed: {allowed}.")
        object.__setattr__(self, "finest", checked_end("finest", self.finest))
        object.__setattr__(self, "coarsest", checked_end("coarsest", self.coarsest))
        self._check_range()
        self._check_steps()
        if self.schedule != "table":
            self._check_ends(self.finest, self.coarsest)

    def _check_range(self) -> None:
        if not is_number(self.timesteps) or not 0 < self.timesteps <= _MOST:
            raise PolicyError(
                f"Density.timesteps is {self.timesteps!r}; it must be a number above 0 and at most {_MOST}, such as 1000, or 1.0 for "
                f"flow matching."
            )
        for name in ("pools_time", "reversed"):
            if not isinstance(getattr(self, name), bool):
                raise PolicyError(f"Density.{name} is {getattr(self, name)!r}; it must be True or False.")
        levels = self.levels
        if levels is not None and (isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= _MOST):
            raise PolicyError(f"Density.levels is {levels!r}; it must be None or an integer of at least 2 and at most {_MOST}.")

    def _check_ends(self, fine: End, coarse: End) -> None:
        if isinstance(fine, tuple) and isinstance(coarse, tuple):
            if len(fine) != len(coarse):
                raise PolicyError(f"Density.finest {fine} and Density.coarsest {coarse} must have as many axes.")
            if any(c > f for c, f in zip(coarse, fine, strict=True)):
                raise PolicyError(f"Density.coarsest {coarse} must not be larger than Density.finest {fine}; swap them.")
        elif not isinstance(fine, tuple) and not isinstance(coarse, tuple) and coarse < fine:
            raise PolicyError(f"Density: r_max {coarse} is below r_min {fine}; the pruning rate rises with the noise.")
        if self.schedule == "constant" and fine != coarse:
            raise PolicyError(f"Density: a constant density has one grid, not {fine} and {coarse}.")

    def _check_steps(self) -> None:
        if self.schedule != "table":
            if self.steps:
                raise PolicyError(f"Density.steps belong to a table, not to schedule {self.schedule!r}.")
            return
        if not all(isinstance(step, (tuple, list)) and len(step) == 2 and is_number(step[0]) for step in self.steps):
            raise PolicyError(f"Density.steps is {self.steps!r}; it must be pairs of a timestep and a rate or a grid.")
        steps = tuple((t, checked_end(f"table[{t}]", end)) for t, end in self.steps)
        if not steps or steps[0][0] != 0 or any(a >= b for (a, _), (b, _) in pairwise(steps)) or steps[-1][0] > self.timesteps:
            raise PolicyError(
                f"Density.table has the timesteps {[t for t, _ in steps]}; they must start at 0, ascend and stay within "
                f"[0, {self.timesteps}]."
            )
        object.__setattr__(self, "steps", steps)

    @classmethod
    def paper(
        cls,
        r_min: float | None = None,
        r_max: float | None = None,
        *,
        finest: Grid | None = None,
        coarsest: Grid | None = None,
        **options: Any,
    ) -> Density:
        """The paper's schedule: ``r_min`` below T/4, then linear in t up to ``r_max`` at T.

        Give the ends as pruning rates (``r_min``, ``r_max``) or, free of rounding, as pooled grids (``finest``,
        ``coarsest``); one of each is fine too. Options: ``timesteps``, ``reversed``, ``levels``, ``pools_time``.
        """
        return cls._between("paper", r_min, r_max, finest, coarsest, options)

    @classmethod
    def linear(
        cls,
        r_min: float | None = None,
        r_max: float | None = None,
        *,
        finest: Grid | None = None,
        coarsest: Grid | None = None,
        **options: Any,
    ) -> Density:
        """The share of tokens falls linearly from the data to pure noise; ends and options as for :meth:`paper`."""
        return cls._between("linear", r_min, r_max, finest, coarsest, options)

    @classmethod
    def cosine(
        cls,
        r_min: float | None = None,
        r_max: float | None = None,
        *,
        finest: Grid | None = None,
        coarsest: Grid | None = None,
        **options: Any,
    ) -> Density:
        """Half a cosine: slow at both ends, fast in the middle; ends and options as for :meth:`paper`."""
        return cls._between("cosine", r_min, r_max, finest, coarsest, options)

    @classmethod
    def constant(cls, *, grid: Grid | None = None, rate: float | None = None, **options: Any) -> Density:
        """The same pooled grid at every timestep, given as a ``grid`` or as a pruning ``rate``."""
        end = one_of("rate", rate, "grid", grid)
        return cls("constant", end, end, **_checked_options(options))

    @classmethod
    def table(cls, steps: Mapping[float, End], **options: Any) -> Density:
        """What holds from each timestep on, a grid or a rate: ``Density.table({0: (16, 16), 500: (8, 8)})``."""
        if not isinstance(steps, Mapping) or not steps or not all(map(is_number, steps)):
            raise PolicyError(f"Density.table takes a mapping such as {{0: (16, 16), 500: (8, 8)}}, not {steps!r}.")
        ordered = tuple(sorted(steps.items()))
        ends = (ordered[-1][1], ordered[0][1]) if options.get("reversed") else (ordered[0][1], ordered[-1][1])
        return cls("table", *ends, steps=ordered, **_checked_options(options))

    @classmethod
    def of(cls, function: Callable[[float], End], *, levels: int = 8, **options: Any) -> Density:
        """A table made of any function from timestep to pruning rate or grid, with at most ``levels`` different ends.

        The function is called here, at whole timesteps or, where T is no whole number above 1, at 1000 points. Rates
        are rounded down, to more tokens, on ``levels`` even steps; grids are taken as they are.
        """
        return cls.table(discretised(function, levels, options.get("timesteps", 1000)), **options)

    @classmethod
    def _between(
        cls,
        schedule: Schedule,
        r_min: float | None,
        r_max: float | None,
        finest: Grid | None,
        coarsest: Grid | None,
        options: dict[str, Any],
    ) -> Density:
        fine = one_of("r_min", r_min, "finest", finest)
        coarse = one_of("r_max", r_max, "coarsest", coarsest)
        return cls(schedule, fine, coarse, **_checked_options(options))

    @property
    def noise(self) -> float:
        """The timestep of pure noise."""
        return 0 if self.reversed else self.timesteps

    def grid_at(self, t: float, dense: Grid) -> Grid:
        """The pooled grid at timestep ``t`` for tokens on the ``dense`` grid.

        Raises:
            InputError: ``t`` lies outside [0, T].
            PolicyError: a pooled grid of this density does not fit the dense grid.
        """
        if not 0 <= t <= self.timesteps:  # also catches nan
            raise InputError(
                f"timestep {t} is outside [0, {self.timesteps}], the range of this policy's density; "
                f"pass the timestep in that range or set Density(timesteps=...)."
            )
        if self.keeps_time(dense):
            return dense[0], *self.grid_at(t, dense[1:])
        if self.schedule == "table":
            areas = side_areas("steps", next(end for start, end in reversed(self.steps) if start <= t), dense)
        else:
            weight = self._weight(t)
            fine, coarse = side_areas("finest", self.finest, dense), side_areas("coarsest", self.coarsest, dense)
            # The paper's pooled side is side * sqrt(1 - r) with r linear in t: the square of the kept share moves.
            areas = tuple((1 - weight) * f + weight * c for f, c in zip(fine, coarse, strict=True))
        return tuple(max(1, math.floor(side * math.sqrt(area) + _ROUNDING)) for side, area in zip(dense, areas, strict=True))

    def timesteps_of(self, dense: Grid) -> dict[Grid, list[float]]:
        """By pooled grid, finest first, the timesteps that get it: every whole one, or 1000 of a continuous range."""
        found: dict[Grid, list[float]] = {}
        for t in sampled(self.timesteps):
            found.setdefault(self.grid_at(t, dense), []).append(t)
        return {grid: found[grid] for grid in sorted(found, key=math.prod, reverse=True)}

    def grids(self, dense: Grid) -> dict[Grid, float]:
        """Every pooled grid the schedule gives on ``dense``, finest first, with its share of the timesteps."""
        found = self.timesteps_of(dense)
        count = sum(map(len, found.values()))
        return {grid: len(timesteps) / count for grid, timesteps in found.items()}

    def plot(self, path: str | Path, dense: Grid) -> None:
        """Draw the tokens of the sparse blocks over the timesteps; needs matplotlib, the ``plot`` extra."""
        from .picture import draw_density  # matplotlib is not imported before it is needed

        draw_density(self, dense, Path(path))

    def keeps_everything(self, dense: Grid) -> bool:
        """Whether the pooled grid is the dense grid at every timestep, so that nothing is ever pooled."""
        return set(self.grids(dense)) == {dense} == {self.grid_at(self.noise, dense)}

    def keeps_time(self, dense: Grid) -> bool:
        """Whether of a (time, height, width) grid only the frames are pooled, each by itself."""
        ends = [self.finest, self.coarsest, *(end for _, end in self.steps)]
        names_time = any(isinstance(end, tuple) and len(end) == 3 for end in ends)
        return len(dense) == 3 and not self.pools_time and not names_time

    def _weight(self, t: float) -> float:
        """0 where the finest end holds, 1 where the coarsest does."""
        share = t / self.timesteps
        weight = _WEIGHTS[self.schedule](1 - share if self.reversed else share)
        if self.levels is None:
            return weight
        return min(self.levels - 1, math.floor(weight * self.levels + _ROUNDING)) / (self.levels - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        data: dict[str, Any] = {"schedule": self.schedule, "finest": plain(self.finest), "coarsest": plain(self.coarsest)}
        data["timesteps"] = self.timesteps
        data |= {name: value for name in ("pools_time", "reversed", "levels") if (value := getattr(self, name))}
        return data | ({"steps": [[t, plain(end)] for t, end in self.steps]} if self.steps else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Density:
        """The inverse of :meth:`to_dict`."""
        if not isinstance(data, Mapping):
            raise PolicyError(f"density is {data!r}; it must be an object with schedule, finest, coarsest, timesteps.")
        known = {"schedule", "finest", "coarsest", "timesteps"}
        if unknown := set(data) - known - _OPTIONS - {"steps"}:
            raise PolicyError(
                f"density has unknown field(s) {sorted(map(str, unknown))}; allowed: {sorted(known)}, {sorted(_OPTIONS)}, steps."
            )
        if missing := known - set(data):
            raise PolicyError(f"density lacks the field(s) {sorted(missing)}.")
        steps = data.get("steps", [])
        if not isinstance(steps, (list, tuple)) or not all(isinstance(step, (list, tuple)) for step in steps):
            raise PolicyError(f"Density.steps is {steps!r}; it must be pairs of a timestep and a rate or a grid.")
        return cls(**{**data, "steps": tuple(map(tuple, steps))})

    def __str__(self) -> str:
        """A word that :meth:`parse` reads back: ``paper(10x10..6x6)``, ``linear(0.5..0.9@4/1.0)+reversed``, ``table(0:8x8;500:0.9)``."""
        return text_of_density(self.to_dict())

    @classmethod
    def parse(cls, text: str) -> Density:
        """The inverse of ``str(density)``."""
        return cls.from_dict(density_of_text(text))


_OPTIONS = {"pools_time", "reversed", "levels"}


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    if unknown := set(options) - _OPTIONS - {"timesteps"}:
        raise PolicyError(f"Density: unknown option(s) {sorted(unknown)}; allowed: {sorted(_OPTIONS | {'timesteps'})}.")
    return options
