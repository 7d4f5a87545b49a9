"""The target that runs the graphs as they are: the reference for all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..runtime import SparseModel


def lower_eager(sparse: SparseModel) -> Callable[..., Any]:
    """The sparse model itself."""
    return sparse
