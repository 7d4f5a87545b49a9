"""AOTInductor packages: agree with eager at every grid, run without the model's code, refuse what they were not compiled for."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsify import SDTM, Density, InputError, LoweringError, Policy, SparseModel, lower
from sparsify.targets.aot_inductor import AotModel, load
from sparsify.targets.artifact import Artifact
from sparsify.targets.check import check, differences

from .helpers import inputs, sparse_plain

QUICK = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # the code is the same, the C++ compiler takes less time over it
SMALL = Policy(1, SDTM(1, 1, 1, 0), 0, Density.table({0: (6, 5), 500: (3, 3)}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SparseModel, AotModel, Path]]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("aot") / "model.pt2"
    sparse = sparse_plain(4, SMALL)[1]
    yield sparse, lower(sparse, "aot_inductor", out=path, inductor=QUICK), path  # type: ignore[misc]


def test_it_agrees_with_eager_at_every_grid_and_batch_size(made: Any) -> None:
    sparse, fast, _ = made
    assert [d.grid for d in check(sparse, fast)] == [(6, 5), (3, 3)]
    with torch.no_grad():
        for batch in (2, 3, 5):
            for t in (0, 499, 500, 999):
                given = inputs(batch, t=t)
                want = sparse(*given)
                assert (fast(*given) - want).abs().max() <= 1e-5
                assert not torch.equal(sparse(*inputs(batch, t=0 if t >= 500 else 999)), want)


def test_inputs_in_any_memory_layout_give_the_same(made: Any) -> None:
    """Compiled code has strides built in; pipelines expand timesteps, and images come channels last."""
    sparse, fast, _ = made
    x, _, y = inputs(3)
    t = torch.tensor([700])
    cases = [x.to(memory_format=torch.channels_last), x[:1].expand(3, -1, -1, -1), torch.randn(6, 3, 16, 16)[::2]]
    with torch.no_grad():
        for case in cases:
            assert (fast(case, t.expand(3), y) - sparse(case, t.expand(3), y)).abs().max() <= 1e-5


def test_the_host_says_the_time_to_the_package_too(made: Any) -> None:
    sparse, _, path = made
    fast, (x, t, y) = load(path), inputs(t=0)
    with torch.no_grad():
        coarse, fine = sparse.fix((3, 3))(x, t, y), sparse.fix((6, 5))(x, t, y)
        between = sparse.fix((5, 4))(x, t, y)
        sparse.fix(None)
        with fast.at(700):
            assert (fast(x, t, y) - coarse).abs().max() <= 1e-5
        assert (fast(x, t, y) - fine).abs().max() <= 1e-5
        assert (fast.fix((5, 4))(x, t, y) - between).abs().max() <= 1e-5, "one program serves the grids between"


def test_a_fresh_process_runs_it_without_the_model(made: Any, tmp_path: Path) -> None:
    sparse, _, path = made
    given = inputs(3, t=600)
    with torch.no_grad():
        torch.save({"given": given, "want": sparse(*given)}, tmp_path / "case.pt")
    code = f"""
import sys, torch
from sparsify.targets.aot_inductor import load
case = torch.load({str(tmp_path / "case.pt")!r})
fast = load({str(path)!r})
x, t, y = case["given"]
error = float((fast(x, y=y, t=t) - case["want"]).abs().max())
print(error, "tests" in sys.modules or "diffusers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    error, has_model = done.stdout.split()
    assert float(error) <= 1e-5 and has_model == "False"


@pytest.mark.slow
def test_per_grid_packages_hold_the_weights_once(made: Any, tmp_path: Path) -> None:
    sparse, _, _ = made
    path = tmp_path / "model.pt2"
    fast = lower(sparse, "aot_inductor", out=path, shapes="per_grid", inductor=QUICK)
    assert all(d.error <= 1e-5 for d in check(sparse, fast)) and all(d.error <= 1e-5 for d in check(sparse, load(path)))
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry.file_size for entry in archive.infolist()}
        libraries = [archive.read(name) for name in entries if name.endswith(".so")]
    weights = sum(p.numel() * p.element_size() for p in sparse.state_dict().values())
    (stored,) = (size for name, size in entries.items() if name.endswith("weights.safetensors"))
    assert 0.9 * weights <= stored <= weights + 8192
    needle = sparse.get_parameter("blocks.0.mlp.0.weight").detach().numpy().tobytes()[:256]
    assert len(libraries) == 2 and not any(needle in library for library in libraries)
    with pytest.raises(InputError, match=r"pooled grid 5x4 was not compiled; there is 6x5, 3x3"):
        load(path).fix((5, 4))(*inputs())


def test_weights_of_a_fine_tuned_model_are_taken_over_without_compiling(made: Any) -> None:
    path = made[2]
    fast, given = load(path), inputs()
    tuned = sparse_plain(4, SMALL)[1]
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.1).add_(0.01)
        want, before = tuned(*given), fast(*given)
        fast.load_state_dict(tuned.state_dict())
        assert (fast(*given) - want).abs().max() <= 1e-5 * float(want.abs().max())
        assert not torch.allclose(before, want, atol=1e-3)
        broken = {k: v for k, v in tuned.state_dict().items() if k != "head.bias"}
        with pytest.raises(LoweringError, match=r"weight head\.bias is missing"):
            fast.load_state_dict(broken)
        with pytest.raises(LoweringError, match=r"head\.bias is torch.float64"):
            fast.load_state_dict(tuned.state_dict() | {"head.bias": tuned.head.bias.double()})
        assert (fast(*given) - want).abs().max() <= 1e-5 * float(want.abs().max()), "a refused state changes nothing"


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """A well-formed archive with other contents."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            data = change(entry.filename, old.read(entry.filename))
            if data is not None:
                new.writestr(entry.filename, data)
    return target


def flipped(name: str, data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if name.endswith(".so") else data


def other_version(name: str, data: bytes) -> bytes:
    if not name.endswith("sparsify.json"):
        return data
    manifest = json.loads(data)
    manifest["interface"]["version"] = 99
    return json.dumps(manifest).encode()


def other_machine(name: str, data: bytes) -> bytes:
    return data.replace(b'"machine": "', b'"machine": "not-') if name.endswith("sparsify.json") else data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flipped, "has been altered since it was written"),
        (lambda name, data: None if name.endswith("weights.safetensors") else data, "has been altered"),
        (lambda name, data: None if name.endswith("sparsify.json") else data, "no package written by sparsify"),
        (lambda name, data: b"{" if name.endswith("sparsify.json") else data, "truncated or damaged"),
        (other_version, "interface of version 99"),
        (other_machine, "was compiled for not-"),
    ],
)
def test_altered_packages_are_refused(made: Any, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        load(rewritten(made[2], tmp_path / "bad.pt2", change))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated_packages_are_refused(made: Any, tmp_path: Path, keep: float) -> None:
    data, path = made[2].read_bytes(), tmp_path / "bad.pt2"
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(LoweringError, match="truncated or damaged"):
        load(path)


def test_a_flipped_bit_is_found(made: Any, tmp_path: Path) -> None:
    data, path = bytearray(made[2].read_bytes()), tmp_path / "bad.pt2"
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(LoweringError, match=r"damaged|altered"):
        load(path)


def test_files_that_are_no_packages(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="there is no file"):
        load(tmp_path / "nothing.pt2")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(LoweringError, match=r"must end in \.pt2"):
        load(tmp_path / "model.bin")


def test_calls_that_were_not_compiled_are_refused(made: Any) -> None:
    _, fast, _ = made
    x, t, y = inputs()
    for given, message in (
        ((x.double(), t, y), r"input x is torch.float64, compiled for torch.float32"),
        ((x.to("meta"), t, y), r"input x is on meta, compiled for cpu"),
        (inputs(1), r"batch 2 to 64"),
        (inputs(65), r"batch 2 to 64"),
        (inputs(size=(16, 24)), r"has shape \(2, 3, 16, 24\), compiled for batchx3x16x16"),
        ((x, t[:1], y), r"input t has shape \(1,\)"),
        ((x, t), "do not fit the model's signature"),
        ((x, t, 3), "input .*y.* is 3"),
    ):
        with pytest.raises(InputError, match=message):
            fast(*given)
    with pytest.raises(InputError, match="does not fit the"):
        fast.fix((9, 9))(x, t, y)
    fast.fix(None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": "some"}, "shapes is 'some'; it must be 'dynamic' or 'per_grid'"),
        ({"out": "model.so"}, r"must end in \.pt2"),
        ({"grids": [(3, 3), (0, 2)]}, r"must be a list of pooled grids"),
        ({"grids": [(30, 3)]}, "does not fit"),
        ({"batch": 1}, "at least 2"),
        ({"batch": (8, 2)}, "at least 2"),
        ({"batch": "many"}, "a least and a largest one"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    _, sparse = sparse_plain()
    with pytest.raises((LoweringError, InputError), match=message):
        lower(sparse, "aot_inductor", **options)


def test_a_model_in_training_mode_is_not_lowered() -> None:
    _, sparse = sparse_plain()
    with pytest.raises(InputError, match="give example_inputs"):
        lower(sparse.train(), "aot_inductor")
    with pytest.raises(LoweringError, match=r"training mode; call \.eval\(\)"):
        lower(sparse, "aot_inductor", example_inputs=inputs())


def test_differences_are_found(made: Any) -> None:
    sparse, fast, _ = made
    assert all(d.error > 0.01 for d in differences(sparse, _Off(fast)))
    with pytest.raises(LoweringError, match=r"differs from eager by 1\.0e\+00 at the pooled grid \(6, 5\)"):
        check(sparse, _Off(fast))


class _Off(Artifact):
    def __init__(self, fast: AotModel) -> None:
        self._fast, self._clock, self.interface = fast, fast._clock, fast.interface

    def fix(self, grid: Any) -> _Off:
        self._fast.fix(grid)
        return self

    def __call__(self, *args: Any) -> Any:
        return self._fast(*args) + 1
