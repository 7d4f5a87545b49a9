"""FP8 for TensorRT: the inputs and the weights of linear layers quantised, with scales from example calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ..errors import LoweringError
from ..real import with_graph

_BITS, _EXPONENT = 8, 4  # E4M3, the only float format that TensorRT's quantisation takes


def quantize_op() -> Callable[..., torch.Tensor]:
    """The operator that TensorRT's converter for quantisation knows; NVIDIA's ModelOpt brings it.

    Raises:
        LoweringError: ModelOpt is not installed or does not load.
    """
    try:
        import modelopt.torch.quantization  # type: ignore[import-not-found]  # noqa: F401

        return torch.ops.tensorrt.quantize_op.default
    except (ImportError, OSError, AttributeError) as error:
        raise LoweringError(
            f"precision='fp8' needs NVIDIA's ModelOpt ({type(error).__name__}: {error}); run pip install 'nvidia-modelopt'."
        ) from error


def with_fp8(module: fx.GraphModule, example: Sequence[torch.Tensor]) -> fx.GraphModule:
    """The module with both operands of every linear layer rounded to FP8 (E4M3).

    Each tensor has one scale, from the largest absolute value: that of the weight, and that of the input in the example call.

    Args:
        module: a flat graph; it is not changed.
        example: inputs that are like those to come. Larger values saturate.
    """
    operator = quantize_op()
    recorder = _Largest(module)
    with torch.no_grad():
        recorder.run(*example)
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    scales: dict[str, torch.Tensor] = {}
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
        with graph.inserting_before(node):
            for position in (0, 1):
                name = f"fp8_{node.name}_{position}"
                scales[name] = recorder.largest[node.name][position]
                arguments = (node.args[position], graph.create_node("get_attr", name), _BITS, _EXPONENT, False, False)
                node.update_arg(position, graph.call_function(operator, arguments))
    return with_graph(module, graph, scales)


class _Largest(fx.Interpreter):
    """Runs a graph, and keeps the largest absolute values that linear layers read."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.largest: dict[str, list[torch.Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and n.target is torch.ops.aten.linear.default:
            operands = [self.env[source] for source in n.args[:2]]  # type: ignore[index]
            self.largest[n.name] = [x.abs().amax().float().clamp_min(1e-12) for x in operands]
        return super().run_node(n)
