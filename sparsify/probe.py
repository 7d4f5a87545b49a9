"""Try a split block on random numbers: does it do to some tokens what the block does to them among all of them?

For a subset ``i`` of the tokens, ``split(x[i], keys=x)`` must equal ``block(x)[i]``, and other keys must give something
else. This needs no reference, and it finds whatever mixes tokens besides attention: a convolution, a cumulative sum,
a norm over tokens. The weights are random too, so that gates that start at zero hide nothing.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .attention import SDPA
from .program import Body
from .shapes import shape_of

_TOKENS = 24  # divisible by most window sizes
_CHOSEN = (1, 2, 5, 11, 17, 22)
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


def refusal_to_split(body: Body, split: Body) -> str | None:
    """Why ``split`` is not ``body`` with queries and keys apart, or None."""
    if any(_draws_random_numbers(node) for node in body.graph.nodes):
        return None  # dropout draws other numbers for other tokens; the evaluation graph is the one to try
    with unset_fake_temporarily(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        inputs = [_random(node, body) for node in body.placeholders]
        weights = _Weights(body)
        tokens = inputs[body.tokens]
        few = list(inputs)
        few[body.tokens] = tokens[:, list(_CHOSEN)]
        try:
            whole = weights.run(body, inputs)[:, list(_CHOSEN)]
            part = weights.run(split, [*few, tokens])
            moved = weights.run(split, [*few, tokens + torch.randn_like(tokens)])
        except RuntimeError as error:
            return f"the block does not run on {_TOKENS} tokens: {str(error).splitlines()[0]}"
    scale = float(whole.abs().max()) + 1e-6
    if not float((whole - part).abs().max()) <= _TOLERANCE.get(whole.dtype, 0.1) * scale:
        return "something besides attention mixes tokens: queries alone give another result than queries among all tokens"
    if float((moved - part).abs().max()) <= 1e-6 * scale:
        return "the result does not depend on the keys"
    return None


def _draws_random_numbers(node: fx.Node) -> bool:
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


def _random(node: fx.Node, body: Body) -> torch.Tensor:
    """A value for an input: two batch elements, few tokens, every other size as captured."""
    batch, count = shape_of(body.token_node)[:2]
    known = {size: number for size, number in ((batch, 2), (count, _TOKENS)) if not isinstance(size, int)}
    fake = node.meta["val"]
    hints = fake.fake_mode.shape_env.backed_var_to_val
    sizes = [known[s] if s in known else int(sympy.sympify(s).xreplace(known).xreplace(hints)) for s in shape_of(node)]
    return _filled(tuple(sizes), fake.dtype, fake.device, 1.0)


def _real(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "meta" else device


def _filled(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float) -> torch.Tensor:
    device = _real(device)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype, device=device) * scale
    return torch.ones(shape, dtype=dtype, device=device)
