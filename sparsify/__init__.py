"""A compiler for token sparsity in Diffusion Transformers.

from sparsify import sparsify, Policy

sparse = sparsify(model, Policy.auto(), example_inputs=(latents, timestep, labels))
print(sparse.report())
"""

import importlib
from typing import TYPE_CHECKING, Any

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
from .targets import available, lower

if TYPE_CHECKING:
    from .runtime import SparseModel

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


def __getattr__(name: str) -> Any:
    """What stands on the parts of torch that trace, which take as long to import as torch itself: who uses it waits."""
    if name == "SparseModel":
        return importlib.import_module(".runtime", __name__).SparseModel
    if name == "passes":
        return importlib.import_module(".passes", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "passes"})
