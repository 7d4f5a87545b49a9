"""The objectives against formulae written down another way, and against torch's distributions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sparsify.errors import TrainingError
from sparsify.training import TrainConfig
from sparsify.training.loss import Diffusion, betas_of, objective_of

CPU = torch.device("cpu")


def diffusion(**fields: Any) -> Diffusion:
    made = objective_of(TrainConfig(steps=1, **fields), CPU)
    assert isinstance(made, Diffusion)
    return made


def batch(t: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.rand(len(t), 2, 4, 4) * 2 - 1, torch.randn(len(t), 2, 4, 4), torch.tensor(t)


def spread(values: torch.Tensor) -> torch.Tensor:
    return values.float().view(-1, 1, 1, 1)


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_betas_are_those_of_diffusers(ours: str, theirs: str) -> None:
    from diffusers import DDPMScheduler

    want = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs).betas
    torch.testing.assert_close(betas_of(ours, 1000).float(), want, rtol=2e-5, atol=1e-7)


def test_noised_images_are_those_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    x0, noise, t = batch([0, 3, 500, 999])
    want = DDPMScheduler(num_train_timesteps=1000).add_noise(x0, noise, t)
    torch.testing.assert_close(diffusion().noised(x0, noise, t), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_variance_term_is_the_divergence_of_two_gaussians(schedule: str) -> None:
    """The posterior of the forward process against the model's step, both with their means written out (arXiv 2006.11239)."""
    x0, noise, t = batch([1, 7, 400, 990])
    predicted, share = torch.randn_like(x0), torch.rand_like(x0) * 2 - 1
    betas = betas_of(schedule, 1000)
    kept = (1 - betas).cumprod(0)
    beta, a, before = (spread(table[t]) for table in (betas, kept, torch.cat([torch.ones(1), kept[:-1]])))
    xt = a.sqrt() * x0 + (1 - a).sqrt() * noise
    towards_x0, towards_xt = beta * before.sqrt() / (1 - a), (1 - beta).sqrt() * (1 - before) / (1 - a)
    guess = (xt - (1 - a).sqrt() * predicted) / a.sqrt()
    variance = beta * (1 - before) / (1 - a)
    mixed = ((share + 1) / 2 * beta.log() + (1 - share) / 2 * variance.log()).exp()
    true = Normal(towards_x0 * x0 + towards_xt * xt, variance.sqrt())
    model = Normal(towards_x0 * guess + towards_xt * xt, mixed.sqrt())
    want = kl_divergence(true, model).flatten(1).mean(1) / math.log(2)
    got = diffusion(noise_schedule=schedule).variance_bits(predicted, share, x0, noise, t)
    torch.testing.assert_close(got, want, rtol=2e-3, atol=1e-6)  # the means above are differences of large numbers


def test_last_denoising_step_has_the_likelihood_of_pixels() -> None:
    x0, noise, t = batch([0, 0, 5])
    x0[0, 0, 0] = torch.tensor([-1.0, 1.0, 0.0, 0.5])
    predicted, share = noise + 0.1 * torch.randn_like(noise), torch.rand_like(x0) * 2 - 1
    objective = diffusion()
    betas = betas_of("linear", 1000)
    first = betas[0].float()
    least = (betas[1] * betas[0] / (1 - (1 - betas[0]) * (1 - betas[1]))).float()  # the posterior variance of step 1
    mean = (objective.noised(x0, noise, t) - first.sqrt() * predicted) / (1 - first).sqrt()
    scale = ((share + 1) / 2 * first.log() + (1 - share) / 2 * least.log()).exp().sqrt()
    pixel = Normal(mean.double(), scale.double())
    above, below = pixel.cdf(x0.double() + 1 / 255), pixel.cdf(x0.double() - 1 / 255)
    above[x0 > 0.999], below[x0 < -0.999] = 1, 0
    want = -(above - below).clamp(min=1e-12).log().flatten(1).mean(1) / math.log(2)
    got = objective.variance_bits(predicted, share, x0, noise, t)
    torch.testing.assert_close(got[:2].double(), want[:2], rtol=1e-3, atol=1e-4)
    assert torch.isfinite(got).all()


def test_loss_is_noise_error_and_weighted_variance_and_they_do_not_mix() -> None:
    x0, noise, t = batch([2, 300])
    output = torch.randn(2, 4, 4, 4, requires_grad=True)
    objective = diffusion(timesteps=500)
    losses = objective.losses(output, x0, noise, t)
    predicted, share = output.detach().chunk(2, dim=1)
    assert losses["noise"].item() == pytest.approx(((predicted - noise) ** 2).mean().item())
    want = 500 / 1000 * objective.variance_bits(predicted, share, x0, noise, t).mean().item()
    assert losses["variance"].item() == pytest.approx(want)
    (gradient,) = torch.autograd.grad(losses["variance"], output)
    assert not gradient[:, :2].any() and gradient[:, 2:].any()


def test_variance_is_told_by_the_output_or_by_the_settings() -> None:
    x0, noise, t = batch([2, 300])
    assert set(diffusion().losses(torch.zeros_like(x0), x0, noise, t)) == {"noise"}
    with pytest.raises(TrainingError, match=r"output has the shape \(2, 4, 4, 4\).*must be \(2, 2, 4, 4\)"):
        diffusion(learned_variance=False).losses(torch.zeros(2, 4, 4, 4), x0, noise, t)
    with pytest.raises(TrainingError, match=r"must be \(2, 4, 4, 4\)"):
        diffusion(learned_variance=True).losses(torch.zeros_like(x0), x0, noise, t)


@pytest.mark.parametrize("reversed_", [False, True])
@pytest.mark.parametrize("timesteps", [1.0, 1000])
def test_flow_goes_straight_from_one_end_to_the_other(reversed_: bool, timesteps: float) -> None:
    """An exact velocity, followed from the noise for the whole time, arrives at the data."""
    objective = objective_of(TrainConfig(steps=1, objective="flow", timesteps=timesteps, reversed=reversed_), CPU)
    x0, noise = torch.rand(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    start, end = (0.0, timesteps) if reversed_ else (timesteps, 0.0)
    at = [objective.noised(x0, noise, torch.full((3,), t)) for t in (start, (start + end) / 2, end)]
    torch.testing.assert_close(at[0], noise)
    torch.testing.assert_close(at[2], x0)
    velocity = (at[2] - at[0]) / (end - start) * timesteps
    torch.testing.assert_close(at[1], at[0] + velocity / timesteps * (end - start) / 2)
    assert objective.losses(velocity, x0, noise, torch.zeros(3))["velocity"] < 1e-12
    with pytest.raises(TrainingError, match="learned_variance is True"):
        objective_of(TrainConfig(steps=1, objective="flow", learned_variance=True), CPU)
