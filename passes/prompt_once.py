"""What depends on the prompt alone is split off, so that a sampling run computes it once."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..flops import PRODUCTS
from ..layout import Layouts
from ..program import PROMPT, Body, Program
from ..shapes import emit_size, size_of
from .base import Pass, Provenance, remove_dead
from .cleanup import IDENTITIES
from .hoist import VIEWS, behind, copied, depending_on, frontier, given_everywhere, hoist, into_outer

aten = torch.ops.aten

_MANY = 4


@dataclass(frozen=True)
class PromptOnce(Pass):
    """Exact to the last bit: text projections, keys and values of cross-attention, tables made of position ids.

    The prompt is every input that is neither the timestep nor the latents. An input that does change at every step after
    all costs time, never truth: results are kept for as long as the tensors they were made from stay as they are
    (:class:`~sparsify.prompt.PromptModule`). What a block computes is moved out of it only if it holds a product of
    matrices; results made of other inputs are kept apart.
    """

    name: ClassVar[str] = "prompt-once"
    prepares: ClassVar[bool] = True

    def match(self, program: Program) -> Iterable[frozenset[fx.Node]]:
        if program.in_place or program.prompts or program.timestep is None:  # where the time comes in must be known
            return []
        prompt = frozenset(_prompt_inputs(program))
        inside = depending_on(program.graph, prompt)
        in_blocks = any(_movable(program, body, inside)[0] for body in program.bodies.values())
        return [prompt] if in_blocks or _kept(program.graph, inside) else []

    def rewrite(self, program: Program, place: frozenset[fx.Node]) -> None:
        inside = depending_on(program.graph, place)
        for body in program.bodies.values():
            values, nodes = _movable(program, body, inside)
            made = [into_outer(program, body, call, nodes, self.name) for call in program.calls_of(body) if values]
            hoist(program, body, values, [[results[node] for node in values] for results in made])
            remove_dead(body.graph)
        inside = depending_on(program.graph, place)
        groups: dict[frozenset[fx.Node], list[fx.Node]] = {}
        for node in _kept(program.graph, inside):
            groups.setdefault(inside[node], []).append(node)
        order = {node: index for index, node in enumerate(program.placeholders)}
        for inputs, values in groups.items():
            self._split_off(program, sorted(inputs, key=order.__getitem__), values, behind(values, inside))
        remove_dead(program.graph)

    def describe(self, place: frozenset[fx.Node]) -> str:
        return ", ".join(sorted(node.name for node in place))

    def _split_off(self, program: Program, inputs: list[fx.Node], values: list[fx.Node], nodes: list[fx.Node]) -> None:
        name = f"{PROMPT}_{len(program.prompts)}"
        graph = program.prompts[name] = fx.Graph()
        made: dict[fx.Node, Any] = {}
        for node in inputs:
            made[node] = graph.placeholder(node.name)
            made[node].meta = dict(node.meta)
        copied(
            nodes,
            graph,
            made,
            lambda s: emit_size(graph, size_of(s.meta["val"])),
            lambda n: str(n.target),
            self.name,
            program.fake_mode,
        )
        graph.output(tuple(made[node] for node in values))
        with program.graph.inserting_after(program.placeholders[-1]):
            call = program.graph.create_node("call_module", name, tuple(inputs), name=name)
        call.meta["val"] = tuple(node.meta["val"] for node in values)
        call.meta["provenance"] = Provenance(self.name, values[0].name)
        with program.graph.inserting_after(call):
            for index, node in reversed(list(enumerate(values))):
                result = program.graph.call_function(operator.getitem, (call, index))
                result.meta["val"] = node.meta["val"]
                self.mark(result, node)
                node.replace_all_uses_with(result)


Dependencies = dict[fx.Node, frozenset[fx.Node]]


def _movable(program: Program, body: Body, known: Dependencies) -> tuple[list[fx.Node], list[fx.Node]]:
    """Values of a block that hold products and come from the prompt at all its calls, and what they are computed from."""
    given = given_everywhere(program, body)
    starts = [node for node, values in given.items() if all(known.get(value) for value in values)]
    inside = depending_on(body.graph, starts)
    products = {node for node in inside if inside[node] and any(n.target in PRODUCTS for n in behind([node], inside))}
    values = frontier(body.graph, {n: s for n, s in inside.items() if n in products or not s or n in starts}, products)
    return values, behind(values, inside)


def _kept(graph: fx.Graph, inside: Dependencies) -> list[fx.Node]:
    """What of the outer graph is worth keeping."""
    return [n for n in frontier(graph, inside) if not _is_returned(n) and _is_worth_it(behind([n], inside))]


def latent_inputs(program: Program) -> list[fx.Node]:
    """The tensor inputs with the token grid that the trunk's tokens come from."""
    tokens = set(_ancestors(program.tokens_in(program.block_nodes[0])))
    sources = [node for node in _tensor_inputs(program) if node in tokens and node.meta["val"].is_floating_point()]
    return [node for node in sources if Layouts(program).holds_grid(node)] or sources


def _prompt_inputs(program: Program) -> set[fx.Node]:
    """All tensor inputs besides the timestep and the latents."""
    if not program.paths:
        return set()
    latents = latent_inputs(program)
    return {node for node in _tensor_inputs(program) if node not in latents and node.name != program.timestep}


def _tensor_inputs(program: Program) -> list[fx.Node]:
    return [node for node in program.placeholders if isinstance(node.meta["val"], torch.Tensor)]


def _ancestors(node: fx.Node) -> Iterator[fx.Node]:
    seen, pending = {node}, [node]
    while pending:
        yield (current := pending.pop())
        for source in current.all_input_nodes:
            if source not in seen:
                seen.add(source)
                pending.append(source)


def _is_worth_it(nodes: list[fx.Node]) -> bool:
    """Whether computing them takes longer than finding out that it need not be done."""
    operators = [node for node in nodes if node.op == "call_function" and node.target not in VIEWS]
    return len(operators) >= _MANY or any(node.target in PRODUCTS for node in operators)


def _is_returned(node: fx.Node) -> bool:
    """Whether the model returns the value, or what may be the same tensor: what it returns belongs to its caller."""
    return any(user.op == "output" or (user.target in _MAY_BE_THE_SAME and _is_returned(user)) for user in node.users)


_MAY_BE_THE_SAME = {*VIEWS, *IDENTITIES, operator.getitem, aten.to.dtype, aten.to.device, aten.contiguous.default}
