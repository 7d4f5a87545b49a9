"""What each command does."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from ..api import sparsify
from ..bench import bench as run_bench
from ..density import Density
from ..errors import InputError, SparsifyError
from ..models import dit
from ..picture import draw
from ..policy import Policy
from ..runtime import SparseModel
from ..targets import lower
from ..text import program_text
from .sources import load_model, load_policy
from .words import console

_IDENTITY_TOLERANCE = 1e-6


def inspect(arguments: argparse.Namespace) -> None:
    """Print the trunk, the grid, the timestep input and the policy that would be used."""
    _, sparse, _ = _sparsified(arguments)
    report, program = sparse.report(), sparse.program
    policy = sparse.policy.fitted(len(program.paths))
    found = {
        "model": report.model,
        "blocks": len(program.paths),
        "first": program.paths[0],
        "last": program.paths[-1],
        "structures": len({name.partition(".")[0] for name in program.bodies}),
        "tokens_input": program.body_of(program.block_nodes[0]).token_node.name,
        "grid": list(report.grid),
        "grid_source": report.grid_source,
        "timestep": report.timestep,
        "inputs": [node.name for node in program.placeholders],
        "policy": json.loads(policy.to_json()),
        "pipeline": report.pipeline,
    }
    if arguments.json:
        print(json.dumps(found))
        return
    from rich.table import Table

    table = Table(show_header=False)
    for key, value in (found | {"policy": str(policy)}).items():
        table.add_row(key.replace("_", " "), str(value).replace("[", r"\["))
    out = console()
    out.print(table)
    if arguments.graph:
        out.print(program_text(program), markup=False, highlight=False, soft_wrap=True)


def report(arguments: argparse.Namespace) -> None:
    """Print the report of a sparsified model."""
    _, sparse, _ = _sparsified(arguments)
    if arguments.picture is not None:
        draw(sparse.report(), _density(sparse), arguments.picture)
    if arguments.json:
        print(sparse.report().to_json())
    else:
        console().print(sparse.report())


def bench(arguments: argparse.Namespace) -> None:
    """Print dense and sparse times."""
    if arguments.device == "meta":
        raise InputError("--device meta computes nothing; time on cpu or cuda.")
    model, sparse, inputs = _sparsified(arguments)
    dense_run, sparse_run = None, None
    if arguments.compile:
        shapes = "per_grid" if arguments.scope == "model" else "dynamic"
        dense_run, sparse_run = torch.compile(model), lower(sparse, "inductor", scope=arguments.scope, shapes=shapes)
    result = _with_progress(model, sparse, inputs, arguments.rounds, dense_run, sparse_run, quiet=arguments.json)
    if arguments.json:
        print(result.to_json())
    else:
        console().print(result)


def demo(arguments: argparse.Namespace) -> None:
    """A real-size DiT-XL/2: build, sparsify, check the identity, report, time, draw."""
    out = console()
    torch.manual_seed(0)
    with out.status("building DiT-XL/2 for 512x512 images: 28 blocks, width 1152, 750 M parameters"):
        model, inputs = dit("DiT-XL/2", 512)
        if arguments.checkpoint is not None:
            _load(model, arguments.checkpoint)
    weights = "random weights" if arguments.checkpoint is None else str(arguments.checkpoint)
    out.print(f"[bold]1.[/] built DiT-XL/2 for 512x512 images: 28 blocks, {weights}")

    policy = Policy.paper("DiT-XL/2", 512)
    started = time.perf_counter()
    sparse = sparsify(model, policy, example_inputs=inputs)
    out.print(f"[bold]2.[/] sparsified it with the paper's policy in {time.perf_counter() - started:.1f} s")

    with out.status("checking that the dense policy reproduces the model"), torch.no_grad():
        same = sparsify(model, Policy.dense(), example_inputs=inputs)
        difference = float((same(**inputs).sample - model(**inputs).sample).abs().max())
    if difference > _IDENTITY_TOLERANCE:
        raise InputError(f"the dense policy differs from the model by {difference:.1e}, more than {_IDENTITY_TOLERANCE:.0e}.")
    out.print(f"[bold]3.[/] the dense policy reproduces the model: largest difference {difference:.1e}")

    out.print("[bold]4.[/] what became of each block:")
    out.print(sparse.report())
    out.print("[bold]5.[/] measured, eager on both sides:")
    out.print(_with_progress(model, sparse, inputs, arguments.rounds, None, None, quiet=False))
    picture = draw(sparse.report(), _density(sparse), arguments.out / "tokens.png")
    out.print(f"[bold]6.[/] drew tokens per block over the timesteps, before and after: {picture}")


def _sparsified(arguments: argparse.Namespace) -> tuple[nn.Module, SparseModel, dict[str, Any]]:
    policy = load_policy(arguments.policy)
    errors = console(stderr=True)
    with errors.status(f"building {arguments.model}"):
        model, inputs = load_model(arguments.model, arguments.kwargs, arguments.config, arguments.inputs, arguments.device)
    with errors.status("capturing and rewriting"):
        try:
            sparse = sparsify(
                model,
                policy,
                example_inputs=inputs,
                grid=arguments.grid,
                timestep=arguments.timestep,
                savings=arguments.savings,
            )
        except (RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, SparsifyError):
                raise
            raise InputError(f"{arguments.model} does not run on its inputs: {type(error).__name__}: {error}") from error
    return model, sparse, inputs


def _density(sparse: SparseModel) -> Density:
    return sparse.program.density or Density.constant(rate=0.0)


def _with_progress(
    model: nn.Module, sparse: SparseModel, inputs: dict[str, Any], rounds: int, dense_run: Any, sparse_run: Any, quiet: bool
) -> Any:
    calls = (rounds + 1) * (1 + len(sparse.report().densities))
    columns = (
        TextColumn("timing, interleaved"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} calls"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task("timing", total=calls)
        return run_bench(model, sparse, inputs, rounds, dense_run, sparse_run, lambda: progress.advance(task))


def _load(model: nn.Module, checkpoint: Path) -> None:
    try:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(checkpoint))
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(f"--checkpoint {checkpoint}: {error}") from error
