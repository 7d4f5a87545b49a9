"""The module that sparsify returns, around captures that are written by hand: no model is traced here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx

from sparsify import InputError, NotCapturedError, RewriteError, VerificationError, calibration, runtime
from sparsify.errors import CaptureError
from sparsify.grid_readers import FixedGrid
from sparsify.layers import restore_layer
from sparsify.program import DENSITY, GRID
from sparsify.runtime import SparseModel
from sparsify.tree import Block

from .captures import Captures, Model, OfShape, block_of, given, same, sparse_of
from .sketch import aten


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
