"""What a property check found: which property does not hold, and how."""

from __future__ import annotations


class CheckFailure(AssertionError):
    """A property that a pass does not have.

    Attributes:
        kind: which one: ``"text"``, ``"error"``, ``"verifier"``, ``"provenance"``, ``"determinism"``, ``"idempotence"``, ``"type"``,
            ``"finite"``, ``"batch"``, ``"gradients"``, ``"exact"``, ``"oracle"``, ``"model"``, or ``"unused"`` for a pass that rewrote
            nothing.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def message(self) -> str:
        """What is wrong, without its kind."""
        return str(self.args[0])
