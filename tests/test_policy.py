"""Policies and densities: values, validation, text and JSON."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify import SDTM, Density, InputError, Policy, PolicyError

from .oracle import paper_side

rates = st.floats(0, 0.99)
sides = st.integers(1, 48)


@st.composite
def densities(draw: st.DrawFn) -> Density:
    steps = draw(st.sampled_from([1000, 100]))
    if draw(st.booleans()):
        low, high = sorted((draw(rates), draw(rates)))
        return Density.paper(r_min=low, r_max=high, timesteps=steps)
    fine = draw(st.tuples(sides, sides))
    coarse = tuple(draw(st.integers(1, side)) for side in fine)
    return Density.paper(finest=fine, coarsest=coarse, timesteps=steps) if draw(st.booleans()) else Density.constant(grid=fine)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    counts = st.tuples(st.integers(1, 2), st.integers(0, 3), st.integers(1, 2), st.integers(0, 2))
    modules = tuple(SDTM(*c) for c in draw(st.lists(counts, max_size=3)))
    return Policy(draw(st.integers(0 if modules else 1, 3)), modules, draw(st.integers(0, 3)), draw(densities()))


@given(policies())
def test_json_round_trip(policy: Policy) -> None:
    again = Policy.from_json(policy.to_json())
    assert again == policy and hash(again) == hash(policy)


@given(densities())
def test_density_text_round_trip(density: Density) -> None:
    assert Density.parse(str(density)) == density


@given(st.floats(0.01, 0.5), st.floats(0.5, 0.99), st.integers(2, 64), st.integers(0, 1000))
def test_grid_follows_the_papers_formula(r_min: float, r_max: float, side: int, t: int) -> None:
    got = Density.paper(r_min=r_min, r_max=r_max).grid_at(t, (side, side))
    assert got[0] == got[1]
    assert abs(got[0] - max(1, paper_side(side, t, r_min, r_max))) <= 1  # rounding may move a value that lies on a whole number
    exact = paper_side(10**6, t, r_min, r_max) / 10**6 * side
    assert got[0] == max(1, int(exact)) or abs(exact - round(exact)) < 1e-4


def test_grids_of_the_paper() -> None:
    density = Policy.paper("DiT-XL/2", 512).density
    assert list(density.grids((32, 32))) == [(10, 10), (9, 9), (8, 8), (7, 7), (6, 6)]
    assert density.grid_at(0, (32, 32)) == density.grid_at(249, (32, 32)) == (10, 10)
    assert density.grid_at(1000, (32, 32)) == (6, 6)
    assert Density.paper(finest=(10, 10), coarsest=(6, 6)).grid_at(0, (16, 16)) == (10, 10)


@given(densities(), st.tuples(sides, sides))
def test_density_never_grows_with_the_noise(density: Density, dense: tuple[int, int]) -> None:
    try:
        grids = [density.grid_at(t, dense) for t in range(0, density.timesteps + 1, density.timesteps // 20)]
    except PolicyError:
        return  # a pooled grid larger than the dense one
    for below, above in pairwise(grids):
        assert all(a <= b for a, b in zip(above, below, strict=True))
    assert abs(sum(density.grids(dense).values()) - 1) < 1e-9
    assert all(1 <= n <= side for grid in grids for n, side in zip(grid, dense, strict=True))


@given(st.integers(4, 120))
def test_fit_covers_any_depth_with_all_segments(depth: int) -> None:
    policy = Policy.fit(depth)
    assert policy.depth == depth
    assert policy.poolingformer >= 1 and policy.sdtm
    roles = [role.name for role in policy.roles(depth)]
    assert len(roles) == depth
    assert {"pooling", "generate", "sparse", "recover"} <= set(roles)


def test_fit_gives_the_papers_segments_at_its_depths() -> None:
    xl, base = Policy.fit(28), Policy.fit(12)
    assert (xl.poolingformer, xl.sdtm, xl.dense) == (2, SDTM(1, 3, 1, 1) * 4, 2)
    assert (base.poolingformer, base.sdtm, base.dense) == (1, SDTM(1, 2, 1, 1) * 2, 1)


def test_dense_is_a_field_and_a_constructor() -> None:
    assert Policy(1, dense=3).dense == 3
    assert Policy(1).dense == 0
    assert Policy.dense() == Policy.dense() != Policy.auto()
    assert Policy.dense().fitted(17) == Policy.dense()


BAD = {
    "module": (lambda: Policy(1, ((1, 3, 1, 1),)), "tuple of SDTM"),  # type: ignore[arg-type]
    "no recover": (lambda: SDTM(recover=0), "SDTM.recover is 0"),
    "density": (lambda: Policy(1, density=0.5), "Policy.density is 0.5"),  # type: ignore[arg-type]
    "both": (lambda: Density.constant(rate=0.5, grid=(4, 4)), "exactly one of rate"),
    "neither": (lambda: Density.paper(r_min=0.5), "exactly one of r_max"),
    "swapped grids": (lambda: Density.paper(finest=(4, 4), coarsest=(4, 5)), "swap them"),
    "axes differ": (lambda: Density.constant(grid=(4,)).grid_at(0, (8, 8)), "has 1 axes but the token grid"),
    "pooled larger": (lambda: Density.constant(grid=(9, 8)).grid_at(0, (8, 8)), r"pooled grid \(9, 8\) is larger than the token grid \(8, 8\)"),
    "steps": (lambda: Density.paper(r_min=0.1, r_max=0.2, timesteps=0), "Density.timesteps is 0"),
    "shallow": (lambda: Policy.fit(3), "depth is 3; it must be an integer of at least 4"),
    "no row": (lambda: Policy.paper("DiT-XXL", 512), "no configuration for 'DiT-XXL'"),
    "no rates": (lambda: Policy.paper("DiT-XL/2", 512, rates=(0.1, 0.2)), "the paper has DiT-XL/2 at 512 with"),
    "depth": (lambda: Policy.paper("DiT-XL/2", 512).fitted(12), "covers 28 blocks .* but the trunk has 12"),
    "auto with segments": (lambda: Policy(1, kind="auto"), "takes no segments"),
    "kind": (lambda: Policy(1, kind="sparse"), "Policy.kind is 'sparse'"),  # type: ignore[arg-type]
    "text": (lambda: Density.parse("paper"), "not like paper"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_policies_say_what_is_wrong(case: tuple) -> None:
    make, message = case
    with pytest.raises(PolicyError, match=message):
        make()


@pytest.mark.parametrize("field", ["kind", "poolingformer", "sdtm", "dense", "density"])
@pytest.mark.parametrize("value", [None, "x", [[1]], {"a": 1}, -1, 1e400], ids=str)
def test_hostile_json_is_an_error_and_nothing_else(field: str, value: object) -> None:
    data = json.loads(Policy.fit(8).to_json())
    for changed in (data | {field: value}, {k: v for k, v in data.items() if k != field}, data | {"extra": 1}):
        with pytest.raises(PolicyError):
            Policy.from_json(json.dumps(changed))


@pytest.mark.parametrize("t", [-1, 1000.5, float("nan"), float("inf")])
def test_timestep_out_of_range(t: float) -> None:
    with pytest.raises(InputError, match=r"outside \[0, 1000\]"):
        Density.constant(rate=0.5).grid_at(t, (8, 8))
