"""Every error that sparsify raises on purpose, so that callers can catch them in one clause."""

from __future__ import annotations


class SparsifyError(Exception):
    """Base class: something the caller can act on, said in the message."""


class PolicyError(SparsifyError, ValueError):
    """A policy or density is not valid, or does not fit the model."""


class TrunkError(SparsifyError, ValueError):
    """No chain of repeated transformer blocks could be found, or it is not usable."""


class GridError(SparsifyError, ValueError):
    """The token grid is unknown, or does not match the number of tokens."""


class CaptureError(SparsifyError, RuntimeError):
    """The model could not be captured as a graph."""


class RewriteError(SparsifyError, RuntimeError):
    """A pass refused to rewrite; the message carries the reason and the node."""


class VerificationError(SparsifyError, RuntimeError):
    """A pass left a graph that is not legal; the message names the pass and shows nearby IR."""


class InputError(SparsifyError, ValueError):
    """The inputs of a call do not fit what was captured, or are out of range."""


class ConstantError(InputError):
    """A call gives another value for an argument that is part of the captured graph; it needs a capture of its own."""


class NotCapturedError(SparsifyError, RuntimeError):
    """Something was asked of a sparse model whose capture is still waiting for inputs."""


class LoweringError(SparsifyError, RuntimeError):
    """A target is unknown or unavailable, or an option is not one of its options."""


class TrainingError(SparsifyError, RuntimeError):
    """A training run cannot start, go on or be resumed; the message says what does not fit."""
