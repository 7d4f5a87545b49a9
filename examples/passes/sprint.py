"""SPRINT (arXiv 2510.21986): blocks in the middle see one token in four; then a projection joins them with the dense ones.

sparsify(model, Policy.dense(), inputs, passes="sprint{blocks=2-9}")
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx, nn

from sparsify.passes import BlockRange, Pass, drop_tokens, refusal_to_drop, register_pass, replace_later_uses, sides_of
from sparsify.program import Program


def kept_rows(height: int, width: int, stride: int) -> torch.Tensor:
    """Which tokens are kept: the first of every ``stride`` x ``stride`` of them."""
    rows, columns = torch.arange(0, height, stride), torch.arange(0, width, stride)
    return (rows[:, None] * width + columns).flatten()


def fuse(dense: torch.Tensor, few: torch.Tensor, kept: torch.Tensor, mask: torch.Tensor, *linear: torch.Tensor) -> torch.Tensor:
    """Sparse tokens at their places and the mask token at all others, beside the dense tokens, projected to their width."""
    restored = mask.expand_as(dense).index_copy(1, kept, few)
    return nn.functional.linear(torch.cat([dense, restored], dim=-1), *linear)


def fusion(width: int) -> nn.Module:
    """The new parameters. They start with the dense tokens alone, as if the blocks in the middle were not there."""
    layer = nn.Linear(2 * width, width)
    layer.mask = nn.Parameter(torch.zeros(width))
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@register_pass
@dataclass(frozen=True)
class Sprint(Pass):
    """Drop tokens in front of these blocks, and restore them by residual fusion behind."""

    blocks: BlockRange
    stride: int = 2
    name: ClassVar[str] = "sprint"

    def match(self, program: Program) -> list[list[fx.Node]]:
        """All blocks together are one place."""
        return [self.blocks.of(program)]

    def check(self, program: Program, place: list[fx.Node]) -> str | None:
        """Only images have rows and columns to drop, and not every block can do with fewer tokens."""
        if len(program.grid) != 2:
            return f"the token grid is {program.grid_hint}, and has to be that of an image"
        height, width = (-(-side // self.stride) for side in program.grid_hint)
        return refusal_to_drop(program, place, height * width)

    def rewrite(self, program: Program, place: list[fx.Node]) -> None:
        """Everything happens in the outer graph: the blocks run as they are, on fewer tokens."""
        graph, dense, few = program.graph, program.tokens_in(place[0]), program.tokens_out(place[-1])
        layer = self.layer(program, lambda: fusion(int(dense.meta["val"].shape[-1])), like=dense)
        with graph.inserting_before(place[0]):
            kept = self.trace(graph, kept_rows, *sides_of(program, place[0]), self.stride, origin=dense)
        drop_tokens(self, program, place, kept)
        with graph.inserting_before(few.next):
            new = [self.parameter(program, layer, name) for name in ("mask", "weight", "bias")]
            replace_later_uses(few, self.trace(graph, fuse, dense, few, kept, *new, origin=few))
