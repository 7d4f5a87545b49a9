"""Rewrites, one per file, the pipeline that runs them in order and verifies after each, and what a pass of one's own is made of."""

from .base import BlockRange, Pass, copy_body, remove_dead, replace_later_uses
from .bodies import copy_on_grid, give
from .cleanup import Cleanup
from .density import InsertDensity
from .drop import drop_tokens
from .fuse_attention import FuseAttention
from .levels import Levels
from .linear_before_copy import LinearBeforeCopy
from .mean_before_linear import MeanBeforeLinear
from .narrow_linear import NarrowLinear
from .once_for_blocks import OnceForBlocks
from .pattern import Match, NodePattern, Pattern, Place, explain, find
from .pattern_pass import PatternPass
from .pipeline import SAVINGS, Pipeline, pipeline_for, pipeline_of
from .places import grids_of, refusal_to_drop, refusal_to_regroup, sides_of
from .pool_attention import PoolAttention
from .prompt_once import PromptOnce
from .registry import pass_named, pass_names, register_pass
from .separate import refusal_to_separate, separated
from .share import Share
from .sparse_dense import SparseDense

__all__ = [
    "SAVINGS",
    "BlockRange",
    "Cleanup",
    "FuseAttention",
    "InsertDensity",
    "Levels",
    "LinearBeforeCopy",
    "Match",
    "MeanBeforeLinear",
    "NarrowLinear",
    "NodePattern",
    "OnceForBlocks",
    "Pass",
    "Pattern",
    "PatternPass",
    "Pipeline",
    "Place",
    "PoolAttention",
    "PromptOnce",
    "Share",
    "SparseDense",
    "copy_body",
    "copy_on_grid",
    "drop_tokens",
    "explain",
    "find",
    "give",
    "grids_of",
    "pass_named",
    "pass_names",
    "pipeline_for",
    "pipeline_of",
    "refusal_to_drop",
    "refusal_to_regroup",
    "refusal_to_separate",
    "register_pass",
    "remove_dead",
    "replace_later_uses",
    "separated",
    "sides_of",
]
