"""How uniform the attention of each block is: what it would change if every query weighed all keys alike."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ..attention import contractions, self_attentions
from ..calls import split_inputs
from ..passes import FuseAttention
from ..program import Body
from ..stage import apart
from ..trunk import find_trunk
from .batches import Batches
from .variants import Variants


class Uniformity(NamedTuple):
    """Of one block, ``|attention - uniform attention| / |attention|``: 0 where it is uniform; None where ``why`` says."""

    distance: float | None
    why: str = ""


def uniformities(variants: Variants, batches: Batches) -> list[Uniformity]:
    """For each block of the trunk, on what the dense model really gives it; mean over the calls with their weights.

    Uniform attention is attention with all logits equal, that is the mean of the values, or of those that a mask allows. Of
    several attentions in one block the squares are added.
    """
    base = variants.fresh()
    program = base.program
    args, kwargs = split_inputs(batches.calls[0])
    with apart(args, kwargs):
        FuseAttention().run(program)
    sums = [0.0] * len(program.paths)
    seen = 0.0
    for call, weight in zip(batches.calls, batches.weights, strict=True):
        args, kwargs = split_inputs(call)
        blocks = {block.path: block for block in find_trunk(variants.model, args, kwargs, fake=False)}
        for index, node in enumerate(program.block_nodes):
            block, body = blocks[str(node.target)], program.body_of(node)
            if self_attentions(body):
                sums[index] += weight * _distance(block.module, body, block.inputs)
        seen += weight
    return [_judged(program.body_of(node), total / seen) for node, total in zip(program.block_nodes, sums, strict=True)]


def _judged(body: Body, distance: float) -> Uniformity:
    if self_attentions(body):
        return Uniformity(distance)
    if contractions(body):
        return Uniformity(None, "its attention is linear: there are no weights to compare")
    return Uniformity(None, "no attention over the trunk's tokens was recognised in it")


def _distance(module: nn.Module, body: Body, inputs: Sequence[Any]) -> float:
    run = _Compared(module, body)
    run.run(*inputs)
    return math.sqrt(run.difference / run.size) if run.size else 0.0


class _Compared(fx.Interpreter):
    """Runs a block's graph, and each of its attentions once more with queries of zero, which weigh all keys alike."""

    def __init__(self, module: nn.Module, body: Body) -> None:
        super().__init__(nn.Module(), graph=body.graph)
        self._module, self._constants = module, body.constants
        self._attentions = {attention.node for attention in self_attentions(body)}
        self.difference = self.size = 0.0

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            return _named(str(n.target), self._constants, self._module)
        result = super().run_node(n)
        if n in self._attentions:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            uniform = n.target(torch.zeros_like(args[0]), *args[1:], **kwargs)  # type: ignore[operator]
            self.difference += float((result - uniform).float().square().sum())
            self.size += float(result.float().square().sum())
        return result


def _named(name: str, constants: Mapping[str, Any], module: nn.Module) -> Any:
    return constants[name] if name in constants else operator.attrgetter(name)(module)
