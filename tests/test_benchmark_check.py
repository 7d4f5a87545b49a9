"""The regression gate, with faked measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import check


def run(path: Path, *flags: str, **ratios: float) -> int:
    return check.main(["--baseline", str(path), *flags], {"group": lambda: dict(ratios)})


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    path = tmp_path / "results" / "baseline.json"
    assert run(path, "--update", speed=2.0, memory=1.5) == 0
    return path


def test_a_ratio_that_falls_by_eleven_percent_fails_and_is_named(baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(baseline, speed=2.0 * 0.89, memory=1.5) == 1
    printed = capsys.readouterr()
    (row,) = (line for line in printed.out.splitlines() if "FELL" in line)
    assert "speed" in row and "2.000x" in row and "1.780x" in row and "-11.0%" in row
    assert "speed" in printed.err and "memory" not in printed.err


def test_a_ratio_that_falls_by_nine_percent_passes(baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(baseline, speed=2.0 * 0.91, memory=1.5) == 0
    assert "-9.0%" in capsys.readouterr().out


def test_better_and_new_ratios_pass_and_missing_ones_fail(baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(baseline, speed=4.0, memory=1.5, another=1.0) == 0
    assert "new" in capsys.readouterr().out
    assert run(baseline, speed=2.0) == 1
    assert "NOT MEASURED" in capsys.readouterr().out


def test_the_tolerance_can_be_chosen(baseline: Path) -> None:
    assert run(baseline, "--tolerance", "0.05", speed=2.0 * 0.91, memory=1.5) == 1


def test_one_slow_measurement_is_taken_again(baseline: Path) -> None:
    measured = iter([1.0, 1.0, 2.0])
    assert check.main(["--baseline", str(baseline)], {"group": lambda: {"speed": next(measured), "memory": 1.5}}) == 0
    assert list(measured) == []


def test_without_a_baseline_it_says_how_to_write_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none.json", speed=1.0) == 2
    assert "--update" in capsys.readouterr().err


def test_only_some_groups_are_measured_and_updated(baseline: Path) -> None:
    groups = {"group": lambda: {"speed": 3.0}, "more": lambda: {"size": 5.0}}
    assert check.main(["--baseline", str(baseline), "--update", "--only", "more"], groups) == 0
    found = json.loads(baseline.read_text())
    assert found["results"] == {"group": {"speed": 2.0, "memory": 1.5}, "more": {"size": 5.0}}
    assert found["hardware"]["threads"] and found["versions"]["torch"]
    assert check.main(["--baseline", str(baseline), "--only", "more"], groups) == 0


@pytest.mark.slow
def test_counts_of_the_gate_are_the_same_on_every_machine() -> None:
    assert check.flops()["GFLOPs, DiT-XL/2 512"] >= 524.58 / 235.3
