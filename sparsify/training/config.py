"""Everything that decides about a training run: checked when it is made, and JSON when it is written down."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

from ..ends import is_number
from ..errors import InputError

# What may differ when a run goes on: nothing of it changes what a step computes, but for rounding.
FREE = frozenset(
    {"steps", "save_every", "keep", "log_every", "tracker", "compile", "compile_shapes", "gradient_checkpointing", "parallel"}
)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run; the defaults are those of the paper, for fine-tuning from dense weights.

    Attributes:
        steps: optimiser steps of the whole run, those before a resume counted in.
        batch_size: images per optimiser step, over all processes and parts.
        learning_rate: of AdamW, after the warm-up.
        weight_decay: of AdamW.
        betas: of AdamW.
        warmup_steps: over which the learning rate rises linearly.
        decay_steps: over which, from the first step on, the learning rate also falls along half a cosine to 0, where the run
            must end (Loshchilov and Hutter, arXiv 1608.03983); 0 keeps it constant, as the paper does.
        gradient_clip: largest norm of the gradient of all parameters; 0 leaves it as it is.
        ema_decay: of the moving average of the weights, per step.
        ema_warmup: let the average follow faster at first: at step s the decay is at most (1 + s) / (10 + s).
        objective: ``"diffusion"`` predicts the noise (and the variance), ``"flow"`` the velocity.
        noise_schedule: of diffusion, ``"linear"`` or ``"cosine"`` betas.
        timesteps: T; the model's timesteps lie in [0, T]. Must be that of the policy's density.
        reversed: of flow matching, whether t = 0 is the noise and t = T the data.
        timestep_distribution: ``"uniform"``, or ``"logit_normal"`` as Stable Diffusion 3 was trained (arXiv 2403.03206).
        learned_variance: whether the model predicts the variance in as many further channels; None looks at its output.
        label_dropout: share of labels that become ``null_label``, for guidance; 0 where the model drops labels itself.
        null_label: the label that stands for none; the number of classes in the data if left out.
        precision: ``"fp32"``, or ``"bf16"`` for autocast of the model's forward pass; weights stay in float32.
        compile: run the blocks under torch.compile.
        compile_shapes: ``"dynamic"`` is one artifact for all pooled grids, ``"per_grid"`` one for each.
        gradient_checkpointing: keep the inputs of each block alone, and compute the block again in the backward pass.
        accumulate: parts of a batch that run one after the other; each part has a density of its own.
        parallel: over several processes, ``"ddp"`` (whole model in each) or ``"fsdp2"`` (weights in shards).
        distill_output: weight of the mean square difference to the dense model's output; 0 is off.
        distill_feature: weight of the relative squared distance to the dense model's tokens after each sparse-dense module.
        seed: of everything random.
        save_every: steps between checkpoints; the last step is always saved.
        keep: how many of the latest checkpoints are kept.
        log_every: steps between records of the loss, which are means over these steps.
        tracker: where metrics go beside ``metrics.jsonl``: ``"tensorboard"``, ``"none"``, or what accelerate knows (wandb, ...).
    """

    steps: int
    batch_size: int = 256
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    decay_steps: int = 0
    gradient_clip: float = 0.0
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    objective: Literal["diffusion", "flow"] = "diffusion"
    noise_schedule: Literal["linear", "cosine"] = "linear"
    timesteps: float = 1000
    reversed: bool = False
    timestep_distribution: Literal["uniform", "logit_normal"] = "uniform"
    learned_variance: bool | None = None
    label_dropout: float = 0.0
    null_label: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    compile_shapes: Literal["dynamic", "per_grid"] = "dynamic"
    gradient_checkpointing: bool = False
    accumulate: int = 1
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    distill_output: float = 0.0
    distill_feature: float = 0.0
    seed: int = 0
    save_every: int = 1000
    keep: int = 2
    log_every: int = 10
    tracker: str = "tensorboard"

    def __post_init__(self) -> None:
        if isinstance(self.betas, list):  # as JSON has it
            object.__setattr__(self, "betas", tuple(self.betas))
        for name, rule in _RULES.items():
            value = getattr(self, name)
            if not rule.holds(value):
                raise InputError(f"TrainConfig.{name} is {value!r}; it must be {rule.text}.")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"TrainConfig.batch_size {self.batch_size} does not divide into accumulate {self.accumulate} equal parts."
            )
        if 0 < self.decay_steps < self.steps:
            raise InputError(
                f"TrainConfig.decay_steps is {self.decay_steps} and steps {self.steps}: the learning rate would be 0 before the "
                f"run ends. Give at least as many decay_steps as steps, or 0 for a constant learning rate. A run that has reached 0 is "
                f"not made longer: begin another from its weights (init=, --init)."
            )
        if self.objective == "diffusion" and (self.reversed or self.timesteps < 2 or self.timesteps != int(self.timesteps)):
            raise InputError(
                f"TrainConfig.objective is 'diffusion' with timesteps {self.timesteps} and reversed {self.reversed}; its timesteps "
                f"are whole numbers, at least 2 of them, and rise with the noise. For others there is objective 'flow'."
            )

    @property
    def distills(self) -> bool:
        """Whether the dense model runs beside the one that is trained."""
        return self.distill_output > 0 or self.distill_feature > 0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        risen = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = (1 + math.cos(math.pi * step / self.decay_steps)) / 2 if self.decay_steps else 1.0
        return self.learning_rate * risen * left

    def differences(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """Of the fields that change what a step computes, those in which two differ, with both values."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name not in FREE}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"betas": list(self.betas)}

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads back to an equal configuration."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`; fields that are left out have their defaults.

        Raises:
            InputError: a field is unknown, missing or not valid.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"a training configuration is a JSON object, not {data!r}.")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InputError(f"a training configuration has no field {unknown[0]!r}; its fields are {sorted(known)}.")
        if "steps" not in data:
            raise InputError("the training configuration lacks steps, the number of optimiser steps.")
        return cls(**data)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The inverse of :meth:`to_json`.

        Raises:
            InputError: not JSON, or as for :meth:`from_dict`.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InputError(f"the training configuration is not JSON: {error}.") from error
        return cls.from_dict(data)


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    text: str


def _count(least: int, below: float = math.inf) -> _Rule:
    text = f"a whole number of at least {least}" + (f" and below {below}" if below < math.inf else "")
    return _Rule(lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v < below, text)


def _number(least: float, below: float = math.inf, strict: bool = False) -> _Rule:
    text = f"a number {'above' if strict else 'of at least'} {least:g}" + (f" and below {below:g}" if below < math.inf else "")
    return _Rule(lambda v: is_number(v) and (least < v if strict else least <= v) and v < below, text)


def _word(*words: str) -> _Rule:
    return _Rule(lambda v: v in words, " or ".join(map(repr, words)))


def _optional(rule: _Rule) -> _Rule:
    return _Rule(lambda v: v is None or rule.holds(v), f"{rule.text}, or None")


_SWITCH = _Rule(lambda v: isinstance(v, bool), "True or False")
_RULES = {
    "steps": _count(1),
    "batch_size": _count(1),
    "learning_rate": _number(0, strict=True),
    "weight_decay": _number(0),
    "betas": _Rule(
        lambda v: isinstance(v, tuple) and len(v) == 2 and all(is_number(b) and 0 <= b < 1 for b in v),
        "two numbers from 0 to below 1",
    ),
    "warmup_steps": _count(0),
    "decay_steps": _count(0),
    "gradient_clip": _number(0),
    "ema_decay": _number(0, below=1),
    "ema_warmup": _SWITCH,
    "objective": _word("diffusion", "flow"),
    "noise_schedule": _word("linear", "cosine"),
    "timesteps": _number(0, strict=True),
    "reversed": _SWITCH,
    "timestep_distribution": _word("uniform", "logit_normal"),
    "learned_variance": _optional(_SWITCH),
    "label_dropout": _number(0, below=1),
    "null_label": _optional(_count(0)),
    "precision": _word("fp32", "bf16"),
    "compile": _SWITCH,
    "compile_shapes": _word("dynamic", "per_grid"),
    "gradient_checkpointing": _SWITCH,
    "accumulate": _count(1),
    "parallel": _word("ddp", "fsdp2"),
    "distill_output": _number(0),
    "distill_feature": _number(0),
    "seed": _count(0, below=2**63),
    "save_every": _count(1),
    "keep": _count(1),
    "log_every": _count(1),
    "tracker": _Rule(lambda v: isinstance(v, str) and bool(v), "the name of a tracker, such as 'tensorboard', or 'none'"),
}
