"""``SPARSIFY_DUMP=dir``: every stage of every capture as text, in a folder of its own, to read and to compare."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

from .errors import InputError
from .program import Program
from .text import program_text

VARIABLE = "SPARSIFY_DUMP"


def dump_from_environment(model: str) -> Callable[[str, Program], None] | None:
    """A :class:`Dump` for one capture of ``model`` if the environment asks for one."""
    root = os.environ.get(VARIABLE)
    return Dump(root, model) if root else None


class Dump:
    """Writes a program after each stage, as ``00-captured.txt``, ``01-analysed.txt``, ``02-fuse-attention.txt``, ...

    The folder is ``root/<model>-<number>``, the first that does not exist. A file is there whole or not at all.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, root: str | Path, model: str) -> None:
        name = re.sub(r"[^\w.-]+", "_", model)
        try:
            Path(root).mkdir(parents=True, exist_ok=True)
            self.folder = next(path for number in itertools.count() if _made(path := Path(root) / f"{name}-{number:03d}"))
        except OSError as error:
            raise InputError(f"{VARIABLE}={root}: {error}.") from error
        self._number = itertools.count()

    def __call__(self, stage: str, program: Program) -> None:
        """Write the program; ``stage`` is what it has just been through."""
        path = self.folder / f"{next(self._number):02d}-{stage}.txt"
        unfinished = path.with_suffix(".part")
        unfinished.write_text(program_text(program) + "\n")
        unfinished.replace(path)

    def __deepcopy__(self, memo: dict[int, object]) -> Dump:
        return self


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:  # of another capture, or of another process just now
        return False
    return True
