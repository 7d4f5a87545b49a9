"""Every operator of five lowered models has a converter in torch_tensorrt, by the list in its wheel. TensorRT is not run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from sparsify import SparseModel, sparsify
from sparsify.targets.exported import Exported, exported
from sparsify.targets.tensorrt_graph import for_tensorrt
from sparsify.targets.tensorrt_ops import converted, unsupported

from .helpers import slow
from .tensorrt_lowering import has_converter, lowered
from .zoo.__main__ import entries
from .zoo.check import policy_for

DEPTH = 8  # of the models of the zoo
MODELS = [
    "DiTTransformer2DModel",
    *map(slow, ("PixArtTransformer2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel", "WanTransformer3DModel")),
]


def sparse_model(name: str) -> SparseModel:
    entry = next(entry for entry in entries(["images", "packed", "streams", "videos"]) if entry.name == name)
    return sparsify(entry.make(), policy_for(DEPTH), entry.inputs(2, 0), **entry.options(0))


def for_engine(sparse: SparseModel, pooled: tuple[int, ...] | None) -> Exported:
    return exported(sparse, pooled=pooled, real=True, change=for_tensorrt)


@pytest.mark.parametrize("name", MODELS)
def test_every_operator_has_a_converter(name: str) -> None:
    sparse = sparse_model(name)
    program = for_engine(sparse, None)
    graph = lowered(program.program)
    assert len(converted(graph)) > 100
    assert not unsupported(graph, has_converter)
    with torch.no_grad():
        got = program.program.module()(*program.example)
        stage, inputs = sparse.stage_for()
        args, kwargs = stage.program.call.unflatten(inputs)
        want = sparse.fix(tuple(program.example[-1].shape))(*args, **kwargs)
    assert (got[0] - want[0]).abs().max() <= 1e-4, "the graph for TensorRT computes something else"


class Of(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def program_of(function: Callable[..., Any], *inputs: torch.Tensor, open_batch: bool = False) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch", min=2, max=8)} if open_batch else None
    return torch.export.export(Of(function), inputs, dynamic_shapes=((batch,) * len(inputs),), strict=False)


def test_what_has_no_converter_is_found() -> None:
    x = torch.randn(4, 6, 8)
    assert not unsupported(lowered(program_of(lambda x: x.sin() @ x.mT, x)), has_converter)
    assert unsupported(lowered(program_of(lambda x: torch.fft.rfft(x).abs(), x)), has_converter)
    assert unsupported(lowered(program_of(lambda x: x.double() * 2, x)), has_converter) == {"aten._to_copy.default": 1}


def test_open_sizes_need_a_converter_that_takes_them() -> None:
    def gathered(x: torch.Tensor) -> torch.Tensor:
        return x.gather(1, torch.zeros_like(x, dtype=torch.long))

    x = torch.randn(4, 6)
    assert not unsupported(lowered(program_of(gathered, x)), has_converter)
    assert unsupported(lowered(program_of(gathered, x, open_batch=True)), has_converter) == {"aten.gather.default": 1}


def test_constants_are_not_counted() -> None:
    def with_table(x: torch.Tensor) -> torch.Tensor:
        return x * torch.fft.fft(torch.arange(8.0)).real

    program = lowered(program_of(with_table, torch.randn(4, 8)))
    assert any("fft" in str(node.target) for node in program.graph.nodes)
    assert not unsupported(program, has_converter)


def test_attention_with_values_of_another_width_has_none() -> None:
    q, v = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 16)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert not unsupported(lowered(program_of(attention, q, q, q)), has_converter)
    assert unsupported(lowered(program_of(attention, q, q, v)), has_converter)


# --- changes of the graph for TensorRT -------------------------------------------------------------------------------


def flat_of(function: Callable[..., Any], *inputs: torch.Tensor) -> fx.GraphModule:
    module = torch.export.export(Of(function), inputs, strict=False).run_decompositions({}).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    module.graph.set_codegen(fx.graph.CodeGen())
    module.recompile()
    return module


def written(x: torch.Tensor, *places: tuple[int, int, int]) -> torch.Tensor:
    """Numbers made of ``x`` written into an empty tensor at (start, end, step) of the last axis."""
    out = torch.empty_like(x)
    for start, end, step in places:
        out = torch.ops.aten.slice_scatter.default(out, x[..., start:end:step] * 2 + start, 2, start, end, step)
    return out


def test_interleaved_writes_become_a_stack() -> None:
    x = torch.randn(2, 6, 8)
    flat = flat_of(lambda x: written(x, (0, sys.maxsize, 2), (1, sys.maxsize, 2)), x)
    changed = for_tensorrt(flat, [x])
    assert "slice_scatter" in str(flat.graph) and "slice_scatter" not in str(changed.graph)
    assert torch.equal(changed(x)[0], flat(x)[0])
    odd = torch.randn(2, 6, 7)
    flat = flat_of(lambda x: written(x, (0, sys.maxsize, 2), (1, sys.maxsize, 2)), odd)
    assert torch.equal(for_tensorrt(flat, [odd])(odd)[0], flat(odd)[0])


def test_other_writes_stay() -> None:
    x = torch.randn(2, 6, 8)
    flat = flat_of(lambda x: written(x, (0, 4, 1), (4, sys.maxsize, 1)), x)
    changed = for_tensorrt(flat, [x])
    assert str(changed.graph).count("slice_scatter") == str(flat.graph).count("slice_scatter") > 0
    assert torch.equal(changed(x)[0], flat(x)[0])


def test_float64_becomes_float32_and_the_module_stays_as_it_was() -> None:
    table = torch.randn(6, 8, dtype=torch.float64)
    x = torch.randn(2, 6, 8)
    flat = flat_of(lambda x: (x.double() * table.cos()).float(), x)
    before = str(flat.graph)
    changed = for_tensorrt(flat, [x])
    assert "float64" in before and "float64" not in str(changed.graph)
    assert not any(isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in vars(changed).values())
    assert (changed(x)[0] - flat(x)[0]).abs().max() <= 1e-6
    assert str(flat.graph) == before
