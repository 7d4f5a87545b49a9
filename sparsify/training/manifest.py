"""What a checkpoint is of: enough to refuse to go on with another model, policy, data or configuration, and to say which."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, TrainingError
from .config import TrainConfig

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 1 << 20
_SHOWN = 3  # differing weights that a message names


@dataclass(frozen=True)
class About:
    """What a run trains, on what, and how.

    Attributes:
        config: the configuration.
        passes: what made the model of the dense one, as text.
        model: the model's class.
        tensors: dtype and shape of every weight and buffer by name.
        data: fingerprint of the images.
        teacher: digest of the weights of the dense model that is distilled, or None.
    """

    config: TrainConfig
    passes: str
    model: str
    tensors: dict[str, list[Any]]
    data: str
    teacher: str | None = None

    def check_fits(self, other: About, folder: Path) -> None:
        """Check that this run can go on from a checkpoint of another.

        Args:
            other: what the checkpoint is of.
            folder: where it is, for the message.

        Raises:
            TrainingError: it is of another model, policy, configuration, teacher or of other data.
        """
        self._check_tensors(other, folder)
        if self.model != other.model:
            raise TrainingError(f"{folder} is of another model: a {other.model}, and this is a {self.model}.")
        hint = f"Give what {folder} was made with, or another folder, or start anew with resume=False (--fresh)."
        if self.passes != other.passes:
            raise TrainingError(
                f"{folder} was trained with another policy: its passes are {other.passes or 'none'}, those of this model "
                f"{self.passes or 'none'}. {hint}"
            )
        if differences := self.config.differences(other.config):
            name, (mine, theirs) = next(iter(differences.items()))
            raise TrainingError(f"TrainConfig.{name} is {mine!r}, but {folder} was trained with {theirs!r}. {hint}")
        if self.data != other.data:
            raise TrainingError(f"the data are {self.data}, but {folder} was trained on {other.data}. {hint}")
        if self.teacher != other.teacher:
            raise TrainingError(
                f"{folder} was trained with a teacher of other weights, or without one. A model that has been trained since is "
                f"no teacher: pass the dense one as teacher=. {hint}"
            )

    def _check_tensors(self, other: About, folder: Path) -> None:
        missing = [name for name in self.tensors if name not in other.tensors]
        further = [name for name in other.tensors if name not in self.tensors]
        if missing or further:
            raise TrainingError(
                f"{folder} is of another model or policy ({other.model}, {other.passes or 'dense'}): it lacks {_some(missing)} and has "
                f"{_some(further)} beside."
            )
        for name, mine in self.tensors.items():
            if mine != (theirs := other.tensors[name]):
                raise TrainingError(
                    f"{folder} is of another model: {name} is {theirs[0]} {tuple(theirs[1])} there and {mine[0]} {tuple(mine[1])} here."
                )


@dataclass(frozen=True)
class Manifest:
    """The list of a checkpoint's files, and what it is of.

    Attributes:
        step: how many steps are done.
        about: what it is of.
        files: size in bytes and SHA-256 by path within the folder.
        made: versions that wrote it.
    """

    step: int
    about: About
    files: dict[str, tuple[int, str]]
    made: dict[str, str]

    @classmethod
    def of(cls, folder: Path, step: int, about: About) -> Manifest:
        """The manifest for the files that lie in a folder."""
        from .. import __version__

        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
        files = {path.relative_to(folder).as_posix(): (path.stat().st_size, checksum(path)) for path in paths}
        return cls(step, about, files, {"torch": torch.__version__, "sparsify": __version__})

    def to_json(self) -> str:
        """What :meth:`read` reads."""
        about = asdict(self.about) | {"config": self.about.config.to_dict()}
        fields = {"format": FORMAT, "step": self.step, **about, "files": self.files, "made": self.made}
        return json.dumps(fields, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a checkpoint.

        Raises:
            TrainingError: there is none, it is damaged, or another version wrote it.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise TrainingError(f"{folder} is half-written or no checkpoint: it has no {MANIFEST}. Remove it.")
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise TrainingError(f"{path} has the format {data['format']!r}; this version of sparsify reads {FORMAT}.")
            config = TrainConfig.from_dict(data["config"])
            about = About(config, data["passes"], data["model"], dict(data["tensors"]), data["data"], data["teacher"])
            files = {name: (int(size), str(digest)) for name, (size, digest) in data["files"].items()}
            if away := [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]:
                raise ValueError(f"it names {away[0]!r}, which lies outside of the folder")
            return cls(int(data["step"]), about, files, data["made"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError) as error:
            raise TrainingError(f"{path} is damaged ({type(error).__name__}: {error}); remove {folder}.") from error


def described(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
    """Dtype and whole shape by name, in plain JSON types."""
    return {name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()}


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "nothing") + rest
