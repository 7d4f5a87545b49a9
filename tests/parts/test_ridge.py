"""Ridge regression by normal equations against least squares of the written-out system."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch

from sparsify.ridge import NormalEquations, Solution


def drawn(rows: int = 40, features: int = 5, outputs: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, features, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 100, 0.01, 3, 1])[:features]
    return a, torch.randn(rows, outputs, generator=generator, dtype=torch.float64)


def equations(a: torch.Tensor, y: torch.Tensor) -> NormalEquations:
    made = NormalEquations(a.shape[1], y.shape[1])
    made.add(a, y)
    return made


def least_squares(a: torch.Tensor, y: torch.Tensor, ridge: float) -> torch.Tensor:
    """``ridge * rows * |diag(rms(A)) W|^2`` as further rows of the system."""
    damping = (ridge * len(a)) ** 0.5 * torch.diag(a.square().mean(0).sqrt())
    targets = torch.cat((y, torch.zeros(a.shape[1], y.shape[1], dtype=y.dtype)))
    return torch.linalg.lstsq(torch.cat((a, damping)), targets, driver="gelsd").solution


@pytest.mark.parametrize("ridge", [0.0, 1e-4, 0.1, 2.0])
def test_the_minimiser_is_that_of_the_system_with_rows_for_the_damping(ridge: float) -> None:
    a, y = drawn()
    solution = equations(a, y).solve(ridge)
    assert isinstance(solution, Solution)
    assert torch.allclose(solution.weights, least_squares(a, y, ridge), rtol=1e-9, atol=0)


@pytest.mark.parametrize("ridge", [0.0, 1e-4, 0.1])
def test_the_condition_is_that_of_the_scaled_and_damped_equations(ridge: float) -> None:
    a, y = drawn()
    scaled = a / a.square().mean(0).sqrt()
    gram = scaled.T @ scaled / len(a) + ridge * torch.eye(a.shape[1], dtype=a.dtype)
    assert equations(a, y).solve(ridge).condition == pytest.approx(float(torch.linalg.cond(gram)), rel=1e-9)


def test_batches_add_up_also_those_of_other_equations() -> None:
    a, y = drawn()
    at_once, one_by_one, left, right = equations(a, y), NormalEquations(5, 3), equations(a[:7], y[:7]), equations(a[7:], y[7:])
    for rows, targets in zip(a.split(9), y.split(9), strict=True):
        one_by_one.add(rows, targets)
    left += right
    for found in (one_by_one, left):
        assert found.rows == 40
        assert torch.allclose(found.gram, a.T @ a) and torch.allclose(found.cross, a.T @ y)
        assert found.square == pytest.approx(float(y.square().sum()))
        assert torch.allclose(found.solve(1e-3).weights, at_once.solve(1e-3).weights, rtol=1e-9, atol=0)


def test_float32_is_gathered_in_doubles_on_the_device_that_is_asked_for() -> None:
    made = NormalEquations(2, 1)
    assert (made.rows, made.square) == (0, 0.0)
    assert not made.gram.any() and not made.cross.any()
    made.add(torch.full((1, 2), 1 + 2.0**-20), torch.full((1, 1), 1.0))
    assert made.gram.dtype == made.cross.dtype == torch.float64
    assert float(made.gram[0, 0]) == (1 + 2.0**-20) ** 2, "a product that float32 has no room for"
    assert NormalEquations(2, 1, "meta").gram.is_meta and NormalEquations(2, 1, "meta").cross.is_meta
    assert NormalEquations(2, 1).gram.device.type == "cpu"


def test_a_column_of_zeros_gets_no_weight_and_changes_no_other() -> None:
    a, y = drawn()
    padded = torch.cat((a, torch.zeros(40, 1, dtype=a.dtype)), -1)
    solution = equations(padded, y).solve(1e-4)
    assert solution.weights.isfinite().all() and not solution.weights[-1].any()
    assert torch.allclose(solution.weights[:-1], equations(a, y).solve(1e-4).weights, rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [1e-9, 1e6])
def test_a_quiet_column_is_scaled_like_any_other(size: float) -> None:
    a, y = drawn(features=2)
    scale = torch.tensor([1.0, size], dtype=torch.float64)
    plain, quiet = equations(a, y).solve(1e-3), equations(a * scale, y).solve(1e-3)
    assert torch.allclose(quiet.weights * scale[:, None], plain.weights, rtol=1e-6, atol=0)
    assert quiet.condition == pytest.approx(plain.condition, rel=1e-6)


def test_singular_equations_are_solved_with_damping_alone() -> None:
    a, y = drawn(rows=2)
    with pytest.raises(torch.linalg.LinAlgError):
        equations(a, y).solve(0.0)
    assert torch.allclose(equations(a, y).solve(0.1).weights, least_squares(a, y, 0.1), rtol=1e-8, atol=0)


def test_the_residual_is_that_of_the_rows() -> None:
    a, y = drawn()
    for weights in (torch.zeros(5, 3, dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64), least_squares(a, y, 0.0)):
        assert equations(a, y).residual(weights) == pytest.approx(float((a @ weights - y).square().sum()), rel=1e-9)


def test_the_residual_of_an_exact_fit_is_nothing_and_never_below() -> None:
    found = []
    for seed in range(20):
        a, _ = drawn(seed=seed)
        weights = torch.full((5, 3), 1 / 3, dtype=torch.float64)
        found.append(equations(a, a @ weights).residual(weights))
    assert min(found) == 0.0, "rounding has put some of them below"
    assert max(found) < 1e-6


def test_the_condition_is_a_large_number_where_rounding_takes_the_smallest_eigenvalue_to_nothing_or_below() -> None:
    solved = 0
    for seed in range(20):
        a, y = drawn(rows=2, features=3, seed=seed)
        try:
            condition = equations(a, y).solve(0.0).condition
        except torch.linalg.LinAlgError:
            continue
        solved += 1
        assert 1e13 < condition < float("inf")
    assert solved


def test_a_solution_is_not_written_to() -> None:
    with pytest.raises(FrozenInstanceError):
        Solution(torch.zeros(1), 1.0).condition = 2.0  # type: ignore[misc]
