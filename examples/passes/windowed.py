"""Windowed attention: each token attends to those of its own window, on the dense grid or, in sparse blocks, on the pooled one.

sparsify(model, policy, inputs, passes="windowed{blocks=2-4 window=2}")
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch.nn.functional import scaled_dot_product_attention as attention

from sparsify.attention import self_attentions
from sparsify.passes import BlockRange, Pass, copy_on_grid, give, grids_of, refusal_to_regroup, register_pass, sides_of
from sparsify.program import Program


def attend(qkv: list[torch.Tensor], sides: list[int], window: int, options: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Attention on (batch, heads, height * width, channels) within windows of ``window`` x ``window`` tokens."""
    batch, heads, tokens, channels = qkv[0].shape
    rows, columns = (side // window for side in sides)
    apart = [x.unflatten(2, (rows, window, columns, window)).permute(0, 2, 4, 1, 3, 5, 6) for x in qkv]
    inside = [x.reshape(batch * rows * columns, heads, window * window, channels) for x in apart]
    out = attention(*inside, *options, **named).reshape(batch, rows, columns, heads, window, window, channels)
    return out.permute(0, 3, 1, 4, 2, 5, 6).reshape(batch, heads, tokens, channels)


@register_pass
@dataclass(frozen=True)
class Windowed(Pass):
    """Attention over all tokens becomes attention within windows; the rest of the block stays."""

    blocks: BlockRange
    window: int = 2
    name: ClassVar[str] = "windowed"
    per_resolution: ClassVar[bool] = True  # windows that divide one grid may not divide another

    def match(self, program: Program) -> list[fx.Node]:
        """Each block is a place of its own."""
        return self.blocks.of(program)

    def check(self, program: Program, place: fx.Node) -> str | None:
        """Windows must divide the grid at every density."""
        grids = grids_of(program, place)
        if not grids or any(len(grid) != 2 or grid[0] % self.window or grid[1] % self.window for grid in grids):
            return f"its tokens lie on {grids or 'no grid alone'}, where windows of {self.window} x {self.window} do not fit"
        return refusal_to_regroup(program, place)

    def rewrite(self, program: Program, place: fx.Node) -> None:
        """The blocks get a body of their own, which takes the sides of the grid as two more inputs."""
        name = f"{program.body_of(place).name}.windowed{self.window}"
        if (body := program.bodies.get(name)) is None:
            body = copy_on_grid(program.body_of(place), name, grids_of(program, place)[0], step=self.window)
            for found in self_attentions(body):
                with body.graph.inserting_before(node := found.node):
                    call = ([found.query, found.key, found.value], body.placeholders[-2:], self.window)
                    node.replace_all_uses_with(self.trace(body.graph, attend, *call, node.args[3:], node.kwargs, origin=node))
                body.graph.erase_node(node)
        give(program, place, body, sides_of(program, place))
        self.mark(place, place)
