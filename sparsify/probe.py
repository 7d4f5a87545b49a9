"""Try a split block on random numbers: does it do to some tokens what the block does to them among all of them?

For a subset ``i`` of the tokens, ``split(x[i], keys=x)`` must equal ``block(x)[i]``, and other keys must give something
else. This needs no reference, and it finds whatever mixes tokens besides attention: a convolution, a cumulative sum,
a norm over tokens. The weights are random too, so that gates that start at zero hide nothing.

A block that folds its tokens back into an image for a convolution is given the upper rows of the image, and those next
to the cut are not compared: there the convolution sees the border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .attention import SDPA, aligned_inputs, moving_axes
from .program import Body
from .shapes import shape_of, size_of

_BATCH_NORM = torch.ops.aten.batch_norm.default  # its fifth argument is the running variance
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Subset:
    """The sizes to try a block at, and which tokens to take.

    Attributes:
        sizes: every size symbol of the block, for all tokens.
        few: the same where only the chosen tokens are there.
        index: for each aligned input and axis, the rows that are taken: the chosen tokens, and all that stands beside
            the grid.
        compared: rows of the few tokens that must agree.
    """

    sizes: Mapping[sympy.Basic, int]
    few: Mapping[sympy.Basic, int]
    index: Mapping[tuple[int, int], Sequence[int]]
    compared: Sequence[int]

    def take(self, value: torch.Tensor, position: int, axes: Sequence[int]) -> torch.Tensor:
        """The chosen tokens of an input, with the rows beside the grid, on some of its axes."""
        for axis in axes:
            if (position, axis) in self.index:
                value = value.index_select(axis, torch.tensor(self.index[position, axis], device=value.device))
        return value

    def compare(self, value: torch.Tensor, axis: int) -> torch.Tensor:
        """The tokens of a result that must agree."""
        return value.index_select(axis, torch.tensor(self.compared, device=value.device))


def refusal_to_split(body: Body, split: Body, subset: Subset) -> str | None:
    """Why ``split`` is not ``body`` with queries and keys apart, or None.

    A block in which nothing crosses is tried as it is: then no token may see another.
    """
    if draws_random_numbers(body):
        return None  # dropout draws other numbers for other tokens; the evaluation graph is the one to try
    with unset_fake_temporarily(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        inputs = [_random(node, subset.sizes) for node in body.placeholders]
        weights = _Weights(body)
        try:
            whole = weights.run(body, inputs)
            part = weights.run(split, few_inputs(body, split, inputs, subset))
            other = list(inputs)
            other[body.tokens] = inputs[body.tokens] + torch.randn_like(inputs[body.tokens])
            moved = weights.run(
                split, few_inputs(body, split, inputs, subset)[: len(inputs)] + _twins(body, split, other, subset)
            )
        except RuntimeError as error:
            return f"the block does not run on {dict(subset.sizes)}: {str(error).splitlines()[0]}"
    if reason := disagreement(body, subset, whole, part):
        return reason
    moved, part = subset.compare(moved, body.token_axis), subset.compare(part, body.token_axis)
    if split.twins and float((moved - part).abs().max()) <= 1e-6 * (float(part.abs().max()) + 1e-6):
        return "the result does not depend on the keys"
    return None


def disagreement(body: Body, subset: Subset, whole: torch.Tensor, part: torch.Tensor) -> str | None:
    """How a block's result for all tokens differs, on the chosen ones, from the split block's result for these."""
    whole = subset.compare(subset.take(whole, body.tokens, [body.token_axis]), body.token_axis)
    part = subset.compare(part, body.token_axis)
    scale = float(whole.abs().max()) + 1e-6
    if not float((whole - part).abs().max()) <= _TOLERANCE.get(whole.dtype, 0.1) * scale:
        return "something besides attention mixes tokens: queries alone give another result than queries among all tokens"
    return None


def few_inputs(body: Body, split: Body, inputs: Sequence[Any], subset: Subset, given: Sequence[Any] = ()) -> list[Any]:
    """The inputs of the split block: the chosen tokens as queries, all of them as keys, and what is ``given`` from outside."""
    few = list(inputs)
    for position in aligned_inputs(body):
        node = body.placeholders[position]
        if isinstance(node.meta["val"], torch.Tensor):
            few[position] = subset.take(inputs[position], position, moving_axes(body, node))
        else:
            few[position] = _number(size_of(node.meta["val"]), subset.few)
    return [*few, *given, *_twins(body, split, inputs, subset)]


def _twins(body: Body, split: Body, inputs: Sequence[Any], subset: Subset) -> list[Any]:
    twins = []
    for twin in split.twins:
        axes = moving_axes(body, body.placeholders[twin.position])[:-1]
        whole = inputs[twin.position]
        twins.append(subset.take(whole, twin.position, axes) if twin.level == "cross" else whole)
    return twins


def draws_random_numbers(body: Body) -> bool:
    """Whether a block gives another result at every run, as dropout does."""
    return any(map(is_random, body.graph.nodes))


def is_random(node: fx.Node) -> bool:
    """Whether an operator gives another result at every run."""
    if node.target == SDPA:  # only with dropout, its fifth argument
        return bool((node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)) != 0.0)
    if node.target == torch.ops.aten.dropout.default:
        return bool(node.args[1] and node.args[2])
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


class _Weights:
    """Random values for the parameters that a graph names; the same for both graphs."""

    def __init__(self, body: Body) -> None:
        self._constants = body.constants
        self._values: dict[str, Any] = {}

    def run(self, body: Body, inputs: list[torch.Tensor]) -> torch.Tensor:
        """The tokens that a body gives for these inputs."""
        result = _Run(body.graph, self).run(*inputs)
        return result if isinstance(result, torch.Tensor) else result[body.token_output]

    def get(self, node: fx.Node) -> Any:
        name = str(node.target)
        if name in self._constants:
            return self._constants[name]
        if name not in self._values:
            fake = node.meta["val"]
            self._values[name] = _filled(
                tuple(fake.shape), fake.dtype, fake.device, 1 / max(1, fake.shape[-1] if fake.ndim else 1) ** 0.5
            )
            if any(user.target == _BATCH_NORM and user.args[4] is node for user in node.users):
                self._values[name] = self._values[name].square() + 0.5  # variances
        return self._values[name]


class _Run(fx.Interpreter):
    def __init__(self, graph: fx.Graph, weights: _Weights) -> None:
        super().__init__(nn.Module(), graph=graph)
        self._weights = weights

    def run_node(self, n: fx.Node) -> Any:
        return self._weights.get(n) if n.op == "get_attr" else super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(device := kwargs.get("device"), torch.device):
            kwargs = {**kwargs, "device": _real(device)}  # a model on the meta device is tried on the CPU
        return super().call_function(target, args, kwargs)


def _number(size: Any, sizes: Mapping[sympy.Basic, int]) -> int:
    return int(sympy.sympify(size).xreplace({symbol: sympy.Integer(number) for symbol, number in sizes.items()}))


def _random(node: fx.Node, sizes: Mapping[sympy.Basic, int]) -> Any:
    """A value for an input at these sizes."""
    fake = node.meta["val"]
    if not isinstance(fake, torch.Tensor):
        return _number(size_of(fake), sizes)
    return _filled(tuple(_number(size, sizes) for size in shape_of(node)), fake.dtype, fake.device, 1.0)


def _real(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "meta" else device


def _filled(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float) -> torch.Tensor:
    device = _real(device)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype, device=device) * scale
    return torch.ones(shape, dtype=dtype, device=device)
