"""The intermediate representation that passes work on: one outer graph, and one body per kind of block.

The outer graph is the whole model with every trunk block as one ``call_module`` node. A *body* is the graph of a block
without its weights: all blocks of one structure and role share it, so that a rewrite is made once, however deep the
model is. ``node.meta["body"]`` names the body of a block's node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .calls import CallSpec, OutputSpec
from .density import Density, Grid
from .shapes import Size

DENSITY = "sparsify_density"  # the module behind the density node; the name no model uses


@dataclass
class Body:
    """The graph of one kind of block.

    Attributes:
        name: unique in the program, such as ``block0`` or ``block0.generate``.
        graph: inputs as placeholders, the block's own parameter names as ``get_attr``, outputs as one node or a tuple.
        constants: tensors and regions that ``get_attr`` nodes name besides parameters and buffers.
        tokens: which placeholder carries the tokens that the block updates (its queries).
        keys: which placeholder carries the tokens it attends to, where those are others.
        conditions: what tracing took for granted about the sizes of the inputs, as expressions.
        token_output: which output is the next version of the tokens.
        updates: for every output, the placeholder it is the next version of (same shape and dtype).
    """

    name: str
    graph: fx.Graph
    constants: dict[str, Any]
    tokens: int
    token_output: int
    updates: list[int]
    keys: int | None = None
    conditions: list[Any] = field(default_factory=list)

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


@dataclass
class Restore:
    """The two new linear layers at the end of a sparse-dense module, by name, with their width."""

    name: str
    width: int
    dtype: torch.dtype
    device: torch.device


@dataclass
class Program:
    """A captured model on its way through the passes.

    Attributes:
        graph: the outer graph, flat tensors in and out.
        constants: as in :class:`Body`.
        bodies: by name.
        paths: names of the trunk's modules in execution order; also the targets of the block nodes.
        call: how a call of the model becomes flat tensors.
        output_spec: how flat outputs become what the model returns.
        shape_env: the symbols of the outer graph's shapes, and the guards under which it is valid.
        grid: the dense token grid, each side a number or an expression in the sizes of the inputs.
        grid_source: where the grid was found.
        timestep: the placeholder that carries the timestep, if one was found.
        density: the schedule behind the density node, once there is one.
        restores: the new layers that passes ask for.
        skips: what passes left alone.
        stage: ``captured``, ``analysed`` or ``sparse``.
        probes: for bodies that were tried, why they must not be split, or None.
        verified: what the verifier has run already, see there.
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
    timestep: str | None = None
    density: Density | None = None
    restores: list[Restore] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    stage: str = "captured"
    probes: dict[str, str | None] = field(default_factory=dict, repr=False)
    verified: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def block_nodes(self) -> list[fx.Node]:
        """The trunk's nodes in execution order."""
        by_path = {node.target: node for node in self.graph.find_nodes(op="call_module") if "body" in node.meta}
        return [by_path[path] for path in self.paths]

    def body_of(self, node: fx.Node) -> Body:
        """The body of a block's node."""
        return self.bodies[node.meta["body"]]

    @property
    def placeholders(self) -> list[fx.Node]:
        """The model's flat tensor inputs."""
        return list(self.graph.find_nodes(op="placeholder"))

    @property
    def fake_mode(self) -> FakeTensorMode:
        """The mode under which the outer graph's shapes are computed."""
        mode: FakeTensorMode = self.placeholders[0].meta["val"].fake_mode
        return mode

    def tokens_in(self, node: fx.Node) -> fx.Node:
        """The node whose tokens a block updates."""
        tokens = node.args[self.body_of(node).tokens]
        return tokens  # type: ignore[return-value]  # block nodes have nodes for arguments

    def tokens_out(self, node: fx.Node) -> fx.Node:
        """The node that carries a block's updated tokens."""
        body = self.body_of(node)
        if len(body.updates) == 1:
            return node
        return next(user for user in node.users if user.args[1] == body.token_output)

    @property
    def grid_hint(self) -> Grid:
        """The dense grid at the sizes the model was captured with."""
        env = self.shape_env
        return tuple(side if isinstance(side, int) else int(side.xreplace(env.backed_var_to_val)) for side in self.grid)

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
        if len(results) == 1:
            node.meta["val"] = results[0]
            return
        node.meta["val"] = tuple(results)
        for user in node.users:
            user.meta["val"] = results[user.args[1]]  # type: ignore[index]
