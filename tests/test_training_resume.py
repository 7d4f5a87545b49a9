"""Runs that stop anywhere go on as if they had not, to the last bit; what does not belong to a run is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsify import Policy
from sparsify.errors import SparsifyError, TrainingError
from sparsify.training import Images, latest

from .training_helpers import POLICY, Tiny, assert_same, contents, curve, images, run, sparse_tiny, tiny

ROOT = Path(__file__).parents[1]
KILLED = ("in a step", "while writing", "before the manifest", "before renaming", "after renaming", "while removing")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    out = tmp_path_factory.mktemp("uninterrupted")
    run(out, keep=2, gradient_clip=1.0, weight_decay=0.01)
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each of ``KILLED``, left behind by a process that killed itself there, with a signal it cannot catch."""
    out = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "tests.training_killed", str(out), *KILLED]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("moment", KILLED)
def test_a_killed_run_goes_on_as_if_nothing_had_been(killed: Path, uninterrupted: Path, moment: str) -> None:
    out = killed / moment
    before = latest(out)
    assert before is not None and before.name == ("step-00000004" if moment in KILLED[-2:] else "step-00000002")
    if moment in ("while writing", "before the manifest", "before renaming"):
        assert (out / ".step-00000004.partial").is_dir()
    torch.manual_seed(99)  # nothing depends on it
    run(out, keep=2, gradient_clip=1.0, weight_decay=0.01, weights=7)  # nor on the weights that are given
    assert_same(out, uninterrupted)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "metrics.jsonl", "step-00000004", "step-00000006"]


def test_a_run_goes_on_where_it_ended(tmp_path: Path, uninterrupted: Path) -> None:
    """Stopped between checkpoints' intervals, and resumed in a fresh object."""
    options = {"keep": 2, "gradient_clip": 1.0, "weight_decay": 0.01}
    run(tmp_path, 3, **options)
    result = run(tmp_path, 6, weights=3, **options)
    assert [record["step"] for record in result.history] == [4, 5, 6]
    assert_same(tmp_path, uninterrupted)
    again = run(tmp_path, 6, **options)
    assert again.step == 6 and again.history == () and again.checkpoint == tmp_path / "step-00000006"


def test_only_settings_that_change_no_result_may_change(tmp_path: Path, uninterrupted: Path) -> None:
    options = {"keep": 2, "gradient_clip": 1.0, "weight_decay": 0.01}
    run(tmp_path, 2, **options)
    run(tmp_path, 6, gradient_checkpointing=True, **options)
    assert_same(tmp_path, uninterrupted)


def test_starting_anew_removes_the_run_before(tmp_path: Path) -> None:
    run(tmp_path, 4, Policy.dense())
    run(tmp_path, 2, Policy.dense(), resume=False)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000002"]


def test_sparse_runs_start_from_dense_weights_and_from_their_own(tmp_path: Path) -> None:
    run(tmp_path / "dense", 2, Policy.dense())
    weights = tmp_path / "dense" / "step-00000002" / "model.safetensors"
    steps: list[Any] = []
    run(tmp_path / "sparse", 1, weights=8, init=weights, learning_rate=1e-30, on_step=steps.append)
    trained, dense = contents(tmp_path / "sparse"), contents(tmp_path / "dense")
    assert all(torch.equal(trained[name], x) for name, x in dense.items() if name.startswith("model.safetensors"))
    own = tmp_path / "sparse" / "step-00000001" / "ema.safetensors"
    run(tmp_path / "again", 1, weights=9, init=own, learning_rate=1e-30)
    with pytest.raises(SparsifyError, match=r"are of another model: it lacks .*blocks.4"):
        run(tmp_path / "other", 1, Policy.dense(), tiny(depth=5), init=weights)


def test_the_weights_a_run_started_from_may_be_gone_when_it_goes_on(tmp_path: Path) -> None:
    run(tmp_path / "dense", 1, Policy.dense())
    weights = tmp_path / "dense" / "step-00000001" / "model.safetensors"
    run(tmp_path / "sparse", 1, init=weights)
    weights.unlink()
    assert run(tmp_path / "sparse", 2, init=weights).step == 2
    with pytest.raises(SparsifyError, match=r"the weights .* cannot be used"):
        run(tmp_path / "sparse", 2, init=weights, resume=False)


def test_metrics_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    run(tmp_path, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"loss": 3}\n{"step": 2, "lo')
    assert [record["step"] for record in run(tmp_path, 2).history] == [2]
    assert len(curve(tmp_path)) == 2


class Other(Tiny):
    """With weights of the same names and shapes."""


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"policy": Policy.dense()}, "is of another model or policy .*lacks nothing and has sparsify_restore"),
    (
        {"policy": Policy(0, POLICY.sdtm, 0)},
        "was trained with another policy: its passes are .*table.*, those of this model .*paper",
    ),
    ({"model": Other(), "policy": POLICY}, "is of another model: a Tiny, and this is a Other"),
    ({"depth": 5}, "it lacks blocks.4.attn.qkv.weight"),
    ({"learned": False}, r"head.weight is float32 \(8, 24\) there and float32 \(4, 24\) here"),
    ({"learning_rate": 5e-3}, r"learning_rate is 0.005, but .*step-00000002 was trained with 0.001"),
    ({"batch_size": 6}, "batch_size is 6, but .* was trained with 4"),
    ({"data": images(11)}, "the data are 11 x 1x8x8 .* was trained on 12 x 1x8x8"),
    ({"data": Images(images().pixels.flip(0), images().labels)}, "the data are 12 x 1x8x8 float32"),
    ({"steps": 1}, "steps is 1, but .* has done 2 already"),
    ({"distill_output": 0.1}, "distill_output is 0.1, but"),
]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("two")
    run(out, 2)
    return out


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_a_checkpoint_of_something_else_is_refused(two_steps: Path, options: dict[str, Any], message: str) -> None:
    other = {name: options.pop(name) for name in ("depth", "learned") if name in options}
    if other:
        policy = Policy(0, POLICY.sdtm, other.get("depth", 4) - 4, POLICY.density)
        options |= {"model": sparse_tiny(policy, **other), "policy": None}
    with pytest.raises(TrainingError, match=message):
        run(two_steps, **{"steps": 4, **options})
    assert [path.name for path in two_steps.glob("step-*")] == ["step-00000002"]


def spoiled(source: Path, out: Path, name: str) -> Path:
    shutil.copytree(source, out)
    (found,) = list(out.glob(f"step-00000002/{name}"))
    return found


def test_a_damaged_checkpoint_is_refused(two_steps: Path, tmp_path: Path) -> None:
    path = spoiled(two_steps, tmp_path / "cut", "ema.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TrainingError, match=r"ema.safetensors has \d+ bytes, but \d+ were written; remove .*02 to start anew"):
        run(tmp_path / "cut")
    path = spoiled(two_steps, tmp_path / "gone", "state/*.safetensors")
    path.unlink()
    with pytest.raises(TrainingError, match=r"state.*is missing"):
        run(tmp_path / "gone")
    path = spoiled(two_steps, tmp_path / "altered", "state/*.safetensors")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrainingError, match="has been altered since it was written: its checksum differs"):
        run(tmp_path / "altered")
    path = spoiled(two_steps, tmp_path / "half", "manifest.json")
    path.unlink()
    with pytest.raises(TrainingError, match=r"is half-written or no checkpoint: it has no manifest.json"):
        run(tmp_path / "half")
    path = spoiled(two_steps, tmp_path / "old", "manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    with pytest.raises(TrainingError, match="has the format 0; this version of sparsify reads 1"):
        run(tmp_path / "old")
    path.write_text("{")
    with pytest.raises(TrainingError, match=r"manifest.json is damaged"):
        run(tmp_path / "old")
    path = spoiled(two_steps, tmp_path / "more", "state/*.safetensors")
    shutil.copy(path, path.with_name("more.safetensors"))
    with pytest.raises(TrainingError, match="does not belong to the checkpoint"):
        run(tmp_path / "more")


def test_nothing_in_a_checkpoint_is_a_pickle(two_steps: Path) -> None:
    """Loading executes nothing: all files are safetensors, which start with the length of a JSON header, or JSON."""
    assert (two_steps / ".lock").read_bytes() == b""
    files = [path for path in two_steps.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl"}
    for path in files:
        if path.suffix == ".safetensors":
            data = path.read_bytes()
            json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
