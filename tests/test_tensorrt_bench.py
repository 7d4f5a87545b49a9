"""The GPU benchmark's command line, and its whole run with a stand-in on the CPU. TensorRT itself is not run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tensorrt as benchmark
from sparsify.targets import tensorrt as target

from .test_tensorrt import StandIn, stand_in  # noqa: F401  # a fixture


def test_help_teaches_by_example() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.tensorrt", "--help"], capture_output=True, text=True, check=True)
    assert "python -m benchmarks.tensorrt --resolution 512 --precision bf16" in done.stdout


def test_without_tensorrt_it_says_what_to_install_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([]) == 2
    assert "pip install 'sparsedit[tensorrt]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_run_by_the_stand_in(
    stand_in: StandIn,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(benchmark, "run", lambda options, run=benchmark.run: run(options, target._DEVICE))
    out = tmp_path / "result.json"
    flags = [
        "--model",
        "DiT-S/2",
        "--resolution",
        "128",
        "--blocks",
        "5",
        "--batch",
        "2",
        "--precision",
        "fp32",
        "--rounds",
        "1",
    ]
    assert benchmark.main([*flags, "--out", str(out)]) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    assert result["speedup"] > 0 and result["versions"]["torch"] and result["hardware"]["host"]
    assert len(result["difference_to_eager_float32"]["sparse"]) > 1
    for each in result["difference_to_eager_float32"].values():
        assert all(one["largest_output"] > 0 and one["absolute"] <= 1e-4 * max(1, one["largest_output"]) for one in each)
    assert {name.rsplit(" ", 1)[0] for name in result["median_seconds"] if name.startswith("sparse")} == {
        "sparse inductor",
        "sparse tensorrt",
    }
