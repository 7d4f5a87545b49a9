"""Sparse-dense token modules: generate sparse tokens, work on them, recover the dense ones (paper, section 3.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ..attention import refusal_of_counts, refusal_of_positions, refusal_to_mix, token_aligned_inputs
from ..ops import pool_tokens, restore_tokens
from ..probe import refusal_to_split
from ..program import Body, Program, Restore
from ..shapes import annotate
from .base import BlockRange, Pass
from .split import split_queries_from_keys

aten = torch.ops.aten


@dataclass(frozen=True)
class SparseDense(Pass):
    """Turn consecutive blocks into one module; what ``generate``, ``sparse`` and ``recover`` leave over stays dense.

    ``X_s = pool(X)``; generate blocks take queries from ``X_s`` and keys from ``X``; sparse blocks see ``X_s`` alone;
    ``X_m = W1 up(X_s) + W2 X``; recover blocks take queries from ``X_m`` and keys from ``X_s``.
    """

    blocks: BlockRange
    generate: int = 1
    sparse: int = 3
    recover: int = 1
    name: ClassVar[str] = "sparse-dense"

    def match(self, program: Program) -> Iterable[list[fx.Node]]:
        return [self.blocks.of(program)]

    def describe(self, place: list[fx.Node]) -> str:
        return f"{place[0].target} .. {place[-1].target}"

    def check(self, program: Program, place: list[fx.Node]) -> str | None:
        if program.density_node is None:
            return "there is no density node; run the density pass first"
        pooled = place[: self.generate + self.sparse]
        crossing = place[: self.generate] + place[self.generate + self.sparse :][: self.recover]
        for node in pooled + [node for node in crossing if node not in pooled]:
            body = program.body_of(node)
            if body.keys is not None:
                return f"{node.target} is part of a sparse-dense module already"
            if aligned := token_aligned_inputs(body):
                return f"input {aligned[0].name} of {node.target} has one entry per token, and pooling it is not supported yet"
            if reason := self._refusal(program, body):
                return f"{node.target}: {reason}"
        for below, above in itertools.pairwise(place[: self.generate + self.sparse + self.recover]):
            if program.tokens_in(above) is not program.tokens_out(below):
                return f"operators stand between {below.target} and {above.target}"
            if below in pooled and len(program.tokens_out(below).users) > 1:
                return f"the tokens of {below.target} are used outside of the chain of blocks"
        return None

    def rewrite(self, program: Program, place: list[fx.Node]) -> None:
        graph = program.graph
        grid, pooled = program.grid_nodes, program.pooled_nodes
        generate, rest = place[: self.generate], place[self.generate :]
        sparse, recover = rest[: self.sparse], rest[self.sparse :][: self.recover]
        dense_tokens = program.tokens_in(place[0])

        with graph.inserting_before(place[0]):
            tokens = self._make(graph, pool_tokens, (dense_tokens, grid, pooled), dense_tokens)
        for node in generate:
            tokens = self._rewire(program, node, tokens, keys=dense_tokens)
        for node in sparse:
            tokens = self._rewire(program, node, tokens)
        merged = self._recover(program, recover[0], tokens, dense_tokens)
        for node in recover:
            merged = self._rewire(program, node, merged, keys=tokens)

    def _rewire(self, program: Program, node: fx.Node, tokens: fx.Node, keys: fx.Node | None = None) -> fx.Node:
        """Feed a block other tokens, and keys where it attends across; the node that carries its result."""
        body = program.body_of(node)
        if keys is not None:
            node.meta["body"] = self._split(program, body).name
            node.args = (*node.args, keys)
        node.update_arg(body.tokens, tokens)
        program.annotate_block(node)
        self.mark(node, node)
        return program.tokens_out(node)

    def _refusal(self, program: Program, body: Body) -> str | None:
        """Why a body cannot see other tokens than it was captured with; asked once of each body."""
        if body.name not in program.probes:
            program.probes[body.name] = (
                refusal_to_mix(body) or self._refusal_of_counts(program, body) or self._try(program, body)
            )
        return program.probes[body.name]

    def _refusal_of_counts(self, program: Program, body: Body) -> str | None:
        assert program.density is not None  # noqa: S101  # the density node was checked for
        counts = {math.prod(grid) for grid in program.density.grids(program.grid_hint)}
        return refusal_of_positions(body) or refusal_of_counts(body, counts)

    def _try(self, program: Program, body: Body) -> str | None:
        try:
            return refusal_to_split(body, self._split(program, body))
        except (RuntimeError, ValueError, TypeError) as error:
            return f"queries and keys cannot be told apart: {str(error).splitlines()[0]}"

    def _split(self, program: Program, body: Body) -> Body:
        name = f"{body.name}.split"
        if name not in program.bodies:
            program.bodies[name] = split_queries_from_keys(body, name, self.name)
        return program.bodies[name]

    def _recover(self, program: Program, before: fx.Node, tokens: fx.Node, dense_tokens: fx.Node) -> fx.Node:
        """``W1 up(X_s) + W2 X``, with the two new layers named on the program."""
        graph, fake = program.graph, dense_tokens.meta["val"]
        restore = Restore(f"sparsify_restore.{len(program.restores)}", int(fake.shape[-1]), fake.dtype, fake.device)
        program.restores.append(restore)
        with graph.inserting_before(before):
            restored = self._make(graph, restore_tokens, (tokens, program.pooled_nodes, program.grid_nodes), tokens)
            sparse_part = self._linear(graph, restored, f"{restore.name}.sparse", restore)
            dense_part = self._linear(graph, dense_tokens, f"{restore.name}.dense", restore)
            return self._make(graph, aten.add.Tensor, (sparse_part, dense_part), tokens)

    def _linear(self, graph: fx.Graph, tokens: fx.Node, name: str, restore: Restore) -> fx.Node:
        weight, bias = graph.get_attr(f"{name}.weight"), graph.get_attr(f"{name}.bias")
        with tokens.meta["val"].fake_mode:
            weight.meta["val"] = torch.empty(restore.width, restore.width, dtype=restore.dtype, device=restore.device)
            bias.meta["val"] = torch.empty(restore.width, dtype=restore.dtype, device=restore.device)
        return self._make(graph, aten.linear.default, (tokens, weight, bias), tokens)

    def _make(self, graph: fx.Graph, target: object, args: tuple[object, ...], origin: fx.Node) -> fx.Node:
        return self.mark(annotate(graph.call_function(target, args)), origin)  # type: ignore[arg-type]
