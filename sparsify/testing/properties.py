"""The properties of a rewritten model that hold whatever a pass does, and those of a pass that claims to be exact."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .equivalence import assert_equivalent
from .failure import CheckFailure
from .leaves import leaves, structural_mismatch, tensors_in
from .state import random_numbers_kept

_NOTHING = 1e-12  # a gradient this much smaller than the largest is none

Inputs = Mapping[str, Tensor]


def check_type(sparse: nn.Module, model: nn.Module, inputs: Inputs) -> None:
    """Results are nested and typed as the model's, and finite where these are."""
    got, expected = _called(sparse, inputs), _called(model, inputs)
    if reason := structural_mismatch(got, expected):
        raise CheckFailure("type", f"{reason}.")
    for (path, x), (_, y) in zip(leaves(got), leaves(expected), strict=True):
        if not isinstance(y, Tensor):
            continue
        if (x.shape, x.dtype, x.device) != (y.shape, y.dtype, y.device):
            raise CheckFailure("type", f"{path} is {_type(x)} where the model returns {_type(y)}.")
        if not bool(x.isfinite().all()) and bool(y.isfinite().all()):
            raise CheckFailure("finite", f"{path} has {int((~x.isfinite()).sum())} values that are no finite numbers.")


def check_batch(sparse: nn.Module, inputs: Inputs, others: Inputs, alone: bool) -> None:
    """Each row of a batch gives the same, whatever the other rows are and however many.

    Args:
        sparse: the rewritten model.
        inputs: one call's.
        others: of the same shapes.
        alone: whether one row by itself is called, too, for which the model is captured and rewritten anew.
    """
    whole = tensors_in(_called(sparse, inputs))
    batch = next(iter(inputs.values())).shape[0]
    for row in range(batch):
        mixed = {name: _with_row(others[name], value, row) for name, value in inputs.items()}
        _check_row(
            tensors_in(_called(sparse, mixed)), whole, row, row, "when the other rows of the batch change: rows are mixed."
        )
    longer = {name: torch.cat([others[name], value]) for name, value in inputs.items()}
    count = f"when it is one of {2 * batch} rows and not of {batch}: the result depends on how many rows there are."
    _check_row(tensors_in(_called(sparse, longer)), whole, batch, 0, count)
    if alone and batch > 1:
        single = {name: value[:1] for name, value in inputs.items()}
        count = f"when it is the only row and not one of {batch}: the result depends on how many rows there are."
        _check_row(tensors_in(_called(sparse, single)), whole, 0, 0, count)


def _check_row(got: list[tuple[str, Tensor]], whole: list[tuple[str, Tensor]], at: int, row: int, when: str) -> None:
    """Row ``at`` of what another call gave is row ``row`` of the whole."""
    for (path, x), (_, y) in zip(got, whole, strict=True):
        error = float((x[at] - y[row]).abs().max())
        if not error <= 1e-9 * max(1.0, float(y.abs().max())):
            raise CheckFailure("batch", f"{path}[{row}] changes by {error:.3g} {when}")


def check_gradients(sparse: nn.Module, reference: nn.Module, inputs: Inputs, may_lose: Collection[str]) -> None:
    """Gradients are finite, and reach all parameters that had one without the pass, but for what matches ``may_lose``."""
    got, expected = gradients(sparse, inputs), gradients(reference, inputs)
    infinite = [name for name, gradient in got.items() if not bool(gradient.isfinite().all())]
    if infinite:
        raise CheckFailure("gradients", f"the gradient of {infinite[0]} has values that are no finite numbers.")
    least = _NOTHING * max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0)
    had = [name for name, gradient in expected.items() if name in got and bool((gradient.abs() > least).any())]
    lost = [name for name in had if not bool((got[name].abs() > least).any())]
    lost = [name for name in lost if not any(fnmatch.fnmatch(name, pattern) for pattern in may_lose)]
    if lost:
        raise CheckFailure(
            "gradients",
            f"{', '.join(lost[:4])}{' and others' if len(lost) > 4 else ''} had a gradient and has none with the pass. If that is meant, "
            f"name them: may_lose=({lost[0]!r},) or patterns such as '*.{lost[0].rpartition('.')[0].rpartition('.')[2]}.*'.",
        )


def check_exact(sparse: nn.Module, reference: nn.Module, inputs: Inputs) -> None:
    """Values and gradients are those without the pass."""
    try:
        assert_equivalent(sparse, reference, inputs)
    except AssertionError as error:
        raise CheckFailure("exact", f"it claims to be exact, and a is with it and b without it: {error}") from error


def check_oracle(sparse: nn.Module, model: nn.Module, inputs: Inputs, oracle: Callable[..., Any]) -> None:
    """Values and gradients of inputs are those of ``oracle(model, inputs)``."""

    def expected(**given: Tensor) -> Any:
        return oracle(model, given)

    try:
        assert_equivalent(sparse, expected, inputs, gradients="inputs")
    except AssertionError as error:
        raise CheckFailure("oracle", f"a is the model with the pass and b the oracle: {error}") from error


def gradients(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Of one random projection of the results, by parameter; zeros where there is none."""
    with random_numbers_kept():
        found = [leaf for _, leaf in tensors_in(model(**inputs)) if leaf.requires_grad]
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found or not parameters:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    random = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(leaf.shape, generator=random, dtype=leaf.dtype) for leaf in found]
    results = torch.autograd.grad(found, list(parameters.values()), cotangents, allow_unused=True)
    return {
        name: torch.zeros_like(p) if gradient is None else gradient
        for (name, p), gradient in zip(parameters.items(), results, strict=True)
    }


def _called(model: nn.Module, inputs: Inputs) -> Any:
    with torch.no_grad(), random_numbers_kept():
        return model(**inputs)


def _with_row(others: Tensor, value: Tensor, row: int) -> Tensor:
    mixed = others.clone()
    mixed[row] = value[row]
    return mixed


def _type(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
