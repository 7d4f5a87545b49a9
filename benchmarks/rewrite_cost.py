"""Time of sparsify() against depth, on real-size DiT-XL/2 blocks: interleaved in one process, medians.

python -m benchmarks.rewrite_cost [--json]
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from rich.console import Console
from rich.progress import track
from rich.table import Table

from sparsify import Policy, sparsify
from sparsify.models import dit

DEPTHS = (14, 28, 56)
ROUNDS = 5


def main() -> None:
    with Console(stderr=True).status("building DiT-XL/2 with 14, 28 and 56 blocks"):
        models = {depth: dit("DiT-XL/2", 512, depth) for depth in DEPTHS}
    seconds: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for round_ in track(range(ROUNDS + 1), "sparsifying", console=Console(stderr=True)):
        for depth, (model, inputs) in models.items():
            started = time.perf_counter()
            sparsify(model, Policy.fit(depth), example_inputs=inputs)
            if round_:  # the first round warms up
                seconds[depth].append(time.perf_counter() - started)
    medians = {depth: statistics.median(times) for depth, times in seconds.items()}
    if "--json" in sys.argv:
        print(json.dumps(medians))
        return
    table = Table(title=f"sparsify() of DiT-XL/2 at 512x512, medians of {ROUNDS}, interleaved", title_justify="left")
    for heading in ("blocks", "seconds", "of 28 blocks"):
        table.add_column(heading, justify="right")
    for depth, median in medians.items():
        table.add_row(str(depth), f"{median:.2f}", f"{median / medians[28]:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
