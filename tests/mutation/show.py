"""The table, the survivors, and the file of numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .results import KILLED, SURVIVED, TIMED_OUT, Score, total
from .survivors import Key, reason_for


def show(console: Console, scores: Sequence[Score], reasons: Mapping[Key, str], goal: float) -> None:
    """Print a line for each module, and every survivor with its reason."""
    table = Table("module")
    for title in ("mutants", "tried", "killed", "timed out", "survived", "score"):
        table.add_column(title, justify="right")
    everything = total(scores)
    for score in [*scores, everything]:
        if score is everything:
            table.add_section()
        colour = "green" if score.share >= goal else "red"
        numbers = (score.existing, len(score.results), score.count(KILLED), score.count(TIMED_OUT), score.count(SURVIVED))
        table.add_row(score.name, *map(str, numbers), f"[{colour}]{score.share:.1%}")
    console.print(table)
    for each in everything.survivors:
        reason = reason_for(each, reasons)
        console.print(f"\n[bold]{each.path}:{each.line}[/] {each.operator}", highlight=False)
        console.print(f"  [red]- {escape(each.before)}", highlight=False)
        console.print(f"  [green]+ {escape(each.after)}", highlight=False)
        console.print(f"  {escape(reason)}" if reason else "  [yellow]unexplained", highlight=False)


def write(file: Path, scores: Sequence[Score], reasons: Mapping[Key, str], seed: int, sample: int | None) -> None:
    """Write numbers and survivors as JSON."""
    everything = total(scores)
    survivors = [
        {
            "place": f"{each.path}:{each.line}",
            "operator": each.operator,
            "before": each.before,
            "after": each.after,
            "reason": reason_for(each, reasons),
        }
        for each in everything.survivors
    ]
    content = {
        "seed": seed,
        "sample": sample,
        **everything.to_json(),
        "modules": [each.to_json() for each in scores],
        "survivors": survivors,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
