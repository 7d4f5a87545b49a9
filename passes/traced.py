"""Write a Python function of tensors into a graph: what it does becomes nodes of ATen operators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import RewriteError
from ..facts import FACTS
from ..shapes import annotate


def write(graph: fx.Graph, function: Callable[..., Any], args: Sequence[Any]) -> tuple[Any, list[fx.Node]]:
    """The operators that ``function`` runs on ``args``, at the graph's insertion point.

    Args:
        graph: every node in ``args`` is one of it.
        function: plain torch code on tensors and sizes, without side effects. It runs once, on the shapes that the nodes
            claim; sizes that these leave open stay open, and what it asks of them becomes a condition of the capture. Tensors that it makes are on the device of those that it is given.
        args: nodes, numbers, or lists and tuples of them; everything else is handed on as it is.

    Returns:
        What it returns, with nodes in place of tensors and sizes; and every node that was made, in order.

    Raises:
        RewriteError: it does not run on these shapes; the graph is as it was.
    """
    name = getattr(function, "__name__", str(function))
    given: list[fx.Node] = []
    fx.node.map_arg(tuple(args), given.append)
    given = list(dict.fromkeys(given))
    mode, device = _mode_and_device(graph, given)

    def run(*values: Any) -> Any:
        by_node = dict(zip(given, values, strict=True))
        with torch.device(device):
            return function(*fx.node.map_arg(tuple(args), by_node.__getitem__))

    env = mode.shape_env
    known = len(env.guards) if env is not None else 0
    try:
        with mode, torch.no_grad():
            traced = make_fx(run, pre_dispatch=True)(*(_alone(node.meta["val"]) for node in given)).graph
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(f"%{node.name}: {_shape(node.meta['val'])}" for node in given)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RewriteError(f"{name} does not run on {shapes}: {reason}") from error
    traced.eliminate_dead_code()
    if constants := [node.target for node in traced.nodes if node.op == "get_attr"]:
        raise RewriteError(f"{name} makes the tensor {constants[0]} of numbers; make it with torch.full or torch.arange.")
    values: dict[fx.Node, Any] = dict(zip(traced.find_nodes(op="placeholder"), given, strict=True))
    made: list[fx.Node] = []
    for node in traced.nodes:
        if node.op == "call_function":
            call = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            # Each behind the one before it: under ``graph.inserting_after`` they would come in reverse.
            with graph.inserting_after(made[-1]) if made else contextlib.nullcontext():
                values[node] = annotate(graph.call_function(node.target, *call), mode)
            made.append(values[node])
    facts = tuple(guard.expr for guard in env.guards[known:]) if env is not None else ()
    for node in made if facts else ():
        node.meta[FACTS] = facts
    return fx.node.map_arg(traced.output_node().args[0], values.__getitem__), made


def _mode_and_device(graph: fx.Graph, given: Sequence[fx.Node]) -> tuple[FakeTensorMode, torch.device]:
    """The mode under which a graph's shapes are computed, and where tensors are made: where those that are given are."""
    values = (node.meta.get("val") for node in (*given, *graph.nodes))
    fake = next(value for value in values if isinstance(value, FakeTensor))
    return fake.fake_mode, fake.device


def _alone(value: Any) -> Any:
    """A value that is no other node's: what equal operators yield is one object, and tracing tells values apart by identity."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _shape(value: Any) -> str:
    return str(list(value.shape)).replace("'", "") if isinstance(value, torch.Tensor) else "a size"
