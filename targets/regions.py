"""Regions under autocast or without gradients, as Python code: dynamo refuses the operators for them where a size is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def _under_autocast(
    device_type: str,
    dtype: torch.dtype | None,
    enabled: bool,
    cache_enabled: bool | None,
    region: Callable[..., Any],
    *inputs: Any,
) -> Any:
    with torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled):
        return region(*inputs)


def _with_gradients(enabled: bool, region: Callable[..., Any], *inputs: Any) -> Any:
    with torch.set_grad_enabled(enabled):
        return region(*inputs)


REGIONS: Mapping[Any, Callable[..., Any]] = {
    torch.ops.higher_order.wrap_with_autocast: _under_autocast,
    torch.ops.higher_order.wrap_with_set_grad_enabled: _with_gradients,
}
