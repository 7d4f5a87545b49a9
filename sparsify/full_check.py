"""The two checks behind ``sparsify(..., verify="full")``. Neither needs a reference besides the model itself.

For some of the tokens a split block, on its own weights and what the model really gives it, equals the dense block on
these tokens; and every block in the middle of the trunk really gets fewer tokens when the sparse model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx, nn

from .calls import Leaf
from .density import Grid
from .errors import InputError, VerificationError
from .plan import Plan
from .probe import disagreement, draws_random_numbers, few_inputs
from .program import DENSITY, Body, Program
from .trunk import BlockCall, find_trunk


def check_fully(program: Program, plan: Plan, sparse: nn.Module, model: nn.Module, inputs: Sequence[Leaf]) -> None:
    """Run both checks on one call's flat inputs.

    Args:
        program: the finished program of ``sparse``.
        plan: what was asked for; a block that was left dense for a reason fails here all the same.
        sparse: the sparse model, called like ``model``.
        model: the dense model.
        inputs: the flat inputs of the call the program was captured with.

    Raises:
        VerificationError: a check failed; the message names the block.
        InputError: the weights or inputs hold no numbers.
    """
    if any(tensor.is_meta for tensor in (*model.parameters(), *(x for x in inputs if isinstance(x, torch.Tensor)))):
        raise InputError('verify="full" runs the model, and its weights or inputs are on the meta device; use real ones.')
    args, kwargs = program.call.unflatten(inputs)
    calls = {call.path: call for call in find_trunk(model, args, kwargs, fake=False)}
    _check_subsets(program, sparse, calls, _given(program, sparse, (args, kwargs)))
    roles = zip(program.block_nodes, plan.roles(), strict=True)
    middle = [node for node, role in roles if role.name in ("generate", "sparse")]
    for grid in program.density.grids(program.grid_hint) if program.density and middle else ():
        _check_tokens(program, sparse, (args, kwargs), grid, [(node, calls[str(node.target)]) for node in middle])


def _given(program: Program, sparse: nn.Module, arguments: tuple[Any, Any]) -> dict[str, Sequence[Any]]:
    """What blocks are given from outside besides what the model's own code gives them."""
    given: dict[str, Sequence[Any]] = {}

    def recorder(path: str, body: Body) -> Callable[..., None]:
        def record(module: nn.Module, args: Sequence[Any]) -> None:
            end = len(args) - len(body.twins)
            given[path] = args[end - body.given : end]

        return record

    takers = [node for node in program.block_nodes if program.body_of(node).given]
    if not takers:
        return given
    with ExitStack() as stack, torch.no_grad():
        for node in takers:
            hook = recorder(str(node.target), program.body_of(node))
            stack.callback(sparse.get_submodule(str(node.target)).register_forward_pre_hook(hook).remove)
        sparse(*arguments[0], **arguments[1])
    return given


def _check_subsets(
    program: Program, sparse: nn.Module, calls: Mapping[str, BlockCall], given: Mapping[str, Sequence[Any]]
) -> None:
    for path, (body, subset) in (program.trials or {}).items():
        node = next(node for node in program.block_nodes if node.target == path)
        if draws_random_numbers(body):
            continue  # dropout draws other numbers for fewer tokens
        call = calls[path]
        with torch.no_grad():
            part = sparse.get_submodule(path)(
                *few_inputs(body, program.body_of(node), call.inputs, subset, given.get(path, ()))
            )
        part = part if isinstance(part, torch.Tensor) else part[body.token_output]
        if reason := disagreement(body, subset, call.outputs[body.token_output], part):
            raise VerificationError(f"{path}, on its own weights and inputs: {reason}.")


def _check_tokens(
    program: Program, sparse: nn.Module, arguments: tuple[Any, Any], grid: Grid, middle: Sequence[tuple[fx.Node, BlockCall]]
) -> None:
    seen: dict[str, int] = {}
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(_pooled_to(sparse, grid))
        for node, call in middle:
            stack.callback(sparse.get_submodule(call.path).register_forward_pre_hook(_counter(program, node, seen)).remove)
        sparse(*arguments[0], **arguments[1])
    for node, call in middle:
        body = program.body_of(node)
        dense = call.inputs[body.tokens].shape[body.token_axis]  # type: ignore[union-attr]
        if seen.get(call.path, dense) >= dense:
            why = "".join(f"; {skip.pass_name} left {skip.where} alone: {skip.reason}" for skip in program.skips)
            raise VerificationError(
                f"{call.path} gets {seen.get(call.path, 'no')} tokens at the pooled grid {grid}, not fewer than the dense "
                f"{dense}{why}."
            )


def _counter(program: Program, node: fx.Node, seen: dict[str, int]) -> Callable[..., None]:
    body = program.body_of(node)

    def count(module: nn.Module, args: Sequence[torch.Tensor]) -> None:
        seen[str(node.target)] = args[body.tokens].shape[body.token_axis]

    return count


@contextmanager
def _pooled_to(sparse: nn.Module, grid: Grid) -> Iterator[None]:
    """The density gives this grid, whatever the timestep."""

    class Fixed(nn.Module):
        def forward(self, *_: Any) -> Grid:
            return grid

    before = sparse._modules[DENSITY]
    sparse._modules[DENSITY] = Fixed()
    try:
        yield
    finally:
        sparse._modules[DENSITY] = before
