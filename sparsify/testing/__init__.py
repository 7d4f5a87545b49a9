"""Property tests for whoever extends the compiler: random Diffusion Transformers, policies and inputs.

from hypothesis import given
from sparsify.testing import dits, inputs, policies

This package alone needs hypothesis, and nothing else of sparsify imports it.
"""

import importlib.util

if importlib.util.find_spec("hypothesis") is None:
    raise ImportError(
        "sparsify.testing draws its models by hypothesis, which is not installed: pip install 'sparsedit[testing]'"
    )

from .call_strategies import inputs
from .model import DiT
from .model_strategies import dits, specs
from .policy_strategies import policies
from .spec import DiTSpec

__all__ = ["DiT", "DiTSpec", "dits", "inputs", "policies", "specs"]
