"""Shapes that TensorRT builds an engine for, and the ``trtexec`` command that builds one from an ONNX file of ours."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from ..errors import LoweringError
from ..flat import CARRIER
from .interface import BATCH, Interface

Precision: TypeAlias = Literal["fp16", "bf16", "fp8"]
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """The shapes of one input tensor: the least, the usual and the largest; equal where the shape is fixed."""

    name: str
    dtype: torch.dtype
    least: Shape
    usual: Shape
    most: Shape

    @property
    def is_open(self) -> bool:
        """Whether more than one shape is served."""
        return self.least < self.most


def profiles(interface: Interface, example: Sequence[torch.Tensor] | None = None) -> list[Profile]:
    """The shapes of a program's input tensors, with that which carries the pooled grid behind the others.

    Args:
        interface: of the program.
        example: tensors of the usual shapes; without them usual is the smallest batch at the finest pooled grid.
    """
    given = [i for i in interface.inputs if i.dtype is not None]
    usual = [tuple(tensor.shape) for tensor in example] if example is not None else []
    found = []
    for i, tensor in enumerate(given):
        least, most = (tuple(size if axis == BATCH else int(axis) for axis in tensor.shape) for size in interface.batch)
        found.append(Profile(tensor.name, tensor.dtype or torch.float32, least, usual[i] if usual else least, most))
    if interface.between and interface.grids:
        sides = list(zip(*interface.grids, strict=True))
        least, most = tuple(map(min, sides)), tuple(map(max, sides))
        found.append(Profile(CARRIER, torch.bool, least, usual[-1] if usual else interface.grids[0], most))
    return found


def trtexec(
    onnx: str | Path,
    interface: Interface,
    *,
    engine: str | Path | None = None,
    inputs: Collection[str] | None = None,
    precision: Precision | None = None,
    refit: bool = False,
    timing_cache: str | Path | None = None,
    tensorrt: int = 11,
) -> str:
    """A ``trtexec`` command line that builds and times an engine of an ONNX file that target ``onnx`` wrote.

    Args:
        onnx: the file.
        interface: of the model in it: ``lower(sparse, "onnx").interface``.
        engine: the file to write; the ONNX file's name with ``.engine`` if not given.
        inputs: names of the inputs that the file has; all if not given.
        precision: which lower precision TensorRT 10 may use where it is faster. Without it the types in the file hold, and
            in TensorRT 11 there is no other way: write the file from a model in that precision.
        refit: whether other weights may be put into the engine later.
        timing_cache: a file that makes the next build faster.
        tensorrt: the major version that is installed, 10 or 11.

    Raises:
        LoweringError: this version cannot do that.
    """
    if tensorrt not in (10, 11):
        raise LoweringError(f"tensorrt={tensorrt!r}; it must be 10 or 11, the major version that is installed.")
    if precision is not None and tensorrt > 10:
        raise LoweringError(
            f"TensorRT 11 takes the types in the file as they are and has no --{precision}: lower a model in that precision, "
            f"such as sparse.half(), to ONNX."
        )
    if precision not in (None, "fp16", "bf16", "fp8"):
        raise LoweringError(f"precision={precision!r}; it must be 'fp16', 'bf16' or 'fp8'.")
    path = Path(onnx)
    arguments = [f"--onnx={path}", f"--saveEngine={engine or path.with_suffix('.engine')}"]
    open_ = [p for p in profiles(interface) if p.is_open and (inputs is None or p.name in inputs)]
    if open_:
        for flag, field in (("minShapes", "least"), ("optShapes", "usual"), ("maxShapes", "most")):
            shapes = (f"{profile.name}:{'x'.join(map(str, getattr(profile, field)))}" for profile in open_)
            arguments.append(f"--{flag}={','.join(shapes)}")
    if precision is not None:
        arguments.append(f"--{precision}")
    elif tensorrt == 10:
        arguments.append("--stronglyTyped")  # what 11 does always
    if refit:
        arguments.append("--refit")
    if timing_cache is not None:
        arguments.append(f"--timingCacheFile={timing_cache}")
    return shlex.join(["trtexec", *arguments])
