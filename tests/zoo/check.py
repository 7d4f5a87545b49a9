"""What a model must do to count as working, and the table of results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from sparsify import SDTM, Density, Policy, SparseModel, SparsifyError, sparsify
from sparsify.errors import RewriteError

from .entry import Entry

IDENTITY = 1e-5
DENSITY = Density.paper(r_min=0.5, r_max=0.85)


@dataclass(frozen=True)
class Result:
    """One row of the table: a model that works, or the reason why it does not."""

    entry: Entry
    blocks: str = ""
    grid_source: str = ""
    way: str = ""
    captures: int = 0
    error: float = math.nan
    gflops_dense: float = math.nan
    gflops: float = math.nan
    refusal: str = ""

    @property
    def works(self) -> bool:
        return not self.refusal


def policy_for(depth: int) -> Policy:
    """One poolingformer block, one module over all that is left but the top."""
    return Policy(1, SDTM(1, depth - 4, 1, 0), 1, DENSITY)


def tensors_in(output: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def difference(a: Any, b: Any) -> float:
    pairs = list(zip(tensors_in(a), tensors_in(b), strict=True))
    assert pairs, "the model returns no tensor"
    return max(float((x - y).abs().max()) for x, y in pairs)


def at_time(entry: Entry, inputs: dict[str, Any], name: str, share: float) -> dict[str, Any]:
    """The inputs with the timestep moved to a share of what the density takes for its range."""
    t = inputs[name]
    return {**inputs, name: torch.full_like(t, share * 1000 if not t.is_floating_point() or float(t.max()) > 1 else share)}


def check(entry: Entry) -> Result:
    """Run every check on one model.

    Raises:
        AssertionError: a check failed: the model runs and is wrong.
    """
    model, inputs = entry.make(), entry.inputs(2, 0)
    with torch.no_grad():
        want = model(**inputs)
    try:
        dense = sparsify(model, Policy.dense(), inputs, **entry.options(0))
        with torch.no_grad():
            error = difference(dense(**inputs), want)
            others = [entry.inputs(3, 0)] + (
                [entry.inputs(2, 1)] if entry.sizes == 2 and not entry.options(0).get("grid") else []
            )
            error = max([error] + [difference(dense(**other), model(**other)) for other in others])
        assert error <= IDENTITY, f"the dense policy differs by {error:.1e}"
        report = dense.report()
        depth = len(report.blocks)
        sparse = sparsify(model, policy_for(depth), inputs, verify="full", **entry.options(0))
    except SparsifyError as refused:
        return Result(entry, refusal=f"{type(refused).__name__}: {refused}")
    try:
        check_sparse(entry, sparse)
    except (SparsifyError, AssertionError) as failed:
        return Result(entry, refusal=f"{type(failed).__name__}: {failed}")
    report = sparse.report()
    blocks = " -> ".join(f"{name} x{len(paths)}" for name, paths in sparse.program.chains.items())
    return Result(entry, blocks, report.grid_source, report.way, len(sparse._stages), error, report.gflops_dense, report.gflops)


def check_sparse(entry: Entry, sparse: SparseModel) -> None:
    """A sparse model: its grid, which blocks are sparse, two densities, two batch sizes, gradients, another resolution."""
    report = sparse.report()
    if report.skipped:
        raise RewriteError("; ".join(dict.fromkeys(f"{s.pass_name} at {s.where}: {s.reason}" for s in report.skipped)))
    assert report.grid[-len(entry.grid(0)) :] == entry.grid(0)[-len(report.grid) :], f"grid {report.grid}, not {entry.grid(0)}"
    middle = [block for block in report.blocks if block.role in ("generate", "sparse")]
    assert len(middle) == len(report.blocks) - 3
    assert all(max(block.tokens) < block.tokens_dense for block in middle), "a block in the middle has as many tokens as before"
    assert report.gflops < report.gflops_dense
    timestep = report.timestep
    assert timestep is not None, "no timestep"
    inputs = entry.inputs(2, 0)
    with torch.no_grad():
        for share in (0.05, 0.95):
            for batch in (2, 3):
                output = sparse(**at_time(entry, entry.inputs(batch, 0), timestep, share))
                assert all(bool(torch.isfinite(x).all()) for x in tensors_in(output)), "the output is not finite"
        if entry.sizes == 2:
            sparse(**entry.inputs(2, 1))
    for parameter in sparse.parameters():
        parameter.grad = None
    sum(x.float().square().mean() for x in tensors_in(sparse(**inputs)) if x.requires_grad).backward()
    for module in sparse.sparsify_restore:
        assert module["sparse"].weight.grad is not None and float(module["sparse"].weight.grad.abs().max()) > 0
    for path in sparse.program.paths:
        gradients = [p.grad for p in sparse.get_submodule(path).parameters()]
        assert any(g is not None and float(g.abs().max()) > 0 for g in gradients), f"no gradient reaches {path}"
