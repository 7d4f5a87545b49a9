"""Find the trunk of a model, its chains of repeated transformer blocks, from a recorded run.

Nothing here looks at class names. Siblings (children of one parent) of one class that each run once and hand a token
tensor of unchanged shape on form a chain. The chain with the most parameters is the main one; others of comparable
blocks (single after double blocks, temporal beside spatial ones) belong to the trunk as well. Which of them carry
tokens of the grid, and not of the text, is decided later, from the symbolic shapes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from .calls import CallSpec, Leaf, OutputSpec
from .errors import CaptureError, TrunkError
from .hidden import Watch
from .pristine import foreign_draws, pristine
from .quiet import quiet_logs
from .structure import fingerprint

log = logging.getLogger("sparsify")

_COMPARABLE = 0.1  # blocks of another chain have at least this share of the main chain's parameters per block


@dataclass
class BlockCall:
    """One recorded call of one block.

    Attributes:
        path: the block's name in the model, such as ``transformer_blocks.3``.
        call: its calling convention.
        inputs: the flat tensors and sizes it was given (fake when the run was fake).
        output_spec: the nesting of what it returned.
        outputs: the flat tensors it returned.
        structure: equal for two calls only if tracing them gives the same graph.
        updates: for every flat output, the flat input it is the next version of (same shape and dtype).
        read_outside: whether code outside of the block reads its weights.
    """

    path: str
    module: nn.Module
    call: CallSpec
    inputs: list[Leaf]
    output_spec: OutputSpec
    outputs: list[torch.Tensor]
    structure: Hashable
    updates: list[int] = field(default_factory=list)
    read_outside: bool = False

    @property
    def chain(self) -> str:
        """The name of the list of blocks it stands in."""
        return self.path.rpartition(".")[0] or self.path


def find_trunk(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], fake: bool = True) -> list[BlockCall]:
    """Run ``model`` once and return the calls of the blocks of all its chains, in execution order.

    The run is made with fake tensors, so that it costs no arithmetic; a model that looks at values is run for real, and
    so is any with ``fake=False``.

    Raises:
        TrunkError: no chain was found; the message says what was seen instead.
        CaptureError: the model draws from Python's random module, or numpy's.
    """
    with foreign_draws() as sources:
        blocks = _find_chains(model, args, kwargs, fake)
    if sources:
        raise CaptureError(
            f"{type(model).__name__} draws from {sources[0]} as it runs; a graph would freeze the draw. Draw with torch, or outside "
            f"of the model."
        )
    return blocks


def _find_chains(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], fake: bool) -> list[BlockCall]:
    groups = _sibling_groups(model)
    if not groups:
        raise TrunkError(f"no trunk found: {type(model).__name__} has no two sibling modules of one class with parameters.")
    reasons: list[str] = []
    while any(len(group) > 1 for group in groups):
        chosen = _choose(model, groups)
        calls = _record(model, [path for group in chosen for path in group], args, kwargs, fake)
        chains = []
        for group in chosen:
            reason = _refusal_of_chain(group, calls)
            if reason is None:
                chains.append(group)
                continue
            reasons.append(f"{group[0]} .. {group[-1]} ({type(model.get_submodule(group[0])).__name__}): {reason}")
            if group is chosen[0]:
                break
        if chains and chains[0] is chosen[0]:
            members = {path for group in chains for path in group}
            return [recorded for path, (recorded, *_) in calls.items() if path in members]
        groups.remove(chosen[0])  # the largest is none; others may be inside it
    raise TrunkError("no trunk found. Candidates, largest first:\n  " + "\n  ".join(reasons[:6]))


def _sibling_groups(model: nn.Module) -> list[list[str]]:
    """Paths of siblings of one class that own parameters, for every parent and class with at least two of them.

    Largest first. A single module of a class that has such a group joins as a group of its own (a middle block).
    """
    groups: dict[tuple[str, type], list[str]] = defaultdict(list)
    for parent_path, parent in model.named_modules():
        for name, child in parent.named_children():
            if next(child.parameters(), None) is not None:
                groups[parent_path, type(child)].append(f"{parent_path}.{name}" if parent_path else name)
    repeated = {kind for (_, kind), group in groups.items() if len(group) > 1}
    kept = [group for (_, kind), group in groups.items() if kind in repeated]
    return sorted(kept, key=lambda group: (_weight(model, group), len(group)), reverse=True)


def _weight(model: nn.Module, group: Iterable[str]) -> int:
    return sum(p.numel() for path in group for p in model.get_submodule(path).parameters())


def _choose(model: nn.Module, groups: list[list[str]]) -> list[list[str]]:
    """The largest group, and every other that is neither inside it nor around it and has comparable blocks."""
    main = next(group for group in groups if len(group) > 1)
    chosen = [main]
    least = _COMPARABLE * _weight(model, main) / len(main)
    is_leaf = next(model.get_submodule(main[0]).children(), None) is None
    for group in groups:
        apart = all(not _nested(a, b) for a in group for other in chosen for b in other)
        leaf = next(model.get_submodule(group[0]).children(), None) is None
        if apart and leaf == is_leaf and _weight(model, group) / len(group) >= least:
            chosen.append(group)
    return chosen


def _nested(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _record(
    model: nn.Module, paths: list[str], args: Sequence[Any], kwargs: dict[str, Any], fake: bool
) -> dict[str, list[BlockCall]]:
    if not fake:
        with pristine(model, (args, kwargs)):
            return _run_with_hooks(model, paths, args, kwargs, reuse=False)
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        fake_leaves = [mode.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        fake_args, fake_kwargs = pytree.tree_unflatten(fake_leaves, spec)
        with pristine(model), mode, quiet_logs():
            return _run_with_hooks(model, paths, fake_args, fake_kwargs, reuse=True)
    except Exception as error:  # noqa: BLE001  # the model looks at values, or does what fake tensors cannot
        log.debug("running %s for real, because on fake tensors it raised: %s", type(model).__name__, error)
    with pristine(model, (args, kwargs)):
        return _run_with_hooks(model, paths, args, kwargs, reuse=False)


def _run_with_hooks(
    model: nn.Module, paths: list[str], args: Sequence[Any], kwargs: dict[str, Any], reuse: bool
) -> dict[str, list[BlockCall]]:
    calls: dict[str, list[BlockCall]] = {}
    seen: dict[Hashable, tuple[OutputSpec, list[torch.Tensor]]] = {}
    modules = {path: model.get_submodule(path) for path in paths}
    watch = Watch(modules)
    for path, module in modules.items():
        module.forward = watch.pausing(_recorded(path, module, calls, seen, reuse))
    with torch.no_grad(), watch if reuse else contextlib.nullcontext():  # a real run is left to its fast paths
        model(*args, **kwargs)
    for path, recorded in calls.items():
        for call in recorded:
            call.read_outside = path in watch.seen
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
        call, inputs = CallSpec.of(forward, args, kwargs, sizes=True)
        shapes = tuple((tuple(x.shape), x.dtype, x.device) if isinstance(x, torch.Tensor) else x for x in inputs)
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


def _refusal_of_chain(group: list[str], calls: dict[str, list[BlockCall]]) -> str | None:
    """Why ``group`` forms no chain; where it does, the updates of its blocks are filled in."""
    if missing := [path for path in group if path not in calls]:
        return f"{missing[0]} does not run in this call"
    if repeated := [path for path in group if len(calls[path]) > 1]:
        return f"{repeated[0]} runs {len(calls[repeated[0]])} times in one call; blocks that share weights are not supported"
    blocks = [recorded for path, (recorded, *_) in calls.items() if path in group]  # in the order of execution
    for block in blocks:
        updates = [_update(block, output, calls) for output in block.outputs]
        known = [position for position in updates if position is not None]
        if not updates or len(known) < len(updates):
            return "its output does not have the shape of an input, so it hands no tokens on"
        if max(output.ndim for output in block.outputs) < 3:
            return "it passes on no tensor of (batch, tokens, channels)"
        block.updates = known
    return None


def _update(block: BlockCall, output: torch.Tensor, calls: dict[str, list[BlockCall]]) -> int | None:
    """The input that ``output`` is the next version of: where a later block takes it, else the first of equal shape."""
    alike = [p for p, x in enumerate(block.inputs) if isinstance(x, torch.Tensor) and _alike(x, output)]
    links = [
        position
        for (other, *_) in calls.values()
        if other.call.names == block.call.names
        for position, tensor in enumerate(other.inputs)
        if tensor is output
    ]
    return next((position for position in links + alike if position in alike), None)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.is_floating_point() and a.shape == b.shape and a.dtype == b.dtype
