"""Find the trunk of a model, its chain of repeated transformer blocks, from a recorded run.

Nothing here looks at class names. Siblings (children of one parent) of one class that each run once, one after the
other, and hand a token tensor of unchanged shape on, form a chain; the chain with the most parameters is the trunk.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from .calls import CallSpec, OutputSpec
from .errors import TrunkError
from .pristine import pristine
from .structure import fingerprint

log = logging.getLogger("sparsify")


@dataclass
class BlockCall:
    """One recorded call of one block.

    Attributes:
        path: the block's name in the model, such as ``transformer_blocks.3``.
        call: its calling convention.
        inputs: the flat tensors it was given (fake when the run was fake).
        output_spec: the nesting of what it returned.
        outputs: the flat tensors it returned.
        structure: equal for two calls only if tracing them gives the same graph.
    """

    path: str
    module: nn.Module
    call: CallSpec
    inputs: list[torch.Tensor]
    output_spec: OutputSpec
    outputs: list[torch.Tensor]
    structure: Hashable


@dataclass
class Trunk:
    """The chain of blocks in execution order.

    Attributes:
        blocks: the recorded calls.
        token_input: which flat input of every block carries the tokens.
        token_output: which flat output of every block carries them on.
        updates: for every flat output, the flat input it is the next version of (same shape and dtype).
    """

    blocks: list[BlockCall]
    token_input: int
    token_output: int
    updates: list[int]


def find_trunk(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Trunk:
    """Run ``model`` once and return its trunk.

    The run is made with fake tensors, so that it costs no arithmetic; a model that looks at values is run for real.

    Raises:
        TrunkError: no chain was found; the message says what was seen instead.
    """
    groups = _sibling_groups(model)
    if not groups:
        raise TrunkError(f"no trunk found: {type(model).__name__} has no two sibling modules of one class with parameters.")
    groups.sort(key=lambda group: _weight(model, group), reverse=True)
    # Nearly always the largest group is the trunk, and then one block of each structure is enough to run.
    first = _chain(groups[0], _record(model, groups[0], args, kwargs, reuse=True))
    if isinstance(first, Trunk):
        return first
    calls = _record(model, [path for group in groups for path in group], args, kwargs, reuse=False)
    reasons: list[str] = []
    for group in groups:
        chain = _chain(group, calls)
        if isinstance(chain, Trunk):
            return chain
        reasons.append(f"{group[0]} .. {group[-1]} ({type(model.get_submodule(group[0])).__name__}): {chain}")
    raise TrunkError("no trunk found. Candidates, largest first:\n  " + "\n  ".join(reasons[:6]))


def _sibling_groups(model: nn.Module) -> list[list[str]]:
    """Paths of siblings of one class that own parameters, for every parent and class with at least two of them."""
    groups: dict[tuple[str, type], list[str]] = defaultdict(list)
    for parent_path, parent in model.named_modules():
        for name, child in parent.named_children():
            if next(child.parameters(), None) is not None:
                groups[parent_path, type(child)].append(f"{parent_path}.{name}" if parent_path else name)
    return [group for group in groups.values() if len(group) > 1]


def _weight(model: nn.Module, group: list[str]) -> int:
    return sum(p.numel() for path in group for p in model.get_submodule(path).parameters())


def _record(
    model: nn.Module, paths: list[str], args: Sequence[Any], kwargs: dict[str, Any], reuse: bool
) -> dict[str, list[BlockCall]]:
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        fake_leaves = [mode.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        fake_args, fake_kwargs = pytree.tree_unflatten(fake_leaves, spec)
        with pristine(model), mode:
            return _run_with_hooks(model, paths, fake_args, fake_kwargs, reuse)
    except Exception as error:  # noqa: BLE001  # the model looks at values, or does what fake tensors cannot
        log.debug("running %s for real, because on fake tensors it raised: %s", type(model).__name__, error)
    with pristine(model):
        return _run_with_hooks(model, paths, args, kwargs, reuse=False)


def _run_with_hooks(
    model: nn.Module, paths: list[str], args: Sequence[Any], kwargs: dict[str, Any], reuse: bool
) -> dict[str, list[BlockCall]]:
    calls: dict[str, list[BlockCall]] = {}
    seen: dict[Hashable, tuple[OutputSpec, list[torch.Tensor]]] = {}
    with torch.no_grad():
        for path in paths:
            module = model.get_submodule(path)
            module.forward = _recorded(path, module, calls, seen, reuse)
        model(*args, **kwargs)
    return calls


def _recorded(
    path: str,
    module: nn.Module,
    calls: dict[str, list[BlockCall]],
    seen: dict[Hashable, tuple[OutputSpec, list[torch.Tensor]]],
    reuse: bool,
) -> Callable[..., Any]:
    """The module's ``forward``, noting its calls; with ``reuse``, what a like call gave before is given again."""
    forward, print_ = module.forward, fingerprint(module)

    @functools.wraps(forward)
    def record(*args: Any, **kwargs: Any) -> Any:
        call, inputs = CallSpec.of(forward, args, kwargs)
        shapes = tuple((tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in inputs)
        structure = (print_, call.names, repr(call.constants), shapes)
        if reuse and structure in seen:
            spec, known = seen[structure]
            output = spec.unflatten([tensor.new_empty(tensor.shape) for tensor in known])
        else:
            output = forward(*args, **kwargs)
        seen[structure] = OutputSpec.of(output)
        calls.setdefault(path, []).append(BlockCall(path, module, call, inputs, *seen[structure], structure))
        return output

    return record


def _chain(group: list[str], calls: dict[str, list[BlockCall]]) -> Trunk | str:
    """The trunk that ``group`` forms, or why it forms none."""
    if missing := [path for path in group if path not in calls]:
        return f"{missing[0]} does not run in this call"
    if repeated := [path for path in group if len(calls[path]) > 1]:
        return f"{repeated[0]} runs {len(calls[repeated[0]])} times in one call; blocks that share weights are not supported"
    order = {path: index for index, path in enumerate(calls)}  # dicts keep the order in which blocks finished
    blocks = [calls[path][0] for path in sorted(group, key=order.__getitem__)]
    if any(len(block.inputs) != len(blocks[0].inputs) for block in blocks):
        return "its members are called with different tensors"
    updates = [_update(blocks, position) for position in range(len(blocks[0].outputs))]
    if not updates or None in updates:
        return "its output does not have the shape of an input, so it hands no tokens on"
    token_output = _largest(blocks[0].outputs)
    token_input = updates[token_output]
    if token_input is None or blocks[0].outputs[token_output].ndim < 3:
        return "it passes on no tensor of (batch, tokens, channels)"
    return Trunk(blocks, token_input, token_output, [u for u in updates if u is not None])


def _update(blocks: list[BlockCall], output: int) -> int | None:
    """The input that ``output`` is the next version of: where the next block takes it, else the first of equal shape."""
    links = [
        position
        for block, following in itertools.pairwise(blocks)
        for position, tensor in enumerate(following.inputs)
        if output < len(block.outputs) and tensor is block.outputs[output]
    ]
    alike = [p for p in _floating(blocks[0].inputs) if _alike(blocks[0].inputs[p], blocks[0].outputs[output])]
    return next((position for position in links + alike if position in alike), None)


def _floating(tensors: list[torch.Tensor]) -> Iterator[int]:
    return (position for position, tensor in enumerate(tensors) if tensor.is_floating_point())


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _largest(tensors: list[torch.Tensor]) -> int:
    return max(range(len(tensors)), key=lambda position: tensors[position].numel())
