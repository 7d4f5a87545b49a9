"""A program as text: one line a node with its shape and where it came from, outer graph first, then every body once."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .program import Program

_DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.bool: "b8",
}


def program_text(program: Program) -> str:
    """The whole program at its present stage."""
    users: dict[str, list[str]] = {name: [] for name in program.bodies}
    for node in program.block_nodes:
        users[node.meta["body"]].append(str(node.target))
    parts = [f"{program.stage} program, {len(program.paths)} blocks\n\nouter graph:\n{graph_text(program.graph)}"]
    parts += [f"{name}, once for each prompt:\n{graph_text(graph)}" for name, graph in program.prompts.items()]
    for name, body in program.bodies.items():
        parts.append(f"{name}, run by {', '.join(users[name]) or 'no block'}:\n{graph_text(body.graph)}")
    return "\n\n".join(parts)


def graph_text(graph: fx.Graph) -> str:
    """One graph; parameters are shown where they are used, not as lines of their own."""
    return "\n".join(f"  {_line(node)}" for node in graph.nodes if node.op != "get_attr")


def _line(node: fx.Node) -> str:
    if node.op == "output":
        return f"return {_argument(node.args[0])}"
    name = f"%{node.name}: {_type(node.meta.get('val'))}"
    if node.op == "placeholder":
        return f"{name} = input"
    arguments = [_argument(argument) for argument in node.args]
    arguments += [f"{key}={_argument(value)}" for key, value in node.kwargs.items()]
    called = f"{node.meta['body']} @ {node.target}" if "body" in node.meta else _target(node.target)
    provenance = node.meta.get("provenance")
    origin = f"  # {provenance.pass_name} from {provenance.origin}" if provenance else ""
    return f"{name} = {called}({', '.join(arguments)}){origin}"


def _target(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removeprefix("aten.")
    return target if isinstance(target, str) else target.__name__


def _argument(argument: Any) -> str:
    if isinstance(argument, fx.Node):
        return f"@{argument.target}" if argument.op == "get_attr" else f"%{argument.name}"
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(map(_argument, argument))}]"
    return str(argument).removeprefix("torch.")


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{_DTYPES.get(value.dtype, value.dtype)}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_type, value))})"
    return "int" if isinstance(value, (int, torch.SymInt)) else "?"
