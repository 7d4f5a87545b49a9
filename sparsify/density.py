"""Density: how many tokens the sparse blocks see at each denoising timestep (paper, "timestep-wise density").

A density names its two ends, the *finest* pooled grid near the data (t = 0) and the *coarsest* at pure noise (t = T),
and a schedule between them. Each end is either a pruning rate ``r = 1 - n/N`` or a pooled grid such as ``(10, 10)``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import InputError, PolicyError

Grid = tuple[int, ...]
End = float | Grid

_ROUNDING = 1e-9  # floor() must not lose a whole token to binary rounding: 16 * sqrt(100 / 256) is 10


@dataclass(frozen=True)
class Density:
    """A map from timestep to pooled grid.

    Attributes:
        schedule: ``"paper"`` or ``"constant"``.
        finest: the end with the most tokens, a pruning rate in [0, 1) or a pooled grid.
        coarsest: the end with the fewest tokens; equal to ``finest`` for a constant density.
        timesteps: T, the timestep of pure noise; timesteps lie in [0, T].
        pools_time: whether rates and grids of a video's (time, height, width) tokens pool its time axis too; if not, every
            frame is pooled and all frames are kept.
    """

    schedule: Literal["paper", "constant"]
    finest: End
    coarsest: End
    timesteps: int = 1000
    pools_time: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in ("paper", "constant"):
            raise PolicyError(f"Density.schedule is {self.schedule!r}; allowed: 'paper', 'constant'.")
        object.__setattr__(self, "finest", _checked_end("finest", self.finest))
        object.__setattr__(self, "coarsest", _checked_end("coarsest", self.coarsest))
        if isinstance(self.timesteps, bool) or not isinstance(self.timesteps, int) or self.timesteps < 1:
            raise PolicyError(f"Density.timesteps is {self.timesteps!r}; it must be an integer of at least 1.")
        fine, coarse = self.finest, self.coarsest
        if isinstance(fine, tuple) and isinstance(coarse, tuple):
            if len(fine) != len(coarse):
                raise PolicyError(f"Density.finest {fine} and Density.coarsest {coarse} must have as many axes.")
            if any(c > f for c, f in zip(coarse, fine, strict=True)):
                raise PolicyError(f"Density.coarsest {coarse} must not be larger than Density.finest {fine}; swap them.")
        elif not isinstance(fine, tuple) and not isinstance(coarse, tuple) and coarse < fine:
            raise PolicyError(f"Density: r_max {coarse} is below r_min {fine}; the pruning rate rises with the noise.")
        if not isinstance(self.pools_time, bool):
            raise PolicyError(f"Density.pools_time is {self.pools_time!r}; it must be True or False.")
        if self.schedule == "constant" and fine != coarse:
            raise PolicyError(f"Density: a constant density has one grid, not {fine} and {coarse}.")

    @classmethod
    def paper(
        cls,
        r_min: float | None = None,
        r_max: float | None = None,
        *,
        finest: Grid | None = None,
        coarsest: Grid | None = None,
        timesteps: int = 1000,
    ) -> Density:
        """The paper's schedule: ``r_min`` below T/4, then linear in t up to ``r_max`` at T.

        Give the ends as pruning rates (``r_min``, ``r_max``) or, free of rounding, as pooled grids (``finest``,
        ``coarsest``); one of each is fine too.
        """
        fine = _one_of("r_min", r_min, "finest", finest)
        coarse = _one_of("r_max", r_max, "coarsest", coarsest)
        return cls("paper", fine, coarse, timesteps)

    @classmethod
    def constant(cls, *, grid: Grid | None = None, rate: float | None = None, timesteps: int = 1000) -> Density:
        """The same pooled grid at every timestep, given as a ``grid`` or as a pruning ``rate``."""
        end = _one_of("rate", rate, "grid", grid)
        return cls("constant", end, end, timesteps)

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
        fine, coarse = self.side_areas(dense)
        weight = self._noise_weight(t)
        return tuple(
            max(1, math.floor(side * math.sqrt((1 - weight) * f + weight * c) + _ROUNDING))
            for side, f, c in zip(dense, fine, coarse, strict=True)
        )

    def grids(self, dense: Grid) -> dict[Grid, float]:
        """Every pooled grid the schedule gives on ``dense``, finest first, with its share of the T timesteps."""
        counts = Counter(self.grid_at(t, dense) for t in range(self.timesteps))
        return {grid: counts[grid] / self.timesteps for grid in sorted(counts, key=math.prod, reverse=True)}

    def keeps_everything(self, dense: Grid) -> bool:
        """Whether the pooled grid is the dense grid at every timestep, so that nothing is ever pooled."""
        return self.grid_at(self.timesteps, dense) == dense

    def keeps_time(self, dense: Grid) -> bool:
        """Whether of a (time, height, width) grid only the frames are pooled, each by itself."""
        names_time = any(isinstance(end, tuple) and len(end) == 3 for end in (self.finest, self.coarsest))
        return len(dense) == 3 and not self.pools_time and not names_time

    def side_areas(self, dense: Grid) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per axis, the squared share of the side that is kept at the finest and at the coarsest end.

        The paper's pooled side is ``side * sqrt(1 - r)`` with r linear in t, so it is the *square* of the kept share
        that moves linearly; for a square grid every axis gives ``1 - r``.
        """
        return _side_areas("finest", self.finest, dense), _side_areas("coarsest", self.coarsest, dense)

    def _noise_weight(self, t: float) -> float:
        """0 where the rate is r_min, 1 where it is r_max."""
        if self.schedule == "constant":
            return 0.0
        return max(0.0, (4 * t - self.timesteps) / (3 * self.timesteps))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        ends = {k: list(v) if isinstance(v, tuple) else v for k, v in (("finest", self.finest), ("coarsest", self.coarsest))}
        time = {"pools_time": True} if self.pools_time else {}
        return {"schedule": self.schedule, **ends, "timesteps": self.timesteps, **time}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Density:
        """The inverse of :meth:`to_dict`."""
        if not isinstance(data, Mapping):
            raise PolicyError(f"density is {data!r}; it must be an object with schedule, finest, coarsest, timesteps.")
        known = {"schedule", "finest", "coarsest", "timesteps"}
        if unknown := set(data) - known - {"pools_time"}:
            raise PolicyError(
                f"density has unknown field(s) {sorted(map(str, unknown))}; allowed: {sorted(known)}, pools_time."
            )
        if missing := known - set(data):
            raise PolicyError(f"density lacks the field(s) {sorted(missing)}.")
        return cls(**data)

    def __str__(self) -> str:
        """A word that :meth:`parse` reads back: ``paper(10x10..6x6)``, ``constant(0.75)``, ``paper(0.9..0.96/500)``."""
        ends = [self.finest] if self.schedule == "constant" else [self.finest, self.coarsest]
        suffix = "" if self.timesteps == 1000 else f"/{self.timesteps}"
        return f"{self.schedule}({'..'.join(map(_end_text, ends))}{suffix}){'+time' if self.pools_time else ''}"

    @classmethod
    def parse(cls, text: str) -> Density:
        """The inverse of ``str(density)``."""
        match = re.fullmatch(r"(paper|constant)\(([^/]+?)(?:\.\.([^/]+?))?(?:/(\d+))?\)(\+time)?", text)
        if match is None:
            raise PolicyError(f"density {text!r} is not like paper(0.61..0.86), paper(10x10..6x6) or constant(8x8).")
        schedule, finest, coarsest, timesteps, time = match.groups()
        ends = _parse_end(finest), _parse_end(coarsest or finest)
        return cls(schedule, *ends, int(timesteps or 1000), bool(time))  # type: ignore[arg-type]


def _one_of(rate_name: str, rate: float | None, grid_name: str, grid: Grid | None) -> End:
    if (rate is None) == (grid is None):
        raise PolicyError(f"Density: give exactly one of {rate_name}= (a pruning rate) and {grid_name}= (a pooled grid).")
    return rate if grid is None else grid  # type: ignore[return-value]


def _checked_end(name: str, end: object) -> End:
    if isinstance(end, (tuple, list)):
        if not 1 <= len(end) <= 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in end):
            raise PolicyError(f"Density.{name} is {end!r}; a pooled grid is one to three integers of at least 1.")
        return tuple(end)
    if isinstance(end, bool) or not isinstance(end, (int, float)):
        raise PolicyError(f"Density.{name} is {end!r}; it must be a pruning rate in [0, 1) or a pooled grid like (8, 8).")
    if not 0 <= end < 1:  # also catches nan
        raise PolicyError(f"Density.{name} is {end}; a pruning rate lies in [0, 1): 0 keeps all tokens, 0.9 drops 90%.")
    return float(end)


def _side_areas(name: str, end: End, dense: Grid) -> tuple[float, ...]:
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


def _end_text(end: End) -> str:
    return "x".join(map(str, end)) if isinstance(end, tuple) else repr(end)


def _parse_end(text: str) -> End:
    try:
        return tuple(map(int, text.split("x"))) if re.fullmatch(r"\d+(x\d+)*", text) and text != "0" else float(text)
    except ValueError as error:
        raise PolicyError(f"{text!r} is neither a pruning rate such as 0.75 nor a pooled grid such as 8x8.") from error
