"""Files that are damaged, altered or hostile, made by hand."""

from __future__ import annotations

import functools
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file

from sparsify import Density
from sparsify.training import TrainConfig
from sparsify.training.manifest import MANIFEST, About, Manifest

from .tiny import shared


class Payload:
    """What a pickle can do: reading it makes a folder."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.sentinel),)


def poison(sentinel: Path) -> bytes:
    """A pickle that makes ``sentinel`` where it is read."""
    return pickle.dumps(Payload(sentinel))


def weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object] = lambda state: None) -> Path:
    """The weights of the shared model, after a change."""
    model, _ = shared()
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    change(state)
    save_file(state, path)
    return path


def cut(path: Path, share: float) -> Path:
    """The file without its end."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def written(path: Path, content: bytes) -> Path:
    """A file of this content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def long_header(path: Path) -> Path:
    """A safetensors file whose header claims to be 2^60 bytes long."""
    return written(path, struct.pack("<Q", 2**60) + b"{}")


def lying_header(path: Path) -> Path:
    """A safetensors file whose tensor reaches beyond the end."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}).encode()
    return written(path, struct.pack("<Q", len(header)) + header + bytes(8))


def png(width: int, height: int) -> bytes:
    """The head of a picture, and nothing of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"xx") + chunk(b"IEND", b"")


def package(path: Path, entries: dict[str, bytes], manifest: Any = None, **fields: Any) -> Path:
    """A package of no program: weights and a manifest that is as it should be, besides ``entries`` and ``fields``."""
    from sparsify.targets.package import _checksums, _made_by

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/version", "0")
        archive.writestr("model/data/weights.safetensors", save({"w": torch.zeros(2)}))
        for name, content in entries.items():
            archive.writestr(name, content)
    if manifest is None:
        made = {"interface": interface(), "constants": [], "made": _made_by("cpu"), "sha256": _checksums(path)}
        manifest = json.dumps(made | fields)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/extra/sparsify.json", manifest)
    return path


def interface(**fields: Any) -> dict[str, Any]:
    """How a model of one tensor is called, as packages and ONNX files say it."""
    call = {"dict": [["x", {"tensor": True}]]}
    given = {"name": "x", "shape": ["batch", 3], "dtype": "float32", "value": None}
    return {
        "version": 1,
        "parameters": [{"name": "x", "kind": "POSITIONAL_OR_KEYWORD"}],
        "arguments": call,
        "output": {"tensor": True},
        "inputs": [given],
        "device": "cpu",
        "batch": [1, 4],
        "dense_grid": [4, 4],
        "density": Density.constant(grid=(2, 2)).to_dict(),
        "timestep": None,
        "grids": [[2, 2]],
        "between": False,
        "positions": None,
    } | fields


def onnx_file(path: Path, description: str | None) -> Path:
    """An ONNX file of one operator, with a description of its call."""
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xz"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    if description is not None:
        helper.set_model_props(model, {"sparsify": description})
    onnx.save(model, str(path))
    return path


@functools.cache
def _about() -> About:
    return About(TrainConfig(steps=2), "", "Tiny", {"w": ["float32", [2]]}, "none", None)


def checkpoint(root: Path, change: Callable[[dict[str, Any]], object] = lambda fields: None) -> Path:
    """A whole checkpoint of one weight; the manifest is changed after it was made."""
    folder = root / "step-00000002"
    (folder / "state").mkdir(parents=True)
    for name in ("model.safetensors", "ema.safetensors", "state/shard-00001.safetensors"):
        save_file({"w": torch.zeros(2)}, folder / name)
    fields = json.loads(Manifest.of(folder, 2, _about()).to_json())
    change(fields)
    (folder / MANIFEST).write_text(json.dumps(fields))
    return folder
