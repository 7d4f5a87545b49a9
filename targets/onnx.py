"""ONNX: files that onnxruntime and TensorRT read; one graph for all pooled grids, or one for each with the weights once."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..clock import Clock
from ..ends import Grid
from ..errors import LoweringError
from ..quiet import quiet
from ..runtime import SparseModel
from .artifact import Artifact, path_of
from .exported import Exported, exported, grids_for
from .interface import BATCH, Interface
from .interface_text import interface_from_dict, interface_to_dict
from .onnx_weights import save_with_shared_weights
from .trtexec import trtexec

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 20  # the first with GELU; TensorRT 10 reads it
OPSET_BF16 = 22  # the first whose convolutions take bfloat16
_OPSETS = range(18, 24)
_METADATA = "sparsify"


def lower_onnx(
    sparse: SparseModel,
    *,
    out: str | Path | None = None,
    shapes: Literal["dynamic", "per_grid"] = "dynamic",
    grids: Sequence[Grid] | None = None,
    batch: int | tuple[int, int] | None = None,
    example_inputs: Any = None,
    opset: int | None = None,
    providers: Sequence[str] | None = None,
) -> OnnxModel:
    """Write ONNX files of standard operators alone, and open them with onnxruntime.

    Args:
        sparse: the model, captured, in evaluation mode; it is not changed. In bfloat16 the file is for TensorRT: onnxruntime has
            few operators for it.
        out: the ``.onnx`` file to write, with its weights in ``<out>.data``; temporary ones that live as long as the result
            if not given. With ``per_grid`` there is a file for each grid, such as ``model_8x8.onnx``.
        shapes: ``"dynamic"``, one graph with an open number of tokens: the pooled grid comes in as the shape of one more
            input, ``pooled_grid``. ``"per_grid"``, one graph for each.
        grids: pooled grids to write; those of the policy's density if not given.
        batch: a batch size, or a least and a largest one.
        example_inputs: a call to export for: its resolution, its lengths of texts; that of the capture if not given.
        opset: of the standard operators, 18 to 23; 20, or 22 in bfloat16, if not given.
        providers: of onnxruntime; its CPU provider if not given.

    Raises:
        LoweringError: the model or an option does not allow it.
    """
    if shapes not in ("dynamic", "per_grid"):
        raise LoweringError(f"shapes is {shapes!r}; it must be 'dynamic' or 'per_grid'.")
    if opset is not None and opset not in _OPSETS:
        raise LoweringError(f"opset is {opset!r}; it must be {_OPSETS[0]} to {_OPSETS[-1]}.")
    if out is not None and Path(out).suffix != ".onnx":
        raise LoweringError(f"out is {str(out)!r}; the name of an ONNX file must end in .onnx.")
    all_grids = grids_for(sparse, example_inputs, grids)
    each = all_grids if shapes == "per_grid" and all_grids else (None,)
    folder = tempfile.TemporaryDirectory() if out is None else None
    path = Path(folder.name) / "model.onnx" if folder is not None else Path(out or "")
    models: dict[Path, ir.Model] = {}
    for grid in each:
        program = exported(sparse, example_inputs=example_inputs, grids=grids, pooled=grid, batch=batch, real=True)
        interface = replace(program.interface, grids=all_grids)
        models[path_of(path, grid)] = _onnx_model(program, interface, opset or _opset_for(program))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_with_shared_weights(models, path.name + ".data", stale=[path, *_grid_files(path)])
    model = OnnxModel(path, interface, providers, sparse._clock, folder)
    with contextlib.suppress(LoweringError):  # a file may be for another machine; a call here will tell
        model.open()
    return model


def load(path: str | Path, providers: Sequence[str] | None = None) -> OnnxModel:
    """The model in ONNX files, callable like the original; needs neither its Python code nor its weights elsewhere.

    Args:
        path: the name that :func:`lower_onnx` was given.
        providers: of onnxruntime; its CPU provider if not given.

    Raises:
        LoweringError: no such files, or not written by sparsify.
    """
    path = Path(path)
    known = [path] if path.is_file() else _grid_files(path)
    if not known:
        raise LoweringError(f"there is no file {path}, nor one for a grid such as {path_of(path, (8, 8)).name}.")
    metadata = _session(known[0], providers).get_modelmeta().custom_metadata_map
    if _METADATA not in metadata:
        raise LoweringError(f"{known[0]} was not written by sparsify: it does not say how the model is called.")
    try:
        data = json.loads(metadata[_METADATA])
    except (ValueError, RecursionError) as error:
        raise LoweringError(f"{known[0]} has a damaged description of its call: {error}.") from error
    model = OnnxModel(path, interface_from_dict(data), providers)
    model.open()
    return model


class OnnxModel(Artifact):
    """ONNX files, run by onnxruntime. ``paths`` are the files, by pooled grid; None stands for all."""

    def __init__(
        self,
        path: Path,
        interface: Interface,
        providers: Sequence[str] | None = None,
        clock: Clock | None = None,
        folder: object = None,
    ) -> None:
        super().__init__(interface, self._run_session, clock)
        self._folder = folder  # of temporary files; they go when the model goes
        per_grid = not interface.between and interface.density is not None
        self.paths = {grid: path_of(path, grid) for grid in (interface.grids if per_grid else (None,))}
        self._providers = providers
        self._sessions: dict[Grid | None, Any] = {}

    def open(self) -> None:
        """Open every file now; otherwise each is opened when it is first run, which not all files need to be here.

        Raises:
            LoweringError: onnxruntime cannot open one.
        """
        for grid, file in self.paths.items():
            if grid not in self._sessions:
                self._sessions[grid] = _session(file, self._providers)

    def trtexec(self, **options: Any) -> str:
        """Command lines that build TensorRT engines of these files, one a line; options as for :func:`.trtexec.trtexec`."""
        import onnx

        lines = []
        for path in self.paths.values():
            inputs = {given.name for given in onnx.load(path, load_external_data=False).graph.input}
            lines.append(trtexec(path, self.interface, inputs=inputs, **options))
        return "\n".join(lines)

    def _run_session(self, inputs: Sequence[torch.Tensor], grid: Grid | None) -> Sequence[torch.Tensor]:
        self.open()
        is_open = None in self.paths
        session = self._sessions[None if is_open else grid]
        values = list(inputs) + ([self._carrier(grid, torch.device("cpu"))] if grid is not None and is_open else [])
        tensors = (i.name for i in self.interface.inputs if i.dtype is not None)
        feeds = {name: value.detach().cpu().numpy() for name, value in zip([*tensors, "pooled_grid"], values, strict=False)}
        known = {given.name for given in session.get_inputs()}  # what the graph does not read is not among its inputs
        results = session.run(None, {name: value for name, value in feeds.items() if name in known})
        return [torch.from_numpy(result).to(inputs[0].device) for result in results]


def _grid_files(path: Path) -> list[Path]:
    """The files of single grids that belong to the name ``path``."""
    form = re.compile(rf"{re.escape(path.stem)}_\d+(x\d+)*{re.escape(path.suffix)}")
    return sorted(other for other in path.parent.glob(f"*{path.suffix}") if form.fullmatch(other.name))


def _session(path: Path, providers: Sequence[str] | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers or ["CPUExecutionProvider"]))
    except Exception as error:  # onnxruntime's own classes share no base but this
        raise LoweringError(f"onnxruntime cannot open {path}: {str(error).splitlines()[0]}") from error


def _onnx_model(program: Exported, interface: Interface, opset: int) -> ir.Model:
    """The graph in memory, its open sizes under names that say what they are."""
    with quiet():
        try:
            made = torch.onnx.export(
                program.program, dynamo=True, opset_version=opset, verbose=False, optimize=True, external_data=False
            )
        except Exception as error:
            raise LoweringError(f"torch.onnx cannot translate the graph: {str(error).splitlines()[0]}") from error
    model: ir.Model = made.model  # type: ignore[union-attr]
    if foreign := sorted({node.domain for node in model.graph if node.domain}) or sorted(map(str, model.functions)):
        raise LoweringError(f"the ONNX graph has operators outside of the standard: {foreign}.")
    _rename_sizes(model, program)
    for node in model.graph:  # stacks of the exporter, with the paths of this machine
        node.metadata_props.clear()
    model.metadata_props[_METADATA] = json.dumps(interface_to_dict(interface))
    return model


def _opset_for(program: Exported) -> int:
    tensors = program.program.state_dict.values()
    return OPSET_BF16 if any(tensor.dtype == torch.bfloat16 for tensor in tensors) else OPSET


def _rename_sizes(model: ir.Model, program: Exported) -> None:
    import onnx_ir as ir

    names = _names_of_sizes(program)
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            renamed = (_renamed(size.value, names) if isinstance(size, ir.SymbolicDim) else size for size in value.shape)
            value.shape = ir.Shape(list(renamed))


def _renamed(size: str | None, names: dict[str, str]) -> str | None:
    return None if size is None else re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size)


def _names_of_sizes(program: Exported) -> dict[str, str]:
    nodes = program.program.graph.find_nodes(op="placeholder")
    users = [node for node in nodes if node.name in program.program.graph_signature.user_inputs]
    names: dict[str, str] = {}
    shapes = [given.shape for given in program.interface.inputs if given.dtype is not None]
    for node, shape in zip(users, shapes, strict=False):
        names |= {str(node.meta["val"].shape[axis]): BATCH for axis, size in enumerate(shape) if size == BATCH}
    if program.sides:
        names |= {str(users[-1].meta["val"].shape[axis]): name for axis, (name, _, _) in program.sides.items()}
    return names
