"""The target tensorrt as far as it can be tested without TensorRT, which is not run here.

Against facts read from torch_tensorrt's wheel (``data/torch_tensorrt.json``): that its converters cover the operators of five
models, and that the calls fit its signatures. With a stand-in that has these signatures and runs the program it is given:
profiles, dispatch, precision, refit.
"""

from __future__ import annotations

import copy
import functools
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

from sparsify import SDTM, Density, Policy, SparseModel, lower, sparsify
from sparsify.errors import InputError, LoweringError
from sparsify.targets import tensorrt as target
from sparsify.targets.base import available

from .helpers import inputs, plain, sparse_plain
from .tensorrt_lowering import facts

# --- a stand-in for torch_tensorrt -----------------------------------------------------------------------------------


def signature_of(name: str) -> inspect.Signature:
    """The real signature of one of its functions; defaults are texts."""
    return inspect.Signature(
        [
            inspect.Parameter(p["name"], inspect._ParameterKind[p["kind"]], default=p.get("default", inspect.Parameter.empty))
            for p in facts()["signatures"][name]
        ]
    )


class StandIn:
    """Has the signatures of torch_tensorrt; its engines run the exported program, with weights of their own."""

    def __init__(self) -> None:
        self.compiled: list[dict[str, Any]] = []
        self.refitted: list[dict[str, Any]] = []
        self.saved: list[dict[str, Any]] = []

    def engine(self, program: ExportedProgram) -> torch.nn.Module:
        return copy.deepcopy(program.module())

    def compile(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        given = signature_of("dynamo.compile").bind(*args, **kwargs).arguments
        assert not given.get("kwargs"), "torch_tensorrt would ignore these"
        self.compiled.append(given)
        return self.engine(given["exported_program"])

    def refit_module_weights(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        given = signature_of("dynamo.refit_module_weights").bind(*args, **kwargs).arguments
        self.refitted.append(given)
        return self.engine(given["new_weight_module"])

    def save(self, *args: Any, **kwargs: Any) -> None:
        given = signature_of("save").bind(*args, **kwargs).arguments
        assert not given.get("kwargs"), "torch_tensorrt would ignore these"
        self.saved.append(given)

    @staticmethod
    def Input(**kwargs: Any) -> dict[str, Any]:
        assert set(kwargs) <= set(facts()["input"])
        assert ("shape" in kwargs) != {"min_shape", "opt_shape", "max_shape"}.issubset(kwargs)
        return kwargs


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    made = StandIn()
    package, dynamo = types.ModuleType("torch_tensorrt"), types.ModuleType("torch_tensorrt.dynamo")
    package.__spec__ = importlib.machinery.ModuleSpec("torch_tensorrt", None)
    package.Input, package.dynamo, package.save = made.Input, dynamo, made.save  # type: ignore[attr-defined]
    dynamo.compile, dynamo.refit_module_weights = made.compile, made.refit_module_weights  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_tensorrt", package)
    monkeypatch.setitem(sys.modules, "torch_tensorrt.dynamo", dynamo)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(target, "_DEVICE", "cpu")
    yield made


@functools.cache
def small() -> SparseModel:
    return sparse_plain(depth=5, policy=Policy(1, SDTM(1, 1, 1, 1), 0, Density.paper(r_min=0.5, r_max=0.9)))[1]


# --- what is missing -------------------------------------------------------------------------------------------------


def test_without_the_package_the_error_says_what_to_install() -> None:
    sparse = small()
    with pytest.raises(LoweringError, match=r"torch_tensorrt is not installed; run pip install 'sparsedit\[tensorrt\]'"):
        lower(sparse, "tensorrt")
    assert "pip install" in str(available()["tensorrt"])


def test_without_its_libraries_or_a_gpu_the_error_says_so(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = small()
    assert available()["tensorrt"] is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LoweringError, match="needs an NVIDIA GPU"):
        lower(sparse, "tensorrt")
    real = target.importlib.import_module

    def broken(name: str, *args: Any) -> Any:
        if name.startswith("torch_tensorrt"):
            raise OSError("libnvinfer.so.11: cannot open shared object file")
        return real(name, *args)

    monkeypatch.setattr(target.importlib, "import_module", broken)
    with pytest.raises(LoweringError, match=r"libnvinfer.so.11.*pip install"):
        lower(sparse, "tensorrt")


def test_a_model_on_the_cpu_is_refused(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_DEVICE", "cuda")
    with pytest.raises(LoweringError, match=r"the model is on cpu; .*sparse.cuda\(\)"):
        lower(small(), "tensorrt")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shapes": "many"}, "shapes"), ({"precision": "int4"}, "precision"), ({"out": "model.pt2"}, r"must end in \.ep")],
)
def test_wrong_options(stand_in: StandIn, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        lower(small(), "tensorrt", **options)


# --- engines by the stand-in: TensorRT itself is not run -------------------------------------------------------------


def test_one_engine_with_profiles_serves_every_grid_and_batch_by_the_stand_in(stand_in: StandIn) -> None:
    sparse = small()
    fast = lower(sparse, "tensorrt", check=True, batch=(2, 4), cache_dir="folder", refit=True, whole=True)
    (call,) = stand_in.compiled
    by_name = {given["name"]: given for given in call["arg_inputs"]}
    latents = by_name.pop("x")
    assert (latents["min_shape"], latents["opt_shape"], latents["max_shape"]) == (
        (2, 3, 16, 16),
        (2, 3, 16, 16),
        (4, 3, 16, 16),
    )
    carrier = by_name["pooled_grid"]
    grids = fast.interface.grids
    assert carrier["min_shape"] == grids[-1] and carrier["max_shape"] == grids[0] and carrier["dtype"] == torch.bool
    ranges = [str(r) for r in call["exported_program"].range_constraints.values()]
    assert ranges and not any("oo" in r for r in ranges), "torch_tensorrt takes its profiles from these"
    assert call["immutable_weights"] is False and call["require_full_compilation"] is True
    assert call["engine_cache_dir"].startswith("folder") and call["cache_built_engines"] and call["reuse_cached_engines"]
    with torch.no_grad():
        for batch, t in ((2, 10), (3, 500), (4, 990)):
            given = inputs(batch, t=t)
            assert (fast(*given) - sparse(*given)).abs().max() <= 1e-5
        with fast.at(5.0):
            given = inputs(2, t=990)
            assert (fast(*given) - sparse(given[0], torch.tensor([5, 5]), given[2])).abs().max() > 1e-4, "t comes in twice"
    with pytest.raises(InputError, match="batch 2 to 4"):
        fast(*inputs(5))


def test_one_engine_per_grid_by_the_stand_in(stand_in: StandIn) -> None:
    sparse = small()
    fast = lower(sparse, "tensorrt", shapes="per_grid", batch=2, check=True)
    assert set(fast.engines) == set(fast.interface.grids) and len(stand_in.compiled) == len(fast.engines) > 1
    assert all("shape" in given for call in stand_in.compiled for given in call["arg_inputs"]), "nothing is open"
    assert all(call["immutable_weights"] for call in stand_in.compiled)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precision_keeps_the_callers_dtypes_by_the_stand_in(stand_in: StandIn, precision: Any) -> None:
    sparse = small()
    given = inputs(2, t=999)
    with torch.no_grad():
        want = sparse(*given)
        fast = lower(sparse, "tensorrt", precision=precision, batch=2)
        got = fast(*given)
    (call,) = stand_in.compiled
    weights = {value.dtype for value in call["exported_program"].state_dict.values() if value.is_floating_point()}
    assert weights == {target.DTYPES[precision]} and "disable_tf32" not in call
    assert got.dtype == want.dtype == torch.float32
    assert 0 < (got - want).abs().max() <= 0.05 * want.abs().max()
    assert next(sparse.parameters()).dtype == torch.float32, "the model itself stays as it was"


def test_refit_takes_the_weights_of_a_fine_tuned_model_by_the_stand_in(stand_in: StandIn) -> None:
    sparse = copy.deepcopy(small())
    fast = lower(sparse, "tensorrt", batch=2, refit=True)
    given = inputs(2)
    with torch.no_grad():
        before = sparse(*given)
        for parameter in sparse.parameters():
            parameter.mul_(1.1)
        after = sparse(*given)
        assert (fast(*given) - before).abs().max() <= 1e-5 < (after - before).abs().max()
        fast.refit(sparse)
        assert (fast(*given) - after).abs().max() <= 1e-5
    assert len(stand_in.refitted) == len(fast.engines) == len(stand_in.compiled)
    with pytest.raises(LoweringError, match="refit=True"):
        lower(small(), "tensorrt", batch=2).refit(small())


def test_what_the_builder_raises_becomes_one_error(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("out of memory\nand much more")

    monkeypatch.setattr(sys.modules["torch_tensorrt.dynamo"], "compile", fails)
    with pytest.raises(LoweringError, match=r"cannot build the engine: MemoryError: out of memory$"):
        lower(small(), "tensorrt")


# --- FP8, with a stand-in for ModelOpt's operator ---------------------------------------------------------------------


@pytest.fixture
def modelopt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ModelOpt's operator by its real schema, rounding to E4M3 as it does."""
    library = torch.library.Library("tensorrt", "FRAGMENT")
    library.define(
        "quantize_op(Tensor input, Tensor amax, int num_bits, int exponent_bits, bool unsigned, bool narrow_range) -> Tensor"
    )

    def quantize(x: torch.Tensor, amax: torch.Tensor, bits: int, exponent: int, unsigned: bool, narrow: bool) -> torch.Tensor:
        assert (bits, exponent, unsigned) == (8, 4, False) and amax.numel() == 1
        scale = 448 / amax
        return ((x.float() * scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() / scale).to(x.dtype)

    library.impl("quantize_op", quantize, "CPU")
    library.impl("quantize_op", lambda x, *rest: torch.empty_like(x), "Meta")
    for name in ("modelopt", "modelopt.torch", "modelopt.torch.quantization"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    yield
    library._destroy()


def test_fp8_quantises_both_operands_of_every_linear_layer_by_the_stand_in(stand_in: StandIn, modelopt: None) -> None:
    given = inputs(2)
    with torch.no_grad():
        want = small()(*given)
        got = lower(small(), "tensorrt", precision="fp8", batch=2)(*given)
    (call,) = stand_in.compiled
    targets = [str(node.target) for node in call["exported_program"].graph.nodes]
    assert targets.count("tensorrt.quantize_op.default") == 2 * targets.count("aten.linear.default") > 0
    assert "tensorrt.quantize_op.default" in facts()["converters"]
    error = (got - want).abs().max() / want.abs().max()
    assert got.dtype == torch.float32 and 0 < error <= 0.2, "coarse, but the same picture"


def test_fp8_without_modelopt_says_what_to_install(stand_in: StandIn) -> None:
    with pytest.raises(LoweringError, match="pip install 'nvidia-modelopt'"):
        lower(small(), "tensorrt", precision="fp8")


def test_a_dense_model_becomes_one_engine_without_a_pooled_grid_by_the_stand_in(stand_in: StandIn) -> None:
    model = plain(depth=4)
    dense = sparsify(model, Policy.dense(), example_inputs=inputs())
    given = inputs(2)
    fast = lower(dense, "tensorrt", batch=2)
    with torch.no_grad():
        assert (fast(*given) - model(*given)).abs().max() <= 1e-5
    assert [i["name"] for i in stand_in.compiled[0]["arg_inputs"]] == ["x", "t", "y"]


def test_operators_without_a_converter_are_told_before_the_build(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # torch would look for its devices
    for name in ("conversion", "lowering"):
        monkeypatch.setitem(sys.modules, f"torch_tensorrt.dynamo.{name}", types.ModuleType(name))
    registry = {torch.ops.aten.linear.default}
    monkeypatch.setattr(
        target.importlib.import_module("torch_tensorrt.dynamo.lowering"), "get_decompositions", dict, raising=False
    )

    class Registry:
        def __contains__(self, node: Any) -> bool:
            return node.target not in registry

    monkeypatch.setattr(
        target.importlib.import_module("torch_tensorrt.dynamo.conversion"), "DYNAMO_CONVERTERS", Registry(), raising=False
    )
    with pytest.warns(UserWarning, match=r"no converter for \{'aten.linear.default': \d+\}"):
        lower(small(), "tensorrt", batch=2)
    built = len(stand_in.compiled)
    with pytest.raises(LoweringError, match="without whole=True"):
        lower(small(), "tensorrt", batch=2, whole=True)
    assert len(stand_in.compiled) == built, "no engine is built"


def test_engines_are_saved_one_a_file_by_the_stand_in(stand_in: StandIn, tmp_path: Path) -> None:
    lower(small(), "tensorrt", out=tmp_path / "new" / "model.ep", shapes="per_grid", grids=[(4, 4), (3, 3)])
    assert [Path(call["file_path"]).name for call in stand_in.saved] == ["model_4x4.ep", "model_3x3.ep"]
    assert (tmp_path / "new").is_dir() and all(len(call["arg_inputs"]) == 3 for call in stand_in.saved)
