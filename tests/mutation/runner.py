"""One process for each mutant, forked off one that has imported everything but the project.

Importing torch takes seconds and a mutant often dies within one. So this process imports what the tests need from outside of the checkout, and
never a module of the checkout itself; each child imports those anew, one of them from changed source. Nothing is written to the checkout.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .child import run_child
from .mutants import Mutant
from .results import KILLED, SURVIVED, TIMED_OUT, Result
from .targets import Target


class MutationError(RuntimeError):
    """The tests fail without a mutant, or the tool did not do what it should."""


@dataclass
class Child:
    """A process at work on a mutant; None is the module as it is."""

    pid: int
    base: Path
    mutant: Mutant | None
    start: float
    limit: float


@dataclass
class Runner:
    """Runs the tests of one target on its mutants.

    Attributes:
        root: the checkout.
        target: what is mutated.
        scratch: a folder for logs.
        workers: processes at a time.
        grace: seconds that a mutant may take beyond five times what the tests take without one.
        seconds: of each test, from the run without a mutant.
        limit: seconds after which a mutant counts as noticed.
    """

    root: Path
    target: Target
    scratch: Path
    workers: int
    grace: float
    seconds: dict[str, float] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    limit: float = 600.0

    def baseline(self) -> float:
        """Run the tests on the module as it is: how long they take, and what they import, so that the others find it imported.

        Returns:
            Seconds that all tests take.

        Raises:
            MutationError: they fail, or they never import the module.
        """
        children = [self._start(None)]
        try:
            child, outcome = next(self._ended(children))
        finally:
            _kill(children)
        if outcome is None or outcome["exit"] != 0:
            raise MutationError(f"{self.target.path}: its tests fail without a mutant\n{_tail(child.base)}")
        if not outcome["loaded"]:
            raise MutationError(f"{self.target.path}: its tests never import {self.target.module}; see the table of targets")
        self.seconds = outcome["seconds"]
        self.limit = self.grace + 5 * outcome["wall"]
        import_all(outcome["modules"])
        return float(outcome["wall"])

    def run(self, mutants: Sequence[Mutant]) -> Iterator[Result]:
        """What becomes of each mutant, as they end."""
        waiting, children = list(reversed(mutants)), list[Child]()
        digest = self.target.digest(self.root)
        try:
            while waiting or children:
                while waiting and len(children) < self.workers:
                    children.append(self._start(waiting.pop()))
                child, outcome = next(self._ended(children))
                yield self._result(child, outcome, digest)
        finally:
            _kill(children)

    def _start(self, mutant: Mutant | None) -> Child:
        base = self.scratch / (mutant.identity if mutant else "baseline")
        base.with_suffix(".json").unlink(missing_ok=True)
        code = mutant.code if mutant else (self.root / self.target.path).read_text()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        if (pid := os.fork()) == 0:
            sys.pycache_prefix, sys.dont_write_bytecode = str(self.scratch / "pycache"), mutant is not None
            run_child(self.root, self.target, code, self.seconds, self.kills, base, parent)
        return Child(pid, base, mutant, time.monotonic(), self.limit)

    def _ended(self, children: list[Child]) -> Iterator[tuple[Child, dict[str, Any] | None]]:
        """The next child that ends, and what it wrote; None if it was stopped for its time or ended by a signal."""
        while True:
            for child in children:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                late = pid == 0 and time.monotonic() - child.start > child.limit
                if late:
                    _stop(child)
                if late or pid:
                    children.remove(child)
                    _stop_group(child)
                    if pid and os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
                        raise MutationError(f"{self.target.path}: the process of a mutant failed\n{_tail(child.base)}")
                    written = child.base.with_suffix(".json")
                    outcome = json.loads(written.read_text()) if not late and written.exists() else None
                    yield child, {"exit": -1, "late": True, "failed": []} if late else outcome
                    return
            time.sleep(0.01)

    def _result(self, child: Child, outcome: dict[str, Any] | None, digest: str) -> Result:
        mutant = child.mutant
        if mutant is None:
            raise MutationError("a run without a mutant has no result")
        if outcome is None:
            status, by = KILLED, "the process ended by a signal"
        elif outcome.get("late"):
            status, by = TIMED_OUT, f"no end after {child.limit:.0f} s"
        elif outcome["exit"] == 0:
            status, by = SURVIVED, ""
            if not outcome["loaded"]:
                raise MutationError(f"{mutant.path}: the tests passed without importing the mutant")
        else:
            status, by = KILLED, (outcome["failed"] or ["pytest did not start"])[0]
            self.kills[by] += 1
        for suffix in (".log", ".json"):
            child.base.with_suffix(suffix).unlink(missing_ok=True)
        spent = round(time.monotonic() - child.start, 2)
        return Result(
            mutant.identity, mutant.path, mutant.operator, mutant.line, mutant.before, mutant.after, status, spent, by, digest
        )


@contextlib.contextmanager
def prepared(root: Path) -> Iterator[Path]:
    """A folder for everything that the tests would otherwise leave in the checkout; and few examples, always the same."""
    from hypothesis import HealthCheck, Phase, settings

    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        os.environ |= {"HYPOTHESIS_PROFILE": "mutation", "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(folder) / "hypothesis")}
        os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        phases = (Phase.explicit, Phase.generate)  # that a test fails is enough; the smallest example takes long to find
        settings.register_profile(
            "mutation", deadline=None, max_examples=8, derandomize=True, phases=phases, suppress_health_check=list(HealthCheck)
        )
        sys.path.insert(0, str(root))
        yield Path(folder)


def import_all(names: Sequence[str]) -> None:
    """Import what can be imported of these."""
    for name in names:
        with contextlib.suppress(ImportError, AttributeError, RuntimeError, TypeError, ValueError):
            importlib.import_module(name)


def _stop(child: Child) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child.pid, 0)


def _stop_group(child: Child) -> None:
    """What the child has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _kill(children: Sequence[Child]) -> None:
    for child in children:
        _stop(child)
        _stop_group(child)


def _tail(base: Path, lines: int = 25) -> str:
    log = base.with_suffix(".log")
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
