"""Torch kept quiet while a run may fail: whoever asked for it reports the error, or tries another way."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LOGS = [logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")]


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Without the warnings and tracebacks that torch logs when operators fail on fake tensors."""
    levels = [log.level for log in _LOGS]
    for log in _LOGS:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(_LOGS, levels, strict=True):
            log.setLevel(level)
