"""ONNX files: standard operators, agreement with eager in onnxruntime, one copy of the weights, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sparsify import InputError, LoweringError, SparseModel, lower, sparsify
from sparsify.targets.check import check
from sparsify.targets.onnx import OnnxModel, load

from .helpers import inputs, plain, sparse_plain
from .test_aot_inductor import SMALL


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SparseModel, OnnxModel, Path]]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    sparse = sparse_plain(4, SMALL)[1]
    yield sparse, lower(sparse, "onnx", out=path), path  # type: ignore[misc]


def test_it_agrees_with_eager_at_every_grid_and_batch_size(made: Any) -> None:
    sparse, fast, _ = made
    assert [d.grid for d in check(sparse, fast)] == [(6, 5), (3, 3)]
    with torch.no_grad():
        for batch in (2, 3, 5):
            for t in (0, 500):
                given = inputs(batch, t=t)
                assert (fast(*given) - sparse(*given)).abs().max() <= 3e-5


def test_the_file_is_plain_onnx_with_named_open_sizes(made: Any) -> None:
    model = onnx.load(made[2], load_external_data=False)
    onnx.checker.check_model(str(made[2]), full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    kinds = {value.type.tensor_type.elem_type for value in values} | {t.data_type for t in model.graph.initializer}
    assert not kinds & {onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    assert shapes == {
        "x": ["batch", 3, 16, 16],
        "t": ["batch"],
        "y": ["batch"],
        "pooled_grid": ["pooled_height", "pooled_width"],
    }


def test_onnxruntime_alone_runs_it(made: Any) -> None:
    """What a user does who has the file and nothing of ours."""
    sparse, _, path = made
    session = onnxruntime.InferenceSession(str(path))
    x, t, y = inputs(3)
    for grid in ((6, 5), (4, 4), (3, 3)):
        with torch.no_grad():
            want = sparse.fix(grid)(x, t, y)
        feeds = {"x": x.numpy(), "t": t.numpy(), "y": y.numpy(), "pooled_grid": np.zeros(grid, dtype=bool)}
        (got,) = session.run(None, feeds)
        assert np.abs(got - want.numpy()).max() <= 3e-5
    sparse.fix(None)


def test_a_file_knows_how_it_is_called(made: Any) -> None:
    sparse, _, path = made
    fast, (x, t, y) = load(path), inputs(t=700)
    with torch.no_grad():
        assert (fast(x, y=y, t=t) - sparse(x, t, y)).abs().max() <= 3e-5
        with fast.at(0), sparse.at(0):
            assert (fast(x, t, y) - sparse(x, t, y)).abs().max() <= 3e-5
    with pytest.raises(InputError, match=r"input x is torch.float64, compiled for torch.float32"):
        fast(x.double(), t, y)
    with pytest.raises(InputError, match=r"pooled grid 7x7 was not compiled; there are those between 6x5, 3x3"):
        fast.fix((7, 7))(x, t, y)


def test_it_prints_the_command_that_builds_an_engine_of_the_file(made: Any) -> None:
    _, fast, path = made
    assert fast.trtexec() == (
        f"trtexec --onnx={path} --saveEngine={path.with_suffix('.engine')} "
        "--minShapes=x:2x3x16x16,t:2,y:2,pooled_grid:3x3 --optShapes=x:2x3x16x16,t:2,y:2,pooled_grid:6x5 "
        "--maxShapes=x:64x3x16x16,t:64,y:64,pooled_grid:6x5"
    )


def test_per_grid_files_share_one_file_of_weights(made: Any, tmp_path: Path) -> None:
    sparse = made[0]
    fast = lower(sparse, "onnx", out=tmp_path / "model.onnx", shapes="per_grid", opset=18)
    assert all(d.error <= 3e-5 for d in check(sparse, fast))
    assert all(d.error <= 3e-5 for d in check(sparse, load(tmp_path / "model.onnx")))
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"model_6x5.onnx", "model_3x3.onnx", "model.onnx.data"}
    weights = sum(p.numel() * p.element_size() for p in sparse.state_dict().values())
    assert 0.9 * weights <= sizes["model.onnx.data"] <= 1.1 * weights, "once for all grids; without rows that nothing reads"
    assert max(sizes["model_6x5.onnx"], sizes["model_3x3.onnx"]) < weights
    assert b"site-packages" not in (tmp_path / "model_3x3.onnx").read_bytes(), "no paths of the machine that made it"
    assert {entry.version for entry in onnx.load(tmp_path / "model_3x3.onnx").opset_import} == {18}
    with pytest.raises(InputError, match=r"pooled grid 4x4 was not compiled; there is 6x5, 3x3"):
        fast.fix((4, 4))(*inputs())
    sparse.fix(None)


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    model = plain(depth=4)
    x, t, y = inputs()
    sparse = sparsify(model.half(), SMALL, example_inputs=(x.half(), t, y))
    fast = lower(sparse, "onnx", out=tmp_path / "model.onnx", check=True)
    assert fast(x.half(), t, y).dtype == torch.float16


@pytest.mark.slow
def test_bfloat16_files_are_valid_whether_or_not_onnxruntime_runs_them(tmp_path: Path) -> None:
    x, t, y = inputs()
    sparse = sparsify(plain(depth=4).bfloat16(), SMALL, example_inputs=(x.bfloat16(), t, y))
    lower(sparse, "onnx", out=tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 22
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16


@pytest.mark.slow
def test_files_of_an_earlier_lowering_do_not_stay_beside_new_weights(made: Any, tmp_path: Path) -> None:
    out, unrelated = tmp_path / "model.onnx", tmp_path / "model_old.onnx"
    unrelated.write_bytes(b"mine")
    first = lower(made[0], "onnx", out=out)
    other = plain(depth=4)
    with torch.no_grad():
        other.head.weight.mul_(3)
    sparse = sparsify(other, SMALL, example_inputs=inputs())
    lower(sparse, "onnx", out=out, shapes="per_grid", grids=[(3, 3)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx.data", "model_3x3.onnx", "model_old.onnx"]
    given = inputs(t=990)
    with torch.no_grad():
        assert (load(out)(*given) - sparse(*given)).abs().max() <= 1e-4
        assert (first(*given) - made[0](*given)).abs().max() <= 3e-5, "what was lowered before has its weights still"


@pytest.mark.slow
def test_a_batch_range_without_the_examples_is_checked_at_one_within(made: Any) -> None:
    assert lower(made[0], "onnx", batch=(4, 8), check=True).interface.batch == (4, 8)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "there is no file"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "onnxruntime cannot open"),
        (lambda path: path.with_name("model.onnx.data").unlink(), "onnxruntime cannot open"),
        (lambda path: path.with_name("model.onnx.data").write_bytes(b"x"), "onnxruntime cannot open"),
    ],
)
def test_damaged_files_are_refused(made: Any, tmp_path: Path, spoil: Any, message: str) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).write_bytes(made[2].with_name(name).read_bytes())
    spoil(tmp_path / "model.onnx")
    with pytest.raises(LoweringError, match=message):
        load(tmp_path / "model.onnx")


def test_a_file_of_somebody_else_does_not_say_how_it_is_called(tmp_path: Path) -> None:
    size = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [size], [out])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), tmp_path / "a.onnx"
    )
    with pytest.raises(LoweringError, match="was not written by sparsify"):
        load(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": "some"}, "shapes is 'some'; it must be 'dynamic' or 'per_grid'"),
        ({"out": "model.pt2"}, r"must end in \.onnx"),
        ({"opset": 12}, "opset is 12; it must be 18 to 23"),
    ],
)
def test_options_out_of_range(made: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        lower(made[0], "onnx", **options)
