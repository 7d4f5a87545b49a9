"""Dense and sparse level: every value of the outer graph that is read at another level than its own is converted once.

Between the pooling and the restoring of a module everything that follows the tokens is sparse: what blocks hand on,
what operators between blocks make of it, and the tables, masks and sizes that go along. What is read at the other level
gets a pool or a restore in between, whoever reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ..errors import RewriteError
from ..layers import Layer
from ..layout import Layout, Layouts, TokenAxis
from ..ops import as_rotation, pool_tokens, restore_tokens
from ..program import Body, Program, block_behind
from ..shapes import annotate, emit_size, shape_of, size_of

aten = torch.ops.aten

Mark = Callable[[fx.Node, fx.Node], fx.Node]


class Levels:
    """The outer graph while one module is made of some of its blocks.

    Attributes:
        sparse: nodes whose own value is sparse by now, with the layout that it had when it was dense.
    """

    def __init__(self, program: Program, mark: Mark) -> None:
        self.program = program
        self.layouts = Layouts(program)
        self.sparse: dict[fx.Node, Layout] = {}
        self._mark = mark
        self._pooled: dict[tuple[fx.Node, tuple[int, ...] | None], fx.Node] = {}
        self._restored: dict[fx.Node, fx.Node] = {}
        self._original: dict[fx.Node, tuple[Any, Any, Any]] = {}  # arguments and value of what was changed, as they were
        self._bypassed: dict[fx.Node, fx.Node] = {}
        self._made: list[fx.Node] = []

    def undo(self) -> None:
        """Put the graph back to what it was."""
        for node, (args, kwargs, meta) in self._original.items():
            node.args, node.kwargs, node.meta = args, kwargs, meta
        for node in reversed(self._made):
            self.program.graph.erase_node(node)

    def change(self, node: fx.Node, args: Sequence[Any]) -> None:
        """Give a node other arguments; the first ones are kept."""
        for changed in (node, *(node.users if "body" in node.meta else ())):
            self._original.setdefault(changed, (changed.args, changed.kwargs, dict(changed.meta)))
        node.args = tuple(args)

    def arguments_of(self, node: fx.Node) -> tuple[Any, ...]:
        """The arguments a node had at first."""
        return self._original[node][0] if node in self._original else node.args

    def make(self, target: object, args: tuple[Any, ...], origin: fx.Node) -> fx.Node:
        """A new node at the current insertion point."""
        node = self._mark(annotate(self.program.graph.call_function(target, args)), origin)  # type: ignore[arg-type]
        self._made.append(node)
        return node

    def parameter(self, layer: Layer, name: str) -> fx.Node:
        """A node that reads a parameter of a new layer, at the current insertion point."""
        self._made.append(node := self.program.graph.get_attr(f"{layer.name}.{name}"))
        node.meta["val"] = layer.fake(name, self.program.fake_mode)
        return node

    def size(self, size: Any) -> fx.Node | int:
        """Nodes for a size, at the current insertion point."""
        before = set(self.program.graph.nodes)
        node = emit_size(self.program.graph, size)
        self._made += [made for made in self.program.graph.nodes if made not in before]
        return node

    # --- from one level to the other ------------------------------------------------------------------------------

    def at_sparse(self, node: Any, siblings: Sequence[fx.Node] = (), axes: tuple[int, ...] | None = None) -> Any:
        """``node`` for sparse readers; with ``axes``, pooled along these alone."""
        if not isinstance(node, fx.Node) or node in self.sparse:
            return node
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            size = size_of(value)
            return self.size(self.layouts.pooled(size)) if self.layouts.is_aligned(size) else node
        if not isinstance(value, torch.Tensor):
            return node
        layout = [place for place in self._that_shrink(self.layouts.of(node)) if axes is None or place.axis in axes]
        if not layout:
            return node
        if (node, axes) not in self._pooled:
            self._pooled[node, axes] = self._pool(node, layout, siblings)
        return self._pooled[node, axes]

    def at_dense(self, node: Any) -> Any:
        """``node`` for dense readers."""
        if not isinstance(node, fx.Node) or node not in self.sparse:
            return node
        if node not in self._restored:
            self._restored[node] = self.restore(node, self.sparse[node])
        return self._restored[node]

    def restore(self, node: fx.Node, layout: Sequence[TokenAxis]) -> fx.Node:
        """A sparse value at the dense grid; ``layout`` says where the tokens are in it."""
        for place in self._that_shrink(layout):
            pooled, grid = self._sides(place, self.program.pooled_nodes), self._sides(place, self.program.grid_nodes)
            node = self.make(restore_tokens, (node, pooled, grid, *self._rows(place)), node)
        return node

    def bypass(self, node: Any, siblings: Sequence[fx.Node] = ()) -> Any:
        """What ``node`` would be, dense, if the module's blocks handed on their tokens unchanged."""
        if not isinstance(node, fx.Node) or node not in self.sparse:
            return node
        if node not in self._bypassed:
            block, output = block_behind(node)
            args = self.arguments_of(node)
            if block is not None:
                found = self.bypass(self.arguments_of(block)[self.program.body_of(block).updates[output]])
            else:
                found = self.make(node.target, fx.node.map_aggregate(args, self.bypass), node)
                if node.kwargs:
                    found.kwargs = fx.node.map_aggregate(self._original[node][1], self.bypass)
                    annotate(found)
            self._bypassed[node] = found
        return self._bypassed[node]

    def keys_at_sparse(self, split: Body, args: Sequence[Any]) -> list[Any]:
        """The further inputs of a block whose queries stay dense: its tokens, tables and masks for pooled keys.

        Args:
            split: its body (:func:`~sparsify.passes.separate.separated`).
            args: its other arguments.
        """
        siblings = [argument for argument in args if isinstance(argument, fx.Node) and shape_of(argument)]
        twins = [(args[twin.position], twin.level) for twin in split.twins]
        return [
            self.at_sparse(value, siblings, (len(shape_of(value)) - 1,) if level == "cross" else None) for value, level in twins
        ]

    # --- nodes that become sparse ---------------------------------------------------------------------------------

    def move_block(self, node: fx.Node, args: Sequence[Any]) -> None:
        """Let a block read sparse inputs; its results become sparse."""
        body = self.program.body_of(node)
        layouts = [self.layout(self.arguments_of(node)[position]) for position in body.updates]
        self.change(node, args)
        self.program.annotate_block(node)
        for output, layout in enumerate(layouts):
            result = self.program.result_of(node, output)
            if layout and result is not None:
                self.sparse[result] = layout

    def move_operator(self, node: fx.Node) -> None:
        """Let an operator between blocks work on sparse values.

        Raises:
            RewriteError: what it does with the tokens is not understood.
        """
        if isinstance(node.meta.get("val"), torch.SymInt):  # the dense size; sparse readers get theirs from its expression
            self.change(node, fx.node.map_aggregate(node.args, self.bypass))
            return
        dense = shape_of(node)
        layout = self.layouts.of(node)
        siblings = [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), torch.Tensor)]
        args, kwargs = self._resized(node, siblings)
        self.change(node, args)
        node.kwargs = kwargs
        try:
            annotate(node)
        except (RuntimeError, ValueError, TypeError) as error:
            raise RewriteError(
                f"{node.name} ({node.target}) does not take sparse tokens: {str(error).splitlines()[0]}"
            ) from error
        expected = tuple(self.layouts.pooled(size) for size in dense)
        if any(a != b and (a - b).expand() != 0 for a, b in zip(shape_of(node), expected, strict=True)):
            raise RewriteError(f"{node.name} ({node.target}) makes {shape_of(node)} of sparse tokens, not {expected}")
        self.sparse[node] = layout

    def _resized(self, node: fx.Node, siblings: Sequence[fx.Node]) -> tuple[Any, Any]:
        def convert(argument: Any) -> Any:
            return self.at_sparse(argument, siblings)

        args, kwargs = fx.node.map_aggregate(node.args, convert), fx.node.map_aggregate(node.kwargs, convert)
        if node.target in _TAKE_SHAPES:  # where the grid is a number, so are the sizes that depend on it
            args = (args[0], [self.size(self.layouts.pooled(s)) if isinstance(s, int) else s for s in args[1]], *args[2:])  # type: ignore[union-attr]
        return args, kwargs

    def layout(self, node: Any) -> Layout:
        """Where a node holds the tokens; of a sparse node, where its dense value did."""
        if not isinstance(node, fx.Node):
            return ()
        return self.sparse[node] if node in self.sparse else self.layouts.of(node)

    # --- the conversions ------------------------------------------------------------------------------------------

    def _pool(self, node: fx.Node, layout: Sequence[TokenAxis], siblings: Sequence[fx.Node]) -> fx.Node:
        if node.target is restore_tokens:  # pooling what was restored from sparse tokens gives these
            return node.args[0]  # type: ignore[return-value]
        values = self.program.values
        method = None if values is None else values.pooling(node, siblings)
        how = "mean" if method is None else method.how
        pooled = node
        for place in layout:
            sides = self._sides(place, self.program.grid_nodes), self._sides(place, self.program.pooled_nodes)
            pooled = self.make(pool_tokens, (pooled, *sides, *self._rows(place, how)), node)
        if method is None or method.rotation is None:
            return pooled
        if method.partner is None:
            return self.make(as_rotation, (pooled, method.rotation), node)
        self._pooled[node, None] = pooled  # ends the mutual recursion of cosine and sine
        partner = method.partner
        other = partner
        for place in self._that_shrink(self.layouts.of(partner)):
            sides = self._sides(place, self.program.grid_nodes), self._sides(place, self.program.pooled_nodes)
            other = self.make(pool_tokens, (other, *sides, *self._rows(place, how)), partner)
        return self.make(as_rotation, (pooled, "partner", other), node)

    def _rows(self, place: TokenAxis, how: str = "mean") -> tuple[Any, ...]:
        """The further arguments of a pool or a restore, without those at their defaults."""
        rows: list[Any] = [place.axis, place.before, place.after]
        rows[1:] = [self.size(size) for size in rows[1:]]
        if how != "mean":
            return (*rows, how)
        while rows and rows[-1] == (1, 0, 0)[len(rows) - 1]:
            rows.pop()
        return tuple(rows)

    def _sides(self, place: TokenAxis, nodes: Sequence[Any]) -> list[Any]:
        return [nodes[index] for index in place.sides]

    def _that_shrink(self, layout: Sequence[TokenAxis]) -> list[TokenAxis]:
        """Without axes that hold nothing but the time, where time is not pooled."""
        density = self.program.density
        keeps_time = density is not None and density.keeps_time(self.program.grid_hint)
        return [place for place in layout if not (keeps_time and place.sides == (0,))]


_TAKE_SHAPES = {aten.reshape.default, aten.expand.default, aten._unsafe_view.default}
