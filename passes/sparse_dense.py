"""Sparse-dense token modules: generate sparse tokens, work on them, recover the dense ones (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..attention import mixes_tokens
from ..errors import RewriteError
from ..layers import Layer, restore_layer
from ..layout import TokenAxis
from ..program import Program
from ..shapes import shape_of
from .base import BlockRange, Pass
from .levels import Levels
from .separate import refusal_to_separate, separated
from .subset import subset_as_captured

aten = torch.ops.aten


@dataclass(frozen=True)
class SparseDense(Pass):
    """Turn consecutive blocks into one module; what ``generate``, ``sparse`` and ``recover`` leave over stays dense.

    ``X_s = pool(X)``; generate blocks take queries from ``X_s`` and keys from ``X``; sparse blocks see ``X_s`` alone;
    ``X_m = W1 up(X_s) + W2 X``; recover blocks take queries from ``X_m`` and keys from ``X_s``. Text beside the tokens,
    in a stream or a sequence of its own, is never pooled. Blocks that attend over time or text alone have no keys to
    take from elsewhere: they see the tokens of their place in the module.
    """

    blocks: BlockRange
    generate: int = 1
    sparse: int = 3
    recover: int = 1
    name: ClassVar[str] = "sparse-dense"

    def match(self, program: Program) -> Iterable[list[fx.Node]]:
        return [self.blocks.of(program)]

    def check(self, program: Program, place: list[fx.Node]) -> str | None:
        if program.density_node is None:
            return "there is no density node; run the density pass first"
        involved = place[: self.generate + self.sparse + self.recover]
        for index, node in enumerate(involved):
            body = program.body_of(node)
            if body.twins:
                return f"{node.target} is part of a sparse-dense module already"
            crosses = not self.generate <= index < self.generate + self.sparse
            if reason := refusal_to_separate(program, node, crosses, self.name):
                return f"{node.target}: {reason}"
        if not any(mixes_tokens(program.body_of(node)) for node in involved):
            return f"{place[0].target}: no attention over the trunk's tokens was recognised in the block"
        for node in involved[: self.generate] + involved[self.generate + self.sparse :]:
            if program.trials is not None and mixes_tokens(program.body_of(node)):  # before the rewrite, while all is dense
                body = program.body_of(node)
                program.trials[str(node.target)] = (body, subset_as_captured(program, node, body))
        return None

    def rewrite(self, program: Program, place: list[fx.Node]) -> None:
        generate, rest = place[: self.generate], place[self.generate :]
        sparse, recover = rest[: self.sparse], rest[self.sparse :][: self.recover]
        levels = Levels(program, self.mark)
        layers = len(program.layers)
        try:
            self._rewrite(program, levels, generate, sparse, recover)
        except RewriteError:
            levels.undo()
            del program.layers[layers:]
            raise

    def _rewrite(
        self, program: Program, levels: Levels, generate: list[fx.Node], sparse: list[fx.Node], recover: list[fx.Node]
    ) -> None:
        kept: Any = None  # the sparse tokens that recover blocks attend to
        nodes = list(program.graph.nodes)
        for node in nodes[nodes.index(generate[0]) :]:
            with program.graph.inserting_before(node):
                if node in generate or node in sparse:
                    self._to_sparse(program, levels, node, first=node is generate[0], split=node in generate)
                elif node in recover:
                    kept = self._to_dense(program, levels, node, kept)
                elif not any(source in levels.sparse for source in node.all_input_nodes):
                    continue
                elif kept is None and node.op == "call_function":
                    if node not in levels.sparse:  # a result of a block that moved is sparse already
                        levels.move_operator(node)
                else:
                    levels.change(node, fx.node.map_aggregate(node.args, levels.at_dense))
        if kept is None:
            raise RewriteError(f"{recover[0].target} is not reached from {generate[0].target}")

    def _to_sparse(self, program: Program, levels: Levels, node: fx.Node, first: bool, split: bool) -> None:
        """A generate or sparse block: queries from the sparse tokens, keys from the dense or from the sparse ones."""
        body, siblings = program.body_of(node), _tensors(node)
        originals: Any = node.args
        args = [levels.at_sparse(argument, siblings) for argument in originals]
        if split and mixes_tokens(body):
            levels.change(node, node.args)
            for position, level in separated(program, body, self.name).twins:
                dense = levels.bypass(originals[position])
                if not first and position == body.tokens:
                    dense = self._with_text_of(levels, originals[position], dense)
                axes = _all_but_last(dense)
                args.append(levels.at_sparse(dense, siblings, axes) if level == "cross" else dense)
            node.meta["body"] = f"{body.name}.split"
        levels.move_block(node, args)
        self.mark(node, node)

    def _to_dense(self, program: Program, levels: Levels, node: fx.Node, kept: Any) -> Any:
        """A recover block: queries from the restored tokens, keys from the sparse ones; these are returned."""
        body, siblings = program.body_of(node), _tensors(node)
        original: Any = node.args
        args = [levels.at_dense(argument) if i != body.tokens else argument for i, argument in enumerate(original)]
        first = kept is None
        if first:
            kept = original[body.tokens]
            if kept not in levels.sparse:
                raise RewriteError(f"{node.target} does not take its tokens from the blocks before it")
            args[body.tokens] = self._recovered(program, levels, kept)
        levels.change(node, args)
        if mixes_tokens(body):
            for position, level in separated(program, body, self.name).twins:
                if position == body.tokens:
                    args.append(kept if first else self._with_text_of(levels, args[position], kept))
                elif level == "key":
                    args.append(levels.at_sparse(original[position], siblings))
                else:
                    mask = original[position]
                    args.append(levels.at_sparse(mask, siblings, (len(shape_of(mask)) - 1,)))
            node.meta["body"] = f"{body.name}.split"
        levels.change(node, args)
        program.annotate_block(node)
        self.mark(node, node)
        return kept

    def _recovered(self, program: Program, levels: Levels, sparse: fx.Node) -> fx.Node:
        """``W1 up(X_s) + W2 X``, with the two new layers named on the program."""
        layout = levels.sparse[sparse]
        places = [place for place in layout if len(place.sides) == max(len(other.sides) for other in layout)]
        if len(places) != 1:
            raise RewriteError(f"{sparse.name} holds the tokens of the grid on {len(places)} axes, and one was expected")
        place = places[0]
        dense = levels.bypass(sparse)
        fake = dense.meta["val"]
        restore = restore_layer(len(program.restores), int(fake.shape[-1]), fake.dtype, fake.device)
        program.layers.append(restore)
        parts = self._parts(levels, sparse, place)
        grid_rows = self._parts(levels, dense, place)[1]
        alone = [TokenAxis(other.axis, other.sides) if other is place else other for other in layout]
        sparse_part = self._linear(levels, levels.restore(parts[1], alone), "sparse", restore)
        dense_part = self._linear(levels, grid_rows, "dense", restore)
        parts[1] = levels.make(aten.add.Tensor, (sparse_part, dense_part), sparse)
        return self._joined(levels, parts, place, sparse)

    def _with_text_of(self, levels: Levels, latest: fx.Node, tokens: fx.Node) -> fx.Node:
        """The image's rows of ``tokens``, at whichever level, beside the text that has come along in ``latest``."""
        place = next(iter(levels.layout(latest)), None)
        if place is None:
            return tokens
        parts = self._parts(levels, latest, place)
        parts[1] = self._parts(levels, tokens, next(iter(levels.layout(tokens))))[1]
        return self._joined(levels, parts, place, latest)

    def _parts(self, levels: Levels, node: fx.Node, place: TokenAxis) -> list[Any]:
        """The rows before the grid, the grid, and the rows behind it; None where there are none."""
        if place.before == 0 and place.after == 0:
            return [None, node, None]
        start = levels.size(place.before)
        end = levels.size(shape_of(node)[place.axis] - place.after)
        before = levels.make(aten.slice.Tensor, (node, place.axis, 0, start), node) if place.before != 0 else None
        tokens = levels.make(aten.slice.Tensor, (node, place.axis, start, end), node)
        after = levels.make(aten.slice.Tensor, (node, place.axis, end), node) if place.after != 0 else None
        return [before, tokens, after]

    def _joined(self, levels: Levels, parts: list[Any], place: TokenAxis, origin: fx.Node) -> fx.Node:
        present = [part for part in parts if part is not None]
        return present[0] if len(present) == 1 else levels.make(aten.cat.default, (present, place.axis), origin)

    def _linear(self, levels: Levels, tokens: fx.Node, part: str, restore: Layer) -> fx.Node:
        weight, bias = (levels.parameter(restore, f"{part}.{name}") for name in ("weight", "bias"))
        return levels.make(aten.linear.default, (tokens, weight, bias), tokens)


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [argument for argument in node.args if isinstance(argument, fx.Node) and hasattr(argument.meta["val"], "shape")]


def _all_but_last(node: fx.Node) -> tuple[int, ...]:
    return tuple(range(len(shape_of(node)) - 1))
