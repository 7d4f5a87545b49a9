"""Rows: files that are damaged, altered, of something else, or hostile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file

from sparsify import InputError, LoweringError, PolicyError
from sparsify.cli.sources import load_policy
from sparsify.errors import TrainingError
from sparsify.targets import aot_inductor, onnx
from sparsify.training import load_images
from sparsify.training.checkpoint import damaged, read_manifest
from sparsify.training.setup import load_weights

from . import files as f
from .scene import Row, Scene
from .tiny import shared

Write = Callable[[Path], Path]


def weights(write: Write) -> Callable[[Scene], None]:
    """Loading these weights must leave the model as it was."""

    def act(scene: Scene) -> None:
        model, sparse = shared()
        scene.watch(model, sparse)
        load_weights(sparse, write(scene.folder / "w.safetensors"))

    return act


def its_own(scene: Scene) -> None:
    model, sparse = shared()
    scene.watch(model, sparse)
    load_weights(sparse, f.weights(scene.folder / "w.safetensors"))
    scene.same(dict(model.state_dict()), {k: v for k, v in sparse.state_dict().items() if not k.startswith("sparsify_")})


def data(write: Write, name: str) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        load_images(write(scene.folder / name))

    return act


def checkpoint(
    change: Callable[[Path], object], on_fields: Callable[[dict], object] = lambda fields: None
) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        folder = f.checkpoint(scene.folder, on_fields)
        change(folder)
        manifest = read_manifest(folder)
        if found := damaged(folder, manifest):
            raise TrainingError(found)

    return act


def package(write: Write, name: str = "m.pt2") -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        aot_inductor.load(write(scene.folder / name))

    return act


def onnx_model(write: Write) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        onnx.load(write(scene.folder / "m.onnx"))

    return act


def policy(content: bytes) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        load_policy(str(f.written(scene.folder / "policy.json", content)))

    return act


def set_weight(name: str, value: torch.Tensor) -> Write:
    return lambda path: f.weights(path, lambda state: state.update({name: value}))


def objects(path: Path) -> Path:
    numpy.save(path, numpy.array([{"a": 1}], dtype=object), allow_pickle=True)
    return path


def zipped_objects(path: Path) -> Path:
    numpy.savez(path, images=numpy.array([{"a": 1}], dtype=object))
    return path


def flip(folder: Path) -> None:
    path = folder / "ema.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def linked(path: Path) -> Path:
    os.symlink(path, path)  # to itself
    return path


def pickled(path: Path) -> Path:
    torch.save({"w": torch.zeros(2)}, path)
    return path


def pictures(content: bytes) -> Write:
    def write(folder: Path) -> Path:
        f.written(folder / "a.png", content)
        return folder

    return write


def described(**fields: object) -> Write:
    return lambda path: f.onnx_file(path, json.dumps(f.interface(**fields)))


HEAD = "head.weight"
DEEP = "[" * 100_000

_WEIGHTS: tuple[tuple, ...] = (
    ("its own weights", its_own, None, ()),
    ("no file", weights(lambda path: path), InputError, ("w.safetensors", "No such file")),
    ("an empty file", weights(lambda path: f.written(path, b"")), InputError, ("w.safetensors",)),
    ("a link to itself", weights(linked), InputError, ("w.safetensors",)),
    ("cut in the middle", weights(lambda path: f.cut(f.weights(path), 0.5)), InputError, ("w.safetensors", "cannot be used")),
    ("a header of 2^60 bytes", weights(f.long_header), InputError, ("w.safetensors", "cannot be used")),
    ("a tensor that reaches beyond the end", weights(f.lying_header), InputError, ("w.safetensors", "cannot be used")),
    ("a file of torch.save under another name", weights(pickled), InputError, ("w.safetensors", "cannot be used")),
    ("a weight of another shape", weights(set_weight(HEAD, torch.zeros(12, 15))), InputError, (HEAD, "(12, 15)", "(12, 16)")),
    ("a weight in whole numbers", weights(set_weight(HEAD, torch.zeros(12, 16, dtype=torch.int64))), InputError, (HEAD, "int64", "float32")),
    ("a weight of NaN", weights(set_weight(HEAD, torch.full((12, 16), torch.nan))), InputError, (HEAD, "NaN", "finite")),
    ("a weight too many", weights(set_weight("more", torch.zeros(1))), InputError, ("has more beside",)),
    ("a weight missing", weights(lambda path: f.weights(path, lambda state: state.pop(HEAD))), InputError, (f"lacks {HEAD}",)),
    ("the weights of another model", weights(lambda path: save_file({"x": torch.zeros(1)}, path) or path), InputError, ("of another model", "has x beside")),
)  # fmt: skip

_DATA: tuple[tuple, ...] = (
    ("an array of Python objects", data(objects, "a.npy"), InputError, ("a.npy", "Python objects")),
    ("an archive of Python objects", data(zipped_objects, "a.npz"), InputError, ("a.npz", "allow_pickle=False")),
    ("an archive that is none", data(lambda path: f.written(path, b"PK\x03\x04"), "a.npz"), InputError, ("a.npz", "cannot be read")),
    ("a file of an unknown kind", data(pickled, "a.pt"), InputError, (".npy, .npz, .safetensors",)),
    ("a picture of 60,000 x 60,000 that is not there", data(pictures(f.png(60_000, 60_000)), "p"), InputError, ("a.png", "decompression bomb")),
    ("a picture without content", data(pictures(f.png(8, 8)), "p"), InputError, ("a.png", "damaged")),
    ("a text named .png", data(pictures(b"<svg onload=x>"), "p"), InputError, ("a.png", "no picture")),
)  # fmt: skip

_CHECKPOINTS: tuple[tuple, ...] = (
    ("a bit that is flipped", checkpoint(flip), TrainingError, ("ema.safetensors", "altered", "checksum")),
    ("a file cut short", checkpoint(lambda d: f.cut(d / "model.safetensors", 0.5)), TrainingError, ("model.safetensors", "bytes", "remove")),
    ("no manifest", checkpoint(lambda d: (d / "manifest.json").unlink()), TrainingError, ("manifest.json", "half-written")),
    ("a manifest of text that is no JSON", checkpoint(lambda d: (d / "manifest.json").write_bytes(b"\xff\x00")), TrainingError, ("manifest.json", "damaged")),
    ("a manifest nested 100,000 deep", checkpoint(lambda d: (d / "manifest.json").write_text(DEEP)), TrainingError, ("manifest.json", "damaged")),
    ("a manifest of a newer version", checkpoint(lambda d: None, lambda fields: fields.update(format=2)), TrainingError, ("format 2", "reads 1")),
    ("a manifest with a number for the tensors", checkpoint(lambda d: None, lambda fields: fields.update(tensors=5)), TrainingError, ("damaged",)),
    ("a manifest that names a file outside", checkpoint(lambda d: None, lambda fields: fields["files"].update({"../../x": [0, ""]})), TrainingError, ("'../../x'", "outside")),
    ("a file too many among the state", checkpoint(lambda d: f.written(d / "state" / ".metadata", b"x")), TrainingError, (".metadata", "does not belong")),
    ("no state", checkpoint(lambda d: [p.unlink() for p in (d / "state").iterdir()] and (d / "state").rmdir(), lambda fields: fields["files"].pop("state/shard-00001.safetensors")), TrainingError, ("state", "missing")),
)  # fmt: skip

_PACKAGES: tuple[tuple, ...] = (
    ("no package", package(lambda path: f.written(path, b"not a zip")), LoweringError, ("m.pt2", "damaged", "Lower the model again")),
    ("another name", package(pickled, "m.pt"), LoweringError, ("m.pt", "must end in .pt2")),
    ("a file of torch.save", package(pickled), LoweringError, ("m.pt2", "no package written by sparsify")),
    ("an entry with a path outside", package(lambda path: f.package(path, {"model/../../x": b""})), LoweringError, ("'model/../../x'", "outside")),
    ("an entry at an absolute path", package(lambda path: f.package(path, {"/tmp/x": b""})), LoweringError, ("'/tmp/x'", "outside")),
    ("an exported program beside", package(lambda path: f.package(path, {"model/models/m.json": b"{}"})), LoweringError, ("model/models/m.json", "never writes")),
    ("an entry that was altered", package(lambda path: f.package(path, {}, sha256={"model/version": "0"})), LoweringError, ("altered", "checksums differ")),
    ("a manifest nested 100,000 deep", package(lambda path: f.package(path, {}, manifest=DEEP)), LoweringError, ("damaged",)),
    ("a manifest of another machine", package(lambda path: f.package(path, {}, made={"system": "Plan9", "machine": "vax"})), LoweringError, ("Plan9", "lower the model on this machine")),
    ("an interface of a newer version", package(lambda path: f.package(path, {}, interface=f.interface(version=2))), LoweringError, ("version 2", "reads 1")),
    ("a dtype that is a function of torch", package(lambda path: f.package(path, {}, interface=f.interface(inputs=[{"name": "x", "shape": [1], "dtype": "load", "value": None}]))), LoweringError, ("'load'", "no dtype")),
    ("a manifest with no program behind it", package(lambda path: f.package(path, {})), LoweringError, ("m.pt2", "Lower the model again")),
)  # fmt: skip

_ONNX: tuple[tuple, ...] = (
    ("no ONNX file", onnx_model(lambda path: f.written(path, b"\x00" * 9)), LoweringError, ("onnxruntime cannot open", "m.onnx")),
    ("no description of the call", onnx_model(lambda path: f.onnx_file(path, None)), LoweringError, ("not written by sparsify",)),
    ("a description that is no JSON", onnx_model(lambda path: f.onnx_file(path, "{")), LoweringError, ("damaged description",)),
    ("a description nested 100,000 deep", onnx_model(lambda path: f.onnx_file(path, DEEP)), LoweringError, ("damaged description",)),
    ("a description that is a list", onnx_model(lambda path: f.onnx_file(path, "[]")), LoweringError, ("interface is damaged", "list")),
    ("a kind of parameter that does not exist", onnx_model(described(parameters=[{"name": "x", "kind": "__class__"}])), LoweringError, ("damaged", "__class__")),
    ("a dtype that torch does not have", onnx_model(described(inputs=[{"name": "x", "shape": [1], "dtype": "f", "value": None}])), LoweringError, ("damaged",)),
    ("a name of an argument that is code", onnx_model(described(parameters=[{"name": "x=print()", "kind": "KEYWORD_ONLY"}])), LoweringError, ("x=print()", "damaged")),
)  # fmt: skip

_POLICIES: tuple[tuple, ...] = (
    ("not UTF-8", policy(b"\xff\xfe\xfa\xfb{"), PolicyError, ("not JSON",)),
    ("a pickle", policy(b"\x80\x04}\x94."), PolicyError, ("not JSON",)),
)

ROWS = [
    *(Row("file of weights", *case) for case in _WEIGHTS),
    *(Row("data", *case) for case in _DATA),
    *(Row("checkpoint", *case) for case in _CHECKPOINTS),
    *(Row("package", *case) for case in _PACKAGES),
    *(Row("ONNX file", *case) for case in _ONNX),
    *(Row("policy file", *case) for case in _POLICIES),
]
