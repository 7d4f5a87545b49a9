"""The benchmarks' command lines, baselines and measurements, on tiny models."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import common, memory, roles, scaling
from benchmarks import time as time_benchmark
from benchmarks.cases import CASES, QUICK, Case
from benchmarks.contenders import WAYS, Setup
from benchmarks.flops import PUBLISHED, configurations
from sparsify import SDTM, Density, Policy, SparseModel

from .plain_dit import randomised
from .test_exact import tiny_diffusers_dit
from .test_flops import PAPER

POLICY = Policy(1, SDTM(1, 1, 1, 1), 1, Density.paper(r_min=0.5, r_max=0.9))


def tiny_model() -> tuple[torch.nn.Module, dict[str, Any]]:
    labels = {"class_labels": torch.full((1,), 3), "timestep": torch.full((1,), 500)}
    return randomised(tiny_diffusers_dit()).eval(), {"hidden_states": torch.randn(1, 4, 16, 16), **labels}


@pytest.mark.parametrize(
    "name",
    [
        "flops",
        "time",
        "roles",
        "scaling",
        "sampling",
        "check",
        "compile_cost",
        "rewrite_cost",
        "import_time",
        "few_rows",
        "targets",
        "tensorrt",
    ],
)
def test_help_teaches_by_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.count(f"python -m benchmarks.{name}") >= 2 and "examples:" in text


def test_interleaved_calls_take_turns_and_drop_the_warm_up() -> None:
    calls: list[str] = []
    times = common.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}


def test_a_slow_round_cancels_in_a_ratio() -> None:
    sparse = common.over_schedule([(0.75, [1.0, 10.0, 1.0]), (0.25, [3.0, 30.0, 3.0])])
    assert sparse == [1.5, 15.0, 1.5]
    assert common.ratio([3.0, 30.0, 3.0], sparse) == 2.0


def test_a_result_file_says_where_its_numbers_are_from(tmp_path: Path) -> None:
    options = common.parser("x", "summary", "rounds", "json").parse_args(["--json", str(tmp_path / "deep" / "x.json")])
    common.write(options.json, "x", options, {"ratio": 2.0})
    found = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert found["results"] == {"ratio": 2.0} and found["arguments"] == {"rounds": 5}
    assert found["hardware"]["threads"] >= 1 and found["hardware"]["date"] and found["versions"]["torch"]


def test_batches_repeat_everything_but_position_ids() -> None:
    inputs = {"x": torch.randn(1, 3), "img_ids": torch.zeros(4, 3), "kwargs": {"a": None}}
    found = common.in_dtype(common.batched(inputs, 2), torch.bfloat16)
    assert found["x"].shape == (2, 3) and found["x"].dtype == torch.bfloat16
    assert found["img_ids"].shape == (4, 3) and found["img_ids"].dtype == torch.float32


def test_peak_of_activations_counts_what_is_alive_at_once() -> None:
    x = torch.randn(256, 256)

    def call() -> torch.Tensor:
        y = x + 1
        z = y * y
        del y
        return z + 1

    call()
    assert memory.peak_bytes(call) == pytest.approx(2 * x.nbytes, rel=0.01)


def test_small_models_stand_in_for_all_and_the_papers_table_is_one() -> None:
    assert QUICK.keys() == CASES.keys()
    assert {key: value[:2] for key, value in PAPER.items()}.items() <= PUBLISHED.items()
    assert [configuration[:3] for configuration in configurations()] == list(PUBLISHED)


def test_every_way_runs_and_its_gflops_stand_beside_its_time() -> None:
    case = Case("tiny", tiny_model, POLICY)
    setup = Setup.of(case, *case.make())
    options = common.parser("time", "", "compile", "rounds").parse_args(["--rounds", "1"])
    options.ways = [way for way in WAYS if way not in ("dense", "ours-without-savings")]
    rows = {row["name"]: row for row in time_benchmark.timed_setup(setup, options, "")["rows"]}
    assert not setup.skipped
    report = setup.sparse.report()
    assert rows["dense"]["time_ratio"] == 1 and rows["dense"]["gflops_ratio"] == 1
    assert rows["sparsify"]["gflops"] == report.gflops
    assert rows["dense by sparsify"]["gflops"] == pytest.approx(report.gflops_dense, rel=1e-3)
    # By hand nothing is saved that the method itself does not save; ours may save more.
    assert rows["handwritten"]["gflops"] >= report.gflops * (1 - 1e-9)
    assert rows["token merging"]["gflops"] == pytest.approx(report.gflops, rel=0.03)
    hit, miss = (rows[f"first-block cache, {name}"] for name in ("a hit", "a miss"))
    assert hit["is_step"] and hit["gflops"] < 0.3 * miss["gflops"] and miss["gflops"] == report.gflops_dense


def test_time_by_role_adds_up() -> None:
    """What blocks take lies within the whole, what is counted is the report's, and what nothing is beyond has the ratio of the GFLOPs."""
    model, inputs = tiny_model()
    setup = Setup.of(Case("tiny", tiny_model, POLICY), model, common.batched(inputs, 2))
    found = roles.measured(setup, 2, "")
    report = setup.sparse.report()
    assert {name: part["blocks"] for name, part in found["parts"].items()} == {
        "pooling": 1, "generate": 1, "sparse": 1, "recover": 1, "dense": 2, roles.OUTSIDE: 0
    }  # fmt: skip
    assert sum(part["gflops"] for part in found["parts"].values()) == pytest.approx(2 * report.gflops)
    assert found["dense_gflops"] == pytest.approx(2 * report.gflops_dense)
    assert sum(part["seconds"] for part in found["parts"].values()) == pytest.approx(found["seconds"])
    assert all(part["seconds"] > 0 for part in found["parts"].values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in [*model.modules(), *setup.sparse.modules()])
    parts = {"dense": {"blocks": 1, "seconds": 2.0, "gflops": 4.0}, "sparse": {"blocks": 2, "seconds": 1.0, "gflops": 1.0}}
    known = {"dense_seconds": 5.0, "dense_gflops": 10.0, "seconds": 3.0, "gflops": 5.0, "parts": parts}
    assert roles.beyond(known) == {"dense": 0.0, "sparse": 0.5}
    assert (
        roles.verdict(known) == "1.67x faster than dense with 2.00x fewer GFLOPs; 16.7% of its time lies beyond the arithmetic."
    )


def test_ways_that_were_not_published_for_a_model_are_missing_with_the_reason() -> None:
    model, inputs = QUICK["flux"].make()
    setup = Setup(QUICK["flux"], model, inputs, SparseModel.__new__(SparseModel), (model, inputs))  # they ask the model alone
    for way in ("handwritten", "token-merging"):
        assert not list(WAYS[way](setup, False))
    assert set(setup.skipped) == {"handwritten", "token merging"}
    assert all("rotary" in reason for reason in setup.skipped.values())


def test_scaling_draws_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--quick",
        "--sides",
        "6",
        "--rounds",
        "1",
        "--picture",
        str(tmp_path / "s.png"),
        "--json",
        str(tmp_path / "s"),
    ]
    assert scaling.main(flags) == 0
    points: list[dict[str, Any]] = json.loads((tmp_path / "s").read_text())["results"]
    assert [p["tokens"] for p in points] == [36]
    assert all(p["sparse"]["bytes"] < p["dense"]["bytes"] for p in points)
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert "fewer GFLOPs" in capsys.readouterr().out


def test_timed_counts_seconds() -> None:
    assert 0.01 <= common.timed(lambda: time.sleep(0.01)) < 5
