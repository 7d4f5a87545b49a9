"""What a search is asked for, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..density import Density
from ..ends import check_whole, is_number
from ..errors import InputError, PolicyError


@dataclass(frozen=True)
class Settings:
    """The options of :func:`~sparsify.search.run.search`.

    Raises:
        InputError, PolicyError: a field is out of range; the message names it.
    """

    budget: float
    density: Density
    calibrate: bool
    candidates: int
    spans: tuple[int, ...]
    curve: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_share("budget", self.budget)
        if not isinstance(self.density, Density):
            raise PolicyError(f"density is {self.density!r}; use Density.paper(...) or another Density, whose shape is kept.")
        if not isinstance(self.calibrate, bool):
            raise InputError(f"calibrate is {self.calibrate!r}; it must be True or False.")
        check_whole("candidates", self.candidates, 1)
        if not self.spans:
            raise InputError("spans is empty; give numbers of sparse blocks of the modules to try, such as (0, 3).")
        for span in self.spans:
            check_whole("spans", span, 0)
        for share in self.curve:
            _check_share("curve", share)

    @property
    def others(self) -> list[float]:
        """Budgets of the curve besides the one that is asked for, in ascending order."""
        return sorted(set(self.curve) - {self.budget})


def _check_share(name: str, value: object) -> None:
    if not is_number(value) or not 0 < value <= 1:  # type: ignore[operator]
        raise InputError(f"{name} is {value!r}; it must be a share of the dense GFLOPs above 0 and at most 1, such as 0.45.")
