"""Nothing that loads a file executes code from it: pickles in every kind of file, and the source of the loaders."""

from __future__ import annotations

import ast
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import torch

from sparsify import SparsifyError
from sparsify.cli.sources import load_model, load_policy
from sparsify.targets import aot_inductor, onnx
from sparsify.training import load_images
from sparsify.training.checkpoint import read_manifest
from sparsify.training.setup import load_weights
from sparsify.training.state import read_state

from . import files as f
from .tiny import shared

ROOT = Path(__file__).parents[2]
Load = Callable[[Path, bytes, object], object]


def raw(name: str, load: Callable[[Path], object]) -> Load:
    """The pickle alone, under a name that promises something else."""
    return lambda folder, poison, payload: load(f.written(folder / name, poison))


def saved(name: str, load: Callable[[Path], object]) -> Load:
    """What torch.save writes: a zip with a pickle in it."""

    def run(folder: Path, poison: bytes, payload: object) -> object:
        torch.save({"w": payload}, folder / name)
        return load(folder / name)

    return run


def objects(folder: Path, poison: bytes, payload: object) -> object:
    numpy.save(folder / "a.npy", numpy.array([payload], dtype=object), allow_pickle=True)
    return load_images(folder / "a.npy")


def archive(folder: Path, poison: bytes, payload: object) -> object:
    numpy.savez(folder / "a.npz", images=numpy.array([payload], dtype=object))
    return load_images(folder / "a.npz")


def pickled_labels(folder: Path, poison: bytes, payload: object) -> object:
    numpy.savez(
        folder / "a.npz", images=numpy.zeros((1, 1, 8, 8), dtype=numpy.uint8), labels=numpy.array([payload], dtype=object)
    )
    return load_images(folder / "a.npz")


def calibration(folder: Path, poison: bytes, payload: object) -> object:
    return shared()[1].calibrate([f.written(folder / "batch.pt", poison)])


def pictures(folder: Path, poison: bytes, payload: object) -> object:
    f.written(folder / "pictures" / "a.png", poison)
    return load_images(folder / "pictures")


def package(folder: Path, poison: bytes, payload: object) -> object:
    """A good manifest, and pickles where torch keeps weights, constants and sample inputs."""
    torch.save(payload, folder / "x.pt")
    content = (folder / "x.pt").read_bytes()
    places = (
        "data/weights/weight_0",
        "data/constants/tensor_0",
        "data/sample_inputs/model.pt",
        "data.pkl",
        "data/aotinductor/model/x.pkl",
    )
    return aot_inductor.load(f.package(folder / "m.pt2", {f"model/{place}": content for place in places}))


def exported_program(folder: Path, poison: bytes, payload: object) -> object:
    """A good manifest, and an exported program whose sizes are Python expressions."""
    program = json.dumps({"graph_module": {"expr_str": "__import__('os').mkdir('sentinel')"}}).encode()
    return aot_inductor.load(f.package(folder / "m.pt2", {"model/models/model.json": program}))


def zipped(folder: Path, poison: bytes, payload: object) -> object:
    with zipfile.ZipFile(folder / "m.pt2", "w") as file:
        file.writestr("model/data.pkl", poison)
    return aot_inductor.load(folder / "m.pt2")


def described(folder: Path, poison: bytes, payload: object) -> object:
    kinds = [{"name": "x", "kind": "POSITIONAL_OR_KEYWORD", "default": {"__reduce__": ["os.mkdir", "sentinel"]}}]
    return onnx.load(f.onnx_file(folder / "m.onnx", json.dumps(f.interface(parameters=kinds))))


def state(folder: Path, poison: bytes, payload: object) -> object:
    """A checkpoint whose list of files is as it should be, and whose state is a pickle."""
    f.written(folder / "state" / "shard-00001.safetensors", poison)
    return read_state(folder / "state", {"w": torch.zeros(2)}, alone=True)


def metadata(folder: Path, poison: bytes, payload: object) -> object:
    """The usual format of torch.distributed.checkpoint, whose metadata is a pickle."""
    f.written(folder / "state" / ".metadata", poison)
    return read_state(folder / "state", {"w": torch.zeros(2)}, alone=True)


def manifest(folder: Path, poison: bytes, payload: object) -> object:
    return read_manifest(f.written(folder / "step-00000002" / "manifest.json", poison).parent)


LOADERS: dict[str, Load] = {
    "policy": raw("policy.json", lambda path: load_policy(str(path))),
    "configuration": raw("config.json", lambda path: load_model("DiTTransformer2DModel", None, str(path), None, "cpu")),
    "weights": raw("w.safetensors", lambda path: load_weights(shared()[1], path)),
    "weights of torch.save": saved("w.safetensors", lambda path: load_weights(shared()[1], path)),
    "checkpoint's state": state,
    "checkpoint's metadata": metadata,
    "checkpoint's manifest": manifest,
    "images": raw("a.npy", load_images),
    "images as objects": objects,
    "archive of images": raw("a.npz", load_images),
    "archive of images as objects": archive,
    "labels as objects": pickled_labels,
    "images of torch.save": saved("a.safetensors", load_images),
    "picture": pictures,
    "calibration batch": calibration,
    "package": raw("m.pt2", aot_inductor.load),
    "package of torch.save": saved("m.pt2", aot_inductor.load),
    "package with pickles": package,
    "package with an exported program": exported_program,
    "zip with a pickle": zipped,
    "ONNX": raw("m.onnx", onnx.load),
    "ONNX description": described,
}  # fmt: skip


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS.keys())
def test_no_file_executes_code(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sentinel = tmp_path / "sentinel"
    with pytest.raises(SparsifyError):
        load(tmp_path, f.poison(sentinel), f.Payload(sentinel))
    assert not sentinel.exists()


def test_the_payload_is_live(tmp_path: Path) -> None:
    pickle.loads(f.poison(tmp_path / "sentinel"))
    assert (tmp_path / "sentinel").is_dir()


# What unpickles or evaluates, and the places that may, each with its reason: none so far.
ALLOWED: dict[str, str] = {}
_EVALUATES = {"eval", "exec", "__import__"}
_LOADS = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("pickle", "Unpickler"),
    ("marshal", "loads"),
    ("shelve", "open"),
    ("joblib", "load"),
    ("yaml", "load"),
}
_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def calls_that_execute(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.split(".")[0] in _MODULES)
        if not isinstance(node, ast.Call):
            continue
        options = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
        if isinstance(node.func, ast.Name) and node.func.id in _EVALUATES:
            yield node.func.id
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            owner, name = node.func.value.id, node.func.attr
            if (owner, name) in _LOADS:
                yield f"{owner}.{name}"
            if (owner, name) == ("torch", "load") and options.get("weights_only") is not True:
                yield "torch.load without weights_only=True"
            if (owner in ("numpy", "np")) and name == "load" and options.get("allow_pickle", False) is not False:
                yield f"{owner}.load with allow_pickle"


def test_no_source_unpickles_or_evaluates() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {call}"
        for folder in ("sparsify", "passes", "targets")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for call in calls_that_execute(path.read_text())
    }
    assert found == ALLOWED.keys()


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from dill import loads", "eval(x)", "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "numpy.load(f, allow_pickle=flag)"],
)  # fmt: skip
def test_the_check_of_sources_sees(source: str) -> None:
    assert list(calls_that_execute(source))


def test_the_check_of_sources_lets_pass() -> None:
    assert not list(calls_that_execute("torch.load(f, weights_only=True); numpy.load(f, allow_pickle=False); model.eval()"))
