"""Checkpoints in a folder: whole ones or none, the newest few of them, and nothing in them that is executed.

``step-00001000/`` holds ``model.safetensors`` and ``ema.safetensors`` for use elsewhere, ``state/`` to go on from
(:mod:`~sparsify.training.state`), and ``manifest.json``. It is written under another name, brought to the disk, and renamed.
What a killed run left half-written has such another name and is removed when the next one starts.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import TrainingError
from .manifest import MANIFEST, About, Manifest, checksum
from .parallel import Group, whole
from .state import write_state

STATE = "state"
_NAME = re.compile(r"step-(\d{8,})")
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of file systems without locks
_LEFTOVER = re.compile(r"\.step-\d{8,}\.(partial|old)")


def steps_in(root: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, oldest first."""
    if not root.is_dir():
        return {}
    found = {int(match[1]): path for path in root.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def latest(root: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None if it has none."""
    return next(reversed(steps_in(Path(root)).values()), None)


@contextmanager
def held(root: Path, group: Group) -> Iterator[None]:
    """Make the folder of a run, and keep other runs out of it; of several processes all must call it.

    Raises:
        TrainingError: another run has it, or nothing can be written there.
    """
    from filelock import FileLock, Timeout

    lock, problem = FileLock(root / ".lock"), None
    if group.is_main:
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            problem = f"another run is writing to {root}; wait until it ends, or give another folder."
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # there nobody can know
                problem = f"nothing can be written to {root}: {error}"
    group.agree(problem)
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(root: Path) -> None:
    """Remove what a killed run had not finished writing or removing."""
    for path in list(root.iterdir()) if root.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path)


def remove_all(root: Path) -> None:
    """Remove the checkpoints of a run, to start it anew."""
    for path in steps_in(root).values():
        _remove(path)


def save(
    root: Path,
    step: int,
    about: About,
    state: Mapping[str, torch.Tensor],
    weights: Mapping[str, Mapping[str, torch.Tensor]],
    group: Group,
    keep: int,
) -> Path:
    """Write the checkpoint of a step; of several processes all must call it, on one file system.

    Args:
        root: folder of the run.
        step: how many steps are done.
        about: what the checkpoint is of.
        state: what to go on from, see :func:`~sparsify.training.state.flat_state`.
        weights: what goes to ``NAME.safetensors``, by name.
        group: the processes.
        keep: how many checkpoints stay.

    Returns:
        Its folder.
    """
    folder, draft = root / f"step-{step:08d}", root / f".step-{step:08d}.partial"
    if group.is_main:
        shutil.rmtree(draft, ignore_errors=True)
        (draft / STATE).mkdir(parents=True)
    group.wait()
    write_state(draft / STATE, state, group.is_alone)
    for name, tensors in weights.items():
        _write_weights(draft / f"{name}.safetensors", whole(tensors, group.is_main), group.is_main)
    group.wait()
    if group.is_main:
        manifest = Manifest.of(draft, step, about)
        (draft / MANIFEST).write_text(manifest.to_json())
        _sync(draft)
        if folder.exists():  # of a run that was set back
            _remove(folder)
        os.replace(draft, folder)
        _sync_folder(root)
        for old in list(steps_in(root).values())[:-keep]:
            _remove(old)
    group.wait()
    return folder


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all there, in the sizes they were written in.

    Raises:
        TrainingError: it is half-written, damaged, or of another version of sparsify.
    """
    manifest = Manifest.read(folder)
    for name, (size, _) in manifest.files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes, but {size} were written"
            raise TrainingError(f"{path} {state}; {advice(folder)}")
    if not (folder / STATE).is_dir():
        raise TrainingError(f"{folder / STATE} is missing; {advice(folder)}")
    for path in (folder / STATE).iterdir():  # all that lie there are read
        if f"{STATE}/{path.name}" not in manifest.files:
            raise TrainingError(f"{path} does not belong to the checkpoint; remove it.")
    return manifest


def damaged(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with the contents of a checkpoint's files, as their checksums tell, or None."""
    for name, (_, digest) in manifest.files.items():
        if checksum(folder / name) != digest:
            return f"{folder / name} has been altered since it was written: its checksum differs; {advice(folder)}"
    return None


def advice(folder: Path) -> str:
    """What to do about a checkpoint that cannot be used."""
    number = int(_NAME.fullmatch(folder.name)[1]) if _NAME.fullmatch(folder.name) else 0  # type: ignore[index]
    earlier = [step for step in steps_in(folder.parent) if step < number]
    then = f"go on from step {earlier[-1]}" if earlier else "start anew"
    return f"remove {folder} to {then}."


def _write_weights(path: Path, tensors: dict[str, torch.Tensor], is_main: bool) -> None:
    if is_main:
        from safetensors.torch import save_file

        save_file(tensors, path)


def _remove(path: Path) -> None:
    """Under another name, so that a checkpoint that is half removed is none."""
    grave = path.with_name(f".{path.name}.old")
    shutil.rmtree(grave, ignore_errors=True)
    os.replace(path, grave)
    shutil.rmtree(grave)


def _sync(folder: Path) -> None:
    """Bring all files below a folder to the disk, and the folders that name them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
