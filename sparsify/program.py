"""The intermediate representation that passes work on: one outer graph, and one body per kind of block.

The outer graph is the whole model with every trunk block as one ``call_module`` node. A *body* is the graph of a block
without its weights: all blocks of one structure and role share it, so that a rewrite is made once, however deep the
model is. ``node.meta["body"]`` names the body of a block's node.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import sympy
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .calls import CallSpec, OutputSpec
from .density import Density, Grid
from .layers import RESTORE, Layer
from .plan import chains_of
from .shapes import Size

if TYPE_CHECKING:
    from .probe import Subset
    from .savings import Saving
    from .side_inputs import SideValues

DENSITY = "sparsify_density"  # the modules behind the density, the grid and prompt nodes; names that no model uses
GRID = "sparsify_grid"
PROMPT = "sparsify_prompt"


class Twin(NamedTuple):
    """One more copy of an input: for the ``key`` tokens, or ``cross``, a table of queries (rows) by keys (columns)."""

    position: int
    level: Literal["key", "cross"]


@dataclass
class Body:
    """The graph of one kind of block.

    Attributes:
        name: unique in the program, such as ``block0`` or ``block0.generate``.
        graph: inputs as placeholders, the block's own parameter names as ``get_attr``, outputs as one node or a tuple.
        constants: tensors and regions that ``get_attr`` nodes name besides parameters and buffers.
        tokens: which placeholder carries the tokens that the block updates (its queries).
        token_output: which output is the next version of the tokens.
        updates: for every output, the placeholder it is the next version of (same shape and dtype).
        token_axis: which axis of the tokens holds them.
        moving: the size symbols that follow the number of tokens.
        twins: inputs that come once more, behind the others, at the level of the keys, where those are other tokens.
        conditions: what tracing took for granted about the sizes of the inputs, as expressions.
        given: how many inputs, in front of the twins, are values of the block's own that are computed outside of it.
    """

    name: str
    graph: fx.Graph
    constants: dict[str, Any]
    tokens: int
    token_output: int
    updates: list[int]
    token_axis: int = 1
    moving: frozenset[sympy.Symbol] = frozenset()
    twins: tuple[Twin, ...] = ()
    conditions: list[Any] = field(default_factory=list)
    given: int = 0

    @property
    def placeholders(self) -> list[fx.Node]:
        """The input nodes, in order."""
        return list(self.graph.find_nodes(op="placeholder"))

    @property
    def token_node(self) -> fx.Node:
        """The placeholder of the tokens that the block updates."""
        return self.placeholders[self.tokens]


@dataclass
class Skip:
    """A rewrite that was not made: by which pass, where, and why."""

    pass_name: str
    where: str
    reason: str


@dataclass(frozen=True)
class PassRun:
    """One run of a pass: its text, how many places it rewrote, and how long it and the verifier took, in seconds."""

    text: str
    places: int
    seconds: float
    verify_seconds: float


@dataclass
class Program:
    """A captured model on its way through the passes.

    Attributes:
        graph: the outer graph, flat tensors in and out.
        constants: as in :class:`Body`.
        bodies: by name.
        paths: names of the trunk's modules in execution order; also the targets of the block nodes. Until the grid is
            known these are all repeated blocks, then those that see tokens of the grid.
        call: how a call of the model becomes flat tensors.
        output_spec: how flat outputs become what the model returns.
        shape_env: the symbols of the outer graph's shapes, and the guards under which it is valid.
        grid: the dense token grid, each side a number or an expression in the sizes of the inputs.
        grid_source: where the grid was found.
        sequence: the length of the sequence in which the grid was found, alone or beside text.
        grid_reader: how the grid is read off the inputs at run time, where the sizes do not tell.
        timestep: the placeholder that carries the timestep, if one was found.
        density: the schedule behind the density node, once there is one.
        layers: the new parameters that passes ask for.
        prompts: by the name of the node that calls it, a graph whose results are the same for a whole sampling run.
        savings: what each exact saving gave.
        tied: of tensors that the model has under several names, each further name and the first.
        skips: what passes left alone.
        runs: the passes that ran, in order.
        in_place: for a model that runs in place, how each block is called.
        outputs: how each block then nests its outputs.
        given: what each block is given by the model's own code, placeholders or results of other blocks.
        read: which blocks' results the model's own code reads; the graph returns them, in this order.
        outside: multiply-adds per batch element outside of the blocks, where no graph shows them.
        rows_before: where it is known without a graph, by the number of rows beside the grid how many stand before it.
        way: how the model was captured, for the report.
        stage: ``captured``, ``analysed`` or ``sparse``.
        probes: for bodies that were tried, why they must not be split, or None.
        verified: what the verifier has run already, see there.
        values: the example call, while the program is being rewritten.
        trials: for a full check, each split block's body before the split, and the tokens to try it on; None if none is
            asked for.
    """

    graph: fx.Graph
    constants: dict[str, Any]
    bodies: dict[str, Body]
    paths: list[str]
    call: CallSpec
    output_spec: OutputSpec
    shape_env: ShapeEnv
    grid: tuple[Size, ...] = ()
    grid_source: str = ""
    sequence: Size = 0
    grid_reader: Any = None
    timestep: str | None = None
    density: Density | None = None
    layers: list[Layer] = field(default_factory=list)
    prompts: dict[str, fx.Graph] = field(default_factory=dict)
    savings: list[Saving] = field(default_factory=list, repr=False)
    tied: dict[str, str] = field(default_factory=dict, repr=False)
    skips: list[Skip] = field(default_factory=list)
    runs: list[PassRun] = field(default_factory=list, repr=False)
    in_place: dict[str, CallSpec] = field(default_factory=dict, repr=False)
    outputs: dict[str, OutputSpec] = field(default_factory=dict, repr=False)
    given: dict[str, tuple[Any, ...]] = field(default_factory=dict, repr=False)
    read: list[tuple[str, int]] = field(default_factory=list, repr=False)
    outside: int = 0
    rows_before: dict[Size, Size] = field(default_factory=dict)
    way: str = "whole graph"
    stage: str = "captured"
    probes: dict[str, str | None] = field(default_factory=dict, repr=False)
    verified: dict[str, Any] = field(default_factory=dict, repr=False)
    values: SideValues | None = field(default=None, repr=False)
    trials: dict[str, tuple[Body, Subset]] | None = field(default=None, repr=False)

    @property
    def block_nodes(self) -> list[fx.Node]:
        """The trunk's nodes in execution order."""
        by_path = {node.target: node for node in self.all_block_nodes}
        return [by_path[path] for path in self.paths]

    @property
    def restores(self) -> list[Layer]:
        """The new layers at the ends of sparse-dense modules, bottom to top."""
        return [layer for layer in self.layers if layer.name.startswith(f"{RESTORE}.")]

    def owner(self, name: str) -> str:
        """The first of the names under which the model has the tensor of this name."""
        return self.tied.get(name, name)

    @property
    def graphs(self) -> dict[str, fx.Graph]:
        """Every graph of the program by a name for messages."""
        return {"outer graph": self.graph, **self.prompts, **{name: body.graph for name, body in self.bodies.items()}}

    def body_of(self, node: fx.Node) -> Body:
        """The body of a block's node."""
        return self.bodies[node.meta["body"]]

    @property
    def placeholders(self) -> list[fx.Node]:
        """The model's flat tensor inputs."""
        return list(self.graph.find_nodes(op="placeholder"))

    @property
    def outer_graphs(self) -> tuple[fx.Graph, ...]:
        """The graph around the blocks, and those of the prompt's part."""
        return (self.graph, *self.prompts.values())

    @property
    def fake_mode(self) -> FakeTensorMode:
        """The mode under which the outer graph's shapes are computed."""
        mode: FakeTensorMode = self.placeholders[0].meta["val"].fake_mode
        return mode

    @property
    def chains(self) -> dict[str, list[str]]:
        """The trunk's blocks by the list they stand in."""
        return chains_of(self.paths)

    @property
    def all_block_nodes(self) -> list[fx.Node]:
        """The nodes of all repeated blocks, those that see text alone too."""
        return [node for node in self.graph.find_nodes(op="call_module") if "body" in node.meta]

    def calls_of(self, body: Body) -> list[fx.Node]:
        """The nodes of the blocks that run a body."""
        return [node for node in self.all_block_nodes if node.meta["body"] == body.name]

    def tokens_in(self, node: fx.Node) -> fx.Node:
        """The node whose tokens a block updates."""
        tokens = node.args[self.body_of(node).tokens]
        return tokens  # type: ignore[return-value]  # block nodes have nodes for arguments

    def tokens_out(self, node: fx.Node) -> fx.Node | None:
        """The node that carries a block's updated tokens, if anything reads them."""
        return self.result_of(node, self.body_of(node).token_output)

    def result_of(self, node: fx.Node, output: int) -> fx.Node | None:
        """The node that carries one result of a block, if anything reads it."""
        if len(self.body_of(node).updates) == 1:
            return node
        return next((user for user in node.users if user.args[1] == output), None)

    @property
    def grid_hint(self) -> Grid:
        """The dense grid at the sizes the model was captured with."""
        return tuple(map(self.hint, self.grid))

    def hint(self, size: Size) -> int:
        """What a size is at the sizes the model was captured with."""
        return int(sympy.sympify(size).xreplace(self.shape_env.backed_var_to_val))

    @property
    def density_node(self) -> fx.Node | None:
        """The node that yields the pooled grid, if it was inserted."""
        return next(iter(node for node in self.graph.find_nodes(op="call_module", target=DENSITY)), None)

    @property
    def grid_nodes(self) -> list[fx.Node | int]:
        """The dense grid's sides as arguments for a node."""
        density = self.density_node
        return list(density.args[1:]) if density is not None else []  # type: ignore[arg-type]

    @property
    def pooled_nodes(self) -> list[fx.Node]:
        """The pooled grid's sides as nodes."""
        density = self.density_node
        return sorted(density.users, key=lambda user: user.args[1]) if density is not None else []  # type: ignore[arg-type,return-value]

    def annotate_block(self, node: fx.Node) -> None:
        """Recompute what a block's node yields: every result is the next version of one of its inputs."""
        body = self.body_of(node)
        results = []
        for position in body.updates:
            fake = node.args[position].meta["val"]  # type: ignore[union-attr]
            with self.fake_mode:
                results.append(fake.new_empty(fake.shape))
        node.meta["val"] = results[0] if len(results) == 1 else tuple(results)
        if len(results) > 1:
            for user in node.users:
                user.meta["val"] = results[user.args[1]]  # type: ignore[index]


def block_behind(node: fx.Node) -> tuple[fx.Node | None, int]:
    """The block whose result a node of the outer graph is, if it is one, and which of its results."""
    if "body" in node.meta:
        return node, 0
    source = node.args[0] if node.args else None
    if node.target is operator.getitem and isinstance(source, fx.Node) and "body" in source.meta:
        return source, int(node.args[1])  # type: ignore[arg-type]
    return None, 0
