"""Peak memory of the activations of one call."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

from .common import Call


def peak_bytes(call: Call, device: str | torch.device = "cpu") -> int:
    """The most bytes that were allocated at once during a call, beyond what was allocated before it.

    On a CPU every allocation and release of torch's allocator is recorded while the call runs, temporaries within operators
    included; what the math libraries allocate for themselves is not. On a GPU the allocator keeps that number itself.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            call()
        return torch.cuda.max_memory_allocated() - before
    with torch.no_grad(), _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as run:
        call()
    recorded = run.profiler.kineto_results.events() if run.profiler is not None else []
    held = most = 0
    for event in sorted((e for e in recorded if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@contextmanager
def _silent() -> Iterator[None]:
    """The profiler's library writes of its own start and stop to stderr, past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
