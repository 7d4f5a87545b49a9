"""State that uncommon models carry: caches, modes, counters, names; all of it is as before."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sparsify import SDTM, CaptureError, Density, Policy, SparseModel, sparsify

from .helpers import POLICY, inputs, plain, sparse_plain
from .plain_dit import PlainDiT, randomised


def test_a_cache_behind_a_decorator_holds_nothing_of_the_capture() -> None:
    def cached_outside_of_export(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        cached = functools.lru_cache(function)

        @functools.wraps(function)
        def choose(*args: object) -> torch.Tensor:
            return function(*args) if torch.compiler.is_exporting() else cached(*args)

        return choose

    class Caching(PlainDiT):
        @cached_outside_of_export
        def table(self, length: int) -> torch.Tensor:
            return torch.ones(length)

        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x, t, y) * self.table(1)

    model = randomised(Caching()).eval()
    sparsify(model, POLICY, example_inputs=inputs())
    assert model(*inputs()).isfinite().all()


def test_first_call_in_inference_mode_leaves_a_model_that_trains() -> None:
    sparse = sparsify(plain(), POLICY)
    with torch.inference_mode():
        sparse(*inputs())
    sparse(*inputs()).square().mean().backward()
    assert sparse.sparsify_restore[0]["sparse"].weight.grad.abs().max() > 0


def test_a_mixture_of_modes_is_kept_until_train_or_eval_is_called() -> None:
    model = plain(dropout=0.5)
    model.blocks.train()
    given = inputs()
    sparse = sparsify(model, POLICY, example_inputs=given)
    assert not torch.equal(sparse(*given), sparse(*given))
    sparse.eval()
    assert torch.equal(sparse(*given), sparse(*given))


def test_one_timestep_for_a_whole_batch_is_captured_once() -> None:
    class Broadcast(PlainDiT):
        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x, t.expand(x.shape[0]), y)

    model = randomised(Broadcast()).eval()
    x, _, y = inputs(2)
    sparse = sparsify(model, POLICY, example_inputs=(x, torch.tensor([5]), y))
    for t in (5, 300, 900):
        sparse(x, torch.tensor([t]), y)
    assert len(sparse._stages) == 1


def test_loading_with_assign_reaches_later_captures() -> None:
    model, sparse = sparse_plain()
    x, t, y = inputs()
    sparse.load_state_dict({key: value * 1.5 for key, value in sparse.state_dict().items()}, assign=True)
    expected = sparse(x, t, y)
    again = sparse.double()(x.double(), t, y)  # captured anew, from the model
    assert (again - expected).abs().max() < 1e-4
    assert isinstance(sparse, SparseModel) and model.head.weight.dtype == torch.float64


def test_names_the_runtime_uses_itself() -> None:
    model = plain()
    for block in model.blocks:
        block.body, block.code, block.graph = block.mlp, block.attn.proj, nn.Identity()
    given = inputs()
    assert torch.equal(sparsify(model, Policy.dense(), example_inputs=given)(*given), model(*given))
    model.code = nn.Identity()
    with pytest.raises(CaptureError, match=r"\['code'\] among its own names"):
        sparsify(model, POLICY, example_inputs=given)


def test_constant_density_and_count_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"SDTM\(...\) \* n is -1"):
        SDTM() * -1
    with pytest.raises(ValueError, match=r"Policy\.dense is <built-in function print>"):
        Policy(1, SDTM() * 1, dense=print)  # type: ignore[arg-type]
    assert Density.constant(rate=0.5).grid_at(3, (8, 8)) == (5, 5)


def test_a_model_that_looks_at_values_runs_its_blocks_in_place_and_its_buffers_are_as_before() -> None:
    class Counting(PlainDiT):
        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            self.seen.add_(1)
            return super().forward(x * 2 if float(x.mean()) > 100 else x, t, y)

    model = randomised(Counting()).eval()
    model.register_buffer("seen", torch.zeros(()))
    sparse = sparsify(model, Policy.dense(), example_inputs=inputs())
    assert model.seen == 0
    assert "blocks in place" in sparse.report().way and "blocks in place" in str(sparse.report())
    x, t, y = inputs()
    for latent in (x, x + 200):  # either branch of the model's own code
        assert torch.equal(sparse(latent, t, y), model(latent, t, y))
    fewer = sparsify(model, POLICY, example_inputs=inputs())
    assert fewer(x, t, y).shape == x.shape and not torch.equal(fewer(x, t, y), fewer(x + 200, t, y))
