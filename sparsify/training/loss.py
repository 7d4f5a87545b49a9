"""What a model is trained to predict: noise and variance (diffusion), or velocity (flow matching).

Both take clean images x0 and noise of one shape (rows, C, ...), timesteps (rows,), and the model's output in float32.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch.nn import functional as F

from ..errors import TrainingError
from .config import TrainConfig

Losses = dict[str, torch.Tensor]

_BIN = 1 / 255  # half the width of one of 256 grey values in [-1, 1]
_TINY = 1e-12  # least probability that a logarithm is taken of


class Objective(Protocol):
    """How images are noised, and how far an output is from what it should be."""

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the model sees at these timesteps."""

    def losses(self, output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Losses:
        """Terms of the loss by name, each a mean over the batch; the loss is their sum.

        Raises:
            TrainingError: the output has another shape than the objective asks for.
        """


def objective_of(config: TrainConfig, device: torch.device) -> Objective:
    """The objective that a configuration names, with its tables on ``device``."""
    if config.objective == "flow":
        return Flow(config)
    return Diffusion(config, device)


class Diffusion:
    """Noise prediction with a learned variance beside it, as DiT is trained (arXiv 2212.09748, section 3.1).

    The noise gets its mean square error. A variance, where the model predicts one, gets the variational bound in bits per
    dimension for the one timestep, weighted by T / 1000, and no gradient of it reaches the noise (Nichol and Dhariwal,
    arXiv 2102.09672, section 3.1: L_simple + 0.001 L_vlb; and the code that goes with it).
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._learned, self._weight = config.learned_variance, config.timesteps / 1000
        steps = int(config.timesteps)
        betas = betas_of(config.noise_schedule, steps)
        alphas = 1 - betas
        kept = alphas.cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        variance = betas * (1 - before) / (1 - kept)
        variance[0] = variance[1]  # that of the first step is 0, and its logarithm is taken
        tables = {
            "signal": kept.sqrt(),
            "noise": (1 - kept).sqrt(),
            # The mean of the step before is (x_t - slope * noise) / scale (Ho et al., arXiv 2006.11239, equation 11).
            "slope": betas / (1 - kept).sqrt(),
            "scale": alphas.sqrt(),
            "log_least": variance.log(),
            "log_most": betas.log(),
        }
        self._tables = {name: table.float().to(device) for name, table in tables.items()}

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(a) x0 + sqrt(1 - a) noise, a the product of alphas up to t."""
        return self._at("signal", timesteps, x0) * x0 + self._at("noise", timesteps, x0) * noise

    def losses(self, output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Losses:
        """``noise``, and ``variance`` where one is learned."""
        channels = x0.shape[1]
        learned = output.shape[1] == 2 * channels if self._learned is None else self._learned
        _check_output(output, x0, 2 * channels if learned else channels)
        if not learned:
            return {"noise": F.mse_loss(output, noise)}
        predicted, share = output.split(channels, dim=1)
        bits = self.variance_bits(predicted.detach(), share, x0, noise, timesteps)
        return {"noise": F.mse_loss(predicted, noise), "variance": self._weight * bits.mean()}

    def variance_bits(
        self, predicted: torch.Tensor, share: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The variational bound of each image (rows,) in bits per dimension.

        Args:
            predicted: the noise that the model sees.
            share: where between the least and the largest possible variance its own lies, in logarithms, from -1 to 1.
            x0: the images.
            noise: the noise they were given.
            timesteps: (rows,); on the CPU or where the images are.
        """
        least, most = self._at("log_least", timesteps, x0), self._at("log_most", timesteps, x0)
        log_variance = least + (share + 1) / 2 * (most - least)
        slope, scale = self._at("slope", timesteps, x0), self._at("scale", timesteps, x0)
        apart = slope / scale * (predicted - noise)  # of the two means; x_t is in both of them and goes
        nats = _divergence(apart, least, log_variance).flatten(1).mean(dim=1)
        first = (timesteps == 0).nonzero().flatten().to(x0.device)
        if len(first):  # the last denoising step gives pixels, and has a likelihood instead
            mean = ((self.noised(x0, noise, timesteps) - slope * predicted) / scale)[first]
            likelihood = discretised_log_likelihood(x0[first], mean, log_variance[first] / 2)
            nats = nats.index_copy(0, first, -likelihood.flatten(1).mean(dim=1))
        return nats / math.log(2)

    def _at(self, table: str, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        values = self._tables[table][timesteps.to(like.device)]
        return values.view(-1, *[1] * (like.ndim - 1))


class Flow:
    """Rectified flow (arXiv 2209.03003, 2403.03206): straight lines from the data to the noise, and their velocity.

    With s = t / T, or 1 - t / T where t = T is the data: x = (1 - s) x0 + s noise. The model predicts dx/dt times T, which is
    noise - x0, or x0 - noise.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._timesteps, self._reversed = config.timesteps, config.reversed
        if config.learned_variance:
            raise TrainingError("TrainConfig.learned_variance is True, but flow matching has no variance; use False or None.")

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The point of the line at these timesteps."""
        share = (timesteps.to(x0.device).to(x0.dtype) / self._timesteps).view(-1, *[1] * (x0.ndim - 1))
        return torch.lerp(noise, x0, share) if self._reversed else torch.lerp(x0, noise, share)

    def losses(self, output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Losses:
        """``velocity``."""
        _check_output(output, x0, x0.shape[1])
        return {"velocity": F.mse_loss(output, x0 - noise if self._reversed else noise - x0)}


def betas_of(schedule: str, steps: int) -> torch.Tensor:
    """The variances that each of the noising steps adds, (steps,) in float64.

    Linear: from 1e-4 to 0.02 for 1000 steps (arXiv 2006.11239), scaled for other numbers of them. Cosine: from arXiv 2102.09672,
    equation 17, at most 0.999. Both are those of diffusers' schedulers and of DiT's code.
    """
    if schedule == "linear":
        return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64).clamp(max=0.999)
    share = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = ((share + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)


def discretised_log_likelihood(x0: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """How likely a Gaussian is to fall into the one of 256 bins over [-1, 1] that a pixel lies in, in nats (2006.11239, 3.3)."""
    inverse = (-log_scale).exp()
    above = torch.special.ndtr((x0 - mean + _BIN) * inverse)
    below = torch.special.ndtr((x0 - mean - _BIN) * inverse)
    inside = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1 - below, above - below))
    return inside.clamp(min=_TINY).log()


def _divergence(apart: torch.Tensor, log_first: torch.Tensor, log_second: torch.Tensor) -> torch.Tensor:
    """KL of two Gaussians in nats, from how far their means lie apart and their logarithmic variances."""
    ratio = log_first - log_second
    return (ratio.exp() + apart.square() * (-log_second).exp() - 1 - ratio) / 2


def _check_output(output: torch.Tensor, x0: torch.Tensor, channels: int) -> None:
    wanted = (x0.shape[0], channels, *x0.shape[2:])
    if output.shape != wanted:
        raise TrainingError(
            f"the model's output has the shape {tuple(output.shape)}, but for images {tuple(x0.shape)} and this objective it must be "
            f"{tuple(wanted)}. TrainConfig.learned_variance says whether the model predicts a variance too."
        )
