"""``sparsify estimate``: what a training step needs, before anything is trained."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..api import sparsify
from ..errors import InputError
from ..policy import Policy
from .sources import load_model, load_policy
from .words import a_count, console

EXAMPLES = """examples:
  sparsify estimate sparsify.models:dit --policy paper:DiT-XL/2@512 --batch-size 8 32
      memory of a device and GFLOPs of a step of DiT-XL/2 with 8 or 32 images on the device, dense and sparse
  sparsify estimate sparsify.models:dit --kwargs '{"resolution": 256}' --policy paper:DiT-XL/2@256 --devices 8
      weights, gradients and moments in shards over eight devices (FSDP2)
  sparsify estimate sparsify.models:pixart --no-checkpointing --precision fp32 --teraflops 60
      all activations kept; seconds of a step on a device that reaches 60e12 multiply-adds a second
"""
_UNITS = {"GiB": 2**30, "MiB": 2**20}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of the command, beside those of a model."""
    parser.add_argument("--batch-size", type=a_count, nargs="+", default=[8, 32], help="images on a device (default 8 32)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the forward pass (default bf16)")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations, not the inputs of blocks alone")
    parser.add_argument("--devices", type=a_count, default=1, help="over how many the state is sharded (default 1)")
    parser.add_argument(
        "--teraflops", type=float, help="multiply-adds a second that a device reaches, / 1e12; half of what vendors count"
    )


def estimate(arguments: argparse.Namespace) -> None:
    """Print a row for each batch size, dense and sparse."""
    from ..training.estimate import estimate as estimated

    if arguments.device == "meta":
        raise InputError("--device meta will not do: what autograd keeps depends on the device; use cpu, nothing is computed.")
    model, inputs = load_model(arguments.model, arguments.kwargs, arguments.config, arguments.inputs, arguments.device)
    rows = []
    for name, policy in (("dense", Policy.dense()), ("sparse", load_policy(arguments.policy))):
        sparse = sparsify(model, policy, inputs, grid=arguments.grid, timestep=arguments.timestep, savings=arguments.savings)
        with console(stderr=True).status(f"running the {name} model on fake tensors"):
            for batch in arguments.batch_size:
                found = estimated(
                    sparse,
                    inputs,
                    batch,
                    precision=arguments.precision,
                    gradient_checkpointing=not arguments.no_checkpointing,
                    devices=arguments.devices,
                )
                seconds = found.seconds(arguments.teraflops) if arguments.teraflops else None
                rows.append({"model": name, "seconds": seconds} | found.to_dict())
    print(json.dumps(rows)) if arguments.json else _print(rows, arguments)


def _print(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    from rich.table import Table

    kept = "all activations kept" if arguments.no_checkpointing else "blocks computed again in the backward pass"
    unit = "GiB" if max(row["total"] for row in rows) >= _UNITS["GiB"] else "MiB"
    title = f"a training step, {unit} on each of {arguments.devices} device(s): AdamW, averaged weights, {arguments.precision}, {kept}"
    table = Table("model", "batch", "weights", "gradients", "moments", "average", "activations", "total", "GFLOPs", title=title)
    if arguments.teraflops:
        table.add_column("seconds")
    for row in rows:
        sizes = [row[name] / _UNITS[unit] for name in ("weights", "gradients", "optimiser", "ema", "activations", "total")]
        seconds = [f"{row['seconds']:.2f}"] if arguments.teraflops else []
        table.add_row(
            row["model"],
            str(row["batch"]),
            *(f"{size:.2f}" for size in sizes),
            f"{row['gflops']:.{0 if row['gflops'] >= 10 else 3}f}",
            *seconds,
        )
    console().print(table)
