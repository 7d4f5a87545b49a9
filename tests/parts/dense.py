"""Programs of blocks in a row on the tokens of an image, written by hand."""

from __future__ import annotations

from typing import Any

from sparsify.passes import InsertDensity
from sparsify.program import Body, Program
from sparsify.shapes import size_of

from .shared import kept_sizes
from .sketch import Sketch, aten


def dense_program(
    body: Body, *, blocks: int = 1, before: int = 0, after: int = 0, schedule: Any = None, **options: Any
) -> Program:
    """Blocks in a row on the tokens of an image of 3 by 5, with so many rows of text before and behind them.

    Its inputs are ``image`` (2, 4, height, width), ``time`` (2,) and, where there are such rows, ``text`` (2, rows, 4). A
    block with a second input is given a table with a row for every token of the image.
    """
    first, h, w = kept_sizes(3, 5, role="outer")
    outer = Sketch(first)
    image, time = outer.input("image", 2, 4, h, w), outer.input("time", 2)
    text = outer.input("text", 2, before + after, 4) if before + after else None
    x = outer(aten.transpose.int, outer(aten.flatten.using_ints, image, 2), 1, 2)
    if text is not None:
        rows = [
            outer(aten.slice.Tensor, text, 1, *ends) for ends in ((0, before), (before, before + after)) if ends[0] < ends[1]
        ]
        x = outer(aten.cat.default, [*rows[: before > 0], x, *rows[before > 0 :]], 1)
    table = [outer(aten.flatten.using_ints, outer(aten.select.int, image, 0, 0), 1)] if len(body.placeholders) > 1 else []
    table = [outer(aten.transpose.int, node, 0, 1) for node in table]
    for index in range(blocks):
        x = outer.block(f"blocks.{index}", body, x, *table)
    outer.output(x)
    program = outer.program(body, **({"grid": (size_of(h), size_of(w)), "timestep": time.name} | options))
    if schedule is not None:
        assert InsertDensity(schedule).run(program) == 1
    return program
