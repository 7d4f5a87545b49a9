"""Captures that are written by hand, in the place of those that are traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparsify import Density, Policy
from sparsify.calls import CallSpec, OutputSpec
from sparsify.program import DENSITY, GRID, Program
from sparsify.runtime import SparseModel
from sparsify.stage import Request, Stage

from .sketch import Sketch, aten

SIDES = 8
WANTED = Density.table({0: (6,), 500: (2,)})


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + 1


class Model(nn.Module):
    width = 4
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Scale(), Scale()])
        self.dropout = nn.Dropout()
        self.register_buffer("table", torch.randn(4))

    def forward(self, x: torch.Tensor, t: torch.Tensor, how: str = "plain") -> torch.Tensor:
        for each in self.blocks:
            x = each(x)
        return x + self.table


def program_of_model(model: nn.Module, args: Any, kwargs: Any, **options: Any) -> Program:
    """What a capture makes of the model: the same, and the side of the pooled grid besides."""
    outer = Sketch()
    inside, graph = Sketch(outer), outer.graph
    call, _ = CallSpec.of(model.forward, args, kwargs)
    scaled = inside(aten.mul.Tensor, inside.input("tokens", 2, 4), inside.attribute("weight", 4))
    shifted = inside(aten.add.Tensor, scaled, inside.attribute("shift"))
    body = inside.body("block0", shifted, constants={"shift": torch.ones(())})
    x, t = outer.input("x", 2, 4), outer.input("t", 2)
    side = graph.create_node("call_module", DENSITY, (t, SIDES)) if options.pop("pools", True) else None
    node = outer.block("blocks.1", body, outer.block("blocks.0", body, x))
    for name in options.pop("also", ()):
        graph.create_node("call_module", name, (SIDES if name == GRID else x,))
    outer.output(outer(aten.add.Tensor, node, outer.attribute("table", 4)), side)
    spec = OutputSpec.of({"y": torch.empty(0), "side": torch.empty(0)})[0]
    return outer.program(body, **{"call": call, "output_spec": spec, "density": WANTED} | options)


class OfShape:
    """Guards of one shape of the input."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def violation(self, inputs: Any) -> str | None:
        return None if inputs[0].shape == self.shape else f"x is {tuple(inputs[0].shape)}"


class Captures:
    """Stands for ``build_stage``; notes the modes and kinds that it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool | None, object, list[bool]]] = []
        self.options: dict[str, Any] = {}
        self.change: Callable[[Stage], Stage] = lambda stage: stage

    def __call__(self, model: nn.Module, request: Request, args: Any, kwargs: Any, mode: bool | None, kind: object) -> Stage:
        self.asked.append((mode, kind, [module.training for module in model.modules()]))
        program = program_of_model(model, args, kwargs, **self.options)
        inputs: list[Any] = list(program.call.flatten(args, kwargs))
        guards, report, plan = OfShape(inputs[0].shape), f"report {len(self.asked)}", f"plan {len(self.asked)}"
        return self.change(Stage(program, plan, guards, report, mode, kind, tuple(inputs), None))  # type: ignore[arg-type]


def sparse_of(model: nn.Module, **options: Any) -> SparseModel:
    return SparseModel(model, Request(Policy.dense(), **options))


def given(batch: int = 2, t: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 4), torch.full((batch,), t)


def block_of(sparse: nn.Module, index: int) -> Any:
    return sparse.get_submodule(f"blocks.{index}")


def same(sparse: nn.Module, model: nn.Module, inputs: Any = None) -> bool:
    inputs = given() if inputs is None else inputs
    return torch.equal(sparse(*inputs)["y"], model(*inputs))
