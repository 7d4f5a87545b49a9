"""TensorRT engines through ``torch_tensorrt.dynamo``: one for all pooled grids, or one for each."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import fx

from ..ends import Grid
from ..errors import LoweringError
from ..runtime import SparseModel
from .artifact import Artifact, path_of
from .exported import Exported, exported, grids_for, stage_for
from .fp8 import with_fp8
from .interface import Interface
from .tensorrt_graph import for_tensorrt
from .tensorrt_ops import unsupported
from .trtexec import profiles

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "fp8"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
_DEVICE = "cuda"


def missing() -> str | None:
    """What keeps the target from being used here and what to do about it, or None."""
    try:
        importlib.import_module("torch_tensorrt.dynamo")
    except (ImportError, OSError, RuntimeError) as error:
        return (
            f"torch_tensorrt or a library it needs cannot be loaded ({type(error).__name__}: {error}); run pip install "
            f"'sparsedit[tensorrt]', which brings TensorRT, with the release of torch_tensorrt that is made for torch "
            f"{torch.__version__}"
        )
    if not torch.cuda.is_available():
        return (
            "TensorRT needs an NVIDIA GPU, and torch finds none; on a machine with one install its driver and a torch that is "
            "built for CUDA"
        )
    return None


def lower_tensorrt(
    sparse: SparseModel,
    *,
    out: str | Path | None = None,
    shapes: Literal["profiles", "per_grid"] = "profiles",
    precision: Precision | None = None,
    grids: Sequence[Grid] | None = None,
    batch: int | tuple[int, int] | None = None,
    example_inputs: Any = None,
    cache_dir: str | Path | None = None,
    refit: bool = False,
    whole: bool = False,
    options: Mapping[str, Any] | None = None,
) -> TensorRTModel:
    """Build TensorRT engines.

    Args:
        sparse: the model, captured, in evaluation mode, on a GPU; it is not changed.
        out: the ``.ep`` file to save the engine to, or with ``per_grid`` the engines, such as ``model_8x8.ep``; nothing is
            saved if not given. ``torch_tensorrt.load`` reads them.
        shapes: ``"profiles"``, one engine with a least, usual and largest shape of each input; ``"per_grid"``, one engine
            for each pooled grid, faster to run, slower to build, each with its own copy of the weights.
        precision: that of the weights and of what is computed; the model's own if not given. Callers give and get the
            model's own dtypes all the same. ``"fp8"`` is bfloat16 with linear layers in FP8, scaled on the example call.
        grids: pooled grids to build for; those of the policy's density if not given.
        batch: a batch size, or a least and a largest one.
        example_inputs: a call to build for: its resolution, its lengths of texts; that of the capture if not given.
        cache_dir: a folder that keeps engines and timings, so that the same engine is built once.
        refit: whether :meth:`TensorRTModel.refit` will be used.
        whole: refuse, instead of warn, where an operator has no converter and would run in PyTorch between engines.
        options: further options of ``torch_tensorrt.dynamo.compile``, such as ``{"optimization_level": 5}``.

    Raises:
        LoweringError: the model or an option does not allow it.
    """
    if shapes not in ("profiles", "per_grid"):
        raise LoweringError(f"shapes is {shapes!r}; it must be 'profiles' or 'per_grid'.")
    if precision is not None and precision not in DTYPES:
        raise LoweringError(f"precision is {precision!r}; it must be one of {list(DTYPES)}.")
    if out is not None and Path(out).suffix != ".ep":
        raise LoweringError(f"out is {str(out)!r}; the name of a saved engine must end in .ep.")
    recipe = _Recipe(shapes, precision, grids, batch, example_inputs)
    programs = recipe.programs(sparse)
    settings = compile_options(precision, cache_dir, refit, whole, options or {})
    _report_unsupported(programs.values(), whole)
    engines = {grid: _engine(program, settings) for grid, program in programs.items()}
    if out is not None:
        _save(engines, programs, Path(out))
    interface = replace(next(iter(programs.values())).interface, grids=grids_for(sparse, example_inputs, grids))
    return TensorRTModel(interface, engines, recipe, sparse, refit)


def compile_options(
    precision: Precision | None, cache_dir: str | Path | None, refit: bool, whole: bool, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments for ``torch_tensorrt.dynamo.compile`` besides the program and its inputs.

    Types are not among them: since 2.11 an engine computes in the types of the program.
    """
    settings: dict[str, Any] = {
        "require_full_compilation": whole,
        "min_block_size": 1,
        "truncate_double": True,  # TensorRT has no float64, in which rotary tables are often made
        "attn_bias_is_causal": False,  # the default takes every mask for a causal one
        "immutable_weights": not refit and cache_dir is None,  # engines that cannot be refitted are not cached
    }
    if precision == "fp32":
        settings["disable_tf32"] = True
    if cache_dir is not None:
        folder = Path(cache_dir)
        settings |= {
            "cache_built_engines": True,
            "reuse_cached_engines": True,
            "engine_cache_dir": str(folder / "engines"),
            "timing_cache_path": str(folder / "timing_cache.bin"),
        }
    return {**settings, **options}


class TensorRTModel(Artifact):
    """Engines, called like the model. ``engines`` are compiled modules by pooled grid; None stands for all."""

    def __init__(
        self, interface: Interface, engines: dict[Grid | None, Any], recipe: _Recipe, sparse: SparseModel, can_refit: bool
    ) -> None:
        super().__init__(_outside(interface, sparse, recipe), self._run_engine, sparse._clock)
        self.engines = engines
        self._inner, self._recipe, self._can_refit = interface, recipe, can_refit
        self._dtype = next(sparse.parameters()).dtype

    def refit(self, sparse: SparseModel) -> None:
        """Put the weights of ``sparse``, the same model after fine-tuning, into the engines; nothing is built again.

        Raises:
            LoweringError: the engines were built without ``refit=True``, or the graph is another one.
        """
        if not self._can_refit:
            raise LoweringError("these engines hold their weights for good; lower the model with refit=True.")
        refit_module_weights = importlib.import_module("torch_tensorrt.dynamo").refit_module_weights
        for grid, program in self._recipe.programs(sparse).items():
            try:
                self.engines[grid] = refit_module_weights(self.engines[grid], program.program)
            except (AssertionError, KeyError, RuntimeError) as error:
                raise LoweringError(f"TensorRT cannot put these weights into the engine: {error}") from error

    def _run_engine(self, inputs: Sequence[torch.Tensor], grid: Grid | None) -> Sequence[torch.Tensor]:
        wanted = [given.dtype for given in self._inner.inputs if given.dtype is not None]
        cast = [tensor.to(dtype) for tensor, dtype in zip(inputs, wanted, strict=True)]
        if None not in self.engines:
            outputs = self.engines[grid](*cast)
        else:
            outputs = self.engines[None](*cast, *([self._carrier(grid, inputs[0].device)] if grid is not None else []))
        flat = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        own = DTYPES[self._recipe.precision] if self._recipe.precision is not None else self._dtype
        return [tensor.to(self._dtype) if tensor.dtype == own else tensor for tensor in flat]


class _Recipe:
    """How to make the programs of a sparse model again, with other weights."""

    def __init__(self, shapes: str, precision: Precision | None, grids: Any, batch: Any, example_inputs: Any) -> None:
        self.shapes, self.precision, self.grids = shapes, precision, grids
        self.batch, self.example_inputs = batch, example_inputs

    def programs(self, sparse: SparseModel) -> dict[Grid | None, Exported]:
        """By pooled grid, the programs to build engines of; None stands for all."""
        stage, inputs = stage_for(sparse, self.example_inputs)
        if (device := next(x for x in inputs if isinstance(x, torch.Tensor)).device.type) != _DEVICE:
            raise LoweringError(
                f"the model is on {device}; TensorRT needs it on a GPU: sparse.cuda(), with example_inputs there."
            )
        example: Any = self.example_inputs
        if self.precision is not None and (dtype := DTYPES[self.precision]) != next(sparse.parameters()).dtype:
            program = stage.program
            names = [node.name for node in program.placeholders]
            leaves = [x if name == program.timestep else _cast(x, dtype) for name, x in zip(names, inputs, strict=True)]
            args, kwargs = program.call.unflatten(leaves)
            example = {**dict(zip(program.call.signature.parameters, args, strict=False)), **kwargs}
            sparse = copy.deepcopy(sparse).to(dtype)
        all_grids = grids_for(sparse, example, self.grids)
        each: Sequence[Grid | None] = all_grids if self.shapes == "per_grid" and all_grids else [None]
        change = _in_fp8 if self.precision == "fp8" else for_tensorrt
        return {
            grid: exported(
                sparse, example_inputs=example, grids=self.grids, pooled=grid, batch=self.batch, real=True, change=change
            )
            for grid in each
        }


def _in_fp8(module: fx.GraphModule, example: Sequence[torch.Tensor]) -> fx.GraphModule:
    return with_fp8(for_tensorrt(module, example), example)


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    """Latents and texts in the precision of the engine; not times and scales, whose digits it may not hold."""
    return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim > 1 else leaf


def _outside(interface: Interface, sparse: SparseModel, recipe: _Recipe) -> Interface:
    """What callers see: inputs of the dtypes that the model takes."""
    inputs = stage_for(sparse, recipe.example_inputs)[1]
    given = (
        replace(i, dtype=x.dtype) if isinstance(x, torch.Tensor) else i for i, x in zip(interface.inputs, inputs, strict=True)
    )
    return replace(interface, inputs=tuple(given))


def _engine(program: Exported, settings: Mapping[str, Any]) -> Any:
    """Build one engine."""
    torch_tensorrt = importlib.import_module("torch_tensorrt")
    inputs = [
        torch_tensorrt.Input(
            **({"min_shape": p.least, "opt_shape": p.usual, "max_shape": p.most} if p.is_open else {"shape": p.usual}),
            dtype=p.dtype,
            name=p.name,
        )
        for p in profiles(program.interface, program.example)
    ]
    try:
        return importlib.import_module("torch_tensorrt.dynamo").compile(program.program, arg_inputs=inputs, **settings)
    except Exception as error:  # the builder's own classes share no base but this
        reason = (str(error).strip().splitlines() or [""])[0]
        raise LoweringError(f"TensorRT cannot build the engine: {type(error).__name__}: {reason}") from error


def _save(engines: Mapping[Grid | None, Any], programs: Mapping[Grid | None, Exported], out: Path) -> None:
    """As exported programs, which keep the ranges of open sizes where they are not traced again."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for grid, engine in engines.items():
        example = list(programs[grid].example)
        importlib.import_module("torch_tensorrt").save(engine, str(path_of(out, grid)), arg_inputs=example, retrace=False)


def _report_unsupported(programs: Iterable[Exported], whole: bool) -> None:
    """Say before a long build which operators have no converter."""
    try:
        registry = importlib.import_module("torch_tensorrt.dynamo.conversion").DYNAMO_CONVERTERS
        decompositions = importlib.import_module("torch_tensorrt.dynamo.lowering").get_decompositions
    except (ImportError, AttributeError):  # another release keeps them elsewhere; the build itself will tell
        return
    program = next(iter(programs)).program.run_decompositions(decompositions())
    if found := unsupported(program, registry.__contains__):
        message = f"TensorRT has no converter for {dict(found)} of this model's operators"
        if whole:
            raise LoweringError(f"{message}; without whole=True they run in PyTorch, between engines.")
        warnings.warn(f"{message}: they run in PyTorch, between engines.", stacklevel=4)
