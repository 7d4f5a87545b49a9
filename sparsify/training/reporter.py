"""What a run tells: a line per record in ``metrics.jsonl``, the tracker's curves, and progress for whoever watches."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .config import TrainConfig
from .parallel import Group

METRICS = "metrics.jsonl"
_PROJECT = "sparsify"

Record = dict[str, float]


class Reporter:
    """Reports the run of the main process; in others it does nothing.

    Args:
        group: the processes, with the tracker.
        config: steps, and what goes to the tracker.
        out: the folder of the run.
        start: how many steps are done; records of later ones, which a killed run wrote, are removed.
        quiet: show no progress.

    Attributes:
        history: the records since this start, in all processes.
    """

    def __init__(self, group: Group, config: TrainConfig, out: Path, start: int, quiet: bool = False) -> None:
        self.history: list[Record] = []
        self._group, self._config, self._path, self._start = group, config, out / METRICS, start
        self._quiet = quiet or not group.is_main
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._file: TextIO | None = None
        self._since = time.perf_counter()
        self._steps = 0

    def __enter__(self) -> Self:
        group = self._group
        options = {"tensorboard": {"purge_step": self._start + 1}} if self._start else {}
        group.accelerator.init_trackers(_PROJECT, _plain(self._config), options)
        if group.is_main:
            _cut(self._path, self._start)
            self._file = self._path.open("a", encoding="utf-8")
        if not self._quiet and self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task("training", total=self._config.steps, completed=self._start)
            self._bar.start()
        self._since = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()
        for tracker in getattr(self._group.accelerator, "trackers", ()):
            tracker.finish()

    def advance(self, step: int) -> None:
        """A step is done; they are counted from 1."""
        self._steps += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def record(self, step: int, values: Record) -> None:
        """Report values that are the mean over the steps since the last record."""
        seconds = time.perf_counter() - self._since
        rate = self._steps * self._config.batch_size / seconds
        found: Record = {"step": step, **values, "images_per_second": round(rate, 2)}
        self.history.append(found)
        if self._file is not None:
            self._file.write(json.dumps(found) + "\n")
            self._file.flush()
        self._group.accelerator.log(values | {"images_per_second": rate}, step=step)
        if not self._quiet:
            self._show(step, values["loss"], rate)
        self.resume()

    def resume(self) -> None:
        """Measure throughput from here on: after a record, or a pause in which nothing was trained."""
        self._since, self._steps = time.perf_counter(), 0

    def pause(self) -> float:
        """Note the time before something that is no training; give it to :meth:`skip`."""
        return time.perf_counter()

    def skip(self, began: float) -> None:
        """Leave the time since then out of the throughput."""
        self._since += time.perf_counter() - began

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False)

    def _show(self, step: int, loss: float, rate: float) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=f"loss {loss:.4f}, {rate:.0f} images/s")
            return
        left = (self._config.steps - step) * self._config.batch_size / max(rate, 1e-9)
        clock = f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}"
        self.say(f"step {step}/{self._config.steps}  loss {loss:.4f}  {rate:.0f} images/s  left {clock}")


def read_metrics(out: str | Path) -> list[Record]:
    """All records of a run, oldest first."""
    path = Path(out) / METRICS
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # a run was killed while it wrote its last line
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def _cut(path: Path, start: int) -> None:
    """Keep the records up to a step, and none half-written."""
    kept = [record for record in read_metrics(path.parent) if record["step"] <= start]
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(draft, path)


def _plain(config: TrainConfig) -> dict[str, Any]:
    """As trackers take it."""
    return {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in config.to_dict().items()}
