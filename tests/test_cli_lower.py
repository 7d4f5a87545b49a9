"""``sparsify lower``, run as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparsify.cli.main import main
from sparsify.targets.onnx import load

from .test_cli import PLAIN


def test_a_model_goes_into_a_file_that_is_checked_and_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "model.onnx"
    words = [
        "lower",
        PLAIN,
        "--kwargs",
        '{"depth": 6}',
        "--target",
        "onnx",
        "--out",
        str(out),
        "--batch",
        "2-4",
        "--grids",
        "5x5,3x3",
    ]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "lowering to onnx" in printed.err and "comparing with eager at every pooled grid" in printed.err
    assert "largest difference to eager" in printed.out and f"trtexec --onnx={out}" in printed.out
    fast = load(out)
    assert fast.interface.batch == (2, 4) and fast.interface.grids == ((5, 5), (3, 3))
    assert fast(torch.randn(3, 3, 16, 16), torch.full((3,), 990), torch.arange(3)).shape == (3, 3, 16, 16)


@pytest.mark.slow
def test_it_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.onnx"
    assert main(["lower", PLAIN, "--target", "onnx", "--out", str(out), "--json", "--shapes", "dynamic", "--opset", "19"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["files"]) == {str(out), f"{out}.data"} and all(size > 0 for size in result["files"].values())
    assert result["differences"] and all(d["error"] <= 1e-4 for d in result["differences"])
    assert load(out).interface.batch == (1, 1), "the factory's inputs are a batch of one"


def test_what_works_here_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lower", "--available", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["eager"] is None and set(found) == {"eager", "inductor", "aot_inductor", "onnx", "tensorrt"}
    assert main(["lower", "--available"]) == 0
    assert "aot_inductor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "inductor"], "writes no file; those that do are ['aot_inductor', 'onnx', 'tensorrt']"),
        (["--target", "tvm"], "writes no file; those that do are"),
        (["--target", "onnx", "--out", "model.pt2"], "for onnx its name must end in .onnx"),
        (["--target", "onnx", "--device", "meta"], "--device meta has no weights to write"),
        (["--target", "onnx", "--shapes", "some"], "shapes is 'some'; it must be 'dynamic' or 'per_grid'"),
        (["--target", "onnx", "--grids", "90x90"], "does not fit the (8, 8) token grid"),
        (["--target", "aot_inductor", "--opset", "20"], "target aot_inductor has no option ['opset']"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lower", PLAIN, *words]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("sparsify lower: ") and message in last


def test_words_of_another_form(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("x", "2-", "0-4"):
        with pytest.raises(SystemExit):
            main(["lower", PLAIN, "--batch", word])
        assert "is not a batch size such as 4, or a range such as 2-16" in capsys.readouterr().err
