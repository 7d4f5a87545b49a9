"""The module that sparsify returns, around captures that are written by hand: no model is traced here."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx, nn

from sparsify import Density, InputError, NotCapturedError, Policy, RewriteError, VerificationError, calibration, runtime
from sparsify.calls import CallSpec, OutputSpec
from sparsify.errors import CaptureError
from sparsify.grid_readers import FixedGrid
from sparsify.layers import restore_layer
from sparsify.program import DENSITY, GRID, Program
from sparsify.runtime import SparseModel
from sparsify.stage import Request, Stage
from sparsify.tree import Block, kind_of

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
        inputs = program.call.flatten(args, kwargs)
        guards, report, plan = OfShape(inputs[0].shape), f"report {len(self.asked)}", f"plan {len(self.asked)}"
        return self.change(Stage(program, plan, guards, report, mode, kind, tuple(inputs), None))  # type: ignore[arg-type]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[Captures]:
    made = Captures()
    monkeypatch.setattr(runtime, "build_stage", made)
    yield made


def sparse_of(model: nn.Module, **options: Any) -> SparseModel:
    return SparseModel(model, Request(Policy.dense(), **options))


def given(batch: int = 2, t: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 4), torch.full((batch,), t)


def block_of(sparse: nn.Module, index: int) -> Any:
    return sparse.get_submodule(f"blocks.{index}")


def same(sparse: nn.Module, model: nn.Module, inputs: Any = None) -> bool:
    inputs = given() if inputs is None else inputs
    return torch.equal(sparse(*inputs)["y"], model(*inputs))


def test_a_call_is_captured_once_and_computed_by_the_graph_in_the_nesting_of_the_model(captures: Captures) -> None:
    model = Model()
    sparse = sparse_of(model)
    for _ in range(3):
        inputs = given()
        found = sparse(*inputs)
        assert torch.equal(found["y"], model(*inputs)) and found["side"] == (6,)
    assert len(captures.asked) == 1
    assert sparse(*given(t=700.0))["side"] == (2,)


def test_parameters_and_buffers_are_the_models_own_under_their_names(captures: Captures) -> None:
    model = Model()
    sparse = sparse_of(model)
    sparse(*given())
    assert {name: id(p) for name, p in sparse.named_parameters()} == {name: id(p) for name, p in model.named_parameters()}
    assert sparse.table is model.table and sparse.state_dict().keys() == model.state_dict().keys()
    assert isinstance(block_of(sparse, 0), Block) and isinstance(block_of(sparse, 1), Block)


def test_new_layers_come_with_the_first_capture_and_a_later_one_must_have_the_same(captures: Captures) -> None:
    model = Model()
    sparse = sparse_of(model)
    captures.options = {"layers": [restore_layer(0, 4, torch.float32, torch.device("cpu"))]}
    sparse(*given())
    names = [name for name, _ in sparse.named_parameters()]
    assert [name for name in names if name.startswith("sparsify_")] == [
        f"sparsify_restore.0.{part}.{kind}" for part in ("sparse", "dense") for kind in ("weight", "bias")
    ]
    layer = sparse.sparsify_restore[0]
    captures.options = {"layers": [restore_layer(0, 4, torch.float64, torch.device("cpu"))]}
    sparse(*given(3))
    assert sparse.sparsify_restore[0] is layer, "of another type by now, but the same"
    captures.options = {"layers": [restore_layer(0, 5, torch.float32, torch.device("cpu"))]}
    with pytest.raises(RewriteError, match="other new layers"):
        sparse(*given(4))
    assert len(sparse._stages) == 2


def test_before_the_capture_there_is_nothing_to_ask_for(captures: Captures) -> None:
    sparse = sparse_of(Model())
    for ask in (
        lambda: sparse.graph_module, lambda: sparse.program, sparse.report, sparse.named_parameters, sparse.state_dict,
        lambda: sparse.load_state_dict({}), sparse.stage_for, lambda: sparse.fix(None),
    ):  # fmt: skip
        with pytest.raises(NotCapturedError, match="captured at its first call"):
            ask()
    assert repr(sparse).startswith("SparseModel(Model, ") and "captured at its first call" in repr(sparse)


def test_what_is_told_of_the_capture_in_force(captures: Captures) -> None:
    model = Model()
    sparse = sparse_of(model)
    sparse(*given())
    assert sparse.report() == "report 1" and sparse.program is sparse._stages[0].program
    assert sparse.graph_module.graph.find_nodes(op="call_module", target="blocks.0")
    assert "1 capture(s)" in repr(sparse) and str(sparse.policy) in repr(sparse)
    sparse(*given(3))
    assert sparse.report() == "report 2" and sparse.program is sparse._stages[1].program
    assert "2 capture(s)" in repr(sparse)
    sparse(*given())
    assert sparse.report() == "report 1" and len(captures.asked) == 2
    first = sparse.graph_module
    sparse(*given(3)), sparse(*given())
    assert sparse.graph_module is first, "made once"
    assert sparse.policy is sparse._request.policy


def test_blocks_run_the_code_and_constants_of_the_capture_in_force(captures: Captures) -> None:
    sparse = sparse_of(Model())
    x, t = given()
    sparse(x, t)
    want = sparse(x, t)["y"]
    sparse(*given(3))
    second = sparse._stages[1].program.bodies["block0"]
    assert block_of(sparse, 0).sparsify_body is second and block_of(sparse, 0).shift is second.constants["shift"]
    assert torch.equal(sparse(x, t)["y"], want)
    first = sparse._stages[0]
    assert block_of(sparse, 1).sparsify_body is first.program.bodies["block0"]
    assert block_of(sparse, 1).sparsify_code is first.code["block0"]


def test_another_constant_needs_a_capture_of_its_own(captures: Captures) -> None:
    sparse = sparse_of(Model())
    sparse(*given()), sparse(*given(), how="fast"), sparse(*given()), sparse(*given(), how="fast")
    assert len(captures.asked) == 2
    with pytest.raises(InputError, match=r"input .*t.* is 3"):
        sparse(given()[0], 3)


def test_a_graph_that_does_not_hold_for_its_own_inputs_is_refused_and_not_kept(captures: Captures) -> None:
    sparse = sparse_of(Model())
    sparse(*given())
    captures.change = lambda stage: replace(stage, guards=OfShape(torch.Size((9, 9))))  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match=r"does not hold for them: x is \(3, 4\)"):
        sparse(*given(3))
    assert len(sparse._stages) == 1 and same(sparse, sparse._source[0])


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_the_models_until_it_is_switched(captures: Captures, training: bool) -> None:
    model = Model().train(training)
    sparse = sparse_of(model)
    assert sparse.training is training
    sparse(*given())
    assert captures.asked[-1][0] is training
    assert sparse.train(not training) is sparse and sparse.training is not training
    assert all(module.training is not training for module in sparse.modules())
    sparse(*given())
    mode, _, flags = captures.asked[-1]
    assert mode is not training and flags == [not training] * len(flags)
    assert all(module.training is training for module in model.modules()), "the model is as it was"
    sparse.train(training)(*given())
    assert len(captures.asked) == 2, "both are kept"
    assert sparse.eval().train().training and sparse._mode is True, "training is what train() is for"


def test_a_model_in_a_mixture_of_modes_is_captured_as_it_came(captures: Captures) -> None:
    model = Model().eval()
    model.dropout.train()
    sparse = sparse_of(model)
    flags = [module.training for module in model.modules()]
    sparse(*given()), sparse(*given(3))
    assert [asked[0] for asked in captures.asked] == [None, None]
    assert all(asked[2] == flags for asked in captures.asked) and sparse.dropout.training and not sparse.blocks.training
    sparse.eval()(*given())
    assert captures.asked[-1][0] is False and not any(captures.asked[-1][2])
    assert [module.training for module in model.modules()] == flags


def test_modes_of_the_model_come_back_also_where_the_capture_fails(captures: Captures, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model().eval()
    sparse = sparse_of(model)
    sparse(*given())

    def fails(*_: Any) -> Stage:
        raise CaptureError("it fails")

    monkeypatch.setattr(runtime, "build_stage", fails)
    with pytest.raises(CaptureError, match="it fails"):
        sparse.train()(*given())
    assert not any(module.training for module in model.modules())


def test_modes_and_moves_before_the_capture_are_those_of_the_model(captures: Captures) -> None:
    model = Model().eval()
    sparse = sparse_of(model)
    assert sparse.train() is sparse and sparse.double() is sparse
    assert model.dropout.training and model.table.dtype == torch.float64
    sparse(given()[0].double(), given()[1])
    assert captures.asked == [(True, kind_of(model), [True] * 5)]
    assert kind_of(model) == (torch.float64, torch.device("cpu"))


def test_a_move_takes_the_model_along_and_needs_another_capture(captures: Captures) -> None:
    model = Model()
    sparse = sparse_of(model)
    sparse(*given())
    assert sparse.double() is sparse
    assert model.table.dtype == torch.float64 and model.table is sparse.table
    assert model.blocks[0].weight is block_of(sparse, 0).weight
    assert same(sparse, model, (given()[0].double(), given()[1]))
    assert captures.asked[-1][1] == (torch.float64, torch.device("cpu"))
    sparse.float()
    assert same(sparse, model) and len(captures.asked) == 2


def test_tensors_that_were_put_in_place_of_others_are_the_models_too(captures: Captures) -> None:
    model = Model()
    sparse = sparse_of(model)
    sparse(*given())
    other = {name: torch.randn_like(value) for name, value in sparse.state_dict().items()}
    outcome = sparse.load_state_dict(other, assign=True)
    assert outcome.missing_keys == [] and model.blocks[0].weight is block_of(sparse, 0).weight
    assert torch.equal(model.table, other["table"]) and same(sparse, model)
    block_of(sparse, 0).weight = nn.Parameter(torch.zeros(4))
    sparse(*given(3))
    assert not model.blocks[0].weight.any(), "a capture sees what the sparse model has"


def test_the_latest_capture_is_found_without_inputs_unless_something_has_changed(captures: Captures) -> None:
    sparse = sparse_of(Model().eval())
    x, t = given()
    sparse(x, t)
    stage, inputs = sparse.stage_for()
    assert stage is sparse._stages[0] and [id(each) for each in inputs] == [id(x), id(t)]
    for change, back in ((sparse.train, sparse.eval), (sparse.double, sparse.float)):
        change()
        with pytest.raises(InputError, match="moved or switched between modes"):
            sparse.stage_for()
        back()
        assert sparse.stage_for()[0] is stage


def test_a_capture_is_found_or_made_for_inputs(captures: Captures) -> None:
    sparse = sparse_of(Model())
    first = sparse.stage_for(given())[0]
    assert len(captures.asked) == 1 and sparse.stage_for(given())[0] is first
    x, t = given(3)
    second, inputs = sparse.stage_for({"x": x, "t": t})
    assert second is sparse._stages[1] and inputs[0] is x and inputs[1] is t
    with pytest.raises(InputError, match="example_inputs is a int"):
        sparse.stage_for(3)


def test_preparing_a_call_puts_its_capture_in_force(captures: Captures) -> None:
    sparse = sparse_of(Model())
    x, t = given()
    stage, inputs = sparse.prepare((x, t), {})
    assert inputs[0] is x and sparse._active is stage
    sparse(*given(3))
    assert sparse._active is not stage
    assert sparse.prepare((x,), {"t": t})[0] is stage is sparse._active


@pytest.mark.parametrize("verify", ["standard", "full"])
def test_a_full_check_is_made_where_it_is_asked_for(captures: Captures, monkeypatch: pytest.MonkeyPatch, verify: Any) -> None:
    checked: list[Any] = []
    monkeypatch.setattr(runtime, "check_fully", lambda *args: checked.append(args))
    model = Model()
    sparse = sparse_of(model, verify=verify)
    x, t = given()
    sparse(x, t), sparse(x, t), sparse(*given(3))
    assert len(checked) == (2 if verify == "full" else 0)
    if verify == "full":
        program, plan, checked_model, dense, inputs = checked[0]
        assert (program, plan) == (sparse._stages[0].program, "plan 1")
        assert checked_model is sparse and dense is model and [id(each) for each in inputs] == [id(x), id(t)]


def test_a_capture_that_fails_its_check_is_not_kept(captures: Captures, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise VerificationError("wrong")

    sparse = sparse_of(Model(), verify="full")
    monkeypatch.setattr(runtime, "check_fully", fails)
    for _ in range(2):
        with pytest.raises(VerificationError, match="wrong"):
            sparse(*given())
        assert sparse._stages == []


def test_the_host_says_the_time_and_the_grid(captures: Captures) -> None:
    sparse = sparse_of(Model())
    sparse(*given())
    with sparse.at(600):
        assert sparse(*given())["side"] == (2,)
    assert sparse(*given())["side"] == (6,)
    assert sparse.fix((3,))(*given())["side"] == (3,)
    assert sparse(*given(3))["side"] == (3,), "in every capture"
    assert sparse.fix(None)(*given())["side"] == (6,)


def test_without_a_density_there_is_no_time_to_say(captures: Captures) -> None:
    captures.options = {"density": None, "pools": False}
    sparse = sparse_of(Model())
    sparse(*given())
    assert not hasattr(sparse, DENSITY) and sparse(*given())["side"] is None
    with pytest.raises(InputError, match="has no density here"):
        sparse.fix((3,))


def test_a_reader_that_the_graph_does_not_call_is_no_module_of_the_model(captures: Captures) -> None:
    captures.options = {"pools": False, "grid_reader": FixedGrid((4, 2)), "prompts": {"sparsify_prompt_0": prompt()}}
    sparse = sparse_of(Model())
    sparse(*given())
    assert not {DENSITY, GRID, "sparsify_prompt_0"} & sparse._modules.keys()


@pytest.mark.parametrize("beside", [False, True])
def test_the_grid_is_read_beside_other_rows_where_there_are_some(captures: Captures, beside: bool) -> None:
    captures.options = {"grid_reader": FixedGrid((4, 2)), "rows_before": {5: 2} if beside else {}, "also": (GRID,)}
    sparse = sparse_of(Model())
    sparse(*given())
    assert sparse.sparsify_grid.beside is beside and sparse.sparsify_grid.reader == FixedGrid((4, 2))


def prompt() -> fx.Graph:
    graph = fx.Graph()
    graph.output((graph.call_function(aten.neg.default, (graph.placeholder("x"),)),))
    return graph


def test_prompts_are_kept_until_they_are_forgotten(captures: Captures) -> None:
    captures.options = {"prompts": {"sparsify_prompt_0": prompt()}, "also": ("sparsify_prompt_0",)}
    sparse = sparse_of(Model())
    inputs = given()
    sparse(*inputs)
    module = sparse.sparsify_prompt_0
    assert len(module._kept) == 1
    sparse(*inputs)
    assert len(module._kept) == 1
    sparse.forget_prompts()
    assert not module._kept


def test_calibration_is_given_what_it_was_asked_with(captures: Captures, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(calibration, "calibrate", lambda *args, **kwargs: (seen.append((args, kwargs)), "fitted")[1])
    sparse, teacher = sparse_of(Model()), Model()
    assert sparse.calibrate([1]) == "fitted"
    assert sparse.calibrate([2], ridge=0.5, teacher=teacher, on_progress=print) == "fitted"
    assert seen == [
        ((sparse, [1]), {"ridge": 1e-4, "teacher": None, "on_progress": None}),
        ((sparse, [2]), {"ridge": 0.5, "teacher": teacher, "on_progress": print}),
    ]


def test_a_model_that_is_no_graph_runs_its_own_code(captures: Captures, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Recorder:
        def __init__(self, *args: Any) -> None:
            made.append(args)

        def __call__(self, *inputs: Any) -> Any:
            return "in place", inputs

    monkeypatch.setattr(runtime, "InPlace", Recorder)
    model = Model()
    sparse = sparse_of(model)
    x, t = given()
    captures.change = lambda stage: (stage.program.in_place.update({"blocks.0": None}), replace(stage, sizes=((2, 4), (2,))))[1]
    word, inputs = sparse(x, t)
    assert word == "in place" and inputs[0] is x and inputs[1] is t
    stage = sparse._stages[0]
    assert made == [(stage.program, sparse, model, {}, None)]
    calls: Any = {"blocks.0": print}
    sparse.in_place(stage, calls, print)
    assert made[1] == (stage.program, sparse, model, calls, print)


def test_attributes_that_it_lacks_are_the_models_but_for_special_ones(captures: Captures) -> None:
    model = Model()
    model.__dict__["__special__"] = 3
    sparse = sparse_of(model)
    assert sparse.width == 4 and sparse.dropout is model.dropout
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = sparse.no_such_thing
    assert not hasattr(sparse, "__special__")
    with pytest.raises(AttributeError):
        _ = SparseModel.__new__(SparseModel).anything


def test_a_copy_has_tensors_of_its_own_and_the_captures_of_the_first(captures: Captures) -> None:
    model = Model()
    sparse = sparse_of(model)
    sparse(*given()), sparse(*given(3))
    twin = copy.deepcopy(sparse)
    assert len(captures.asked) == 2 and all(a is b for a, b in zip(twin._stages, sparse._stages, strict=True))
    assert twin.program is sparse.program, "the same is in force"
    assert block_of(twin, 0).sparsify_body is block_of(sparse, 0).sparsify_body
    for inputs in (given(), given(3)):
        assert torch.equal(twin(*inputs)["y"], sparse(*inputs)["y"])
    own = twin._source[0]
    assert own is not model and own.blocks[0].weight is block_of(twin, 0).weight is not model.blocks[0].weight
    with torch.no_grad():
        block_of(twin, 0).weight.zero_()
    assert same(twin, own) and same(sparse, model) and not same(twin, model)
    assert twin.fix((3,))(*given())["side"] == (3,) and sparse(*given())["side"] == (6,), "and a clock of its own"
    assert len(captures.asked) == 2
    twin(*given(5))
    assert (len(twin._stages), len(sparse._stages)) == (3, 2)


def test_a_copy_before_the_capture_is_captured_for_itself(captures: Captures) -> None:
    sparse = sparse_of(Model())
    twin = copy.deepcopy(sparse)
    assert same(twin, twin._source[0]) and sparse._stages == []


def test_it_is_not_pickled(captures: Captures) -> None:
    with pytest.raises(TypeError, match=r"state_dict\(\) and policy.to_json\(\)"):
        pickle.dumps(sparse_of(Model()))
