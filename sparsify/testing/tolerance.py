"""How far two results of the same mathematics may lie apart, and where they lie furthest apart."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ends import check_whole, is_number
from ..errors import InputError

# Rounding of a block, in units of the dtype's eps. Double precision is there to tell mistakes from rounding: 1e-13 a block is
# thousands of times what rounding gives, and far below any mistake. Half precision has no such room.
_UNITS = {torch.float64: 512, torch.complex128: 512, torch.float32: 16, torch.complex64: 16}
_UNITS_OF_OTHERS = 2


def check_options(*, gradients: Any, rtol: Any, atol: Any, depth: Any, equal_nan: Any) -> None:
    """Refuse what no comparison can be made with: with NaN or infinity nothing would ever differ.

    Raises:
        InputError: an option is none of what is allowed.
    """
    if not (isinstance(gradients, bool) or (isinstance(gradients, str) and gradients == "inputs")):
        raise InputError(f'gradients is {gradients!r}; it must be True, False or "inputs".')
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is None and name == "rtol":
            continue
        if not is_number(value) or not 0 <= value < math.inf:
            default = " or None" if name == "rtol" else ""
            raise InputError(f"{name} is {value!r}; it must be a finite number of at least 0{default}.")
    if depth is not None:
        check_whole("depth", depth, besides=", or None")
    if not isinstance(equal_nan, bool):
        raise InputError(f"equal_nan is {equal_nan!r}; it must be True or False.")


class Allowed(NamedTuple):
    """A difference that is allowed, and how it comes about."""

    value: float
    why: str


@dataclass(frozen=True)
class Tolerance:
    """``atol + rtol * magnitude``, with the words for it."""

    rtol: float
    atol: float
    why: str

    @classmethod
    def of(cls, rtol: float | None, atol: float, depth: int, dtypes: Collection[torch.dtype]) -> Tolerance:
        """The given one, or what the coarsest dtype and the depth make of it."""
        if rtol is not None:
            return cls(rtol, atol, f"rtol {rtol:.3g}")
        inexact = [dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
        if not inexact:
            return cls(0.0, atol, "no rounding")
        coarsest = max(inexact, key=lambda dtype: torch.finfo(dtype).eps)
        units = _UNITS.get(coarsest, _UNITS_OF_OTHERS)
        name = str(coarsest).removeprefix("torch.")
        return cls(units * torch.finfo(coarsest).eps * depth, atol, f"{units} eps of {name} x depth {depth}")

    def among(self, expected: Sequence[Tensor]) -> Allowed:
        """What is allowed for each value of these tensors."""
        magnitude = max(map(_magnitude, expected), default=0.0)
        besides = f" + atol {self.atol:.3g}" if self.atol else ""
        return Allowed(self.atol + self.rtol * magnitude, f"{self.why} x the largest value {magnitude:.3g}{besides}")


def _magnitude(tensor: Tensor) -> float:
    """The largest finite absolute value; 0 for what is not rounded."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0.0
    sizes = tensor.detach().abs().to(torch.float64)
    sizes = sizes[sizes.isfinite()]
    return float(sizes.max()) if sizes.numel() else 0.0


def mismatch(got: Tensor, expected: Tensor, allowed: float, equal_nan: bool) -> str | None:
    """Where two tensors of one type differ most, if by more than is allowed: to be put behind a name; None if they do not."""
    got, expected = got.detach(), expected.detach()
    equal = got == expected
    if equal_nan:
        equal |= (got != got) & (expected != expected)
    if bool(equal.all()):
        return None
    inexact = expected.is_floating_point() or expected.is_complex()
    wide = torch.complex128 if expected.is_complex() else torch.float64
    error = (got.to(wide) - expected.to(wide)).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
    error = error.masked_fill(equal, -1.0)  # of large integers float64 makes a difference of 0
    beyond = error > (allowed if inexact else -1.0)
    if not bool(beyond.any()):
        return None
    at = tuple(int(index) for index in torch.unravel_index(error.argmax(), error.shape))
    place = f"[{', '.join(map(str, at))}]" if at else ""
    limit = f"{allowed:.3g} is allowed" if inexact else "nothing is allowed for integers"
    one, other = got[at].item(), expected[at].item()
    size = f"{float(error[at]):.3g}" if inexact else f"{abs(int(one) - int(other))}"
    return (
        f" at {place or 'its only value'} is {one} where {other} is expected: the difference is "
        f"{size}, {int(beyond.sum())} of {beyond.numel()} values differ by more than allowed; {limit}"
    )
