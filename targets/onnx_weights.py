"""ONNX files that share one file of weights."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LoweringError

if TYPE_CHECKING:
    import onnx_ir as ir

_SMALLEST = 1024  # bytes; smaller constants stay in the graph's own file


def save_with_shared_weights(models: Mapping[Path, ir.Model], data: str, stale: Iterable[Path] = ()) -> None:
    """Save models of one folder; what is equal in them is stored once, in the file ``data`` beside them.

    Equal means equal bytes: exporters name folded constants as they like, and a name may stand for others in each graph.
    What stood there before stays until all is written; then ``stale`` files go, which would read weights of others.
    """
    folder = next(iter(models)).parent
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        _save({Path(draft) / path.name: model for path, model in models.items()}, data)
        for path in stale:
            path.unlink(missing_ok=True)
        for path in Path(draft).iterdir():
            os.replace(path, folder / path.name)


def _save(models: Mapping[Path, ir.Model], data: str) -> None:
    import onnx_ir as ir

    (first, *rest) = models
    ir.save(models[first], first, external_data=data, size_threshold_bytes=_SMALLEST)
    stored: dict[bytes, ir.ExternalTensor] = {}
    for value in ir.load(first).graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            stored[_digest(tensor)] = tensor
    for path in rest:
        for value in models[path].graph.initializers.values():
            if value.const_value is None:
                raise LoweringError(f"the ONNX graph has no value for the constant {value.name}.")
            if value.const_value.nbytes >= _SMALLEST and (known := stored.get(_digest(value.const_value))) is not None:
                value.const_value = ir.ExternalTensor(
                    data, known.offset, known.length, known.dtype, shape=known.shape, name=str(value.name), base_dir=path.parent
                )
        ir.save(models[path], path)


def _digest(tensor: ir.TensorProtocol) -> bytes:
    kind = f"{tensor.dtype.name}{list(tensor.shape)}".encode()
    return hashlib.sha256(kind + tensor.tobytes()).digest()
