"""Three ways to give the timestep: the model's own input, the host, a fixed grid."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from sparsify import SDTM, Density, InputError, Policy, sparsify

from .helpers import POLICY, inputs, plain, sparse_plain


def test_the_host_says_what_the_input_would() -> None:
    _, sparse = sparse_plain()
    x, _, y = inputs()
    for t in (0, 400, 999):
        given = torch.full((2,), t)
        want = sparse(x, given, y)
        pooled = POLICY.density.grid_at(t, sparse.report().grid)
        with sparse.at(t):
            assert torch.equal(sparse(x, given, y), want)
        sparse.fix(pooled)
        assert torch.equal(sparse(x, given, y), want)
        sparse.fix(None)


def test_the_host_overrules_the_input_and_only_within_the_context() -> None:
    _, sparse = sparse_plain()
    x, t, y = inputs()
    pooled: list[torch.Size] = []
    generate = POLICY.poolingformer
    sparse.get_submodule(f"blocks.{generate}").register_forward_hook(lambda module, args, out: pooled.append(out.shape))
    with sparse.at(999):
        sparse(x, torch.zeros_like(t), y)
        with sparse.at(0):
            sparse(x, torch.zeros_like(t), y)
        sparse(x, torch.zeros_like(t), y)
    sparse(x, torch.zeros_like(t), y)
    noisy, clean, noisy_again, own = (shape[1] for shape in pooled)
    assert noisy == noisy_again < clean == own


def test_no_tensor_is_read_where_the_host_says_the_time() -> None:
    """On the meta device there is nothing to read: whatever looks at a tensor's values raises."""
    sparse = sparse_plain()[1].to("meta")
    on_meta = tuple(tensor.to("meta") for tensor in inputs())
    with pytest.raises(InputError, match=r"meta device.*at\(timestep\) or fix\(grid\)"):
        sparse(*on_meta)
    with sparse.at(500):
        assert sparse(*on_meta).shape == on_meta[0].shape
    assert sparse.fix((4, 4))(*on_meta).shape == on_meta[0].shape


def test_a_copy_has_a_clock_of_its_own() -> None:
    _, sparse = sparse_plain()
    twin = copy.deepcopy(sparse).fix((2, 2))
    given = inputs()
    assert not torch.equal(twin(*given), sparse(*given))


def test_a_pipeline_callback_tells_the_next_step() -> None:
    for flow in (False, True):
        density = Density.paper(0.5, 0.9, timesteps=1.0 if flow else 1000, reversed=flow)
        sparse = sparsify(plain(), Policy(1, SDTM(1, 2, 1, 0), 1, density), example_inputs=inputs())
        timesteps = torch.tensor([999.0, 500.0, 1.0])
        pipe = SimpleNamespace(scheduler=SimpleNamespace(timesteps=timesteps, config=SimpleNamespace(num_train_timesteps=1000)))
        callback, seen = sparse.step_callback(), []
        for step, t in enumerate(timesteps):
            assert callback(pipe, step, t, {"latents": step}) == {"latents": step}
            seen.append(sparse._clock.timestep)
        assert seen == ([0.5, pytest.approx(0.999), None] if flow else [500.0, 1.0, None])


def test_timesteps_of_flow_matching_on_a_scale_to_1000_are_warned_of_once() -> None:
    _, sparse = sparse_plain()
    x, t, y = inputs()
    with pytest.warns(UserWarning, match=r"lie between 0 and 1 .* give it timesteps=1.0"):
        sparse(x, torch.full(t.shape, 0.7), y)


@pytest.mark.parametrize(
    ("grid", "message"),
    [((0, 4), "one to three integers of at least 1"), ("8x8", "not '8x8'"), ((9, 4), "does not fit"), ((4,), "does not fit")],
)
def test_grids_that_cannot_be_fixed(grid: object, message: str) -> None:
    _, sparse = sparse_plain()
    with pytest.raises(InputError, match=message):
        sparse.fix(grid)(*inputs())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("t", "message"), [(1001, r"outside \[0, 1000\]"), ("noon", "Python number"), (torch.zeros(1, device="meta"), "on meta")]
)
def test_timesteps_that_the_host_cannot_say(t: object, message: str) -> None:
    _, sparse = sparse_plain()
    with pytest.raises(InputError, match=message), sparse.at(t):  # type: ignore[arg-type]
        pass


def test_a_policy_without_pooled_tokens_has_no_density() -> None:
    dense = sparsify(plain(), Policy.dense(), example_inputs=inputs())
    with pytest.raises(InputError, match="has no density here"):
        dense.fix((4, 4))
