"""``lower``: hand a sparse model to a target, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import LoweringError
from ..runtime import SparseModel
from .eager import lower_eager
from .inductor import lower_inductor

Lowered = Callable[..., Any]

TARGETS: dict[str, Callable[..., Lowered]] = {"eager": lower_eager, "inductor": lower_inductor}


def lower(sparse: SparseModel, target: str = "inductor", **options: Any) -> Lowered:
    """A callable with the model's signature that runs ``sparse`` through ``target``.

    Args:
        sparse: what :func:`sparsify.sparsify` returned, captured.
        target: ``"eager"`` or ``"inductor"``.
        options: the target's own, see its file.

    Raises:
        LoweringError: no such target or option.
    """
    if not isinstance(sparse, SparseModel):
        raise LoweringError(f"lower takes what sparsify() returned, not a {type(sparse).__name__}.")
    if target not in TARGETS:
        raise LoweringError(f"target {target!r} does not exist; there are {sorted(TARGETS)}.")
    known = [name for name in inspect.signature(TARGETS[target]).parameters if name != "sparse"]
    if unknown := sorted(set(options) - set(known)):
        raise LoweringError(f"target {target} has no option {unknown}; its options are {known or 'none'}.")
    return TARGETS[target](sparse, **options)
