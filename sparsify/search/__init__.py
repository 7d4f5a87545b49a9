"""Choose a policy by measuring: segments and densities under a budget of GFLOPs. ``Policy.search`` is the short way in."""

from .latents import random_batches
from .result import BlockMeasure, Point, Search, SpanMeasure
from .run import search

__all__ = ["BlockMeasure", "Point", "Search", "SpanMeasure", "random_batches", "search"]
