"""Fixtures of tests of single modules; what they need is imported when they are asked for, since few modules need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .captures import Captures


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    """Captures that are written by hand are what sparse models get."""
    from sparsify import runtime

    from .captures import Captures

    made = Captures()
    monkeypatch.setattr(runtime, "build_stage", made)
    return made


@pytest.fixture
def shared_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that passes make are known from earlier tests."""
    from .shared import share_sizes

    share_sizes(monkeypatch)
