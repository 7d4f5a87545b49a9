"""What a pass is: a frozen dataclass that matches places, checks each one, and rewrites those that pass the check."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import fx, nn

from ..errors import PolicyError, RewriteError
from ..layers import Layer
from ..program import Body, Program, Skip
from ..shapes import annotate
from .traced import write

_RESERVED = ("grid", "prompt", "restore")  # modules that are called sparsify_... already


class BlockRange(NamedTuple):
    """Blocks ``first`` to ``last`` of the trunk, both included, counted from 0 at the bottom."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @classmethod
    def parse(cls, text: str) -> BlockRange:
        """Read ``3`` or ``0-1``."""
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise PolicyError(f"blocks={text} is not a block or a range of blocks such as 3 or 0-1.")
        return cls(int(match[1]), int(match[2] or match[1]))

    def of(self, program: Program) -> list[fx.Node]:
        """The trunk's nodes in this range.

        Raises:
            PolicyError: the trunk is shorter.
        """
        nodes = program.block_nodes
        if self.last >= len(nodes):
            raise PolicyError(f"blocks={self} but the trunk has blocks 0-{len(nodes) - 1}.")
        return nodes[self.first : self.last + 1]


class Provenance(NamedTuple):
    """Which pass made a node, and from which node."""

    pass_name: str
    origin: str


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a :class:`~sparsify.program.Program`.

    A subclass is a frozen dataclass whose fields are its options and whose ``name`` is kebab-case. ``match`` finds the
    places, ``check`` says why one must be left alone, ``rewrite`` changes one; the three never do each other's work.

    Attributes:
        prepares: whether it makes no other model by itself, so that a model that nothing else changed counts as unchanged.
        per_resolution: whether what it decides depends on the token grid of the capture: another resolution gets a capture
            of its own then.
    """

    name: ClassVar[str]
    prepares: ClassVar[bool] = False
    per_resolution: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        name = cls.__dict__.get("name")
        if name is not None and (not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or name in _RESERVED):
            raise PolicyError(f"{cls.__name__}.name is {name!r}; it must be like 'pool-attention', and none of {_RESERVED}.")

    @abstractmethod
    def match(self, program: Program) -> Iterable[Any]:
        """The places this pass applies to, as whatever ``check`` and ``rewrite`` take."""

    def check(self, program: Program, place: Any) -> str | None:
        """Why ``place`` must be left alone, naming the node, or None if it can be rewritten."""
        return None

    @abstractmethod
    def rewrite(self, program: Program, place: Any) -> None:
        """Change the program at ``place``, which has passed the check.

        Raises:
            RewriteError: what it met cannot be rewritten after all; the program is as it was.
        """

    def describe(self, place: Any) -> str:
        """A place in words, for the report: blocks by their paths, other nodes by their names."""
        nodes = list(place) if isinstance(place, (list, tuple)) else [place]
        names = [str(node.target) if "body" in node.meta else node.name for node in nodes if isinstance(node, fx.Node)]
        if not names or len(names) < len(nodes):
            return str(place)
        return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"

    def explain(self, program: Program) -> str | None:
        """Why there is no place at all, such as the nearest miss; None if that is nothing to speak of."""
        return None

    def run(self, program: Program) -> int:
        """Apply the pass; the number of places rewritten. Refusals go to ``program.skips``."""
        rewritten, places = 0, list(self.match(program))
        if not places and (reason := self.explain(program)) is not None:
            program.skips.append(Skip(self.name, "the whole model", reason))
        for place in places:
            reason = self.check(program, place)
            if reason is None:
                try:
                    self.rewrite(program, place)
                    rewritten += 1
                except RewriteError as error:  # seen on the way; the pass has put the program back
                    reason = str(error)
            if reason is not None:
                program.skips.append(Skip(self.name, self.describe(place), reason))
        return rewritten

    def make(self, graph: fx.Graph, target: object, args: tuple[Any, ...], origin: fx.Node, **kwargs: Any) -> fx.Node:
        """A new operator at the graph's insertion point, with its value and where it came from."""
        return self.mark(annotate(graph.call_function(target, args, kwargs)), origin)  # type: ignore[arg-type]

    def trace(self, graph: fx.Graph, function: Callable[..., Any], *args: Any, origin: fx.Node) -> Any:
        """The operators that ``function`` runs on ``args`` (nodes, numbers, lists of them), at the graph's insertion point.

        Returns:
            Nodes, nested as what the function returns.

        Raises:
            RewriteError: the function does not run on the shapes of its arguments; the graph is as it was.
        """
        result, made = write(graph, function, args)
        for node in made:
            self.mark(node, origin)
        return result

    def layer(self, program: Program, make: Callable[[], nn.Module], like: fx.Node) -> Layer:
        """New parameters of the sparse model.

        Args:
            program: whose parameters they become, as ``sparsify_<name of the pass>.<number>``.
            make: makes the module that holds them, with their start values, and uses no more than its own arguments.
            like: a node of the dtype and on the device that they are to have.
        """
        name = f"sparsify_{self.name.replace('-', '_')}"
        count = sum(layer.name.rpartition(".")[0] == name for layer in program.layers)
        fake = like.meta["val"]
        program.layers.append(layer := Layer.of(f"{name}.{count}", make, fake.dtype, fake.device))
        return layer

    def parameter(self, program: Program, layer: Layer, name: str) -> fx.Node:
        """A node that reads a parameter of a new layer, at the insertion point of the outer graph."""
        node = self.mark(program.graph.get_attr(f"{layer.name}.{name}"), program.graph.output_node())
        node.meta["val"] = layer.fake(name, program.fake_mode)
        return node

    def mark(self, node: fx.Node, origin: fx.Node) -> fx.Node:
        """Record on a node that this pass made it, and from which one; on a block's, that this pass rewrote it."""
        node.meta["provenance"] = Provenance(self.name, origin.name)
        if "body" in node.meta:
            node.meta["passes"] = (*node.meta.get("passes", ()), self.name)
        return node


def copy_body(body: Body, name: str) -> Body:
    """A body with a graph of its own, so that rewriting it leaves blocks of other roles alone."""
    return dataclasses.replace(body, name=name, graph=_copy_graph(body.graph)[0])


def copy_program(program: Program) -> Program:
    """A program before its passes with graphs of its own, so that one capture can be rewritten in several ways.

    Shapes and what the verifier knows of them are shared; the values of the example call are not taken along.
    """
    graph, copied = _copy_graph(program.graph)
    return dataclasses.replace(
        program,
        graph=graph,
        constants=dict(program.constants),
        bodies={name: copy_body(body, name) for name, body in program.bodies.items()},
        paths=list(program.paths),
        given={path: fx.node.map_arg(given, copied.__getitem__) for path, given in program.given.items()},
        layers=[],
        prompts={},
        savings=[],
        skips=list(program.skips),
        runs=list(program.runs),
        probes={},
        values=None,
    )


def _copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph, and the copies of its nodes."""
    made = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    made.output(made.graph_copy(graph, copied))
    for node, twin in copied.items():
        twin.meta = dict(node.meta)
    return made, copied


def replace_later_uses(node: fx.Node, by: fx.Node) -> None:
    """Let everything behind ``by`` read it in place of ``node``, which it may be computed from."""
    node.replace_all_uses_with(by, delete_user_cb=lambda user: user > by)


def remove_dead(graph: fx.Graph) -> None:
    """Remove what nothing reads; inputs stay, because the calls give them, and so do modules."""
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output", "call_module"))
