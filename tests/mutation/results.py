"""What became of each mutant, kept as it comes, and the scores."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KILLED, TIMED_OUT, SURVIVED = "killed", "timed out", "survived"


@dataclass(frozen=True)
class Result:
    """One mutant: ``by`` is the test that noticed, ``tests`` the digest of the tests that were asked."""

    identity: str
    path: str
    operator: str
    line: int
    before: str
    after: str
    status: str
    seconds: float
    by: str
    tests: str


class Store:
    """A file with one line of JSON for each result."""

    def __init__(self, file: Path, resume: bool) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            file.write_text("")
        self._kept = {each.identity: each for each in _read(file)}

    def add(self, result: Result) -> None:
        with self.file.open("a") as lines:
            lines.write(json.dumps(asdict(result)) + "\n")

    def known(self, identity: str, tests: str) -> Result | None:
        """What is known of a mutant; one that survived other tests is tried again."""
        found = self._kept.get(identity)
        return found if found is not None and (found.status != SURVIVED or found.tests == tests) else None


def _read(file: Path) -> Iterable[Result]:
    if not file.exists():
        return
    for line in file.read_text().splitlines():
        try:
            yield Result(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue  # cut off in the middle of a line, or written by an older version


@dataclass
class Score:
    """The results of one module, or of all; ``existing`` is how many mutants there are, tried or not."""

    name: str
    existing: int = 0
    results: list[Result] = field(default_factory=list)

    def count(self, status: str) -> int:
        return sum(each.status == status for each in self.results)

    @property
    def share(self) -> float:
        """Of the mutants, those that a test noticed; 1 where there were none."""
        return 1 - self.count(SURVIVED) / len(self.results) if self.results else 1.0

    @property
    def survivors(self) -> list[Result]:
        return sorted((each for each in self.results if each.status == SURVIVED), key=lambda each: (each.path, each.line))

    def to_json(self) -> dict[str, Any]:
        return {
            "module": self.name,
            "existing": self.existing,
            "mutants": len(self.results),
            "killed": self.count(KILLED),
            "timed_out": self.count(TIMED_OUT),
            "survived": self.count(SURVIVED),
            "score": round(self.share, 4),
        }


def total(scores: Iterable[Score]) -> Score:
    """All modules as one."""
    found = list(scores)
    return Score("all", sum(each.existing for each in found), [result for each in found for result in each.results])
