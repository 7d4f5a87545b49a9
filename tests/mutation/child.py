"""In a process of its own: load one module from changed source, and run the tests of that module until one fails."""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import json
import linecache
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from .targets import Target

MEMORY = 8 << 30  # bytes that a mutant may take
BROKEN = 70  # exit status: the tool itself failed
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class _Loader(importlib.abc.SourceLoader):
    """Gives other source for a file than what is in it; nothing is read from or written to a cache of bytecode."""

    def __init__(self, file: Path, code: str) -> None:
        self.file, self.code = str(file), code.encode()
        linecache.cache[self.file] = (len(code), None, code.splitlines(keepends=True), self.file)

    def get_filename(self, fullname: str) -> str:
        return self.file

    def get_data(self, path: str) -> bytes:
        if path != self.file:
            raise OSError(path)  # asked for bytecode
        return self.code


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, loader: _Loader) -> None:
        self.module, self.loader = module, loader

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.loader.file, loader=self.loader)


class _Order:
    """Runs first what is quick and has killed often, and notes how long tests take and which failed."""

    def __init__(self, seconds: Mapping[str, float], kills: Counter[str]) -> None:
        self.known, self.kills = seconds, kills
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.known.get(item.nodeid, 0.0) / (1 + self.kills[item.nodeid]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.skipped:
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(f"import of {report.nodeid}")


def run_child(
    root: Path, target: Target, code: str, seconds: Mapping[str, float], kills: Counter[str], base: Path, parent: int
) -> NoReturn:
    """Run the tests and end the process; ``base`` with suffixes ``.log`` and ``.json`` is what is left of it.

    Args:
        root: the checkout, which stays as it is.
        target: the module that is mutated, and its tests.
        code: its source, changed.
        seconds: what each test takes.
        kills: how many mutants each test has killed.
        base: path of the results.
        parent: the process of the tool.
    """
    status = BROKEN
    try:
        os.setsid()  # so that processes started by tests end with it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(base.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)  # a mutant that hangs does not outlive the tool
            if os.getppid() != parent:
                os._exit(BROKEN)  # it has ended already
        os.chdir(root)
        loader = _Loader(root / target.path, code)
        sys.meta_path.insert(0, _Finder(target.module, loader))
        order, start = _Order(seconds, kills), time.monotonic()
        options = ["-x", "-q", "--tb=line", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(root)]
        found = int(pytest.main([*options, *target.tests], plugins=[order]))
        loaded = getattr(sys.modules.get(target.module), "__loader__", None) is loader
        result = {
            "exit": found,
            "loaded": loaded,
            "failed": order.failed,
            "seconds": order.seconds,
            "wall": time.monotonic() - start,
            "modules": _others(root) if found == 0 else [],
        }
        base.with_suffix(".json").write_text(json.dumps(result))
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _others(root: Path) -> list[str]:
    """What was imported from outside of the checkout, in the order of its import."""
    inside = [str(root.resolve()), str(root)]
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        outside = file is not None and ("site-packages" in file or not any(file.startswith(each + os.sep) for each in inside))
        if outside and getattr(module, "__spec__", None) is not None and not name.startswith("__"):
            found.append(name)
    return found
