"""Fixtures of tests of single modules."""

from __future__ import annotations

import pytest

from sparsify import runtime

from .captures import Captures
from .shared import share_sizes


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    """Captures that are written by hand are what sparse models get."""
    made = Captures()
    monkeypatch.setattr(runtime, "build_stage", made)
    return made


@pytest.fixture
def shared_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that passes make are known from earlier tests."""
    share_sizes(monkeypatch)
