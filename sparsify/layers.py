"""New parameters that passes ask for: modules with their start values, in lists whose names no model uses."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

RESTORE = "sparsify_restore"


@dataclass(frozen=True)
class Layer:
    """One new module of a sparse model.

    Attributes:
        name: a list of the model and a place in it, such as ``sparsify_restore.0``; its parameters follow, behind a dot.
        make: makes the module with its start values. It is called where they are needed, and may be called again.
        dtype: of its floating-point tensors in the sparse model.
        device: where they are.
        shapes: of its parameters, by their names in the module.
    """

    name: str
    make: Callable[[], nn.Module] = field(compare=False, repr=False)
    dtype: torch.dtype
    device: torch.device
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, name: str, make: Callable[[], nn.Module], dtype: torch.dtype, device: torch.device) -> Layer:
        """A layer whose shapes are found out by making it without memory."""
        with _undisturbed(), torch.device("meta"):
            shapes = tuple((key, tuple(parameter.shape)) for key, parameter in make().named_parameters())
        return cls(name, make, dtype, device, shapes)

    @property
    def size(self) -> int:
        """How many parameters it adds."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def fake(self, name: str, mode: FakeTensorMode) -> torch.Tensor:
        """What a node that reads one of its parameters claims."""
        with mode:
            return torch.empty(dict(self.shapes)[name], dtype=self.dtype, device=self.device)

    def module(self) -> nn.Module:
        """The module with its start values."""
        with _undisturbed():
            return self.make().to(dtype=self.dtype, device=self.device)


def module_lists(layers: Sequence[Layer]) -> dict[str, nn.ModuleList]:
    """The modules of layers that are numbered in order, by the name of their list."""
    lists: dict[str, nn.ModuleList] = {}
    with torch.inference_mode(False):  # the first call may be in that mode, and parameters must train later
        for layer in layers:
            lists.setdefault(layer.name.rpartition(".")[0], nn.ModuleList()).append(layer.module())
    return lists


def restore_layer(index: int, width: int, dtype: torch.dtype, device: torch.device) -> Layer:
    """``W1 = 0``, ``W2 = I``, biases 0: at first a module hands on the dense tokens from before it (paper, 3.2)."""
    make = functools.partial(_restore, width, dtype, device)
    linear = (("weight", (width, width)), ("bias", (width,)))
    shapes = tuple((f"{part}.{name}", shape) for part in ("sparse", "dense") for name, shape in linear)
    return Layer(f"{RESTORE}.{index}", make, dtype, device, shapes)


def _restore(width: int, dtype: torch.dtype, device: torch.device) -> nn.ModuleDict:
    sparse, dense = (nn.utils.skip_init(nn.Linear, width, width, dtype=dtype, device=device) for _ in range(2))
    for parameter in (*sparse.parameters(), *dense.parameters()):
        parameter.zero_()
    dense.weight.fill_diagonal_(1)
    return nn.ModuleDict({"sparse": sparse, "dense": dense})


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Start values may be written in place, and the caller's random numbers stay as they were."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield
