"""Lowerings of a sparse model, one per file."""

from .base import Lowered, available, lower

__all__ = ["Lowered", "available", "lower"]
