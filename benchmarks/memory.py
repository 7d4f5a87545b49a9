"""Peak memory of the activations of one call."""

from __future__ import annotations

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
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        call()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
