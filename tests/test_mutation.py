"""The tool that tests the tests, on a module whose mutants are counted by hand."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray")

from cosmic_ray.mutating import mutate_code

from .mutation.mutants import mutants, sampled
from .mutation.operators import OWN
from .mutation.targets import Target

ROOT = Path(__file__).parents[1]
SOURCE = '''"""A module."""

from __future__ import annotations


def clipped(x: int | None, high: int) -> int | None:
    """At most 1 above ``high``."""
    assert x != 5
    if x is None:
        return None
    if x > high:
        raise ValueError(f"{x + 1} is above {high - 1}")
    return x


def count(n: int) -> int:
    found = 0
    while found < n:
        found += 1
    return found + 0
'''
TESTS = """from toy.counting import clipped, count


def test_clipped():
    assert clipped(None, 3) is None
    assert clipped(2, 3) == 2


def test_count():
    assert count(3) == 3
"""
# By hand. Left alone are the annotations, the assertion and the text of the error; `not x > high` is `x <= high` in other words.
EXPECTED = {
    ("if x is None:", "if x is not None:"): "killed",
    ("if x > high:", "if x <= high:"): "killed",
    ("if x > high:", "if x >= high:"): "survived",  # clipped(3, 3) is not asked
    ("found = 0", "found = 1"): "survived",  # count(0) is not asked
    ("found = 0", "found = -1"): "survived",
    ("while found < n:", "while found <= n:"): "killed",
    ("while found < n:", "while found >= n:"): "killed",
    ("found += 1", "found += 2"): "killed",
    ("found += 1", "found += 0"): "timed out",
    ("return found + 0", "return found + 1"): "killed",
    ("return found + 0", "return found + -1"): "killed",
    ("return found + 0", "return found - 0"): "survived",
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A checkout; what the tool writes goes beside it."""
    checkout = tmp_path / "checkout"
    for folder, files in {
        "toy": {"__init__.py": "", "counting.py": SOURCE},
        "toy_tests": {"__init__.py": "", "test_counting.py": TESTS},
        ".": {"targets.toml": '[modules]\n"toy/counting.py" = ["toy_tests/test_counting.py"]\n', "pytest.ini": "[pytest]\n"},
    }.items():
        (checkout / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (checkout / folder / name).write_text(text)
    return checkout


def command(toy: Path, *options: str) -> list[str]:
    """The command on the toy; its results go beside it."""
    files = ["--root", ".", "--targets", "targets.toml", "--json", "../out/mutation.json", "--reasons", "reasons.toml"]
    return [sys.executable, "-m", "tests.mutation", *files, "--workers", "2", "--grace", "2", *options]


def run(toy: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(command(toy, *options), cwd=toy, env=environment, text=True, capture_output=True, timeout=120)


def soon(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def working_in(folder: Path) -> list[int]:
    """The processes whose working directory it is."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if link.readlink() == folder.resolve():
                found.append(int(link.parent.name))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def test_a_toy_gives_exactly_the_known_score(toy: Path) -> None:
    before = contents(toy)
    done = run(toy, "--all")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = (toy.parent / "out/mutation.jsonl").read_text().splitlines()
    assert {(each["before"], each["after"]): each["status"] for each in map(json.loads, lines)} == EXPECTED
    numbers = json.loads((toy.parent / "out/mutation.json").read_text())
    statuses = list(EXPECTED.values())
    assert [numbers[name] for name in ("mutants", "killed", "timed_out", "survived")] == [
        len(statuses), *(statuses.count(status) for status in ("killed", "timed out", "survived"))
    ]  # fmt: skip
    assert numbers["score"] == round(1 - statuses.count("survived") / len(statuses), 4)
    assert "toy/counting.py:11" in done.stdout and "unexplained" in done.stdout
    assert contents(toy) == before, "the checkout stays as it is"


def test_results_are_kept_and_survivors_of_other_tests_tried_again(toy: Path) -> None:
    """With better tests the rest dies; one survivor has a reason, which counts where reasons are asked for."""
    run(toy, "--all")
    file = toy.parent / "out/mutation.jsonl"
    first = file.read_text().splitlines()
    assert run(toy, "--all", "--resume").returncode == 1
    assert file.read_text().splitlines() == first, "nothing was run again"
    tests = toy / "toy_tests/test_counting.py"
    tests.write_text(TESTS + "    assert clipped(3, 3) == 3\n    assert count(0) == 0\n")
    assert run(toy, "--all", "--resume").returncode == 1
    again = [json.loads(line) for line in file.read_text().splitlines()[len(first) :]]
    statuses = {(each["before"], each["after"]): each["status"] for each in again}
    assert statuses == {
        ("if x > high:", "if x >= high:"): "killed",
        ("found = 0", "found = 1"): "killed",
        ("found = 0", "found = -1"): "survived",
        ("return found + 0", "return found - 0"): "survived",
    }
    reasons = '[["toy/counting.py"]]\nbefore = "found = 0"\nafter = "found = -1"\nreason = "counts up all the same"\n'
    (toy / "reasons.toml").write_text(reasons)
    assert run(toy, "--all", "--resume").returncode == 1, "two of twelve are too many"
    assert "counts up all the same" in run(toy, "--all", "--resume").stdout


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks into /proc")
def test_a_run_that_is_interrupted_leaves_nothing_behind(toy: Path) -> None:
    """It is killed when all but the mutant that never ends are done: this one must end, too."""
    before = contents(toy)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command(toy, "--all", "--grace", "600"), cwd=toy, env=environment, stdout=subprocess.DEVNULL)
    results = toy.parent / "out/mutation.jsonl"
    assert soon(lambda: results.exists() and results.read_text().count("\n") == len(EXPECTED) - 1, 100)
    assert len(working_in(toy)) == 2
    running.send_signal(signal.SIGKILL)
    running.wait()
    try:
        assert soon(lambda: not working_in(toy), 10), "a process goes on"
    finally:
        for process in working_in(toy):
            os.kill(process, signal.SIGKILL)
    assert contents(toy) == before


def test_tests_that_fail_without_a_mutant_or_do_not_import_it_are_an_error(toy: Path) -> None:
    tests = toy / "toy_tests/test_counting.py"
    tests.write_text("def test_wrong():\n    assert 1 == 2\n")
    done = run(toy)
    assert done.returncode == 2 and "fail without a mutant" in done.stdout
    tests.write_text("def test_nothing():\n    pass\n")
    done = run(toy)
    assert done.returncode == 2 and "never import toy.counting" in done.stdout


@pytest.mark.parametrize("operator", OWN)
def test_operators_of_our_own(operator) -> None:
    for example in operator.examples():
        assert mutate_code(example.pre_mutation_code, operator(), 0) == example.post_mutation_code
        assert mutate_code(example.pre_mutation_code, operator(), 1) is None


def test_results_hold_while_tests_and_what_they_import_stay(tmp_path: Path) -> None:
    target = Target("m.py", "m", ("tests/test_m.py::test_a", "-x"))
    (tmp_path / "tests").mkdir()
    for name in ("test_m.py", "test_other.py", "helpers.py"):
        (tmp_path / "tests" / name).write_text("a = 1")
    first = target.digest(tmp_path)
    (tmp_path / "tests" / "test_other.py").write_text("a = 2")
    assert target.digest(tmp_path) == first
    for name in ("helpers.py", "test_m.py"):
        (tmp_path / "tests" / name).write_text("a = 2")
        assert target.digest(tmp_path) != first
        (tmp_path / "tests" / name).write_text("a = 1")
    assert target.digest(tmp_path) == first != Target("m.py", "m", ("tests/test_m.py",)).digest(tmp_path)


def test_samples_are_drawn_by_seed() -> None:
    everything = mutants("a.py", SOURCE)
    first = sampled(everything, 4, 0)
    assert len({each.identity for each in everything}) == len(everything) == len(EXPECTED)
    assert first == sampled(everything, 4, 0) and len(set(first)) == 4 and set(first) < set(everything)
    assert set(first) != set(sampled(everything, 4, 1))
    assert sampled(everything, None, 0) == sampled(everything, 99, 0) == everything
