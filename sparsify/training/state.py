"""What a run must keep to go on, as one flat mapping of tensors; written and read by torch.distributed.checkpoint.

The files are safetensors, with which no code is executed when they are read (the usual format has a pickle among its files).
Each process writes its shards; the files say where in the whole tensor these belong, so any number of processes can read them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed import checkpoint

from ..errors import TrainingError

MOMENTS = ("exp_avg", "exp_avg_sq")


def flat_state(
    model: Mapping[str, torch.Tensor],
    ema: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
) -> dict[str, torch.Tensor]:
    """Weights and buffers, their averages, and the optimiser's moments, on the memory of the run itself.

    Args:
        model: weights and buffers by name, each once.
        ema: averages by name.
        optimizer: AdamW after :func:`prepare_moments`, or after a step.
        parameters: those that it trains, by name.
    """
    state = {f"model.{name}": tensor.detach() for name, tensor in model.items()}
    state |= {f"ema.{name}": tensor for name, tensor in ema.items()}
    for name, parameter in parameters.items():
        state |= {f"{moment}.{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    # Single numbers as rows of one, which is what files with shards can hold.
    return {name: tensor.view(1) if tensor.ndim == 0 else tensor for name, tensor in state.items() if tensor.numel()}


def prepare_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser make its moments, all 0, without a change of the weights."""
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    set_step(optimizer, 0)


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Let the optimiser have made this many steps."""
    for state in optimizer.state.values():
        state["step"].fill_(step)


def write_state(folder: Path, state: Mapping[str, torch.Tensor], alone: bool) -> None:
    """Write into an empty folder; of several processes all must call it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group, and that the format has no metadata file
        writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        rows = {name: tensor.contiguous() for name, tensor in state.items()}  # as the files hold them
        checkpoint.save(rows, storage_writer=writer, no_dist=alone)


def read_state(folder: Path, state: Mapping[str, torch.Tensor], alone: bool) -> None:
    """Read into the tensors of ``state``, in place; of several processes all must call it.

    Raises:
        TrainingError: the files lack a tensor, or hold it in another shape.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint.load(dict(state), storage_reader=checkpoint.HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except (checkpoint.CheckpointException, RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
        raise TrainingError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error
