"""torch.export as this compiler uses it: flat tensors in and out, every dimension free, parameters as ``get_attr``."""

from __future__ import annotations

import contextlib
import io
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .calls import CallSpec, Leaf, OutputSpec
from .errors import CaptureError
from .hidden import Hidden
from .quiet import quiet_logs

aten = torch.ops.aten

_LIFTED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass
class Captured:
    """One exported module.

    Attributes:
        graph: placeholders are the flat inputs, ``get_attr`` nodes carry the module's own parameter names.
        constants: tensors and sub-graphs that the trace found besides parameters and buffers, by ``get_attr`` name.
        output_spec: how the flat outputs become what the module returns.
        shape_env: the symbols of the shapes in ``node.meta["val"]``, with the guards met while tracing.
    """

    graph: fx.Graph
    constants: dict[str, Any]
    output_spec: OutputSpec
    shape_env: ShapeEnv

    @property
    def placeholders(self) -> list[fx.Node]:
        """The input nodes, one per flat input."""
        return self.graph.find_nodes(op="placeholder")


class _FlatCall(nn.Module):
    """The module behind a flat signature. It holds the module as a child, so names only gain the prefix ``inner.``"""

    def __init__(
        self, inner: nn.Module, call: CallSpec, sizes: list[bool], hidden: Hidden, on_return: Callable[[OutputSpec], None]
    ) -> None:
        super().__init__()
        self.inner = inner
        self._call = call
        self._sizes = sizes
        self._hidden = hidden
        self._on_return = on_return  # torch.export undoes changes of attributes, so the spec leaves by this way

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = [x.shape[0] if is_size else x for x, is_size in zip(tensors, self._sizes, strict=True)]
        args, kwargs = self._call.unflatten(inputs)
        with self._hidden.show():
            spec, outputs = OutputSpec.of(self.inner.forward(*args, **kwargs))  # hooks of a block are in the outer graph
        self._on_return(spec)
        return tuple(outputs)


def capture_module(
    module: nn.Module, call: CallSpec, inputs: Sequence[Leaf], hidden: Hidden | None = None, returns_sizes: bool = False
) -> Captured:
    """Export ``module`` as called by ``call`` with ``inputs``, with every dimension and every size symbolic.

    What is ``hidden`` of its submodules must not be touched; whether it was is to be looked up there. With ``returns_sizes`` open
    sizes may be among what it returns, for a caller who makes nothing of them.

    Raises:
        CaptureError: torch.export could not trace it; the cause is attached. Or it returns an open size.
    """
    returned: list[OutputSpec] = []
    sizes = [not isinstance(x, torch.Tensor) for x in inputs]
    # A size travels as the length of an empty tensor, the one form in which every release of torch can leave it open.
    tensors = [x if isinstance(x, torch.Tensor) else torch.empty(x, 0) for x in inputs]
    hidden = hidden or Hidden({})
    flat = _FlatCall(module, call, sizes, hidden, returned.append)
    flat.training = module.training
    # Tracing takes a size of one for a constant whatever it is told; the guards see to it that it is one at the call.
    axes = [[0] if is_size else range(x.ndim) for x, is_size in zip(tensors, sizes, strict=True)]
    dynamic = (tuple({axis: Dim.AUTO for axis in a if x.shape[axis] > 1} for x, a in zip(tensors, axes, strict=True)),)
    try:
        # torch prints the graph it fails at
        with hidden.hide(), quiet_logs(), contextlib.redirect_stderr(io.StringIO()):
            program = torch.export.export(flat, tuple(tensors), dynamic_shapes=dynamic, strict=False)
        if any(_mutates(node) for node in program.graph.nodes):
            program = program.run_decompositions({})  # slicing a graph would drop in-place writes silently
    except Exception as error:
        summary = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(f"torch.export cannot trace {type(module).__name__}: {summary[0]}") from error
    output_spec = returned[-1].settled()
    if not returns_sizes and (sizes_out := output_spec.open_sizes):
        raise CaptureError(
            f"{type(module).__name__} returns numbers that depend on the sizes of its inputs ({', '.join(sizes_out)}), and a graph "
            f"returns tensors alone. Return tensors, or compute these numbers from the shapes of the result."
        )
    constants: dict[str, Any] = {}
    graph = _unlift(program, call.input_names, constants)
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # the same here; after a rewrite its input may have other strides
    shape_env = next(env for node in graph.nodes if (env := _shape_env(node)) is not None)
    shape_env.frozen = False  # what blocks know of their sizes is still to come, and must not be ignored
    for node, is_size in zip(graph.find_nodes(op="placeholder"), sizes, strict=True):
        if is_size:
            _unwrap_size(node)
    return Captured(graph, constants, output_spec, shape_env)


def _unwrap_size(placeholder: fx.Node) -> None:
    """Let the size come as an integer, not as the length of an empty tensor."""
    graph, fake = placeholder.graph, placeholder.meta["val"]
    if any(user.target != aten.sym_size.int for user in placeholder.users):
        raise CaptureError(f"the size {placeholder.name} is used as a tensor.")
    for user in list(placeholder.users):
        user.replace_all_uses_with(placeholder)
        graph.erase_node(user)
    placeholder.meta["val"] = fake.shape[0]


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _shape_env(node: fx.Node) -> ShapeEnv | None:
    mode = getattr(node.meta.get("val"), "fake_mode", None)
    return None if mode is None else mode.shape_env


def _unlift(program: ExportedProgram, names: Sequence[str], constants: dict[str, Any]) -> fx.Graph:
    """The program's graph with parameters and constants read by ``get_attr`` instead of passed in."""
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    if mutated := [spec.target for spec in program.graph_signature.output_specs if spec.kind != OutputKind.USER_OUTPUT]:
        raise CaptureError(f"the module writes to {mutated} while it runs; a captured graph must not have side effects.")
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    lifted = {node for node in program.graph.nodes if node.name in inputs and inputs[node.name].kind in _LIFTED}
    user_inputs = [node for node in program.graph.nodes if node.op == "placeholder" and node not in lifted]
    for node, name in zip(user_inputs, names, strict=True):
        copied[node] = graph.placeholder(_identifier(name))
        copied[node].meta = {"val": node.meta["val"]}
    for node in program.graph.nodes:
        if node in lifted and node.users:
            copied[node] = _get_attr(graph, inputs[node.name], program, constants)
            copied[node].meta = {"val": node.meta["val"]}
        elif node.op == "get_attr":  # the body of a higher-order op, such as a no_grad region
            name = f"region_{len(constants)}"
            constants[name] = getattr(program.graph_module, str(node.target))
            copied[node] = graph.create_node("get_attr", name)
        elif node.target == aten.copy.default:
            copied[node] = _copied_onto(graph, node, copied)
        elif node.op != "placeholder" and not _is_noise(node):
            copied[node] = graph.node_copy(node, copied.__getitem__)
    return graph


def _copied_onto(graph: fx.Graph, node: fx.Node, copied: dict[fx.Node, fx.Node]) -> fx.Node:
    """``copy``, what is left of an in-place write, in operators that have a derivative: the source in the target's form."""
    target, source = node.args[:2]
    value = copied[source]  # type: ignore[index]
    if target.meta["val"].dtype != source.meta["val"].dtype:  # type: ignore[union-attr]
        value = graph.call_function(aten.to.dtype, (value, target.meta["val"].dtype))  # type: ignore[union-attr]
        value.meta["val"] = source.meta["val"].to(target.meta["val"].dtype)  # type: ignore[union-attr]
    if target.meta["val"].shape != source.meta["val"].shape:  # type: ignore[union-attr]
        value = graph.call_function(aten.expand_as.default, (value, copied[target]))  # type: ignore[index]
        value.meta["val"] = node.meta["val"]
    return value


def _get_attr(graph: fx.Graph, spec: Any, program: ExportedProgram, constants: dict[str, Any]) -> fx.Node:
    name = spec.target.removeprefix("inner.")
    if spec.kind == InputKind.CONSTANT_TENSOR:
        name = f"constant_{len(constants)}"
        constants[name] = program.constants[spec.target]
    return graph.create_node("get_attr", name)


def _is_noise(node: fx.Node) -> bool:
    """Results that nothing reads, and trace-time assertions: they pin dtypes that autocast may change, and guards are checked at the call."""
    return not node.users and node.target in (
        operator.getitem,
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.msg,
        aten.sym_constrain_range_for_size.default,
    )


def _identifier(name: str) -> str:
    name = re.sub(r"\W", "_", name)
    return name if name.isidentifier() else f"input_{name}"


def flat_outputs(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that a captured graph returns."""
    (output,) = graph.find_nodes(op="output")
    returned = output.args[0]
    return list(returned) if isinstance(returned, (tuple, list)) else [returned]


def result_nodes(call: fx.Node, count: int) -> Iterator[fx.Node | None]:
    """For each of the ``count`` results of a multi-output ``call``, the ``getitem`` node that reads it."""
    by_index = {user.args[1]: user for user in call.users if user.target is operator.getitem}
    return (by_index.get(index) for index in range(count))
