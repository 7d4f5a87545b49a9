"""AOTInductor: one ``.pt2`` package with every pooled grid, the weights once, that runs without the model's Python code."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from ..clock import Clock
from ..ends import Grid
from ..errors import LoweringError
from ..quiet import quiet
from ..runtime import SparseModel
from .artifact import Artifact
from .exported import Exported, exported, grids_for
from .interface_text import interface_to_dict
from .package import Package, read_package, write_package

Shapes = Literal["dynamic", "per_grid"]
_WEIGHTS_APART = {"aot_inductor.package": True, "aot_inductor.package_constants_in_so": False}


def lower_aot_inductor(
    sparse: SparseModel,
    *,
    out: str | Path | None = None,
    shapes: Shapes = "dynamic",
    grids: Sequence[Grid] | None = None,
    batch: int | tuple[int, int] | None = None,
    example_inputs: Any = None,
    inductor: Mapping[str, Any] | None = None,
) -> AotModel:
    """Compile ahead of time into a package, and load it.

    Args:
        sparse: the model, captured, in evaluation mode; it is not changed.
        out: the ``.pt2`` file to write; a temporary one that lives as long as the result if not given.
        shapes: ``"dynamic"``, one program for all pooled grids; ``"per_grid"``, one for each, faster to run and slower to
            compile. Both hold the weights once.
        grids: pooled grids to compile for; those of the policy's density if not given.
        batch: a batch size, or a least and a largest one.
        example_inputs: a call to compile for: its resolution, its lengths of texts; that of the capture if not given.
        inductor: further options of Inductor, such as ``{"max_autotune": True}``; not ``freezing``, which hides the weights.

    Raises:
        LoweringError: the model or an option does not allow it.
    """
    if shapes not in ("dynamic", "per_grid"):
        raise LoweringError(f"shapes is {shapes!r}; it must be 'dynamic' or 'per_grid'.")
    if (inductor or {}).get("freezing"):
        raise LoweringError("inductor has 'freezing', which writes weights into the code; a package holds them apart.")
    if out is not None and Path(out).suffix != ".pt2":
        raise LoweringError(f"out is {str(out)!r}; the name of a package must end in .pt2.")
    all_grids = grids_for(sparse, example_inputs, grids)
    each = all_grids if shapes == "per_grid" and all_grids else (None,)
    programs = {grid: exported(sparse, example_inputs=example_inputs, grids=grids, pooled=grid, batch=batch) for grid in each}
    interface_to_dict(next(iter(programs.values())).interface)  # what no file can hold is told before the long part
    files = {_name(grid): _compiled(program, inductor or {}) for grid, program in programs.items()}
    interface = replace(next(iter(programs.values())).interface, grids=all_grids)
    folder = tempfile.TemporaryDirectory() if out is None else None
    path = Path(folder.name) / "model.pt2" if folder is not None else Path(out or "")
    weights, constants = _weights(programs.values())
    write_package(path, interface, files, weights, constants)
    package = read_package(path)
    package.interface = replace(package.interface, output=interface.output)  # the model's own class of results
    return AotModel(package, sparse._clock, folder)


def load(path: str | Path) -> AotModel:
    """The model in a package, callable like the original; needs neither its Python code nor its weights elsewhere.

    A package holds machine code: load only what you trust. Its checksums find damage, not malice.

    Raises:
        LoweringError: no package of ours, damaged, or made for another device or platform.
    """
    return AotModel(read_package(Path(path)))


class AotModel(Artifact):
    """A loaded package. ``path`` is the file."""

    def __init__(self, package: Package, clock: Clock | None = None, folder: object = None) -> None:
        super().__init__(package.interface, self._run_compiled, clock)
        self.path = package.path
        self._package = package
        self._folder = folder  # of a temporary package; it goes when the model goes

    def load_state_dict(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take the weights of a sparse model's ``state_dict()``, fine-tuned for one, without compiling again.

        Raises:
            LoweringError: some are missing, or of another shape or dtype; nothing is changed then.
        """
        self._package.use(weights)

    def _run_compiled(self, inputs: Sequence[torch.Tensor], grid: Grid | None) -> Sequence[torch.Tensor]:
        if grid is None or not self.interface.between:
            return self._package.programs[_name(grid)](*inputs)  # type: ignore[no-any-return]
        carrier = self._carrier(grid, inputs[0].device)
        return self._package.programs[_name(None)](*inputs, carrier)  # type: ignore[no-any-return]


def _name(grid: Grid | None) -> str:
    return "model" if grid is None else "grid_" + "x".join(map(str, grid))


def _compiled(program: Exported, options: Mapping[str, Any]) -> list[Any]:
    """The files that Inductor makes of one program, without its weights."""
    module = program.program.module()
    try:
        with quiet():
            files = torch._inductor.aot_compile(module, program.example, options={**options, **_WEIGHTS_APART})
    except Exception as error:  # from options to the C++ compiler, its errors share no base but this
        reason = (str(error).strip().splitlines() or [""])[0]
        raise LoweringError(f"Inductor cannot compile the graph: {type(error).__name__}: {reason}") from error
    return list(files)  # type: ignore[arg-type]  # a list of files where a package is asked for


def _weights(programs: Iterable[Exported]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What is in the model's ``state_dict()``, and what else the programs read."""
    weights: dict[str, torch.Tensor] = {}
    constants: dict[str, torch.Tensor] = {}
    for exported_program in programs:
        program = exported_program.program
        constants |= {name: value for name, value in program.constants.items() if isinstance(value, torch.Tensor)}
        weights |= program.state_dict
    return weights, constants
