"""The one verb."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from .calls import split_inputs
from .errors import GridError, InputError, PolicyError, RewriteError
from .model_check import check_model
from .policy import Policy

if TYPE_CHECKING:
    from .passes import Pass, Pipeline
    from .runtime import SparseModel


def sparsify(
    model: nn.Module,
    policy: Policy | Mapping[str, Policy] | Pipeline,
    example_inputs: Sequence[Any] | Mapping[str, Any] | torch.Tensor | None = None,
    *,
    grid: Sequence[int] | None = None,
    timestep: str | None = None,
    verify: Literal["standard", "full"] = "standard",
    savings: bool | Collection[str] = True,
    passes: Pass | str | Sequence[Pass | str] = (),
) -> SparseModel:
    """Rewrite a Diffusion Transformer so that most of its blocks see fewer tokens (SparseDiT, arXiv 2412.06028).

    Args:
        model: any module whose trunk is a chain of repeated blocks. It is not changed. Its parameters become the
            result's parameters (the same objects, as with ``torch.compile``); deep-copy it first to keep them apart.
        policy: which block does what, and at which density: one over all blocks in the order of execution, or a mapping
            from the chains that the report names to a policy each. A :class:`~sparsify.passes.Pipeline` is run as it is, with
            nothing added to it.
        example_inputs: one call's inputs, a tuple of positional or a dict of keyword inputs. Without it the model is
            captured at its first call.
        grid: the token grid in row-major order, where it cannot be read off the graph.
        timestep: the name of the input that carries the timestep, where it cannot be told.
        verify: ``"standard"`` checks every graph after every pass. ``"full"`` also runs the model on the example inputs:
            for some of the tokens each split block must equal the dense one on them, and every block in the middle must
            really get fewer tokens.
        savings: which of the exact savings to make (named in ``sparsify.passes.SAVINGS``): all, none, or those with these names. They
            change results by rounding alone.
        passes: passes of your own, objects or text such as ``"my-pass{blocks=2-5}"``. They run behind those of the policy and
            before the savings; with ``Policy.dense()`` they are the first. If they change nothing, RewriteError says why.

    Returns:
        A module called like ``model``, with :meth:`~sparsify.runtime.SparseModel.report` and ``graph_module``.

    Raises:
        SparsifyError: a subclass says what does not fit: the policy (PolicyError), the trunk (TrunkError), the token
            grid (GridError), the capture (CaptureError), every rewrite refused (RewriteError), the inputs (InputError),
            a check failed (VerificationError).
    """
    from .runtime import SparseModel  # here, because what traces takes as long to import as torch itself
    from .stage import Request

    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; sparsify takes a torch.nn.Module, such as pipe.transformer.")
    check_model(model)
    whole, given = _pipelines(policy, passes)
    if whole is None:
        _check_policy(policy)
    if any(isinstance(module, SparseModel) for module in model.modules()):
        raise RewriteError(f"{type(model).__name__} is sparsified already; call sparsify on the original model.")
    if grid is not None and not isinstance(grid, Sequence):
        raise GridError(f"grid is {grid!r}; it must be one to three integers, such as (32, 32).")
    if verify not in ("standard", "full"):
        raise InputError(f"verify is {verify!r}; it must be 'standard' or 'full'.")
    sides = None if grid is None else tuple(grid)
    if whole is not None:
        request = Request(Policy.dense(), sides, timestep, verify, passes=whole.passes, alone=True)
    else:
        request = Request(cast(Any, policy), sides, timestep, verify, saving_names(savings), given.passes)
    sparse = SparseModel(model, request)
    if example_inputs is not None:
        args, kwargs = split_inputs(example_inputs)
        sparse.capture(args, kwargs)
    return sparse


def _pipelines(policy: Any, passes: Any) -> tuple[Pipeline | None, Pipeline]:
    """The whole pipeline if that is what ``policy`` is, and the passes that are given besides a policy."""
    from .passes.pipeline import Pipeline  # loads what traces

    given = Pipeline.of(passes)
    if not isinstance(policy, Pipeline):
        return None, given
    if given.passes:
        raise InputError("passes= adds to the pipeline of a Policy; a Pipeline is run as it is: put them into it.")
    if not policy.passes:
        raise PolicyError("the pipeline is empty; to rewrite nothing use Policy.dense().")
    return policy, given


def saving_names(savings: Any) -> tuple[str, ...]:
    """The names of the exact savings that ``savings`` asks for.

    Raises:
        InputError: it asks for something else.
    """
    from .passes.pipeline import SAVING_NAMES as known  # loads what traces

    if isinstance(savings, bool):
        return known if savings else ()
    named = list(savings) if isinstance(savings, Collection) and not isinstance(savings, str) else [savings]
    if unknown := [name for name in named if name not in known]:
        raise InputError(f"savings has {unknown[0]!r}; it must be True, False, or some of {list(known)}.")
    return tuple(name for name in known if name in named)


def _check_policy(policy: Any) -> None:
    each = policy if isinstance(policy, Mapping) and policy else {"": policy}
    if wrong := [value for value in each.values() if not isinstance(value, Policy)]:
        raise PolicyError(
            f"policy is a {type(wrong[0]).__name__}, or holds one; it must be a Policy, such as Policy.auto(), or a mapping from chains "
            f"of blocks to one each, such as {{'transformer_blocks': Policy.auto()}}."
        )
