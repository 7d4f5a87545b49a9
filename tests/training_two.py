"""One of two processes that train together; started by ``test_training_parallel.py`` with what a launcher would set."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from sparsify.errors import SparsifyError

from .training_helpers import run

OPTIONS: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": "ddp", "accumulate": 2, "batch_size": 8},
    "fsdp2": {"parallel": "fsdp2"},
    "distilled": {"parallel": "fsdp2", "distill_output": 0.5, "distill_feature": 0.5, "gradient_checkpointing": True},
}


def main(out: Path) -> None:
    """The runs of ``OPTIONS``, each of four steps; then two that go on where one process stopped; then what is refused."""
    rank = int(os.environ["RANK"])
    for name, options in OPTIONS.items():
        run(out / name, 4, weights=rank, gradient_clip=1.0, **options)  # the main process's weights count
    for parallel in ("ddp", "fsdp2"):
        run(out / f"alone-{parallel}", 4, gradient_clip=1.0, parallel=parallel)
    found = {}
    for name, options in {"batch": {"batch_size": 3}, "damaged": {}}.items():
        try:
            run(out / name, 4, gradient_clip=1.0, **options)
        except SparsifyError as error:
            found[name] = str(error)
    (out / f"errors-{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
