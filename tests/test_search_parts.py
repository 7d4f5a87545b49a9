"""What a search is made of: words of roles, the best of them, scaled densities, the additive forecast, shares of timesteps."""

from __future__ import annotations

import itertools
import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify import Density, Policy
from sparsify.search.additive import Additive, Observation, Stretch
from sparsify.search.batches import nearest_shares
from sparsify.search.paths import best_paths
from sparsify.search.scale import Scale, highest
from sparsify.search.words import neighbours, plan_of, policy_of, trial_words, word_of

GRAMMAR = re.compile(r"P*(GS*RD*)*D*")
DENSITY = Density.paper(0.6, 0.9)


def words(depth: int) -> list[str]:
    """Every word that is searched, by brute force."""
    found = map("".join, itertools.product("PGSRD", repeat=depth))
    return [word for word in found if GRAMMAR.fullmatch(word) and set(word) & set("PG")]


@pytest.mark.parametrize("depth", [2, 4, 6])
def test_words_are_policies_and_back(depth: int) -> None:
    for word in words(depth):
        policy = policy_of(word, DENSITY)
        assert word_of(policy, depth) == word and policy.depth == depth
        assert [role.name[0].upper() for role in plan_of("DD" + word, DENSITY).roles()] == list("DD" + word)
    assert policy_of("D" * depth, DENSITY) == Policy.dense()
    for fitted in map(Policy.fit, range(4, 40)):
        assert policy_of(word_of(fitted, fitted.depth), fitted.density).roles(fitted.depth) is not None
        assert word_of(policy_of(word_of(fitted, fitted.depth), fitted.density), fitted.depth) == word_of(fitted, fitted.depth)


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(0, 8))
def test_the_best_paths_are_those_of_brute_force(depth: int, seed: int, most: float) -> None:
    numbers = random.Random(seed)
    errors = {letter: [numbers.choice([0.0, 1.0, numbers.random(), math.inf]) for _ in range(depth)] for letter in "PGSRD"}
    costs = {letter: [numbers.choice([0.0, 1.0, numbers.random()]) for _ in range(depth)] for letter in "PGSRD"}

    def total(of: dict[str, list[float]], word: str) -> float:
        return sum(of[letter][block] for block, letter in enumerate(word))

    every = [(total(costs, word), total(errors, word)) for word in words(depth)]
    found = best_paths(errors, costs, most, width=1000)
    for path in found:
        assert GRAMMAR.fullmatch(path.word) and set(path.word) & set("PG") and path.cost <= most
        assert (path.cost, path.error) == pytest.approx((total(costs, path.word), total(errors, path.word)))
    for cost, error in every:
        if cost <= most and math.isfinite(error):
            assert any(path.cost <= cost + 1e-9 and path.error <= error + 1e-9 for path in found)
    cheapest = best_paths(dict.fromkeys(costs, [0.0] * depth), costs)[0]
    assert cheapest.cost == pytest.approx(min(cost for cost, _ in every))


def test_narrow_paths_are_nearly_as_good() -> None:
    numbers = random.Random(1)
    errors, costs = ({letter: [numbers.random() for _ in range(28)] for letter in "PGSRD"} for _ in range(2))
    wide, narrow = (best_paths(errors, costs, 10.0, width) for width in (2000, 48))
    assert narrow[-1].error <= 1.05 * wide[-1].error and narrow[0].cost == wide[0].cost


@given(st.integers(4, 7), st.data())
def test_neighbours_are_words_one_step_away_and_lead_everywhere(depth: int, data: st.DataObject) -> None:
    every = words(depth)
    word = data.draw(st.sampled_from(every))
    near = neighbours(word)
    assert near <= set(every) and word not in near
    with_modules = {w for w in every if "G" in w}
    reached, pending = set(), [next(iter(sorted(with_modules)))]
    while pending:
        reached.add(current := pending.pop())
        pending += [w for w in neighbours(current) if w not in reached and w not in pending]
    assert with_modules <= reached


def test_trials_cover_every_block_in_every_role() -> None:
    found = trial_words(6, (1, 3))
    assert found[:2] == ["PDDDDD", "DPDDDD"] and "DGSSSR" in found and len(found) == 6 + 4 + 2
    assert {block for word in found for block, letter in enumerate(word) if letter == "S"} == {1, 2, 3, 4}


densities = st.sampled_from(
    [DENSITY, Density.linear(0.3, 0.8, levels=4), Density.constant(rate=0.7), Density.constant(grid=(4, 4)),
     Density.table({0: 0.4, 500: (4, 4)}), Density.paper(finest=(6, 6), coarsest=(3, 3), timesteps=1.0, reversed=True)]
)  # fmt: skip


@given(densities, st.sampled_from([(8, 8), (6, 10)]), st.floats(0, 1), st.floats(0, 1))
def test_denser_levels_keep_more_tokens_and_never_all(template: Density, dense: tuple[int, int], a: float, b: float) -> None:
    scale = Scale(template, dense)
    low, high = sorted((a, b))

    def tokens(level: float) -> float:
        return scale.mean(lambda grid: float(math.prod(grid)), level)

    assert tokens(low) <= tokens(high) + 1e-9
    assert tokens(0.0) == 1 and dense not in scale.grids(high)
    assert scale.density(high).schedule == template.schedule and scale.density(high).timesteps == template.timesteps


@given(densities, st.floats(1.5, 60))
def test_a_budget_is_met_from_below(template: Density, budget: float) -> None:
    scale = Scale(template, (8, 8))

    def cost(grid: tuple[int, ...]) -> float:
        return float(math.prod(grid))

    filled = scale.fill(cost, budget)
    assert filled is not None and filled.gflops <= budget
    assert filled.gflops == pytest.approx(sum(cost(grid) * share for grid, share in filled.density.grids((8, 8)).items()))
    above = scale.mean(cost, min(1.0, filled.level + 2**-13))
    assert filled.level == 1.0 or above > budget or filled.gflops >= budget * 0.999
    assert scale.fill(cost, 0.5) is None


def test_highest_is_the_last_level_within() -> None:
    assert highest(lambda level: level, 2.0) == 1.0
    assert highest(lambda level: level + 1, 0.5) is None
    assert highest(lambda level: 0.0 if level < 0.37 else 1.0, 0.5) == pytest.approx(0.37, abs=1e-4)


def test_the_forecast_finds_errors_that_do_add_up() -> None:
    depth, numbers = 12, random.Random(0)
    truth = {letter: [numbers.random() * (10 if block == 5 else 0.1) for block in range(depth)] for letter in "PGSR"}

    def observed(word: str, stretch: float = 1.0) -> Observation:
        square = sum(truth[letter][b] * (1 if letter == "P" else stretch) for b, letter in enumerate(word) if letter != "D")
        return Observation(word, math.sqrt(square), stretch)

    seen = [observed(word) for word in trial_words(depth, (1, 3))]
    model = Additive.fit(seen, depth)
    assert model.squares["P"] == pytest.approx(truth["P"], rel=0.05)
    some = [word_of(Policy.fit(depth), depth), "PPGSRDGSRDDD", "GSSSSSSSSSRD", "PGSRDDGSSSRD", "PPPPDDDDDDDD"]
    wanted, got = ([square(word) for word in some] for square in (lambda w: observed(w).error ** 2, model.square))
    assert got == pytest.approx(wanted, rel=0.3)
    more = Additive.fit([*seen, *(observed(word, 0.5) for word in some)], depth)
    assert more.square(some[0], 0.5) == pytest.approx(observed(some[0], 0.5).error ** 2, rel=0.3)


def test_refused_roles_are_never_proposed() -> None:
    seen = [Observation(w, math.inf if w[2] != "D" else 0.1) for w in trial_words(6, (1,))]
    model = Additive.fit(seen, 6)
    assert math.isinf(model.squares["P"][2]) and math.isinf(model.squares["S"][2]) and math.isfinite(model.squares["P"][1])
    assert math.isfinite(model.square("PPDGSR"))


def test_stretch_is_linear_between_levels_and_flat_outside() -> None:
    stretch = Stretch([(0.5, 4.0), (0.7, 2.0)], 0.5)
    assert [stretch.at(level) for level in (0.1, 0.5, 0.6, 0.7, 0.9)] == pytest.approx([1, 1, 0.75, 0.5, 0.5])
    assert Stretch([], 0.5).at(0.3) == 1


@given(st.lists(st.integers(0, 999), min_size=1, max_size=6))
def test_each_batch_stands_for_the_timesteps_nearest_to_it(timesteps: list[int]) -> None:
    shares = nearest_shares([float(t) for t in timesteps], 1000)
    assert sum(shares) == pytest.approx(1)
    for t, share in zip(timesteps, shares, strict=True):
        below = [u for u in timesteps if u < t]
        above = [u for u in timesteps if u > t]
        low = (max(below) + t) / 2 if below else 0
        high = (min(above) + t) / 2 if above else 1000
        assert share == pytest.approx((high - low) / 1000 / timesteps.count(t))
