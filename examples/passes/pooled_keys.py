"""Key-value pooling alone: dense queries attend to pooled tokens, so that attention costs N x n instead of N x N.

sparsify(model, Policy.dense(), inputs, passes="fuse-attention,density{schedule=constant(4x4)},pooled-keys{blocks=0-5}")
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sparsify.passes import BlockRange, Levels, Pass, give, grids_of, refusal_to_separate, register_pass, separated
from sparsify.program import Program


@register_pass
@dataclass(frozen=True)
class PooledKeys(Pass):
    """Keys and values are made of the pooled tokens that each block gets; queries, residual and MLP stay dense."""

    blocks: BlockRange
    name: ClassVar[str] = "pooled-keys"

    def match(self, program: Program) -> list[fx.Node]:
        """Each block is a place of its own."""
        return self.blocks.of(program)

    def check(self, program: Program, place: fx.Node) -> str | None:
        """The block must be one that can attend to other tokens than its own; that is tried on random numbers."""
        if program.density_node is None:
            return "there is no density node; run the density pass first"
        if grids_of(program, place) != [program.grid_hint]:
            return "its tokens are not those of the dense grid, and nothing else"
        return refusal_to_separate(program, place, crosses=True, by=self.name)

    def rewrite(self, program: Program, place: fx.Node) -> None:
        """One more input, the tokens to attend to; tables and masks for them go along."""
        body = separated(program, program.body_of(place), self.name)
        with program.graph.inserting_before(place):
            keys = Levels(program, self.mark).keys_at_sparse(body, place.args)
        give(program, place, body, keys=keys)
        self.mark(place, place)
