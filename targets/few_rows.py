"""Linear maps of few rows on a CPU, by oneDNN: MKL's product lays the whole weight out anew at every call.

A sparse block multiplies large weights with a few dozen tokens, and there the layout takes up to a third of the time.
``python -m benchmarks.few_rows`` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

aten = torch.ops.aten

FEWEST, MOST = 16, 256  # rows: for fewer MKL has other products, and for more the arithmetic takes longest
LARGE = 1 << 20  # elements of a weight; smaller ones stay in the cache, where laying them out takes little
IS_HERE = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()

torch.library.define("sparsify::linear_of_few_rows", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # The operator that inductor takes for constant weights, laid out for it; weights in their own layout do as well.
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return result


def _shape(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


torch.library.impl("sparsify::linear_of_few_rows", "CPU", _run)
torch.library.register_fake("sparsify::linear_of_few_rows", _shape)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As ``aten.linear``. Which way it goes is decided while it is traced, so shapes must be static there."""
    if _suits(x, weight):
        few: torch.Tensor = torch.ops.sparsify.linear_of_few_rows.default(x, weight, bias)
        return few
    result: torch.Tensor = aten.linear.default(x, weight, bias)
    return result


def _suits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Plain float32 on a CPU, in inference; autocast and gradients are aten's."""
    return (
        IS_HERE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(weight) in (torch.Tensor, nn.Parameter)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and weight.ndim == 2
        and is_faster(weight.numel(), x.numel() // max(1, x.shape[-1]))
    )


def is_faster(elements: int, rows: int) -> bool:
    """Whether oneDNN is ahead for a weight of so many elements, and so many rows."""
    return elements >= LARGE and FEWEST <= rows <= MOST


FEW_ROWS: Mapping[Any, Callable[..., Any]] = {aten.linear.default: linear}
