"""Runs a program written by hand: its outer graph with the bodies of its blocks and its prompt graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from sparsify.program import DENSITY, Program


class _Model(fx.Interpreter):
    def __init__(self, program: Program, attributes: Mapping[str, torch.Tensor]) -> None:
        super().__init__(nn.Module(), graph=program.graph)
        self._program, self._attributes = program, attributes

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._attributes[target]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target == DENSITY:
            return self._attributes[DENSITY]
        if target in self._program.prompts:
            return _Body(self._program.prompts[target], "", self._attributes).run(*args)
        body = self._program.bodies[next(node for node in self._program.all_block_nodes if node.target == target).meta["body"]]
        own = {f"{target}.{name}": value for name, value in body.constants.items()}
        return _Body(body.graph, f"{target}.", {**self._attributes, **own}).run(*args)


class _Body(fx.Interpreter):
    def __init__(self, graph: fx.Graph, prefix: str, attributes: Mapping[str, torch.Tensor]) -> None:
        super().__init__(nn.Module(), graph=graph)
        self._prefix, self._attributes = prefix, attributes

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._attributes[f"{self._prefix}{target}"]


def run_program(program: Program, *values: Any, **attributes: Any) -> Any:
    """What a program yields, its blocks and prompt graphs included; ``attributes`` by their names in the model, with ``__`` for a dot.

    The pooled grid is the attribute ``sparsify_density``.
    """
    for graph in program.graphs.values():
        graph.lint()
    known = {name.replace("__", "."): value for name, value in attributes.items()}
    return _Model(program, known | program.constants).run(*values)
