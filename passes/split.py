"""Stream splitting: make a self-attention block attend from one set of tokens (queries) to another (keys)."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from torch import fx

from ..attention import Attention, dependents, self_attentions
from ..program import Body
from ..shapes import annotate, new_size
from .base import Provenance

Level = Literal["query", "key"]


def split_queries_from_keys(body: Body, name: str, pass_name: str) -> Body:
    """A body with one more input, the tokens to attend to; the residual stream and the MLP stay with the queries.

    Starting from the outputs, which are asked for at *query* level, each node asks for its inputs at its own level,
    except that attention asks for its keys and values at *key* level. A node that is asked for at both levels is
    copied. Only the first attention on each path crosses levels: what follows it in the block sees queries only.
    """
    tokens = body.token_node
    moving = dependents(body.graph, tokens)
    crossing = {attention.node: attention for attention in _first_attentions(body)}
    wanted = _levels(body.graph, moving, crossing)

    graph = fx.Graph()
    made: dict[tuple[fx.Node, Level], fx.Node] = {}
    for node in body.placeholders:
        made[node, "query"] = graph.node_copy(node)
    made[tokens, "key"] = graph.placeholder(f"{tokens.name}_keys")
    made[tokens, "key"].meta = dict(tokens.meta)
    made[tokens, "query"].meta = dict(tokens.meta) | {"val": _tokens_of_new_count(tokens)}
    for node in body.graph.nodes:
        if node.op == "placeholder":
            continue
        for level in sorted(wanted[node]):
            levels = dict(_sources(node, level, moving, crossing))
            twin = graph.node_copy(node, lambda source: made[source, levels[source]])  # noqa: B023  # called at once
            if node in crossing:  # one node may be both query and key
                twin.update_arg(0, made[crossing[node].query, _at(crossing[node].query, level, moving)])
            made[node, level] = twin
            if node in moving and node.op == "call_function":
                twin.meta["provenance"] = Provenance(pass_name, f"{node.name} ({level})")
                if level == "query":
                    annotate(twin)
    return Body(name, graph, body.constants, body.tokens, body.token_output, body.updates, keys=len(body.placeholders))


def _first_attentions(body: Body) -> list[Attention]:
    """Attentions whose keys and values have not passed through another one."""
    found = self_attentions(body)
    later = set().union(*(dependents(body.graph, attention.node) - {attention.node} for attention in found))
    return [a for a in found if a.key not in later and a.value not in later]


def _levels(graph: fx.Graph, moving: set[fx.Node], crossing: dict[fx.Node, Attention]) -> defaultdict[fx.Node, set[Level]]:
    wanted: defaultdict[fx.Node, set[Level]] = defaultdict(set)
    for node in reversed(graph.nodes):
        if node.op == "output":
            wanted[node] = {"query"}
        for level in wanted[node]:
            for source, source_level in _sources(node, level, moving, crossing):
                wanted[source].add(source_level)
    return wanted


def _sources(
    node: fx.Node, level: Level, moving: set[fx.Node], crossing: dict[fx.Node, Attention]
) -> list[tuple[fx.Node, Level]]:
    """The inputs of ``node`` with the level each is needed at; keys and values come after the query."""
    if node not in crossing:
        return [(source, _at(source, level, moving)) for source in node.all_input_nodes]
    attention = crossing[node]
    inner = (attention.key, attention.value)
    others = [attention.query, *(source for source in node.all_input_nodes if source not in inner)]
    return [(source, _at(source, level, moving)) for source in others] + [(source, "key") for source in inner]


def _at(source: fx.Node, level: Level, moving: set[fx.Node]) -> Level:
    return level if source in moving else "query"  # what does not move is the same for both, and made once


def _tokens_of_new_count(tokens: fx.Node) -> object:
    """A fake tensor like ``tokens`` whose number of tokens is tied to nothing else."""
    fake = tokens.meta["val"]
    count = new_size(fake.fake_mode.shape_env, "queries", hint=max(2, fake.shape[1].node.hint // 2))
    with fake.fake_mode:
        return fake.new_empty((fake.shape[0], count, *fake.shape[2:]))
