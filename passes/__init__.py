"""Rewrites, one per file, and the pipeline that runs them in order and verifies after each."""

from .base import BlockRange, Pass
from .cleanup import Cleanup
from .density import InsertDensity
from .fuse_attention import FuseAttention
from .pipeline import Pipeline, pipeline_for, pipeline_of
from .pool_attention import PoolAttention
from .sparse_dense import SparseDense

__all__ = [
    "BlockRange",
    "Cleanup",
    "FuseAttention",
    "InsertDensity",
    "Pass",
    "Pipeline",
    "PoolAttention",
    "SparseDense",
    "pipeline_for",
    "pipeline_of",
]
