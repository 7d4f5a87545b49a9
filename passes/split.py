"""Stream splitting: make a block attend from one set of tokens (queries) to another (keys)."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from typing import Any, Literal, cast

import sympy
import torch
from torch import fx

from ..attention import Attention, aligned_inputs, contractions, dependents, follows_tokens, moving_nodes, self_attentions
from ..errors import RewriteError
from ..program import Body, Twin
from ..shapes import annotate, new_size, shape_of, size_of, symbolic
from .base import Provenance

aten = torch.ops.aten

Level = Literal["query", "key", "cross", "back"]
_ORDER: tuple[Level, ...] = ("query", "key", "cross", "back")
# The levels of the rows and the columns of a table, and that of the table with both exchanged.
_SIDES: dict[Level, tuple[Level, Level]] = {"cross": ("query", "key"), "back": ("key", "query")}
_EXCHANGED: dict[Level, Level] = {"cross": "back", "back": "cross"}


def split_queries_from_keys(body: Body, name: str, pass_name: str) -> Body:
    """A body with more inputs, the tokens to attend to and what goes along with them.

    Starting from the outputs, which are asked for at *query* level, each node asks for its inputs at its own level,
    except where tokens mix: attention asks for its keys and values at *key* level, and so does every other sum over
    the tokens for what it sums (linear attention). A node that is asked for at both levels is copied. Only the first
    mixing on each path crosses levels: what follows it in the block sees queries only. A mask with a row per query
    and a column per key is asked for at *cross* level, and what it is the transpose of at *back* level.

    Raises:
        RewriteError: queries and keys cannot be told apart.
    """
    return _Split(body, pass_name).run(name)


class _Split:
    def __init__(self, body: Body, pass_name: str) -> None:
        self.body = body
        self.pass_name = pass_name
        self.moving = moving_nodes(body)
        self.attentions, self.sums = _first_mixing(body)
        self.sizes = _query_sizes(body)

    def run(self, name: str) -> Body:
        body, graph = self.body, fx.Graph()
        wanted = self._levels()
        made: dict[tuple[fx.Node, Level], fx.Node] = {}
        placeholders = body.placeholders
        aligned = aligned_inputs(body)
        for position, node in enumerate(placeholders):
            made[node, "query"] = graph.node_copy(node)
            made[node, "query"].meta = dict(node.meta)
            if position in aligned:
                made[node, "query"].meta["val"] = self._resized(node, {axis: "query" for axis in range(len(shape_of(node)))})
        if turned := [node.name for node in placeholders if "back" in wanted[node]]:
            raise RewriteError(f"the table {turned[0]} is read with its rows for keys and its columns for queries")
        for node in placeholders:  # a size that is folded into that of the keys comes along with them
            if any(self._is_size_in(node, other) for other in placeholders if "key" in wanted[other]):
                wanted[node].add("key")
        twins = [Twin(p, level) for p in aligned for level in ("key", "cross") if level in wanted[placeholders[p]]]
        for twin in twins:
            node = placeholders[twin.position]
            copy = made[node, twin.level] = graph.placeholder(f"{node.name}_{twin.level}s")
            copy.meta = dict(node.meta)
            if twin.level == "cross":
                last = len(shape_of(node)) - 1
                copy.meta["val"] = self._resized(node, {axis: "query" for axis in range(last)})
        for node in body.graph.nodes:
            if node.op != "placeholder":
                for level in sorted(wanted[node], key=_ORDER.index):
                    made[node, level] = self._copy(graph, node, level, made)
        moving = body.moving | {size_of(size) for size in self.sizes.values()}
        return dataclasses.replace(body, name=name, graph=graph, twins=tuple(twins), moving=moving)

    def _is_size_in(self, node: fx.Node, other: fx.Node) -> bool:
        value = node.meta["val"]
        symbol = size_of(value) if isinstance(value, torch.SymInt) else None
        return symbol in self.body.moving and any(symbol in sympy.sympify(size).free_symbols for size in shape_of(other))

    def _copy(self, graph: fx.Graph, node: fx.Node, level: Level, made: dict[tuple[fx.Node, Level], fx.Node]) -> fx.Node:
        levels = dict(self._sources(node, level))
        twin = graph.node_copy(node, lambda source: made[source, levels[source]])
        if level in _SIDES:  # one size may stand for queries in the rows, and for keys in the columns
            for index, sizes in enumerate(node.args):
                if isinstance(sizes, (list, tuple)):
                    wanted = [self._of_size(size, at, len(sizes), level) for at, size in enumerate(sizes)]
                    twin.update_arg(index, [made[s, w] if w else s for s, w in zip(sizes, wanted, strict=True)])
        if node in self.attentions:  # one node may be both query and key
            query = self.attentions[node].query
            twin.update_arg(0, made[query, self._at(query, level)])
        if node in self.moving and node.op == "call_function":
            twin.meta["provenance"] = Provenance(self.pass_name, f"{node.name} ({level})")
            if level != "key":
                annotate(twin)
        return twin

    def _levels(self) -> defaultdict[fx.Node, set[Level]]:
        wanted: defaultdict[fx.Node, set[Level]] = defaultdict(set)
        for node in reversed(self.body.graph.nodes):
            if node.op == "output":
                wanted[node] = {"query"}
            for level in tuple(wanted[node]):
                for source, source_level in self._sources(node, level):
                    wanted[source].add(source_level)
        return wanted

    def _sources(self, node: fx.Node, level: Level) -> list[tuple[fx.Node, Level]]:
        """The inputs of ``node`` with the level each is needed at; keys and values come after the query."""
        if node in self.sums:
            return [(source, self._at(source, "key")) for source in node.all_input_nodes]
        if node in self.attentions:
            attention = self.attentions[node]
            inner = (attention.key, attention.value)
            mask = [] if attention.mask is None else [(attention.mask, self._of_mask(attention.mask))]
            others = [
                s for s in node.all_input_nodes if s not in inner and s is not attention.mask and s is not attention.query
            ]
            asked = [(source, self._at(source, level)) for source in (attention.query, *others)]
            return asked + mask + [(source, self._at(source, "key")) for source in inner]
        if level in _SIDES:
            turned = _EXCHANGED[level] if _exchanges_last_axes(node) else level
            lists: list[Any] = [given for given in node.args if isinstance(given, (list, tuple))]
            sizes = [(s, self._of_size(s, at, len(given), level)) for given in lists for at, s in enumerate(given)]
            rest = [source for source in node.all_input_nodes if all(source is not s for s, _ in sizes)]
            return [(s, w) for s, w in sizes if w is not None] + [(source, self._of_mask(source, turned)) for source in rest]
        return [(source, self._at(source, level)) for source in node.all_input_nodes]

    def _at(self, source: fx.Node, level: Level) -> Level:
        return level if source in self.moving else "query"  # what does not move is the same for all, and made once

    def _of_size(self, size: Any, at: int, axes: int, level: Level) -> Level | None:
        """The level of one of a list of sizes, or of tensors; None for a number."""
        if not isinstance(size, fx.Node):
            return None
        if isinstance(size.meta.get("val"), torch.Tensor):
            return self._of_mask(size, level)
        return self._at(size, _SIDES[level][at - axes]) if at >= axes - 2 else "query"

    def _of_mask(self, source: fx.Node, level: Level = "cross") -> Level:
        """Rows of a mask belong to queries, columns to keys; or the other way round."""
        if source not in self.moving or not isinstance(source.meta.get("val"), torch.Tensor):
            return "query"
        rows_and_columns = [follows_tokens(self.body, size) for size in shape_of(source)[-2:]]
        if len(rows_and_columns) == 2 and all(rows_and_columns):
            return level
        rows, columns = _SIDES[level]
        return columns if rows_and_columns and rows_and_columns[-1] else rows if any(rows_and_columns) else "query"

    def _resized(self, node: fx.Node, levels: dict[int, Level]) -> Any:
        """What a placeholder holds when its axes of queries have another length."""
        value = node.meta["val"]
        env = self.body.token_node.meta["val"].fake_mode.shape_env
        new = {symbol: size_of(size) for symbol, size in self.sizes.items()}
        hints = env.backed_var_to_val

        def resized(size: Any) -> Any:
            expression = sympy.sympify(size_of(size)).xreplace(new)
            return symbolic(env, expression, int(expression.xreplace(hints)))

        if not isinstance(value, torch.Tensor):
            return resized(value)
        with value.fake_mode:  # type: ignore[attr-defined]
            return value.new_empty([resized(size) if axis in levels else size for axis, size in enumerate(value.shape)])


def _exchanges_last_axes(node: fx.Node) -> bool:
    last, args = len(shape_of(node)) - 1, cast(Any, node.args)
    if node.target == aten.transpose.int:
        return {axis % (last + 1) for axis in args[1:]} == {last - 1, last}
    if node.target == aten.permute.default:
        return [axis % (last + 1) for axis in args[1]][-2:] == [last, last - 1]
    return node.target in (aten.t.default, aten.mT.default)


def _first_mixing(body: Body) -> tuple[dict[fx.Node, Attention], set[fx.Node]]:
    """Attentions and sums whose keys and values have not passed through another one."""
    attentions, sums = self_attentions(body), contractions(body)
    mixing = [attention.node for attention in attentions] + sums
    later = set().union(*(dependents(body.graph, [node]) - {node} for node in mixing))
    first = {a.node: a for a in attentions if a.key not in later and a.value not in later}
    first_sums = {node for node in sums if not any(source in later for source in node.all_input_nodes)}
    if not first and not first_sums:
        raise RewriteError("no attention over the trunk's tokens was recognised in the block")
    return first, first_sums


def _query_sizes(body: Body) -> dict[sympy.Symbol, torch.SymInt]:
    """A size of its own for each that follows the tokens, tied to nothing else."""
    env = body.token_node.meta["val"].fake_mode.shape_env
    sizes = {}
    for symbol in sorted(body.moving, key=str):
        dense = int(env.backed_var_to_val[symbol])
        sizes[symbol] = new_size(env, f"{symbol}_queries", hint=max(2, math.ceil(dense / 2)))
    return sizes
