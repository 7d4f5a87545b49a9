"""Policies that must change nothing, and what capture must leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsify import SDTM, Density, Policy, PolicyError, sparsify

from .helpers import POLICY, inputs, plain
from .test_exact import tiny_diffusers_dit, tiny_pixart


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_dense_policy_is_the_model_bit_for_bit(training: bool) -> None:
    model = plain(dropout=0.2, label_dropout=0.4).train(training)
    sparse = sparsify(model, Policy.dense(), example_inputs=inputs())
    for batch in (1, 2, 5):
        given = inputs(batch)
        torch.manual_seed(7)
        expected = model(*given)
        torch.manual_seed(7)
        assert torch.equal(sparse(*given), expected)


def test_dropout_acts_in_training_only_and_as_in_the_model() -> None:
    model = plain(dropout=0.3, label_dropout=0.5)
    sparse = sparsify(model, Policy.dense(), example_inputs=inputs())
    given = inputs(4)
    quiet = sparse(*given)
    for seed in (1, 2):
        sparse.train(), model.train()
        torch.manual_seed(seed)
        loud = sparse(*given)
        torch.manual_seed(seed)
        assert torch.equal(loud, model(*given))
        assert not torch.allclose(loud, quiet)
        sparse.eval(), model.eval()
        assert torch.equal(sparse(*given), quiet)
        assert torch.equal(model(*given), quiet)


def test_label_dropout_alone_acts_in_a_sparse_model_in_training() -> None:
    sparse = sparsify(plain(label_dropout=0.5), POLICY, example_inputs=inputs())
    given = inputs(64)
    quiet = sparse(*given)
    sparse.train()
    changed = (sparse(*given) - quiet).flatten(1).abs().amax(dim=1) > 1e-4
    assert 12 <= int(changed.sum()) <= 52  # about half the labels are dropped; the rest of the batch is untouched


def test_dense_policy_is_the_diffusers_models_bit_for_bit() -> None:
    x, t, y = torch.randn(2, 4, 16, 16), torch.tensor([500, 20]), torch.tensor([3, 7])
    dit, pixart = tiny_diffusers_dit().eval(), tiny_pixart().eval()
    dit_inputs = {"hidden_states": x, "timestep": t, "class_labels": y}
    conditions = {"resolution": None, "aspect_ratio": None}
    text = {"encoder_hidden_states": torch.randn(2, 7, 24), "added_cond_kwargs": conditions}
    for model, given in ((dit, dit_inputs), (pixart, {"hidden_states": x, "timestep": t} | text)):
        sparse = sparsify(model, Policy.dense(), example_inputs=given)
        assert torch.equal(sparse(**given).sample, model(**given).sample)
        assert isinstance(sparse(**given), type(model(**given)))


@pytest.mark.parametrize(
    "density", [Density.constant(grid=(8, 8)), Density.constant(rate=0.0), Density.paper(r_min=0, r_max=0)], ids=str
)
def test_full_grid_without_poolingformer_is_the_model(density: Density) -> None:
    model = plain()
    with pytest.warns(UserWarning, match="full"):
        sparse = sparsify(model, Policy(0, SDTM(1, 1, 1, 0) * 2, 0, density), example_inputs=inputs())
    given = inputs(3)
    assert (sparse(*given) - model(*given)).abs().max() <= 1e-6
    assert "full" in sparse.report().skipped[0].reason
    assert {block.role for block in sparse.report().blocks} == {"dense"}


def test_a_full_grid_at_some_timesteps_only_is_refused() -> None:
    policy = Policy(0, SDTM(1, 1, 1, 0) * 2, 0, Density.paper(r_min=0.0, r_max=0.9))
    with pytest.raises(PolicyError, match=r"keeps all 64 tokens .* 25% of the timesteps"):
        sparsify(plain(), policy, example_inputs=inputs())


def test_capture_changes_nothing_about_the_model() -> None:
    class Restless(nn.Module):
        """Writes to itself in every call, and draws random numbers."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()
            self.calls, self.cached = 0, None
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.cached = x * 2
            return self.inner(x, t, y)

    model = Restless()
    model.inner.blocks[2].train()  # a mixture of modes must survive as well
    modes = [module.training for module in model.modules()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    attributes = [sorted(vars(module)) for module in model.modules()]
    for policy in (Policy.dense(), Policy.auto()):
        sparsify(model, policy, example_inputs=(torch.ones(2, 3, 16, 16), torch.tensor([1, 2]), torch.tensor([0, 1])))
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.calls, model.cached) == (0, None)
    assert [module.training for module in model.modules()] == modes
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
