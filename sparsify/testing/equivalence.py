"""Two models compared: what they return, of which type, and the gradients of inputs and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..calls import split_inputs
from ..errors import InputError
from ..runtime import SparseModel
from .leaves import leaves, structural_mismatch, tensors_in
from .state import State, random_numbers_kept, tensors_of
from .tolerance import Tolerance, check_options, mismatch

Gradients = bool | Literal["inputs"]


def assert_equivalent(
    a: Callable[..., Any],
    b: Callable[..., Any],
    inputs: Any,
    *,
    gradients: Gradients = True,
    rtol: float | None = None,
    atol: float = 0.0,
    depth: int | None = None,
    equal_nan: bool = False,
) -> None:
    """Call ``a`` and ``b`` with the same inputs and compare all there is to compare; ``b`` is what is expected.

    Compared are the nesting of what they return, shapes, dtypes, devices, values, and for one random cotangent the gradients
    of all floating inputs and of all parameters that both have by the same name. A gradient that is None counts as zeros.
    Both start from the same random state, of torch, Python and numpy. What they are given and what they hold must be as it was afterwards, and is put
    back if it is not.

    Values may differ by ``atol + rtol * magnitude``. The magnitude is the largest absolute value among all that ``b`` returns, or
    among all its gradients: rounding errors of a network go with its large values, not with those that happen to be small.
    ``rtol`` is ``depth * eps`` times 512 in float64 (1e-12 at nine blocks), 16 in float32 and 2 in half precision, of the
    coarsest floating dtype among the parameters and results of ``b``. Integers must be equal.

    Args:
        a: a module or any other callable.
        b: what it is compared to.
        inputs: one call's inputs, a tuple of positional or a dict of keyword inputs.
        gradients: of inputs and parameters, of ``"inputs"`` alone, or none.
        rtol: in place of the formula above.
        atol: allowed besides.
        depth: how many blocks or layers there are one after the other; without it the longest list of modules in ``a`` or ``b``.
        equal_nan: whether NaN at the same place in both is equal.

    Raises:
        AssertionError: they differ; the message says where, what the values are, the difference and what is allowed.
        InputError: there are no common parameters to compare gradients of, or an option is none of what is allowed.
    """
    check_options(gradients=gradients, rtol=rtol, atol=atol, depth=depth, equal_nan=equal_nan)
    args, kwargs = split_inputs(inputs)
    mine, theirs = (_run(function, name, args, kwargs, gradients) for function, name in ((a, "a"), (b, "b")))
    if reason := structural_mismatch(mine.result, theirs.result):
        raise AssertionError(f"{reason}.")
    for (path, x), (_, y) in zip(leaves(mine.result), leaves(theirs.result), strict=True):
        if isinstance(y, Tensor):
            if reason := _type_mismatch(path, x, y):
                raise AssertionError(reason)
        elif x is not y and x != y:
            raise AssertionError(f"{path} is {x!r} where {y!r} is expected.")
    tolerance = Tolerance.of(rtol, atol, depth or max(depth_of(a), depth_of(b)), theirs.dtypes(b))
    _compare(dict(tensors_in(mine.result)), dict(tensors_in(theirs.result)), tolerance, equal_nan)
    if gradients:
        names = _common(mine.gradients, theirs.gradients, a, b, gradients)
        got, expected = ({name: each.gradients[name] for name in names} for each in (mine, theirs))
        _compare(got, expected, tolerance, equal_nan)


def depth_of(function: Callable[..., Any]) -> int:
    """How many blocks follow one another: the longest list of modules, at least 1."""
    if isinstance(function, SparseModel):
        return len(function.program.paths)
    if not isinstance(function, nn.Module):
        return 1
    return max([1, *(len(module) for module in function.modules() if isinstance(module, (nn.ModuleList, nn.Sequential)))])


@dataclass(frozen=True)
class _Run:
    """What one call gave: its result, and gradients by what they are of."""

    result: Any
    gradients: Mapping[str, Tensor]

    def dtypes(self, function: Callable[..., Any]) -> set[torch.dtype]:
        """Of the results, and of the parameters that they were computed with."""
        held = function.parameters() if isinstance(function, nn.Module) else ()
        return {tensor.dtype for tensor in (*(leaf for _, leaf in tensors_in(self.result)), *held)}


def _run(function: Callable[..., Any], name: str, args: Any, kwargs: Any, gradients: Gradients) -> _Run:
    starts, given, call = _own_inputs(args, kwargs, bool(gradients))
    module = [function] if isinstance(function, nn.Module) else []
    held = tensors_of(function) if isinstance(function, nn.Module) else {}
    state = State({**held, **given}, *module)
    devices = sorted({t.device.index for t in (*held.values(), *given.values()) if t.device.type == "cuda"})
    try:
        with random_numbers_kept(devices), torch.set_grad_enabled(bool(gradients)):
            result = function(*call[0], **call[1])
            found = _gradients(function, result, starts, gradients) if gradients else {}
        if (change := state.change()) is not None:
            raise AssertionError(f"{name} {change}, which a call must leave as it was.")
    finally:
        state.restore()
    return _Run(pytree.tree_map(_detached, result), found)


def _own_inputs(args: Any, kwargs: Any, gradients: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Tensors to take gradients of, copies of them to be given, both by name, and the call's arguments with the copies."""
    starts: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}  # a tensor that comes twice comes twice in the copy, too
    flat, spec = pytree.tree_flatten((args, kwargs))
    names = [path for path, _ in leaves([list(args), kwargs], "input")]
    names = names if len(names) == len(flat) else [f"input {index}" for index in range(len(flat))]

    def own(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in known:
            start = leaf.detach().clone()
            if gradients and (start.is_floating_point() or start.is_complex()):
                starts[f"the gradient of {_input(name)}"] = start.requires_grad_()
            with torch.set_grad_enabled(gradients):
                known[id(leaf)] = given[_input(name)] = start.clone()  # no leaf, so that writing into it is no error but seen
        return known[id(leaf)]

    return starts, given, pytree.tree_unflatten([own(name, leaf) for name, leaf in zip(names, flat, strict=True)], spec)


def _input(path: str) -> str:
    """``input[1]['x']`` as ``input ['x']``: positional or by keyword is told by the key."""
    return path.replace("input[0]", "input ", 1).replace("input[1]", "input ", 1)


def _gradients(function: Callable[..., Any], result: Any, starts: dict[str, Tensor], which: Gradients) -> dict[str, Tensor]:
    held = function.named_parameters() if isinstance(function, nn.Module) and which != "inputs" else ()
    targets = starts | {f"the gradient of {name}": p for name, p in held if p.requires_grad}
    outputs = [(leaf, _cotangent(leaf, index)) for index, (_, leaf) in enumerate(tensors_in(result))]
    outputs = [(leaf, cotangent) for leaf, cotangent in outputs if leaf.requires_grad and not leaf.is_meta]
    if not targets or not outputs:
        return {name: torch.zeros_like(target) for name, target in targets.items()}
    roots, cotangents = zip(*outputs, strict=True)
    found = torch.autograd.grad(roots, list(targets.values()), cotangents, allow_unused=True)
    return {
        name: torch.zeros_like(target) if gradient is None else gradient.detach()
        for (name, target), gradient in zip(targets.items(), found, strict=True)
    }


def _cotangent(output: Tensor, seed: int) -> Tensor:
    """Random numbers of norm about 1: the same for equal shapes, on every device and in every dtype."""
    drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.div(max(1, output.numel()) ** 0.5).to(output)


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _type_mismatch(path: str, x: Tensor, y: Tensor) -> str | None:
    for what in ("shape", "dtype", "device"):
        got, wanted = getattr(x, what), getattr(y, what)
        if got != wanted:
            shown = (list(got), list(wanted)) if what == "shape" else (got, wanted)
            return f"{path} has the {what} {shown[0]} where {shown[1]} is expected."
    return None


def _common(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], a: Any, b: Any, gradients: Gradients) -> list[str]:
    """The names of gradients that both have."""
    parameters = [{n for n in each if not n.startswith("the gradient of input ")} for each in (mine, theirs)]
    if gradients is True and all(parameters) and not set.intersection(*parameters):
        raise InputError(
            f"a ({type(a).__name__}) and b ({type(b).__name__}) have no parameter of the same name, so gradients of parameters "
            f'cannot be compared; gradients="inputs" compares those of the inputs alone.'
        )
    return [name for name in theirs if name in mine]


def _compare(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: Tolerance, equal_nan: bool) -> None:
    allowed = tolerance.among(list(theirs.values()))
    for name, expected in theirs.items():
        if reason := _type_mismatch(name, mine[name], expected):
            raise AssertionError(reason)
        if reason := mismatch(mine[name], expected, allowed.value, equal_nan):
            raise AssertionError(f"{name}{reason} ({allowed.why}).")
