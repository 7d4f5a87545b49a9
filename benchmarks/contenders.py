"""What is timed against the dense model: ours, SparseDiT by hand, token merging at equal FLOPs, first-block cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from sparsify import Policy, SparseModel, lower, sparsify
from sparsify.ends import Grid

from .block_parts import reason_against
from .cases import Case
from .common import Call, counted, interleaved, over_schedule
from .first_block_cache import first_block_cache
from .handwritten import fix_grid, handwritten
from .token_merging import merged_at, merging


@dataclass(frozen=True)
class Contender:
    """One way to run a model.

    Attributes:
        name: what it is.
        calls: for every pooled grid, its share of the timesteps and a call there; one of share 1 without a schedule.
        gflops: multiply-adds / 1e9 at batch 1, mean over the schedule.
        compiled: whether it runs compiled code.
        is_step: whether it is a step of a run whose other steps cost something else, so that its time is no speedup.
        remark: what to know about it.
    """

    name: str
    calls: Mapping[Grid | None, tuple[float, Call]]
    gflops: float
    compiled: bool = False
    is_step: bool = False
    remark: str = ""


@dataclass
class Setup:
    """A model, a call of it, and its sparse form; ``meta`` is a twin on the meta device, to count on."""

    case: Case
    model: nn.Module
    inputs: dict[str, Any]
    sparse: SparseModel
    meta: tuple[nn.Module, dict[str, Any]]
    skipped: dict[str, str] = field(default_factory=dict)  # what cannot be had, and why
    _merged: tuple[int, float] | None = None

    @classmethod
    def of(cls, case: Case, model: nn.Module, inputs: dict[str, Any]) -> Setup:
        """Sparsify a model for these inputs."""
        with torch.device("meta"):
            meta = case.make()
        return cls(case, model, inputs, sparsify(model, case.policy, example_inputs=inputs), meta)

    @property
    def grid(self) -> Grid:
        """The dense token grid."""
        return self.sparse.report().grid

    @property
    def shares(self) -> dict[Grid, float]:
        """Of the timesteps, by pooled grid."""
        return {density.grid: density.share for density in self.sparse.report().densities}

    def merged(self, gflops: float) -> tuple[int, float]:
        """Tokens to merge to cost that much, and the cost; found once."""
        if self._merged is None:
            self._merged = merged_at(*self.meta, self.grid, gflops)
        return self._merged


def dense(setup: Setup, compiled: bool) -> Iterable[Contender]:
    """The model itself."""
    run = torch.compile(setup.model, dynamic=False) if compiled else setup.model
    yield Contender("dense", _one(run, setup), setup.sparse.report().gflops_dense, compiled)


def dense_by_ours(setup: Setup, compiled: bool) -> Iterable[Contender]:
    """The dense model through our own lowering: what that gives without any sparsity."""
    same = sparsify(setup.model, Policy.dense(), example_inputs=setup.inputs)
    run = lower(same, "inductor", shapes="per_grid", scope="model") if compiled else same
    yield Contender("dense by sparsify", _one(run, setup), same.report().gflops, compiled)


def ours(setup: Setup, compiled: bool) -> Iterable[Contender]:
    """What ``sparsify`` makes of it; compiled it is there by blocks with open and with static shapes, and as a whole."""
    runs: dict[str, Callable[..., Any]] = {"sparsify": setup.sparse}
    if compiled:
        ways = {
            "dynamic shapes": {"shapes": "dynamic"},
            "per_grid shapes": {"shapes": "per_grid"},
            "whole model": {"shapes": "per_grid", "scope": "model"},
        }
        runs = {f"sparsify, {name}": lower(setup.sparse, "inductor", **options) for name, options in ways.items()}
    for name, run in runs.items():
        yield Contender(name, _scheduled(run, setup, setup.sparse.fix), setup.sparse.report().gflops, compiled)


def without_savings(setup: Setup, compiled: bool) -> Iterable[Contender]:
    """The same without the passes that save work at equal results."""
    sparse = sparsify(setup.model, setup.case.policy, example_inputs=setup.inputs, savings=False)
    run = lower(sparse, "inductor") if compiled else sparse
    yield Contender("sparsify without savings", _scheduled(run, setup, sparse.fix), sparse.report().gflops, compiled)


def by_hand(setup: Setup, compiled: bool, ones: bool = False) -> Iterable[Contender]:
    """SparseDiT written by hand; with ``ones`` its poolingformer multiplies by a matrix of ones, as in the published code.

    Compiled it is there block by block, and as a whole.
    """
    name = "handwritten, matrix of ones" if ones else "handwritten"
    if reason := reason_against(setup.model):
        setup.skipped[name] = reason
        return
    policy = setup.case.policy
    meta = handwritten(setup.meta[0], policy, setup.grid, ones=ones)
    gflops = sum(share * counted(fix_grid(meta, grid), **setup.meta[1]) for grid, share in setup.shares.items())
    twin = handwritten(setup.model, policy, setup.grid, ones=ones, compiled=compiled)
    yield Contender(name, _scheduled(twin, setup, partial(fix_grid, twin)), gflops, compiled)
    if compiled:
        twin = handwritten(setup.model, policy, setup.grid, ones=ones)
        whole = torch.compile(twin, dynamic=False)
        yield Contender(f"{name}, whole model", _scheduled(whole, setup, partial(fix_grid, twin)), gflops, compiled)


def token_merging(setup: Setup, compiled: bool) -> Iterable[Contender]:
    """Token merging at the FLOPs of ours."""
    if reason := reason_against(setup.model):
        setup.skipped["token merging"] = reason
        return
    tokens = setup.grid[0] * setup.grid[1]
    merged, gflops = setup.merged(setup.sparse.report().gflops)
    twin = merging(setup.model, setup.grid, merged)
    run = torch.compile(twin, dynamic=False) if compiled else twin
    remark = f"merges {merged} of {tokens} tokens in every block (ratio {merged / tokens:.2f})"
    yield Contender("token merging", _one(run, setup), gflops, compiled, remark=remark)


def block_cache(setup: Setup, compiled: bool) -> Iterable[Contender]:
    """First-block cache: what a step costs that takes the cached residual, and what one that does not."""
    report = setup.sparse.report()
    first = report.gflops_dense - sum(block.gflops_dense for block in report.blocks[1:])
    for name, hit, gflops in (("a hit", True, first), ("a miss", False, report.gflops_dense)):
        try:
            run = first_block_cache(setup.model, hit, compiled)
            with torch.no_grad():
                run(**setup.inputs)
        except ValueError as error:
            setup.skipped["first-block cache"] = str(error)
            return
        remark = "how many steps hit depends on content and on a threshold; it would come on top of a sparse model too"
        yield Contender(f"first-block cache, {name}", _one(run, setup), gflops, compiled, is_step=True, remark=remark)


WAYS: dict[str, Callable[[Setup, bool], Iterable[Contender]]] = {
    "dense": dense,
    "ours-dense": dense_by_ours,
    "ours": ours,
    "ours-without-savings": without_savings,
    "handwritten": by_hand,
    "handwritten-ones": partial(by_hand, ones=True),
    "token-merging": token_merging,
    "first-block-cache": block_cache,
}
DEFAULT_WAYS = ("ours", "handwritten", "token-merging", "first-block-cache")


def measure(contenders: Iterable[Contender], rounds: int, title: str = "") -> dict[tuple[str, bool], list[float]]:
    """Seconds of each in every round, mean over its schedule, by name and whether it is compiled."""
    listed = list(contenders)
    calls = {(c.name, c.compiled, grid): call for c in listed for grid, (_, call) in c.calls.items()}
    times = interleaved(calls, rounds, title=title)
    return {
        (c.name, c.compiled): over_schedule((share, times[c.name, c.compiled, grid]) for grid, (share, _) in c.calls.items())
        for c in listed
    }


def _one(run: Callable[..., Any], setup: Setup) -> dict[Grid | None, tuple[float, Call]]:
    return {None: (1.0, lambda: run(**setup.inputs))}


def _scheduled(run: Callable[..., Any], setup: Setup, fix: Callable[[Grid], Any]) -> dict[Grid | None, tuple[float, Call]]:
    """A call at every pooled grid, which the host says, so that no timestep is read from a GPU."""

    def at(grid: Grid) -> Call:
        def call() -> Any:
            fix(grid)
            return run(**setup.inputs)

        return call

    return {grid: (share, at(grid)) for grid, share in setup.shares.items()}
