"""``lower`` itself: names, options, what is missing here, the check, and how a compiled program is called."""

from __future__ import annotations

import dataclasses
import json
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from sparsify import Density, InputError, LoweringError, Policy, available, lower, sparsify
from sparsify.calls import SIZE, TENSOR
from sparsify.clock import Clock
from sparsify.errors import GridError
from sparsify.flat import flat_module
from sparsify.real import without_complex
from sparsify.targets import base
from sparsify.targets.check import check
from sparsify.targets.exported import exported
from sparsify.targets.interface import Caller
from sparsify.targets.interface_text import interface_from_dict, interface_to_dict
from sparsify.targets.nesting import Nesting, Record, decode, encode
from sparsify.targets.simplify import simplify

from .helpers import inputs, plain, slow, sparse_plain
from .zoo.__main__ import entries
from .zoo.check import difference, policy_for, tensors_in

ZOO = {entry.name: entry for entry in entries(("images", "packed", "videos"))}
FIVE = (
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "WanTransformer3DModel",
)


def test_unknown_targets_and_options_are_named() -> None:
    _, sparse = sparse_plain()
    with pytest.raises(LoweringError, match=r"target 'tvm' does not exist; there are \['aot_inductor', 'eager'"):
        lower(sparse, "tvm")
    with pytest.raises(LoweringError, match=r"target onnx has no option \['colour'\]; its options are \['out', "):
        lower(sparse, "onnx", colour="red")
    with pytest.raises(LoweringError, match=r"takes what sparsify\(\) returned, not a PlainDiT"):
        lower(plain())  # type: ignore[arg-type]


def test_what_is_not_installed_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.TARGETS, "onnx", dataclasses.replace(base.TARGETS["onnx"], needs=("onnx", "nonexistent_package")))
    assert available()["onnx"] == "nonexistent_package is not installed; run pip install 'sparsedit[onnx]'"
    assert available()["eager"] is None and set(available()) == set(base.TARGETS)
    _, sparse = sparse_plain()
    with pytest.raises(LoweringError, match=r"target onnx cannot be used here: nonexistent_package is not installed"):
        lower(sparse, "onnx")


def test_the_check_compares_with_eager_at_every_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    _, sparse = sparse_plain()
    seen: list[Any] = []

    def wrong(*args: Any) -> Any:
        seen.append(sparse._clock.grid)
        return sparse(*args) + (1 if sparse._clock.grid == (2, 2) else 0)

    module = base.TARGETS["eager"].function.__globals__
    monkeypatch.setitem(module, "lower_eager", lambda sparse: wrong)
    with pytest.raises(LoweringError, match=r"differs from eager by 1\.0e\+00 at the pooled grid \(2, 2\)"):
        lower(sparse, "eager", check=True)
    assert seen[0] == (5, 5) and seen[-1] == (2, 2) and sparse._clock.grid is None
    assert lower(sparse, "eager") is not None, "without a check it is taken as it is"


def test_the_densest_and_the_coarsest_end_are_compiled_for() -> None:
    """The coarsest grid may hold at t = T alone, which a schedule over whole timesteps below T never shows."""
    density = Density.table({0: (6, 6), 999.5: (2, 2)})
    sparse = sparsify(plain(), Policy(1, sparse_plain()[1].policy.sdtm, 0, density), example_inputs=inputs())
    assert exported(sparse).interface.grids == ((6, 6), (2, 2))


@pytest.mark.parametrize("name", [FIVE[0], *map(slow, FIVE[1:])])
def test_one_exported_program_serves_all_grids_and_batches(name: str) -> None:
    """What AOTInductor, ONNX and TensorRT start from, against eager, without any of them."""
    entry = ZOO[name]
    given = entry.inputs(2, 0)
    depth = len(sparsify(entry.make(), Policy.dense(), given, **entry.options(0)).report().blocks)
    sparse = sparsify(entry.make(), policy_for(depth), given, **entry.options(0))
    made = exported(sparse, real=True)
    ops = {str(node.target) for node in made.program.graph.nodes if node.op == "call_function"}
    assert all(op.startswith("aten.") or "built-in" in op or op.startswith("<") for op in ops), ops
    caller, run = Caller(made.interface, sparse._clock), made.program.module()
    read = interface_from_dict(json.loads(json.dumps(interface_to_dict(made.interface))))
    for batch in (2, 3):
        for grid in made.interface.grids:
            other = entry.inputs(batch, 0)
            with torch.no_grad():
                want = sparse.fix(grid)(**other)
                flat, pooled = caller.flat((), other)
                got = run(*flat, torch.zeros(pooled or (), dtype=torch.bool))
            assert pooled == grid
            assert difference(made.interface.output.unflatten(got), want) <= 1e-5
            result = read.output.unflatten(got)
            assert torch.equal(result[0], tensors_in(want)[0] * 0 + got[0])
            clock = Clock(grid=grid)
            again, _ = Caller(read, clock).flat((), other)
            assert all(torch.equal(a, b) for a, b in zip(again, flat, strict=True))


def test_the_check_is_relative_and_finds_what_is_no_number() -> None:
    _, sparse = sparse_plain()
    with torch.no_grad():
        for parameter in sparse.get_submodule("head").parameters():
            parameter.mul_(1e-6)
    with pytest.raises(LoweringError, match="differs from eager"):
        check(sparse, lambda *args: sparse(*args) * 1.001)
    with pytest.raises(LoweringError, match="differs from eager by nan"):
        check(sparse, lambda *args: sparse(*args) * float("nan"))
    check(sparse, sparse)


def test_another_resolution_is_captured_before_it_is_exported() -> None:
    model = ZOO["SD3Transformer2DModel"]
    sparse = sparsify(model.make(), policy_for(8), model.inputs(2, 0))
    with pytest.raises(LoweringError, match=r"captured with .*call sparsify with these example_inputs"):
        exported(sparse, example_inputs=model.inputs(2, 1))


def test_positions_that_change_in_place_are_looked_at_again() -> None:
    entry = ZOO["FluxTransformer2DModel"]
    sparse = sparsify(entry.make(), policy_for(8), entry.inputs(2, 0))
    caller = Caller(exported(sparse).interface, Clock(grid=(2, 3)))
    for inference in (False, True):
        with torch.inference_mode(inference):
            given = entry.inputs(2, 0)
            caller.flat((), given)
            caller.flat((), given)
            ids = given["img_ids"]
            ids.copy_(torch.cat([torch.zeros(48, 1), torch.cartesian_prod(torch.arange(8.0), torch.arange(6.0))], dim=1))
            with pytest.raises(GridError, match="lie on a 8x6 grid"):
                caller.flat((), given)


def test_fixed_grids_need_no_further_input() -> None:
    _, sparse = sparse_plain()
    made, (x, t, y) = exported(sparse, pooled=(3, 4)), inputs(4)
    with torch.no_grad():
        (got,) = made.program.module()(x, t, y)
        assert (got - sparse.fix((3, 4))(x, t, y)).abs().max() <= 1e-5


def test_a_batch_of_one_is_its_own_program() -> None:
    _, sparse = sparse_plain()
    made = exported(sparse, example_inputs=inputs(1))
    assert made.interface.batch == (1, 1) and not made.interface.has_open_batch
    with torch.no_grad():
        (got,) = made.program.module()(*inputs(1), torch.zeros((3, 3), dtype=torch.bool))
        torch.manual_seed(0)
    with pytest.raises(InputError, match="batch 1"):
        Caller(made.interface, Clock()).flat(inputs(2), {})
    with pytest.raises(LoweringError, match="captured at a batch of one"):
        exported(sparse, example_inputs=inputs(1), batch=(2, 4))
    assert got.shape == (1, 3, 16, 16)


def test_packed_tokens_of_another_grid_are_refused() -> None:
    """As many tokens on another grid have the same shapes: without a look at the positions the picture would be wrong."""
    entry = ZOO["FluxTransformer2DModel"]
    sparse = sparsify(entry.make(), policy_for(8), entry.inputs(2, 0))
    made = exported(sparse)
    caller = Caller(made.interface, Clock(grid=(2, 3)))
    given = entry.inputs(2, 0)
    caller.flat((), given)
    ids = given["img_ids"]
    turned = ids[:, [0, 2, 1]].clone()
    order = (turned[:, 1] * 1000 + turned[:, 2]).argsort()
    with pytest.raises(GridError, match=r"lie on a 8x6 grid, compiled for 6x8"):
        caller.flat((), {**given, "img_ids": turned[order]})


def test_integers_among_the_inputs_are_part_of_the_program() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()

        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, scale: int = 3) -> torch.Tensor:
            return self.inner(x, t, y) * scale

    model = Sized().eval()
    sparse = sparsify(model, sparse_plain()[1].policy, example_inputs=dict(zip("xty", inputs(), strict=True)))
    made = exported(sparse)
    caller = Caller(made.interface, Clock())
    flat, grid = caller.flat(inputs(), {})
    with torch.no_grad():
        (got,) = made.program.module()(*flat, torch.zeros(grid or (), dtype=torch.bool))
        assert (got - sparse(*inputs())).shape == got.shape
    with pytest.raises(InputError, match=r"scale.* is 4"):
        caller.flat(inputs(), {"scale": 4})


def test_nestings_come_back_as_they_were() -> None:
    point = namedtuple("point", "a b")
    tree = {"x": [TENSOR, (SIZE, None, 3)], "y": {"z": "text", "on": True, "r": 0.5}}
    assert decode(json.loads(json.dumps(encode(tree, "call")))) == tree
    back = decode(json.loads(json.dumps(encode(point(TENSOR, 2), "result"))))
    assert isinstance(back, Record)
    filled = Nesting(back).unflatten([torch.ones(1)])
    assert filled.a is filled["a"] is filled[0] and filled.b == 2
    with pytest.raises(AttributeError, match="has no field 'c'"):
        _ = filled.c
    with pytest.raises(LoweringError, match=r"call\.f is a object"):
        encode({"f": object()}, "call")


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"inputs": [{}]}, {"density": {"schedule": "evil"}}, {"arguments": {"x": 1}}]
)
def test_damaged_interfaces_are_refused(change: dict[str, Any]) -> None:
    _, sparse = sparse_plain()
    data = interface_to_dict(exported(sparse).interface) | change
    with pytest.raises(LoweringError, match=r"interface (of version 2|is damaged)"):
        interface_from_dict(json.loads(json.dumps(data)))


def test_complex_inside_is_gone_where_it_must_be() -> None:
    _, sparse = sparse_plain()
    module = flat_module(sparse.program, sparse)
    assert without_complex(module) is module, "there is none in this model"


@pytest.mark.parametrize("equation", ["nhwpqc->nchpwq", "abc->cab", "abc->ab", "aab->ab", "ab->ba", "a...->...a"])
def test_simplified_graphs_compute_the_same(equation: str) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum(equation, x.squeeze(1)).squeeze(0)

    letters = equation.split("->")[0].replace("...", "z")
    x = torch.randn([{"a": 3}.get(letter, 2 + index) for index, letter in enumerate(letters)])
    program = torch.export.export(Model(), (x,))
    simplify(program.graph)
    program.graph_module.recompile()
    assert torch.equal(program.module()(x), Model()(x))
    left = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not any("squeeze" in target for target in left)
    is_permutation = equation in ("nhwpqc->nchpwq", "abc->cab", "ab->ba")
    assert any("einsum" in target for target in left) != is_permutation
