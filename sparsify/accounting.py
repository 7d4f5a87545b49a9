"""Fill in a report from a program before and after its rewrites."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch

from .density import Density, Grid
from .errors import PolicyError
from .flops import BlockCosts, Numbers, evaluate, graph_cost
from .plan import Plan
from .policy import Role
from .program import Program
from .report import BlockReport, DensityReport, Report, Skipped
from .shapes import shape_of, size_of


@dataclass(frozen=True)
class Costs:
    """Of a program, as expressions: multiply-adds outside of the trunk and of each block, and the tokens of each block."""

    outside: sympy.Expr
    blocks: list[sympy.Expr]
    tokens: list[sympy.Expr]

    @classmethod
    def of(cls, program: Program) -> Costs:
        """Count a program as it is now."""
        others = [node for node in program.all_block_nodes if node.target not in program.paths]
        cost, blocks = BlockCosts(program), program.block_nodes
        outside = program.outside + graph_cost(program.graph) + sympy.Add(*map(cost.of, others))
        tokens = [_tokens(program, node, program.body_of(node).tokens) for node in blocks]
        return cls(outside, [cost.of(node) for node in blocks], tokens)

    @property
    def total(self) -> sympy.Expr:
        """Multiply-adds of the whole model."""
        return self.outside + sympy.Add(*(count * cost for cost, count in Counter(self.blocks).items()))


def make_report(
    name: str, program: Program, dense: Costs, plan: Plan, pipeline: str, timings: dict[str, float], parameters: int
) -> Report:
    """The report of ``program`` after its passes; ``dense`` is its cost before them."""
    sparse = Costs.of(program)
    densities = densities_of(program)
    sizes = [sizes_at(program, grid) for grid, _ in densities]
    shares = [share for _, share in densities]
    numbers = Numbers(sizes)
    costs = [numbers.of(cost) for cost in sparse.blocks]
    totals = [sum(parts) for parts in zip(numbers.of(sparse.outside), *costs, strict=True)]
    blocks = []
    for node, cost, dense_cost, dense_tokens, (role, why) in zip(
        program.block_nodes, costs, dense.blocks, dense.tokens, _actual_roles(program, plan), strict=True
    ):
        body = program.body_of(node)
        twins = [len(body.placeholders) - len(body.twins) + i for i, t in enumerate(body.twins) if t.position == body.tokens]
        tokens = numbers.of(_tokens(program, node, body.tokens))
        keys = numbers.of(_tokens(program, node, twins[0] if twins else body.tokens))
        mean = sum(share * value for share, value in zip(shares, cost, strict=True))
        blocks.append(
            BlockReport(
                path=str(node.target),
                role=role,
                why=why,
                tokens=tuple(tokens),
                keys=tuple(keys),
                tokens_dense=numbers.of(dense_tokens)[0],
                gflops_dense=numbers.of(dense_cost)[0] / 1e9,
                gflops=tuple(value / 1e9 for value in cost),
                gflops_mean=mean / 1e9,
            )
        )
    added = sum(layer.size for layer in program.layers)
    dense_total = evaluate(dense.total, sizes[0])
    return Report(
        model=name,
        policy=str(plan),
        pipeline=pipeline,
        grid=program.grid_hint,
        grid_source=program.grid_source,
        timestep=program.timestep,
        way=program.way,
        chains={name: len(blocks) for name, blocks in program.chains.items()},
        gflops_dense=dense_total / 1e9,
        gflops=sum(share * total for share, total in zip(shares, totals, strict=True)) / 1e9,
        parameters=parameters,
        parameters_added=added,
        savings=tuple(program.savings),
        gflops_once=sum(evaluate(graph_cost(graph), sizes[0]) for graph in program.prompts.values()) / 1e9,
        densities=tuple(
            DensityReport(grid, share, total / 1e9) for (grid, share), total in zip(densities, totals, strict=True)
        ),
        blocks=tuple(blocks),
        skipped=tuple(Skipped(s.pass_name, s.where, s.reason) for s in program.skips),
        pass_seconds=timings,
        passes=tuple(program.runs),
    )


def densities_of(program: Program) -> list[tuple[Grid, float]]:
    """The pooled grids of the schedule, with the share of the timesteps that each has."""
    if program.density is None:
        return [(program.grid_hint, 1.0)]
    return list(program.density.grids(program.grid_hint).items())


def sizes_at(program: Program, pooled: Grid) -> dict[sympy.Basic, int]:
    """Every size symbol's number: those of the capture, batch 1, and the sides of one pooled grid."""
    sizes = {symbol: int(size) for symbol, size in program.shape_env.backed_var_to_val.items()}
    batch = shape_of(program.placeholders[0])[0] if shape_of(program.placeholders[0]) else 1
    if isinstance(batch, sympy.Symbol):
        sizes[batch] = 1
    for node, side in zip(program.pooled_nodes, pooled, strict=False):
        sizes[sympy.sympify(size_of(node.meta["val"]))] = side
    return sizes


def _tokens(program: Program, node: torch.fx.Node, position: int) -> sympy.Expr:
    return sympy.sympify(shape_of(node.args[position])[program.body_of(node).token_axis])  # type: ignore[arg-type]


def _actual_roles(program: Program, plan: Plan) -> list[tuple[str, str]]:
    """The role of each block and why: the one asked for, unless a pass left the block as it was; other passes by name."""
    passes = [node.meta.get("passes", ()) for node in program.block_nodes]
    return [_actual_role(role, names) for role, names in zip(plan.roles(), passes, strict=True)]


def _actual_role(role: Role, passes: Sequence[str]) -> tuple[str, str]:
    planned = [] if role.name == "dense" else [name for name in passes if name in _PLANNED]
    others = ", ".join(name for name in passes if name not in planned)
    if planned:
        return role.name, f"{role.why}; then {others}" if others else role.why
    if others:
        return others, "rewritten by a pass that was given"
    if role.name != "dense":
        return "dense", f"left as it was (asked for: {role.name}); see below"
    return role.name, role.why


_PLANNED = ("pool-attention", "sparse-dense")


def check_density(density: Density, grid: Grid) -> bool:
    """Whether a density pools anything on this grid.

    Raises:
        PolicyError: the density does not fit the grid, or reaches the full grid at some timesteps only.
    """
    grids = density.grids(grid)
    if set(grids) == {grid} and density.keeps_everything(grid):
        return False
    if grid in grids:
        raise PolicyError(
            f"Policy.density {density} keeps all {math.prod(grid)} tokens of the {grid} grid at {grids[grid]:.0%} of the "
            f"timesteps and fewer at others. A module with nothing to pool is not the dense model, because its restore "
            f"layers start from the tokens before it. Use a finest end above rate 0, or the full grid at all timesteps."
        )
    return True
