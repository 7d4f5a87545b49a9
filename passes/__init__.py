"""Rewrites, one per file, and the pipeline that runs them in order and verifies after each."""

from .base import BlockRange, Pass
from .cleanup import Cleanup
from .density import InsertDensity
from .fuse_attention import FuseAttention
from .linear_before_copy import LinearBeforeCopy
from .mean_before_linear import MeanBeforeLinear
from .narrow_linear import NarrowLinear
from .once_for_blocks import OnceForBlocks
from .pipeline import SAVINGS, Pipeline, pipeline_for, pipeline_of
from .pool_attention import PoolAttention
from .prompt_once import PromptOnce
from .share import Share
from .sparse_dense import SparseDense

__all__ = [
    "SAVINGS",
    "BlockRange",
    "Cleanup",
    "FuseAttention",
    "InsertDensity",
    "LinearBeforeCopy",
    "MeanBeforeLinear",
    "NarrowLinear",
    "OnceForBlocks",
    "Pass",
    "Pipeline",
    "PoolAttention",
    "PromptOnce",
    "Share",
    "SparseDense",
    "pipeline_for",
    "pipeline_of",
]
