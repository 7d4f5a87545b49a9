"""The trtexec command line, as text: TensorRT is not run."""

from __future__ import annotations

import shlex

import pytest
import torch

from sparsify.errors import LoweringError
from sparsify.targets.exported import exported
from sparsify.targets.interface import Interface
from sparsify.targets.trtexec import profiles, trtexec

from .helpers import sparse_plain


@pytest.fixture(scope="module")
def interface() -> Interface:
    return exported(sparse_plain()[1], batch=(2, 8)).interface


def flags(line: str) -> dict[str, str]:
    program, *arguments = shlex.split(line)
    assert program == "trtexec"
    return dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)


def test_every_open_shape_is_named_thrice(interface: Interface) -> None:
    given = flags(trtexec("a folder/model.onnx", interface, refit=True, timing_cache="cache.bin"))
    assert given == {
        "onnx": "a folder/model.onnx",
        "saveEngine": "a folder/model.engine",
        "minShapes": "x:2x3x16x16,t:2,y:2,pooled_grid:2x2",
        "optShapes": "x:2x3x16x16,t:2,y:2,pooled_grid:5x5",
        "maxShapes": "x:8x3x16x16,t:8,y:8,pooled_grid:5x5",
        "refit": "",
        "timingCacheFile": "cache.bin",
    }


def test_inputs_that_the_file_has_not_are_left_out(interface: Interface) -> None:
    given = flags(trtexec("m.onnx", interface, engine="e.plan", inputs=["x", "t"]))
    assert given["minShapes"] == "x:2x3x16x16,t:2" and given["saveEngine"] == "e.plan"


def test_one_grid_and_one_batch_need_no_shapes() -> None:
    sparse = sparse_plain()[1]
    fixed = exported(sparse, pooled=(4, 4), batch=2).interface
    assert set(flags(trtexec("m.onnx", fixed))) == {"onnx", "saveEngine"}
    assert not any(profile.is_open for profile in profiles(fixed))


def test_usual_shapes_of_an_example(interface: Interface) -> None:
    example = [torch.zeros(4, 3, 16, 16), torch.zeros(4), torch.zeros(4), torch.zeros(3, 4)]
    assert [p.usual for p in profiles(interface, example)] == [(4, 3, 16, 16), (4,), (4,), (3, 4)]


def test_precisions_by_version(interface: Interface) -> None:
    for precision in ("fp16", "bf16", "fp8"):
        assert precision in flags(trtexec("m.onnx", interface, precision=precision, tensorrt=10))
        with pytest.raises(LoweringError, match="has no --"):
            trtexec("m.onnx", interface, precision=precision)
    assert "stronglyTyped" in flags(trtexec("m.onnx", interface, tensorrt=10))
    for wrong in ({"precision": "int8", "tensorrt": 10}, {"tensorrt": 9}):
        with pytest.raises(LoweringError, match="must be"):
            trtexec("m.onnx", interface, **wrong)
