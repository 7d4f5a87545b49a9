"""Modes, moves and copies of the module that sparsify returns: what they do to the model, and when it is captured again."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from sparsify import runtime
from sparsify.errors import CaptureError
from sparsify.stage import Stage
from sparsify.tree import kind_of

from .captures import Captures, Model, block_of, given, same, sparse_of


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
