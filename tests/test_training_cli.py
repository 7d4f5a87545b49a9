"""``sparsify train``, run as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from safetensors.torch import save_file

from sparsify.cli.main import main
from sparsify.training import read_metrics
from sparsify.training.distill import weights_digest

from .training_helpers import POLICY, images, tiny

MODEL = "tests.test_training_cli:factory"


def factory(depth: int = 4):
    from .training_helpers import torch

    return tiny(depth=depth), {"x": torch.zeros(1, 1, 8, 8), "t": torch.full((1,), 500), "y": torch.zeros(1).long()}


def train(tmp_path: Path, *words: str, model: str = MODEL) -> int:
    data = tmp_path / "data.npz"
    numpy.savez(data, images=images().pixels.numpy(), labels=images().labels.numpy())  # type: ignore[union-attr]
    usual = ["--data", str(data), "--out", str(tmp_path / "out"), "--batch-size", "4", "--tracker", "none", "--device", "cpu"]
    return main(["train", model, "--policy", POLICY.to_json(), *usual, *words])


def test_a_run_and_its_resumption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.json").write_text('{"log_every": 7, "learning_rate": 0.5, "steps": 9}')
    words = ["--config", str(tmp_path / "train.json"), "--learning-rate", "1e-3", "--set", "ema_decay=0.9", "--log-every", "1"]
    assert train(tmp_path, *words, "--steps", "2") == 0
    out, err = capsys.readouterr()
    assert "2 steps, loss" in out and str(tmp_path / "out" / "step-00000002") in out
    assert "step 2/2  loss" in err and "images/s" in err
    manifest = json.loads((tmp_path / "out" / "step-00000002" / "manifest.json").read_text())
    assert manifest["config"]["ema_decay"] == 0.9 and manifest["config"]["learning_rate"] == 1e-3
    assert train(tmp_path, *words, "--steps", "3", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "step": 3,
        "loss": read_metrics(tmp_path / "out")[-1]["loss"],
        "checkpoint": str(tmp_path / "out" / "step-00000003"),
    }
    assert [record["step"] for record in read_metrics(tmp_path / "out")] == [1, 2, 3]
    assert train(tmp_path, "--fresh", "--steps", "1", "--set", "objective=diffusion") == 0
    assert [path.name for path in (tmp_path / "out").glob("step-*")] == ["step-00000001"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "lacks steps"),
        (["--steps", "2", "--set", "ema_decay"], "--set ema_decay: write FIELD=JSON"),
        (["--steps", "2", "--set", "ema=1"], "no field 'ema'"),
        (["--steps", "2", "--set", "objective=score"], "objective is 'score'"),
        (["--steps", "2", "--config", "none.json"], "--config none.json"),
        (["--steps", "2", "--data", "none"], "data 'none' is neither 'mnist', nor a folder, nor a file"),
        (["--steps", "2", "--kwargs", '{"depth": 5}'], "Policy covers 4 blocks"),
        (["--steps", "2", "--teacher", "none.safetensors", "--set", "distill_output=1"], "--teacher none.safetensors: "),
        (["--steps", "2", "--labels", "z"], "the model has no input 'z'"),
        (["--steps", "2", "--timestep", "z"], "the model has no input 'z'|timestep='z' is no tensor input"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert train(tmp_path, *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("sparsify train: ")
    assert any(text in line for text in message.split("|"))


def test_the_teacher_is_the_one_that_is_named(tmp_path: Path) -> None:
    dense = tmp_path / "dense.safetensors"
    save_file(tiny(seed=3).state_dict(), dense)
    assert train(tmp_path, "--steps", "1", "--set", "distill_output=1", "--teacher", str(dense)) == 0
    manifest = json.loads((tmp_path / "out" / "step-00000001" / "manifest.json").read_text())
    assert manifest["teacher"] == weights_digest(tiny(seed=3)) != weights_digest(tiny())


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "torchrun --nproc-per-node 8 -m sparsify train" in capsys.readouterr().out
