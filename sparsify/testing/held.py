"""What modules hold, and as what it counts where graphs are compared: graphs, other modules, tensors, options."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses import FakeTensor

from ..tree import Block


@dataclass(frozen=True)
class Held:
    """A graph, the tensors and regions that it names, and the modules that it calls."""

    graph: fx.Graph
    constants: Mapping[str, Any]
    modules: Mapping[str, nn.Module]


def held_by_graph(module: fx.GraphModule) -> Held:
    """The graph of a GraphModule."""
    return Held(module.graph, _named(module, module.graph, "get_attr"), _named(module, module.graph, "call_module"))


def held_by(module: nn.Module) -> Held | None:
    """The graph that a module runs: that of a GraphModule, or the body of a block; None if it runs none."""
    if isinstance(module, fx.GraphModule):
        return held_by_graph(module)
    body = getattr(module, "sparsify_body", None) if isinstance(module, Block) else None
    if body is None:
        return None
    constants = {**_named(module, body.graph, "get_attr"), **body.constants}
    return Held(body.graph, constants, _named(module, body.graph, "call_module"))


def graphs_in(module: nn.Module) -> dict[str, nn.Module]:
    """By path, the outermost modules that run graphs: the module itself, or some of those in it."""
    found: dict[str, nn.Module] = {}
    for path, each in module.named_modules():
        if not _is_inside(path, found) and held_by(each) is not None:
            found[path] = each
    return found


def module_text(module: nn.Module, graph_text: Callable[[Held], str]) -> str:
    """Class, options and what is held, of a module and those in it; the values of parameters do not count.

    A module that runs a graph counts as that graph: what the graph does not read makes no difference.
    """
    shown: list[Any] = []
    graphs = graphs_in(module)
    for path, each in module.named_modules():
        if _is_inside(path, graphs):
            continue
        options = {name: _option(value) for name, value in sorted(vars(each).items()) if not name.startswith("_")}
        kind = (path, name_of(type(each)), each.extra_repr(), options)
        if (held := held_by(each)) is not None:
            shown.append((*kind, graph_text(held)))
            continue
        parameters = {name: type_text(p) for name, p in each.named_parameters(recurse=False)}
        buffers = {name: digest(tensor) for name, tensor in each.named_buffers(recurse=False)}
        shown.append((*kind, parameters, buffers))
    return str(shown)


def name_of(target: Any) -> str:
    """The name of a function, class or operator, with its home."""
    if isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', None) or target}"


def type_text(tensor: torch.Tensor) -> str:
    """Dtype and shape."""
    return f"{tensor.dtype}{list(tensor.shape)}"


def digest(tensor: torch.Tensor) -> str:
    """Dtype, shape and a hash of the values, if there are any."""
    empty = tensor.is_meta or isinstance(tensor, FakeTensor)
    return type_text(tensor) if empty else f"{type_text(tensor)} {hash_of(tensor.detach().cpu().reshape(-1).tolist())}"


def hash_of(*parts: Any) -> str:
    """A hash of what the parts print as, the same in every process."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


def _named(module: nn.Module, graph: fx.Graph, op: str) -> dict[str, Any]:
    found = {str(node.target): _attribute(module, str(node.target)) for node in graph.find_nodes(op=op)}
    return {name: thing for name, thing in found.items() if isinstance(thing, nn.Module | torch.Tensor)}


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _is_inside(path: str, outer: Mapping[str, Any]) -> bool:
    return any(path != each and path.startswith(f"{each}." if each else "") for each in outer)


def _option(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return digest(value)
    plain = value is None or isinstance(value, (bool, int, float, str, tuple, torch.dtype))
    return repr(value) if plain else name_of(value) if callable(value) else type(value).__name__
