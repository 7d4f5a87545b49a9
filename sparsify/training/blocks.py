"""Other ways to run the blocks of a sparse model while it trains: compiled, or computed again in the backward pass.

Blocks stay modules that are called, unlike in ``lower(sparse, "inductor")``, so that hooks on them and FSDP see every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..probe import draws_random_numbers
from ..runtime import SparseModel
from ..targets.compiled import KINDS, ForAllShapes, ForEachShape, Shapes
from ..tree import Block

Function = Callable[..., Any]


@contextmanager
def blocks_run(sparse: SparseModel, shapes: Shapes | None = None, checkpointing: bool = False) -> Iterator[None]:
    """Within this context, run every block of a model in another way.

    Args:
        sparse: the model, captured.
        shapes: compile the blocks, each kind once for all pooled grids (``"dynamic"``) or for each (``"per_grid"``); None
            leaves them eager.
        checkpointing: keep the inputs of a block alone for the backward pass, and compute the block again there.
    """
    if shapes is None and not checkpointing:
        yield
        return
    run = _eager if shapes is None else _Compiled(shapes)
    way = _checkpointed(run) if checkpointing else run
    blocks = [module for module in sparse.modules() if isinstance(module, Block)]
    for block in blocks:
        block.__dict__["sparsify_run"] = way
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("sparsify_run", None)


def _eager(block: Block, *inputs: Any) -> Any:
    return block.sparsify_code(block, *inputs)


def _checkpointed(run: Function) -> Function:
    random: dict[Function, bool] = {}  # by code: whether the second run must see the random numbers of the first

    def call(block: Block, *inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(block, *inputs)
        code = block.sparsify_code
        if code not in random:
            random[code] = draws_random_numbers(block.sparsify_body)
        return checkpoint(run, block, *inputs, use_reentrant=False, preserve_rng_state=random[code])

    return call


class _Compiled:
    """Blocks with the same code share a compiled function."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes: Shapes = shapes
        self._by_code: dict[Function, ForAllShapes | ForEachShape] = {}
        self._by_text: dict[Any, ForAllShapes | ForEachShape] = {}

    def __call__(self, block: Block, *inputs: Any) -> Any:
        # Bound at each call: kept functions would outlive copies of a model, and a copy would have those of the original.
        return self._unit(block, block.sparsify_code).bound(block, block.sparsify_body.name)(*inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Compiled:
        return self  # a copied model runs what is compiled already

    def _unit(self, block: Block, code: Function) -> ForAllShapes | ForEachShape:
        if code not in self._by_code:
            text = block.sparsify_body.graph.python_code("self")
            key = (block.training, text.src, tuple(text.globals.items()))
            if key not in self._by_text:
                self._by_text[key] = KINDS[self._shapes](code, {})
            self._by_code[code] = self._by_text[key]
        return self._by_code[code]
