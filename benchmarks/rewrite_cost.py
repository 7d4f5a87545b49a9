"""Time of sparsify() against depth, on real-size DiT-XL/2 blocks: interleaved in one process, medians.

examples:
  python -m benchmarks.rewrite_cost
  python -m benchmarks.rewrite_cost --rounds 9 --json out/bench/rewrite_cost.json
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from sparsify import Policy, sparsify
from sparsify.models import dit

from .common import interleaved, parser, show, table, write

DEPTHS = (14, 28, 56)


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser("rewrite_cost", __doc__ or "", "rounds", "json").parse_args(words)
    with Console(stderr=True).status("building DiT-XL/2 with 14, 28 and 56 blocks"):
        models = {depth: dit("DiT-XL/2", 512, depth) for depth in DEPTHS}
    calls = {
        depth: partial(sparsify, model, Policy.fit(depth), example_inputs=inputs) for depth, (model, inputs) in models.items()
    }
    times = interleaved(calls, options.rounds, title="sparsifying")
    medians = {depth: statistics.median(seconds) for depth, seconds in times.items()}
    rows = [(str(depth), f"{median:.2f}", f"{median / medians[28]:.2f}x") for depth, median in medians.items()]
    title = f"sparsify() of DiT-XL/2 at 512x512, medians of {options.rounds}, interleaved"
    show(table(title, ("blocks", "seconds", "of 28 blocks"), rows, left=0))
    write(options.json, "rewrite_cost", options, medians)
    return 0


if __name__ == "__main__":
    sys.exit(main())
