"""diffusers' first-block cache on a model with the model's own weights, always hitting or never."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.models.cache_utils import CacheMixin
from torch import nn


def first_block_cache(model: nn.Module, hit: bool, compiled: bool = False) -> Callable[..., Any]:
    """The model behind the cache.

    Whether a step is a hit depends on how much the first block's residual has changed since the last one, that is, on
    content. Here the caller says: with ``hit`` every call after the first takes what was cached, without it none does.

    Raises:
        ValueError: diffusers has no entry for blocks of this class (at the first call).
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)  # hooks change modules, and the original is timed beside it
    apply_first_block_cache(twin, FirstBlockCacheConfig(threshold=float("inf") if hit else -1.0))
    run = torch.compile(twin, dynamic=False) if compiled else twin

    def call(**inputs: Any) -> Any:
        with CacheMixin.cache_context(twin, "benchmark"):  # DiT and PixArt do not have this method themselves
            return run(**inputs)

    return call
