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
from .check import check_pass, replay
from .equivalence import assert_equivalent
from .failure import CheckFailure
from .graphs import graph_inputs, graphs
from .isomorphism import isomorphic, structural_difference
from .model import DiT
from .model_strategies import dits, specs
from .policy_strategies import policies
from .spec import DiTSpec

__all__ = [
    "CheckFailure",
    "DiT",
    "DiTSpec",
    "assert_equivalent",
    "check_pass",
    "dits",
    "graph_inputs",
    "graphs",
    "inputs",
    "isomorphic",
    "policies",
    "replay",
    "specs",
    "structural_difference",
]
