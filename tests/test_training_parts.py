"""Settings, the order of the data, and the moving average, each against something simpler."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from sparsify import Density, InputError
from sparsify.training import Ema, TrainConfig
from sparsify.training.config import FREE
from sparsify.training.order import Order, seed_of

from .training_helpers import config, images

GRID = (4, 4)
DENSITY = Density.table({0: (3, 3), 400: (2, 2)})


def test_settings_survive_json() -> None:
    given = TrainConfig(steps=7, betas=(0.9, 0.95), objective="flow", timesteps=1.0, null_label=3, learned_variance=False)
    assert TrainConfig.from_json(given.to_json()) == given
    assert {f.name for f in fields(TrainConfig)} >= FREE


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
        ({"steps": True}, "steps is True"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"learning_rate": 0}, "learning_rate is 0; it must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"betas": [0.9]}, "betas is .*two numbers"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must be a number of at least 0 and below 1"),
        ({"objective": "score"}, "objective is 'score'; it must be 'diffusion' or 'flow'"),
        ({"precision": "fp16"}, "precision is 'fp16'; it must be 'fp32' or 'bf16'"),
        ({"label_dropout": 1}, "label_dropout is 1"),
        ({"tracker": ""}, "tracker is ''"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size 6 does not divide into accumulate 4"),
        ({"decay_steps": 4}, "decay_steps is 4 and steps 5: .* at least as many decay_steps as steps"),
        ({"timesteps": 1.0}, "objective is 'diffusion' with timesteps 1.0"),
        ({"reversed": True}, "objective is 'diffusion' with .* reversed True"),
        ({"step": 3}, "no field 'step'; its fields are"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig.from_dict({"steps": 5} | wrong)


def test_wrong_json_is_named() -> None:
    for text, message in (("{", "is not JSON"), ("[]", "is a JSON object"), ('{"seed": 1}', "lacks steps")):
        with pytest.raises(InputError, match=message):
            TrainConfig.from_json(text)


def test_learning_rate_warms_up() -> None:
    settings = config(warmup_steps=4, learning_rate=0.4)
    assert [round(settings.rate_at(step), 6) for step in range(6)] == [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]


def test_learning_rate_falls_along_half_a_cosine() -> None:
    rates = [config(steps=3, decay_steps=4, learning_rate=0.4).rate_at(step) for step in range(4)]
    assert rates == pytest.approx([0.4, 0.2 + 0.2 * 2**-0.5, 0.2, 0.2 - 0.2 * 2**-0.5])
    both = config(steps=3, decay_steps=4, warmup_steps=2, learning_rate=0.4)
    assert [both.rate_at(step) for step in range(4)] == pytest.approx([rates[0] / 2, *rates[1:]])


def test_every_image_comes_once_an_epoch_in_another_order() -> None:
    order = Order(config(batch_size=5), images(12), DENSITY, GRID)
    drawn = torch.cat([order.index(number) for number in range(12)]).view(5, 12)
    assert all(sorted(epoch) == list(range(12)) for epoch in drawn.tolist())
    assert len({tuple(epoch) for epoch in drawn.tolist()}) == 5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_depends_on_its_number_alone_and_is_shared_out(accumulate: int) -> None:
    settings = config(batch_size=8, accumulate=accumulate)
    whole = Order(settings, images(), DENSITY, GRID)
    shares = [Order(settings, images(), DENSITY, GRID, rank, 2) for rank in range(2)]
    for step in (3, 0):  # in any order
        for part in range(accumulate):
            want = whole.batch(step, part)
            got = [share.batch(step, part) for share in shares]
            for name in ("images", "noise", "timesteps", "labels"):
                assert torch.equal(torch.cat([getattr(batch, name) for batch in got]), getattr(want, name)), name
    assert not torch.equal(whole.batch(1).noise, whole.batch(2).noise)
    other = Order(config(batch_size=8, accumulate=accumulate, seed=2), images(), DENSITY, GRID)
    assert not torch.equal(whole.batch(1).noise, other.batch(1).noise)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_each_batch_has_one_density_and_together_they_have_all(distribution: str) -> None:
    order = Order(config(timestep_distribution=distribution), images(), DENSITY, GRID)
    batches = [order.batch(step).timesteps for step in range(200)]
    grids = [{DENSITY.grid_at(t, GRID) for t in batch.tolist()} for batch in batches]
    assert all(len(found) == 1 for found in grids) and len(set.union(*grids)) == 2
    drawn = torch.cat(batches).double() / 1000
    centre = ((drawn > 0.27) & (drawn < 0.73)).double().mean()  # sigmoid(+-1): 68.3% of the logit-normal ones
    assert abs(centre - (0.46 if distribution == "uniform" else 0.683)) < 0.08
    assert batches[0].dtype == torch.int64 and drawn.min() >= 0 and drawn.max() < 1


def test_timesteps_need_no_density() -> None:
    batch = Order(config(batch_size=64, objective="flow", timesteps=1.0), images(), None, ()).batch(0)
    assert batch.timesteps.dtype == torch.float32 and 0 <= batch.timesteps.min() < 0.2 and 0.8 < batch.timesteps.max() <= 1


def test_labels_are_dropped_as_often_as_asked() -> None:
    data = images(12)
    order = Order(config(batch_size=12, label_dropout=0.25), data, DENSITY, GRID)
    drawn = torch.cat([order.batch(step).labels for step in range(100)])  # type: ignore[misc]
    assert abs((drawn == 3).double().mean() - 0.25) < 0.04 and set(drawn.tolist()) == {0, 1, 2, 3}
    named = Order(config(batch_size=12, label_dropout=0.5, null_label=9), data, DENSITY, GRID).batch(0).labels
    assert named is not None and 9 in named


def test_seeds_of_one_purpose_never_coincide() -> None:
    assert len({seed_of(0, "noise", number) for number in range(100_000)}) == 100_000
    assert seed_of(0, "noise", 1) != seed_of(0, "timesteps", 1) != seed_of(1, "timesteps", 1)


@pytest.mark.parametrize("warmup", [False, True])
def test_average_is_that_of_a_loop_by_hand(warmup: bool) -> None:
    weights = {"a": torch.nn.Parameter(torch.randn(3, 2)), "b": torch.nn.Parameter(torch.randn(4))}
    ema = Ema(weights, 0.9, warmup)
    want = {name: p.detach().clone() for name, p in weights.items()}
    for step in range(30):
        for name, parameter in weights.items():
            parameter.data += torch.randn_like(parameter)
            decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
            want[name] = decay * want[name] + (1 - decay) * parameter.detach()
        ema.update(step)
    for name, value in ema.values.items():
        torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-6)
    before = {name: p.detach().clone() for name, p in weights.items()}
    with pytest.raises(RuntimeError, match="sampled"), ema.applied():
        assert all(torch.equal(weights[name], ema.values[name]) for name in weights)
        raise RuntimeError("sampled")
    assert all(torch.equal(weights[name], before[name]) for name in weights)
