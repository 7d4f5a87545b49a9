"""One optimiser step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from .calling import prediction
from .config import TrainConfig
from .data import Images
from .ema import Ema
from .loss import objective_of
from .order import Batch, Order, seed_of
from .parallel import Group
from .reporter import Record
from .setup import Setup
from .teaching import Teacher

ADVICE = (
    "Begin another run, in another folder, from the last good checkpoint's model.safetensors (init=, --init), with a lower "
    "learning_rate, with gradient_clip, or with precision 'fp32'."
)


class Stepper:
    """Makes steps, and sums up their losses until somebody asks for the means.

    Args:
        setup: the model.
        config: the settings.
        group: the processes.
        images: the data.
        wrapped: the model as it is to be called.
        optimizer: of its parameters.
        ema: of its parameters.
        teacher: the dense model to distil.
    """

    def __init__(
        self,
        setup: Setup,
        config: TrainConfig,
        group: Group,
        images: Images,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: Ema,
        teacher: Teacher | None = None,
    ) -> None:
        self._setup, self._config, self._group, self._teacher = setup, config, group, teacher
        self._model, self._optimizer, self._ema = wrapped, optimizer, ema
        self._objective = objective_of(config, group.device)
        density, grid = setup.program.density, setup.program.grid_hint if setup.program.density else ()
        self._order = Order(config, images, density, grid, group.rank, group.world)
        self._parameters = [p for options in optimizer.param_groups for p in options["params"]]
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def step(self, number: int) -> torch.Tensor:
        """Make the step of this number, counted from 0; the loss of this process, without gradients."""
        config = self._config
        if not self._setup.sparse.training:  # somebody sampled
            self._setup.sparse.train()
        for options in self._optimizer.param_groups:
            options["lr"] = config.rate_at(number)
        losses: dict[str, torch.Tensor] = {}
        for part in range(config.accumulate):
            for name, value in self._part(number, part).items():
                losses[name] = losses[name] + value if name in losses else value
        if config.gradient_clip:
            norm = nn.utils.clip_grad_norm_(self._parameters, config.gradient_clip)
            losses["gradient_norm"] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._ema.update(number)
        for name, value in losses.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        return losses["loss"]

    def means(self, done: int) -> Record:
        """The mean losses over all processes and the steps since this was last asked for.

        Raises:
            TrainingError: the loss, or the norm of the gradient, is no finite number.
        """
        names = list(self._sums)
        values = self._group.mean(torch.stack([self._sums[name].float() for name in names]) / self._count)
        found: Record = dict(zip(names, values.tolist(), strict=True))
        self._sums, self._count = {}, 0
        if not torch.isfinite(values).all():
            name = next(name for name, value in found.items() if not math.isfinite(value))
            raise TrainingError(f"{name} is {found[name]} at step {done}. {ADVICE}")
        return found | {"learning_rate": self._config.rate_at(done - 1)}

    def _part(self, number: int, part: int) -> dict[str, torch.Tensor]:
        """Forward and backward of one part of a batch; its losses, as shares of the step's."""
        config, group = self._config, self._group
        batch = self._order.batch(number, part)
        draw = (number * config.accumulate + part) * group.world + group.rank
        torch.manual_seed(seed_of(config.seed, "model", draw))  # for what the model itself draws
        with group.part(self._model, part == config.accumulate - 1):
            terms = self._terms(batch)
            loss = torch.stack(list(terms.values())).sum() / config.accumulate
            loss.backward()
        found = {name: value.detach() / config.accumulate for name, value in terms.items()}
        return {"loss": loss.detach(), **found}

    def _terms(self, batch: Batch) -> dict[str, torch.Tensor]:
        device = self._group.device
        images, noise = (x.to(device, non_blocking=True) for x in (batch.images, batch.noise))
        noised = self._objective.noised(images, noise, batch.timesteps)
        arguments = self._setup.caller.arguments(noised, batch.timesteps, batch.labels)
        with self._at(batch.timesteps), torch.autocast(device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            output = prediction(self._model(*arguments[0], **arguments[1]))
            distilled = self._teacher.losses(output, arguments) if self._teacher is not None else {}
        return self._objective.losses(output, images, noise, batch.timesteps) | distilled

    def _at(self, timesteps: torch.Tensor) -> AbstractContextManager[Any]:
        """The batch has one density: the host says it, and no device is waited for."""
        return nullcontext() if self._setup.program.density is None else self._setup.sparse.at(float(timesteps[0]))


def optimizer_for(parameters: Iterable[nn.Parameter], config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW, in one kernel where there is one."""
    return torch.optim.AdamW(
        list(parameters),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
