"""A compiler for token sparsity in Diffusion Transformers.

from sparsify import sparsify, Policy

sparse = sparsify(model, Policy.auto(), example_inputs=(latents, timestep, labels))
print(sparse.report())
"""

from .api import sparsify
from .density import Density
from .errors import (
    CaptureError,
    GridError,
    InputError,
    LoweringError,
    NotCapturedError,
    PolicyError,
    RewriteError,
    SparsifyError,
    TrunkError,
    VerificationError,
)
from .policy import SDTM, Policy
from .report import Report
from .runtime import SparseModel
from .targets import available, lower

__version__ = "0.1.0"

__all__ = [
    "SDTM",
    "CaptureError",
    "Density",
    "GridError",
    "InputError",
    "LoweringError",
    "NotCapturedError",
    "Policy",
    "PolicyError",
    "Report",
    "RewriteError",
    "SparseModel",
    "SparsifyError",
    "TrunkError",
    "VerificationError",
    "available",
    "lower",
    "sparsify",
]
