"""Play every row and print the table: ``python -m tests.adversarial``, and ``-o docs/adversarial.md`` to write it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .scene import Row, groups, played
from .table import ROWS

_SHOWN = 160  # characters of a message
_HEAD = """# Adversarial inputs

Each of these {count} inputs ends in the right answer or in a clear error; none of them gives a wrong result in silence, and none
changes the model, its inputs or a random state. What this does not cover: a graph keeps what the model's code read when it was captured.
A plain attribute that is set later (`model.scale = 3.0`), a global variable, a file or the clock (`time.time()`) is not seen by later
calls, and no error says so; use a buffer or an input for what changes, or call `sparsify` again.

`python -m tests.adversarial -o docs/adversarial.md` plays them all and writes this file;
`pytest tests/adversarial` checks them. A right answer is that of the dense model in eager mode, to the last bit, or that of a
SparseDiT written by hand. The rows are in `tests/adversarial/rows_*.py`.
"""


def main() -> int:
    """The exit status is the number of rows that did not end as they should."""
    parser = argparse.ArgumentParser(prog="python -m tests.adversarial", description="Play the table of adversarial inputs.")
    parser.add_argument("-o", "--out", type=Path, help="also write the table as Markdown")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    console, failed = Console(width=None if sys.stdout.isatty() else 160), 0
    outcomes: dict[str, list[tuple[str, str, str]]] = {}
    for group, rows in groups(ROWS).items():
        outcomes[group] = [(row.name, *_outcome(row)) for row in rows]
        table = Table("input", "outcome", "message", title=group, title_justify="left")
        for name, outcome, message in outcomes[group]:
            table.add_row(*(text.replace("[", r"\[") for text in (name, outcome, message)))
        console.print(table)
        failed += sum(outcome == "FAILED" for _, outcome, _ in outcomes[group])
    console.print(f"{len(ROWS)} inputs, {failed} failed")
    if arguments.out is not None:
        arguments.out.write_text(_markdown(outcomes))
    return failed


def _outcome(row: Row) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            message = " ".join(played(row, Path(folder)).replace(folder, "FOLDER").split())
        except Exception as error:  # noqa: BLE001  # the others are played all the same
            return "FAILED", f"{type(error).__name__}: {error}"[:_SHOWN]
    if row.error is None:
        return "right answer", ""
    return "exit status 2" if row.error.__name__ == "Said" else row.error.__name__, _short(message)


def _short(message: str) -> str:
    return message if len(message) <= _SHOWN else message[: _SHOWN - 1] + "…"


def _markdown(outcomes: dict[str, list[tuple[str, str, str]]]) -> str:
    lines = [_HEAD.format(count=sum(map(len, outcomes.values())))]
    for group, rows in outcomes.items():
        lines += [f"## {group[0].upper()}{group[1:]}", "", "| input | outcome | message |", "|---|---|---|"]
        for row in rows:
            name, outcome, message = (text.replace("|", r"\|") for text in row)
            lines.append(f"| {name} | {outcome} | {'`' + message.replace('`', chr(39)) + '`' if message else ''} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
