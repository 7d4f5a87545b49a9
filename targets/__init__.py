"""Lowerings of a sparse model, one per file."""

from .base import Lowered, lower

__all__ = ["Lowered", "lower"]
