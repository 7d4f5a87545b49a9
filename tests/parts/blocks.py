"""Bodies of blocks for hand-made programs: attention over (2, tokens, 4), and what may be odd about it.

It is linear attention, since softmax attention of open sizes takes half a second to work out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sparsify.attention import SDPA
from sparsify.program import Body

from .shared import kept_sizes
from .sketch import Sketch, aten

Then = Callable[[Sketch, fx.Node], fx.Node]


def attention(sketch: Sketch, x: fx.Node, softmax: bool = False, **options: Any) -> fx.Node:
    """``x`` and a fifth of the attention of ``tanh(x)`` to keys ``sin(x)`` and values ``cos(x)``."""
    q, k, v = (sketch(target, x) for target in (aten.tanh.default, aten.sin.default, aten.cos.default))
    if softmax:
        made = sketch(SDPA, q, k, v, **options)
    else:
        made = sketch(aten.bmm.default, q, sketch(aten.bmm.default, sketch(aten.transpose.int, k, 1, 2), v))
    return sketch(aten.add.Tensor, x, sketch(aten.mul.Tensor, made, 0.2))


def attend(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The same in eager torch, with keys of their own."""
    return queries + 0.2 * queries.tanh() @ (keys.sin().mT @ keys.cos())


def block(
    then: Then | None = None, *, hint: int = 15, name: str = "block0", attends: bool = True, moves: bool = True, **options: Any
) -> Body:
    """A block with attention (or ``neg`` if it has none), and what ``then`` makes of its result."""
    first, tokens = kept_sizes(hint)
    sketch, tokens = Sketch(first), tokens if moves else hint
    x = sketch.input("x", 2, tokens, 4)
    made = attention(sketch, x, **options) if attends else sketch(aten.neg.default, x)
    return sketch.body(name, then(sketch, made) if then is not None else made, moving=[tokens] if moves else ())


def cumulated(sketch: Sketch, x: fx.Node) -> fx.Node:
    """Mixes tokens in a way that shows when it is tried."""
    return sketch(aten.cumsum.default, x, 1)


def squared(sketch: Sketch, x: fx.Node) -> fx.Node:
    """Has a row and a column for every token."""
    table = sketch(aten.matmul.default, x, sketch(aten.transpose.int, x, 1, 2))
    return sketch(aten.matmul.default, table, x)


def counted(sketch: Sketch, x: fx.Node) -> fx.Node:
    """Adds positions that it makes itself."""
    places = sketch(aten.arange.default, sketch(aten.sym_size.int, x, 1))
    return sketch(aten.add.Tensor, x, sketch(aten.reshape.default, places, [1, -1, 1]))
