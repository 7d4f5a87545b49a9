"""The ``.pt2`` package on disk: compiled programs, one copy of the weights, and a manifest that tells damage from use."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import LoweringError
from .interface import Interface
from .interface_text import interface_from_dict, interface_to_dict

_MANIFEST = "extra/sparsify.json"
_WEIGHTS = "data/weights.safetensors"
_CHUNK = 1 << 20


@dataclass
class Package:
    """An opened package.

    Attributes:
        weights: by name; every program runs on these very tensors.
        constants: those of them that are no part of the model's ``state_dict()``.
    """

    path: Path
    interface: Interface
    weights: dict[str, torch.Tensor]
    constants: frozenset[str]
    programs: dict[str, Any] = field(repr=False)

    def use(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Let every program run on other weights.

        Raises:
            LoweringError: some are missing, or of another shape or dtype; nothing is changed then.
        """
        replaced = {name: old for name, old in self.weights.items() if name not in self.constants}
        for name, old in replaced.items():
            new = weights.get(name)
            if new is None:
                raise LoweringError(f"the weight {name} is missing; give a whole state_dict() of the sparse model.")
            if (new.shape, new.dtype) != (old.shape, old.dtype):
                raise LoweringError(
                    f"the weight {name} is {new.dtype} of shape {tuple(new.shape)}, compiled as {old.dtype} of shape {tuple(old.shape)}."
                )
        self.weights |= {name: weights[name].detach().to(old.device, copy=True).contiguous() for name, old in replaced.items()}
        self.bind()

    def bind(self) -> None:
        """Hand the weights to the programs, without copies."""
        for program in self.programs.values():
            own = {name: self.weights[name] for name in program.get_constant_fqns()}
            program.load_constants(own, check_full_update=True, user_managed=True)


def write_package(
    path: Path,
    interface: Interface,
    files: Mapping[str, Sequence[Any]],
    weights: Mapping[str, torch.Tensor],
    constants: Mapping[str, torch.Tensor],
) -> None:
    """Write a package; what stood at ``path`` before stays until the new one is whole."""
    from safetensors.torch import save
    from torch.export.pt2_archive._package import package_pt2

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / "draft.pt2"
        package_pt2(str(draft), aoti_files={name: list(paths) for name, paths in files.items()})
        with zipfile.ZipFile(draft, "a", zipfile.ZIP_STORED) as archive:
            root = _root(archive)
            archive.writestr(root + _WEIGHTS, save({name: _savable(t) for name, t in {**constants, **weights}.items()}))
        manifest = {
            "interface": interface_to_dict(interface),
            "constants": sorted(set(constants) - set(weights)),
            "made": _made_by(interface.device),
            "sha256": _checksums(draft),
        }
        with zipfile.ZipFile(draft, "a", zipfile.ZIP_STORED) as archive:
            archive.writestr(root + _MANIFEST, json.dumps(manifest))
        os.replace(draft, path)


def read_package(path: Path) -> Package:
    """Check and open a package.

    Raises:
        LoweringError: no package of ours, damaged, or made for another device or platform.
    """
    from safetensors.torch import load
    from torch.export.pt2_archive._package import load_pt2

    if not path.is_file():
        raise LoweringError(f"there is no file {path}.")
    if path.suffix != ".pt2":
        raise LoweringError(f"{path} is no package: its name must end in .pt2.")
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)
            _check_entries(path, root, archive.namelist())
            if root + _MANIFEST not in archive.namelist():
                raise LoweringError(f"{path} is no package written by sparsify: it has no {_MANIFEST}.")
            manifest = json.loads(archive.read(root + _MANIFEST))
            _check_made_by(path, manifest["made"])
            interface = interface_from_dict(manifest["interface"])
            if _checksums(path) != manifest["sha256"]:
                raise LoweringError(
                    f"{path} has been altered since it was written: its checksums differ. Lower the model again."
                )
            weights = load(archive.read(root + _WEIGHTS))
            constants = frozenset(manifest["constants"])
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoweringError(
            f"{path} is truncated or damaged ({type(error).__name__}: {error}). Lower the model again."
        ) from error
    device = torch.device(interface.device)
    weights = {name: tensor.to(device) for name, tensor in weights.items()}
    try:
        package = Package(path, interface, weights, constants, load_pt2(str(path)).aoti_runners)
        package.bind()
    except (RuntimeError, KeyError, OSError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise LoweringError(
            f"torch cannot load {path} here ({type(error).__name__}: {reason}). Lower the model again."
        ) from error
    return package


def _check_entries(path: Path, root: str, names: Sequence[str]) -> None:
    """torch unpacks entries to where their names say, and reads exported programs, whose sizes are Python expressions."""
    for name in names:
        if not name.startswith(root) or "\\" in name or ".." in name.split("/"):
            raise LoweringError(f"{path} has the entry {name!r}, which lies outside of the package. Lower the model again.")
        if name.startswith((root + "models/", root + "executorch/")):
            raise LoweringError(f"{path} has the entry {name!r}, which sparsify never writes. Lower the model again.")


def _savable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().clone()  # a copy, because tied weights share memory


def _root(archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    if not names:
        raise zipfile.BadZipFile("the archive is empty")
    return names[0].split("/")[0] + "/"


def _checksums(path: Path) -> dict[str, str]:
    """The SHA-256 of every entry but the manifest."""
    sums = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith("/" + _MANIFEST):
                digest = hashlib.sha256()
                with archive.open(name) as entry:
                    for chunk in iter(lambda: entry.read(_CHUNK), b""):
                        digest.update(chunk)
                sums[name] = digest.hexdigest()
    return sums


def _made_by(device: str) -> dict[str, str]:
    made = {"torch": torch.__version__, "system": platform.system(), "machine": platform.machine(), "device": device}
    return made | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def _check_made_by(path: Path, made: Mapping[str, str]) -> None:
    here = {"system": platform.system(), "machine": platform.machine()}
    for key, value in here.items():
        if made[key] != value:
            raise LoweringError(f"{path} was compiled for {made[key]}, this is {value}; lower the model on this machine.")
    if made["device"] == "cuda":
        if not torch.cuda.is_available():
            raise LoweringError(f"{path} was compiled for a {made.get('gpu', 'GPU')}, and torch sees no GPU here.")
        if (gpu := torch.cuda.get_device_name()) != made.get("gpu"):
            raise LoweringError(
                f"{path} was compiled for a {made.get('gpu')}, this is a {gpu}; lower the model on this machine."
            )
    if _release(made["torch"]) != _release(torch.__version__):
        warnings.warn(f"{path} was compiled with torch {made['torch']}, this is {torch.__version__}.", stacklevel=4)


def _release(version: str) -> list[str]:
    return version.split(".")[:2]
