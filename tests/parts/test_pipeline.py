"""The order of a pipeline, and what it notes while it runs: rewrites, times, savings, and who is to blame."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from sparsify import SDTM, Density, Policy
from sparsify.errors import InputError
from sparsify.passes import BlockRange, Cleanup, InsertDensity, Pass, Pipeline, PoolAttention, Share, SparseDense, pipeline_for
from sparsify.passes import pipeline as module
from sparsify.passes.pipeline import SAVINGS, pipeline_of
from sparsify.plan import Part, Plan

CONSTANT = Density.constant(grid=(4, 4))


@dataclass(frozen=True)
class Nothing(Pass):
    """Rewrites as many places as it is told to."""

    places: int = 1
    name: ClassVar[str] = "nothing"

    def match(self, program: Any) -> list[int]:
        return list(range(self.places))

    def rewrite(self, program: Any, place: int) -> None:
        program.order.append(self.name)
        program.stages.append(program.stage)


@dataclass(frozen=True)
class Failing(Nothing):
    name: ClassVar[str] = "failing"

    def rewrite(self, program: Any, place: int) -> None:
        raise KeyError("a bug")


@dataclass(frozen=True)
class Pooling(PoolAttention):
    name: ClassVar[str] = "pooling"

    def run(self, program: Any) -> int:
        return 2


@dataclass(frozen=True)
class Sparse(SparseDense):
    name: ClassVar[str] = "sparse"

    def run(self, program: Any) -> int:
        return 3


@dataclass(frozen=True)
class Saving(Share):
    done: int = 1
    name: ClassVar[str] = "saving"

    def run(self, program: Any) -> int:
        program.order.append(self.name)
        return self.done


FIRST = BlockRange(0, 0)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a pipeline needs of a program; ``order`` gets what happens to it."""
    made = SimpleNamespace(order=[], stages=[], skips=[], runs=[], savings=[], stage="analysed", counts=0)
    ticks = iter(range(10_000))

    def count(given: Any) -> int:
        made.counts += 1
        made.order.append(f"count {made.counts}")
        return made.counts

    monkeypatch.setattr(module, "verify", lambda given, name: made.order.append(f"verify {name}"))
    monkeypatch.setattr(module, "Total", SimpleNamespace(of=count))
    monkeypatch.setattr(module, "Saving", SimpleNamespace(between=lambda *values: values))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks) ** 2)))
    return made


def test_every_pass_is_shown_and_then_verified(program: Any) -> None:
    def observe(name: str, shown: Any) -> None:
        assert shown is program
        program.order.append(f"show {name}")

    assert Pipeline((Nothing(), Nothing(0))).run(program, observe) == 0, "these rewrite nothing that a policy asks for"
    each = ["show nothing", "verify nothing"]
    assert program.order == ["verify capture", "nothing", *each, *each]
    assert program.stages == ["sparse"]


def test_or_it_is_verified_once_at_the_end(program: Any) -> None:
    Pipeline((Nothing(), Saving(), Nothing())).run(program, verify_each=False)
    assert [step for step in program.order if step.startswith("verify")] == ["verify capture", "verify nothing"]
    assert program.order[-1] == "verify nothing"


def test_an_empty_pipeline_looks_at_the_capture_alone(program: Any) -> None:
    assert Pipeline(()).run(program) == 0
    assert program.order == ["verify capture"] and program.runs == [] and program.stage == "analysed"


def test_what_a_policy_asks_for_is_counted(program: Any) -> None:
    passes = (Nothing(5), Pooling(FIRST), Saving(done=7), Sparse(FIRST), Pooling(FIRST))
    assert Pipeline(passes).run(program) == 2 + 3 + 2


def test_times_of_passes_and_of_the_verifier_are_kept(program: Any) -> None:
    pipeline = Pipeline((Nothing(2), Failing(0), Nothing()))
    pipeline.run(program)
    # The clock shows 0, 1, 4, 9, 16, ...: four readings for each pass.
    assert [(run.seconds, run.verify_seconds) for run in program.runs] == [(1, 5), (9, 13), (17, 21)]
    assert [(run.text, run.places) for run in program.runs] == [
        ("nothing{places=2}", 2),
        ("failing{places=0}", 0),
        ("nothing{places=1}", 1),
    ]
    assert pipeline.timings == {"nothing": 1 + 5 + 17 + 21, "failing": 9 + 13}


def test_costs_are_counted_around_savings_that_did_something(program: Any) -> None:
    Pipeline((Nothing(), Saving(done=4), Saving(done=0), Nothing(), Saving(done=1))).run(program)
    assert program.savings == [("saving", 4, 1, 2), ("saving", 0, 2, 2), ("saving", 1, 2, 3)]
    assert program.counts == 3
    first = program.order.index("count 1")
    assert program.order[first - 1] == "verify nothing" and program.order[first + 1] == "saving"


def test_without_savings_nothing_is_counted(program: Any) -> None:
    Pipeline((Nothing(), Pooling(FIRST))).run(program)
    assert program.counts == 0 and program.savings == []


def test_an_error_says_which_pass_ran(program: Any) -> None:
    with pytest.raises(KeyError, match="a bug") as caught:
        Pipeline((Nothing(), Failing(3))).run(program)
    assert caught.value.__notes__ == ["while the pass failing{places=3} ran"]


def test_a_pipeline_is_a_value() -> None:
    one, other = Pipeline((Share(), Cleanup())), Pipeline((Share(), Cleanup()), {"share": 3.0})
    assert one == other != Pipeline((Share(),)) and hash(one) == hash(Pipeline(one.passes))
    assert list(one) == [Share(), Cleanup()]
    assert "timings" not in repr(one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.passes = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (Share(), (Share(),)),
        ("share,cleanup", (Share(), Cleanup())),
        ("", ()),
        ((), ()),
        ([Cleanup(), "share,cleanup", Share()], (Cleanup(), Share(), Cleanup(), Share())),
    ],
)
def test_passes_may_be_given_in_several_ways(given: Any, want: tuple[Pass, ...]) -> None:
    assert Pipeline.of(given).passes == want
    assert Pipeline.parse(str(Pipeline.of(given))).passes == want


def test_a_pipeline_stays_the_one_it_is() -> None:
    pipeline = Pipeline((Share(),))
    assert Pipeline.of(pipeline) is pipeline


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Share, r"passes holds <class .*Share'> \(give an instance, not the class\); it must hold passes"),
        ([Share(), 3], r"passes holds 3; it must hold passes, or text such as 'cleanup'"),
        (None, r"passes holds None; it must"),
        ({"share"}, r"passes holds \{'share'\}; it must"),
    ],
)
def test_what_is_no_pass_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline.of(given)


SAVED = "mean-before-linear,linear-before-copy,narrow-linear,once-for-blocks,share,prompt-once"


@pytest.mark.parametrize(
    ("policy", "depth", "middle"),
    [
        (Policy(0, SDTM(1, 3, 1, 1), 0, CONSTANT), 6, ["sparse-dense{blocks=0-5 generate=1 sparse=3 recover=1}"]),
        (
            Policy(1, SDTM(1, 2, 1, 0) * 2, 2, CONSTANT),
            11,
            [
                "pool-attention{blocks=0}",
                "sparse-dense{blocks=1-4 generate=1 sparse=2 recover=1}",
                "sparse-dense{blocks=5-8 generate=1 sparse=2 recover=1}",
            ],
        ),
        (
            Policy(3, SDTM(2, 1, 2, 1), 1, CONSTANT),
            10,
            ["pool-attention{blocks=0-2}", "sparse-dense{blocks=3-8 generate=2 sparse=1 recover=2}"],
        ),
    ],
)
def test_the_passes_of_a_policy(policy: Policy, depth: int, middle: list[str]) -> None:
    want = ["fuse-attention", "density{schedule=constant(4x4)}", *middle, SAVED, "cleanup"]
    assert str(pipeline_for(policy, depth)) == ",".join(want)


def test_a_policy_that_changes_nothing_has_no_passes() -> None:
    assert pipeline_for(Policy.dense(), 12) == Pipeline(())


PARTS = (Part(Policy(1, SDTM(1, 0, 1, 0), 0, CONSTANT), 0, 3), Part(Policy(0, SDTM(1, 1, 1, 0), 1, CONSTANT), 5, 4))


def test_every_part_of_a_plan_starts_where_its_blocks_do() -> None:
    pools = [each for each in pipeline_of(Plan(PARTS, "")) if isinstance(each, (InsertDensity, PoolAttention, SparseDense))]
    assert pools == [
        InsertDensity(CONSTANT),
        PoolAttention(BlockRange(0, 0)),
        SparseDense(BlockRange(1, 2), 1, 0, 1),
        SparseDense(BlockRange(5, 7), 1, 1, 1),
    ]


def test_own_passes_come_between_those_of_the_plan_and_the_savings() -> None:
    savings = ["share", "once-for-blocks"]
    names = [each.name for each in pipeline_of(Plan(PARTS[:1], ""), savings, [Nothing()])]
    assert names == [
        "fuse-attention",
        "density",
        "pool-attention",
        "sparse-dense",
        "nothing",
        "once-for-blocks",
        "share",
        "cleanup",
    ]
    assert str(pipeline_of(Plan(PARTS[:1], ""), [])).endswith("recover=1},cleanup")


def test_own_passes_alone_are_followed_by_savings() -> None:
    dense = Plan((Part(Policy.dense(), 0, 4),), "")
    assert [each.name for each in pipeline_of(dense, passes=[Nothing()])] == [
        "nothing",
        *(each.name for each in SAVINGS),
        "cleanup",
    ]
    assert pipeline_of(dense).passes == ()
