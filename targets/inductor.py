"""torch.compile of the blocks: every block of one structure and role shares one compiled function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..runtime import SparseModel
from ..tree import Block


def lower_inductor(sparse: SparseModel, mode: str = "default", dynamic: bool = True) -> Callable[..., Any]:
    """Compile the trunk's blocks; the outer graph, with the density node, stays in Python.

    Args:
        sparse: the model, captured; it is not changed.
        mode: as for ``torch.compile``.
        dynamic: one artifact for all token counts (True), or one for each (False).
    """
    options = {"mode": mode, "dynamic": dynamic, "fullgraph": True}
    compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    @functools.wraps(sparse.forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        blocks = [module for module in sparse.modules() if isinstance(module, Block)]
        eager = [block.sparsify_code for block in blocks]
        for block in blocks:
            if block.sparsify_code not in compiled:
                compiled[block.sparsify_code] = torch.compile(block.sparsify_code, **options)  # type: ignore[call-overload]
            block.sparsify_code = compiled[block.sparsify_code]
        try:
            return sparse(*args, **kwargs)
        finally:
            for block, code in zip(blocks, eager, strict=True):
                block.sparsify_code = code

    return run
