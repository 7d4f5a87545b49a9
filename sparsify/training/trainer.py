"""Train a Diffusion Transformer, dense or sparse, in one process or several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, TrainingError
from ..runtime import SparseModel
from . import checkpoint
from .blocks import blocks_run
from .config import TrainConfig
from .ema import Ema, local
from .manifest import About, described
from .parallel import Group
from .reporter import METRICS, Record, Reporter
from .setup import Options, Policies, Setup, only_read_parameters, prepared
from .sources import load_images
from .state import flat_state, prepare_moments, read_state, set_step
from .step import ADVICE, Stepper, optimizer_for
from .teaching import Teacher


@dataclass(frozen=True)
class StepDone:
    """What a callback is told after a step.

    Attributes:
        step: how many steps are done.
        loss: of this step and process, a tensor without gradients on the device; reading it waits for the device.
        model: the model as it is now; with ``ema.applied()`` around, as it is on average.
        ema: the averages.
    """

    step: int
    loss: torch.Tensor
    model: SparseModel
    ema: Ema


@dataclass(frozen=True)
class TrainResult:
    """What became of a run.

    Attributes:
        model: the model, in training mode.
        ema: its averages; ``with result.ema.applied():`` samples from them.
        step: how many steps are done.
        history: the records of the loss since this start, see ``metrics.jsonl``.
        checkpoint: the folder of the last checkpoint.
    """

    model: SparseModel
    ema: Ema
    step: int
    history: tuple[Record, ...]
    checkpoint: Path


def train(
    model: nn.Module,
    policy: Policies | None,
    data: Any,
    config: TrainConfig,
    out: str | Path,
    *,
    example_inputs: Any = None,
    inputs: Mapping[str, str | None] | None = None,
    grid: tuple[int, ...] | None = None,
    savings: bool | Collection[str] | None = None,
    init: str | Path | None = None,
    teacher: nn.Module | None = None,
    resume: bool = True,
    on_step: Callable[[StepDone], None] | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train a model: noise or velocity prediction with AdamW and a moving average of the weights, one density per batch.

    All that is random follows from the seed and the number of the step. So a run that was killed goes on bit for bit (on the same
    machine and with as many threads), and several processes train what one would, up to rounding. Numbers that the model
    itself draws, such as its own dropout, differ between processes.

    Args:
        model: the dense model; it is moved to the device, and its parameters are trained. Or a sparse one, with ``policy=None``.
        policy: as for :func:`~sparsify.sparsify`; ``Policy.dense()`` trains the model as it is.
        data: see :func:`~sparsify.training.load_images`.
        config: the settings.
        out: folder for checkpoints, ``metrics.jsonl`` and the tracker's files.
        example_inputs: inputs of one call, as for ``sparsify``. What is not images, timestep or labels keeps its first row in all
            calls. May be left out where the model's arguments have usual names.
        inputs: the names of the inputs that take ``images``, ``timestep`` and ``labels``, where they cannot be told; None for labels
            where no input takes them.
        grid: the token grid, as for ``sparsify``.
        savings: as for ``sparsify``; those that gain something in training if left out.
        init: safetensors to start from, of the dense model or the sparse one; a run that goes on reads them for its teacher alone.
        teacher: the dense model to distil; the model as it is at the start if left out. It is copied.
        resume: go on from the newest checkpoint in ``out``; otherwise those of an earlier run are removed.
        on_step: called after every step, in all processes.
        device: ``"cpu"`` to use no accelerator although there is one. ``torchrun`` and ``accelerate launch`` give a process its own.
        quiet: show no progress.

    Returns:
        The model, its averages and the records.

    Raises:
        SparsifyError: a subclass says what does not fit: InputError (data, configuration, inputs), TrainingError (checkpoint,
            processes, a loss that is no number), or as for ``sparsify``.
    """
    if not isinstance(config, TrainConfig):
        raise InputError(f"config is a {type(config).__name__}; it must be a TrainConfig.")
    folder, images = Path(out), load_images(data)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out {folder} is a file; it must be a folder, or not be there yet.")
    group = Group(config, folder, device)
    options = Options(example_inputs, inputs, grid, savings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(checkpoint.held(folder, group))
        goes_on = resume and checkpoint.latest(folder) is not None
        copies = config.distills and teacher is None  # the teacher is the model as it was at the start
        begin = None if init is None or (goes_on and not copies) else Path(init)
        devices = [group.device] if group.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))  # the caller's random numbers stay as they are
        setup = prepared(model, policy, images, config, group, options, begin)
        group.equalise([*setup.sparse.parameters(), *setup.sparse.buffers()])
        stack.enter_context(only_read_parameters(setup))
        pupil = stack.enter_context(Teacher.of(setup, config, teacher, group.device)) if config.distills else None
        about = _about(setup, config, images.fingerprint(), pupil)
        run = _Run(setup, config, group, folder, about)
        start = run.resumed() if resume else run.started_anew()
        shapes = config.compile_shapes if config.compile else None
        stack.enter_context(blocks_run(setup.sparse, shapes, config.gradient_checkpointing))
        if pupil is not None:
            stack.enter_context(blocks_run(pupil.dense, shapes))
        if shapes is not None:
            stack.enter_context(torch._dynamo.config.patch(optimize_ddp=False))  # it would split what is compiled in pieces
        stepper = Stepper(setup, config, group, images, run.wrapped, run.optimizer, run.ema, pupil)
        reporter = stack.enter_context(Reporter(group, config, folder, start, quiet))
        return run.go(stepper, reporter, start, on_step)


class _Run:
    """Weights, averages and optimiser of a run, and its folder."""

    def __init__(self, setup: Setup, config: TrainConfig, group: Group, folder: Path, about: About) -> None:
        self._setup, self._config, self._group, self._folder, self._about = setup, config, group, folder, about
        self.wrapped = group.wrap(setup.sparse, setup.program)
        named = dict(setup.sparse.named_parameters())  # others than before where they come in shards now
        self._trained = {name: named[name] for name in setup.parameters}
        self.ema = Ema(self._trained, config.ema_decay, config.ema_warmup)
        self.optimizer = optimizer_for(self._trained.values(), config, group.device)
        prepare_moments(self.optimizer)
        if group.is_main:
            checkpoint.remove_leftovers(folder)
        group.wait()

    def resumed(self) -> int:
        """Read the newest checkpoint, if there is one; how many steps it has done.

        Raises:
            TrainingError: it is damaged, of something else, or has done more steps than this run is to.
        """
        found = checkpoint.latest(self._folder)
        if found is None:
            return self.started_anew()
        manifest = checkpoint.read_manifest(found)
        self._about.check_fits(manifest.about, found)
        if manifest.step > self._config.steps:
            raise TrainingError(
                f"TrainConfig.steps is {self._config.steps}, but {found} has done {manifest.step} already; give at least as many."
            )
        self._group.agree(checkpoint.damaged(found, manifest) if self._group.is_main else None)
        read_state(found / checkpoint.STATE, self._state(), self._group.is_alone)
        set_step(self.optimizer, manifest.step)
        return manifest.step

    def started_anew(self) -> int:
        """Remove what an earlier run left in the folder."""
        if self._group.is_main:
            checkpoint.remove_all(self._folder)
            (self._folder / METRICS).unlink(missing_ok=True)
        self._group.wait()
        return 0

    def go(self, stepper: Stepper, reporter: Reporter, start: int, on_step: Callable[[StepDone], None] | None) -> TrainResult:
        """All steps from ``start`` on."""
        config, folder = self._config, checkpoint.latest(self._folder)
        if start:
            reporter.say(f"going on from step {start}")
        for step in range(start + 1, config.steps + 1):
            loss = stepper.step(step - 1)
            reporter.advance(step)
            is_saved = step % config.save_every == 0 or step == config.steps
            # A record before each checkpoint: records are the same then, however often a run was killed.
            if is_saved or step % config.log_every == 0:
                reporter.record(step, stepper.means(step))
            began = reporter.pause()
            if on_step is not None:
                on_step(StepDone(step, loss, self._setup.sparse, self.ema))
            if is_saved:
                folder = self.save(step)
            reporter.skip(began)
        assert folder is not None  # noqa: S101  # the last step saves, and a run without steps was resumed
        return TrainResult(self._setup.sparse, self.ema, config.steps, tuple(reporter.history), folder)

    def save(self, step: int) -> Path:
        """Write a checkpoint.

        Raises:
            TrainingError: a weight is no finite number; nothing is written then.
        """
        state = self._state()
        bad = [name for name, tensor in state.items() if not local(tensor.detach()).isfinite().all()]
        if self._group.mean(torch.tensor(float(bool(bad)), device=self._group.device)) > 0:
            raise TrainingError(
                f"{bad[0] if bad else 'a shard of another process'} holds NaN or infinity after step {step}, which is not saved. {ADVICE}"
            )
        model = self._setup.sparse.state_dict()
        averaged = {name: self.ema.values.get(name, tensor) for name, tensor in model.items()}
        weights = {"model": model, "ema": averaged}
        return checkpoint.save(self._folder, step, self._about, state, weights, self._group, keep=self._config.keep)

    def _state(self) -> dict[str, torch.Tensor]:
        return flat_state(self._setup.tensors(), self.ema.values, self.optimizer, self._trained)


def _about(setup: Setup, config: TrainConfig, data: str, pupil: Teacher | None) -> About:
    model = type(setup.sparse._source[0]).__name__
    return About(config, setup.passes, model, described(setup.tensors()), data, None if pupil is None else pupil.digest)
