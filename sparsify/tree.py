"""The tree of parameters behind a sparse model, and the code of graphs bound to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from .errors import CaptureError
from .program import Body, Program


class Container(nn.Module):
    """A place in the tree of parameters; the graphs do the computing."""


class Block(Container):
    """One trunk block: its own parameters, run by the code that all blocks of its structure and role share."""

    # Long names, because the model's own submodules live beside them.
    sparsify_body: Body
    sparsify_code: Callable[..., Any]
    # Another way to run the code, such as compiled, or once more in the backward pass; it gets the block and its inputs.
    sparsify_run: Callable[..., Any] | None = None

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Run the body's graph; flat tensors in and out."""
        return (self.sparsify_run or self.sparsify_code)(self, *tensors)


def kind_of(module: nn.Module) -> object:
    """Dtype and device, which tracing writes into the graph."""
    for child in module.modules():  # lazily: this runs at every call, and the first parameter ends it
        for parameter in child._parameters.values():
            if parameter is not None:
                return parameter.dtype, parameter.device
    return None


def mirror(model: nn.Module, root: nn.Module, blocks: list[str]) -> None:
    """Give ``root`` a tree of the same names as ``model``'s that holds the same parameters and buffers."""
    names = {*model._modules, *model._parameters, *model._buffers}
    if reserved := sorted(names & set(dir(fx.GraphModule))):
        raise CaptureError(
            f"the model has {reserved} among its own names, which torch.fx reserves; put it inside another module."
        )
    twins: dict[nn.Module, nn.Module] = {model: root}
    for path, module in model.named_modules(remove_duplicate=False):
        if module not in twins:
            twins[module] = Block() if path in blocks else Container()
            twins[module].training = module.training
        parent_path, _, name = path.rpartition(".")
        if path:
            twins[model.get_submodule(parent_path)]._modules[name] = twins[module]
    for module, twin in twins.items():
        twin._parameters.update(module._parameters)
        twin._buffers.update(module._buffers)
        twin._non_persistent_buffers_set.update(module._non_persistent_buffers_set)


def share_tensors(sparse: nn.Module, model: nn.Module) -> None:
    """After a move, let the model hold the same tensors as its mirror again."""
    for path, module in model.named_modules():
        twin = sparse.get_submodule(path)
        module._parameters.update(twin._parameters)
        module._buffers.update(twin._buffers)


def tied_names(model: nn.Module) -> dict[str, str]:
    """Of tensors in modules that stand in several places, each further name and the first."""
    first = dict[nn.Module, str]()
    tied: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        home = first.setdefault(module, path)
        if home != path:
            tied |= {f"{path}.{name}": f"{home}.{name}".lstrip(".") for name in (*module._parameters, *module._buffers)}
    return tied


def share_registries(module: nn.Module, root: nn.Module, constants: Mapping[str, Any]) -> None:
    """Let ``module`` have ``root``'s modules, parameters and buffers, the registries themselves, and constants of its own."""
    module._modules, module._parameters, module._buffers = root._modules, root._parameters, root._buffers
    module.__dict__.update(constants)


def outer_module(program: Program, root: nn.Module, graph: fx.Graph | None = None) -> fx.GraphModule:
    """The outer graph, or another in its place, as a module that shares ``root``'s registries: moves and loads reach it."""
    outer = fx.GraphModule(nn.Module(), fx.Graph())  # empty at first: it would copy what the graph names
    share_registries(outer, root, program.constants)
    outer.graph = program.graph if graph is None else graph
    return outer


def copied_with(graph: fx.Graph, change: Callable[[fx.Node], None]) -> fx.Graph:
    """A copy of a graph, each node of which was given to ``change``."""
    copy, nodes = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        nodes[node] = copy.node_copy(node, nodes.__getitem__)
        change(nodes[node])
    return copy


def function_of(graph: fx.Graph) -> Callable[..., Any]:
    """The Python function of a graph; its first argument is the module with the parameters."""
    template = fx.GraphModule(nn.Module(), fx.Graph())
    template.graph = graph
    graph.owning_module = None  # the template has none of the parameters that the graph names
    return type(template).forward
