"""Let blocks see some of their tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from ..attention import aligned_inputs, moving_axes
from ..program import Program
from .base import Pass


def drop_tokens(rewrite: Pass, program: Program, blocks: Sequence[fx.Node], kept: fx.Node) -> None:
    """Blocks that follow one another see only the ``kept`` of their tokens, with the rows of every table that go with them.

    Args:
        rewrite: the pass at work.
        program: whose trunk they are in.
        blocks: for which :func:`~sparsify.passes.refusal_to_drop` has no reason to refuse.
        kept: a node of the outer graph in front of them: row numbers, (count,).
    """
    for block in blocks:
        body = program.body_of(block)
        with program.graph.inserting_before(block):
            for position in aligned_inputs(body):
                if position == body.tokens and block is not blocks[0]:
                    continue  # these come from the block before it
                for axis in moving_axes(body, body.placeholders[position]):
                    given = block.args[position]
                    chosen = rewrite.trace(program.graph, torch.index_select, given, axis, kept, origin=block)
                    block.update_arg(position, chosen)
        program.annotate_block(block)
        rewrite.mark(block, block)
