"""What ``import sparsify`` adds to ``import torch``: seconds of processor time, interleaved processes, medians.

The exit code is 1 if it is 0.3 s or more.

examples:
  python -m benchmarks.import_time
  python -m benchmarks.import_time --rounds 9 --json out/bench/import_time.json
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from .common import parser, write

_ROOT = Path(__file__).parents[1]
MOST_SECONDS = 0.3
IMPORTS = {
    "import torch": "import torch",
    "import sparsify": "import sparsify",
    "from sparsify import ...": "from sparsify import sparsify, Policy, SDTM, Density, lower",
    "SparseModel too": "from sparsify import SparseModel",
}


def seconds_of(code: str) -> float:
    """Of a process that runs this after Python has started, and torch with it where it imports torch."""
    timed = f"import time; started = time.process_time(); import torch; {code}; print(time.process_time() - started)"
    ran = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True, cwd=_ROOT)
    return float(ran.stdout)


def measured(rounds: int) -> dict[str, float]:
    """Medians by what is imported; a first round fills the caches of the disk."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for round_ in track(range(rounds + 1), "importing, interleaved", console=Console(stderr=True)):
        for name, code in IMPORTS.items():
            found = seconds_of(code)
            if round_:
                seconds[name].append(found)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main(words: Sequence[str] | None = None) -> int:
    """The command; 1 if the target is missed."""
    arguments = parser("import_time", __doc__ or "", "rounds", "json").parse_args(words)
    seconds = measured(arguments.rounds)
    write(arguments.json, "import_time", arguments, seconds)
    table = Table(title=f"import time, medians of {arguments.rounds} processes", title_justify="left")
    for heading in ("what", "seconds", "over torch"):
        table.add_column(heading, justify="left" if heading == "what" else "right", no_wrap=True)
    alone = seconds["import torch"]
    for name, found in seconds.items():
        table.add_row(name, f"{found:.2f}", "" if name == "import torch" else f"+{found - alone:.2f}")
    console = Console()
    console.print(table)
    over = seconds["import sparsify"] - alone
    console.print(f"target: import sparsify under {MOST_SECONDS} s over torch: {'met' if over < MOST_SECONDS else 'missed'}")
    return 0 if over < MOST_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
