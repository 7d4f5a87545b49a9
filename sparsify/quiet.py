"""Torch kept quiet: where a run may fail and whoever asked reports it, and on what is no concern of the caller's."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

# What fake tensors and the ONNX exporter remark; the latter on packages that nothing here needs.
_LOGS = [
    logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor", "torch.onnx")
]


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Without the warnings and tracebacks that torch logs when operators fail on fake tensors, or packages are missing."""
    levels = [log.level for log in _LOGS]
    for log in _LOGS:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(_LOGS, levels, strict=True):
            log.setLevel(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """As :func:`quiet_logs`, and without torch's warnings about what it will change in itself."""
    with quiet_logs(), warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=r"torch|copyreg")
        yield
