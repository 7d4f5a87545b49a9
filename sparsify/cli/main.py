"""Parse the command line and run one command. Errors that the user can act on are one line, not a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import SparsifyError
from . import commands, diff, estimating, lowering, opt, searching, training
from .words import a_batch, a_count, a_density, a_grid, a_share, some_grids, some_savings

_EXAMPLES = """examples:
  sparsify inspect sparsify.models:dit
      the trunk found in DiT-XL/2 at 512x512, and the policy it would get
  sparsify report sparsify.models:dit --kwargs '{"resolution": 256}' --policy paper:DiT-XL/2@256
      GFLOPs per block and density, without computing anything
  sparsify report my_package.my_model:make_model --policy auto --json
      your own model: make_model() returns it, or a pair of it and a dict of inputs
  sparsify report SD3Transformer2DModel --config transformer/config.json --inputs '{"hidden_states": [1, 16, 64, 64], ...}'
      a diffusers class with a config file
  sparsify bench sparsify.models:dit --kwargs '{"name": "DiT-B/2", "resolution": 256}' --compile
      dense against sparse, interleaved in one process; with --scope model the sparse one is compiled as a whole, too
  sparsify lower sparsify.models:dit --policy paper:DiT-XL/2@512 --target aot_inductor --out dit.pt2
      one file that runs without the model's code; sparsify lower --help has more
  sparsify search my_package.my_model:make_model --budget 0.45 --out policy.json
      measure which blocks can do with fewer tokens, and choose a policy; sparsify search --help has more
  sparsify train my_package.my_model:make --policy auto --steps 2000 --out out/run
      train it, on one device or many; sparsify train --help has more
  sparsify opt sparsify.models:dit --passes "pool-attention{blocks=0-1},cleanup" --print-after-all
      run single passes and look at what they do; sparsify opt --help and sparsify diff --help have more
  sparsify demo
      all of it on a real-size DiT-XL/2
"""

_LOWER_EXAMPLES = """examples:
  sparsify lower --available
      which targets work here, and what the others need
  sparsify lower sparsify.models:dit --policy paper:DiT-XL/2@512 --target aot_inductor --out dit.pt2 --batch 2-16
      a package for every pooled grid and batch sizes from 2 to 16
  sparsify lower sparsify.models:dit --kwargs '{"name": "DiT-B/2", "resolution": 256}' --target onnx --out dit.onnx
      ONNX for onnxruntime or TensorRT, with an open number of tokens
  sparsify lower my_package.my_model:make_model --target onnx --shapes per_grid --grids 10x10,6x6 --out model.onnx
      your own model, one graph for each of two grids; the weights are stored once
"""

_SEARCH_EXAMPLES = """examples:
  sparsify search my_package.my_model:make_model --budget 0.45 --out policy.json --picture search.png
      your own model: make_model() returns it with trained weights, and a dict of the inputs of one call
  sparsify search my_package.my_model:make_model --budget 0.3 --batches 16 --density 'paper(0.5..0.9/1.0)'
      more batches, and timesteps from 0 to 1
  sparsify report my_package.my_model:make_model --policy policy.json
      what the policy that was found does to each block

There is no data on the command line: batches are random latents at timesteps spread over the schedule, a stand-in. In
Python, Policy.search(model, batches, budget=0.45) takes batches of noised data, on which errors tell more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, or 2 where the input was at fault."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except SparsifyError as error:
        print(f"sparsify {arguments.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="sparsify",
        description="Make Diffusion Transformers cheaper by using fewer tokens.",
        epilog=_EXAMPLES,
        formatter_class=form,
    )
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    inspect = sub.add_parser(
        "inspect", help="the trunk found in a model, and the policy it would get", epilog=_EXAMPLES, formatter_class=form
    )
    _model_arguments(inspect, device="meta")
    inspect.add_argument("--graph", action="store_true", help="print the sparse graph and the body of every kind of block too")
    inspect.set_defaults(run=commands.inspect)

    report = sub.add_parser("report", help="roles, tokens and GFLOPs per block", epilog=_EXAMPLES, formatter_class=form)
    _model_arguments(report, device="meta")
    report.add_argument("--picture", type=Path, metavar="FILE", help="also draw tokens per block over the timesteps")
    report.set_defaults(run=commands.report)

    bench = sub.add_parser("bench", help="time dense against sparse", epilog=_EXAMPLES, formatter_class=form)
    _model_arguments(bench, device="cpu")
    bench.add_argument("--rounds", type=a_count, default=5, help="timed calls of each, interleaved (default 5)")
    bench.add_argument("--compile", action="store_true", help="torch.compile both sides, the dense one as a whole")
    bench.add_argument(
        "--scope",
        default="blocks",
        choices=("blocks", "model"),
        help="with --compile: the sparse model by its blocks, or as a whole for each pooled grid, which takes minutes and runs fastest "
        "(default blocks)",
    )
    bench.set_defaults(run=commands.bench)

    lower = sub.add_parser("lower", help="compile a model into a file", epilog=_LOWER_EXAMPLES, formatter_class=form)
    _model_arguments(lower, device="cpu")
    _lowering_arguments(lower)
    lower.set_defaults(run=lowering.lower_to_file)

    search = sub.add_parser(
        "search", help="choose a policy under a budget by measuring", epilog=_SEARCH_EXAMPLES, formatter_class=form
    )
    _model_arguments(search, device="cpu", policy=False)
    _search_arguments(search)
    search.set_defaults(run=searching.search)

    train = sub.add_parser("train", help="train a model, dense or sparse", epilog=training.EXAMPLES, formatter_class=form)
    training.add_arguments(train)
    train.set_defaults(run=training.train_model)

    estimate = sub.add_parser(
        "estimate", help="memory and GFLOPs of a training step", epilog=estimating.EXAMPLES, formatter_class=form
    )
    _model_arguments(estimate, device="cpu")
    estimating.add_arguments(estimate)
    estimate.set_defaults(run=estimating.estimate)

    passes = sub.add_parser(
        "opt", help="run passes on a captured model and print the program", epilog=opt.EXAMPLES, formatter_class=form
    )
    _model_arguments(passes, device="meta", policy=False)
    opt.add_arguments(passes)
    passes.set_defaults(run=opt.opt)

    stages = sub.add_parser("diff", help="compare two dumped stages", epilog=diff.EXAMPLES, formatter_class=form)
    diff.add_arguments(stages)
    stages.set_defaults(run=diff.diff)

    demo = sub.add_parser("demo", help="a real-size DiT-XL/2 at 512x512, end to end", epilog=_EXAMPLES, formatter_class=form)
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture (default out)")
    demo.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="safetensors of a diffusers DiT-XL/2-512; random weights without"
    )
    demo.add_argument("--rounds", type=a_count, default=2, help="timed calls of each, interleaved (default 2)")
    demo.set_defaults(run=commands.demo)
    return parser


def _lowering_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", default="aot_inductor", help="aot_inductor, onnx or tensorrt (default aot_inductor)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write: .pt2, .onnx or .ep (default model.*)")
    parser.add_argument("--shapes", help="dynamic or per_grid; profiles or per_grid for tensorrt (default the first)")
    parser.add_argument("--grids", type=some_grids, metavar="HxW,...", help="pooled grids (default those of the policy)")
    parser.add_argument("--batch", type=a_batch, metavar="N-M", help="batch sizes to serve (default that of the inputs)")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "fp16", "bf16"), help="of the model (default fp32)")
    parser.add_argument("--opset", type=a_count, help="of ONNX")
    parser.add_argument("--no-check", action="store_true", help="do not compare the result with the eager model")
    parser.add_argument("--available", action="store_true", help="only say which targets work here")


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", type=a_share, default=0.45, help="share of the dense GFLOPs to spend (default 0.45)")
    parser.add_argument("--batches", type=a_count, default=8, metavar="N", help="calls to measure on (default 8)")
    parser.add_argument("--candidates", type=a_count, default=12, help="policies to measure at the budget (default 12)")
    parser.add_argument(
        "--density", type=a_density, metavar="TEXT", help="shape of the schedule, such as paper(0.61..0.86) (the default)"
    )
    parser.add_argument("--no-calibrate", action="store_true", help="measure with restore layers as they start")
    parser.add_argument("--seed", type=int, default=0, help="of the random latents (default 0)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the trade-off curve and the blocks")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the policy that was picked, as JSON")


def _model_arguments(parser: argparse.ArgumentParser, device: str, policy: bool = True) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="sparsify.models:dit",
        help="package.module:factory, or a diffusers class (default sparsify.models:dit)",
    )
    parser.add_argument("--kwargs", metavar="JSON", help="keyword arguments of the factory")
    parser.add_argument("--config", metavar="FILE", help="config.json of a diffusers class")
    parser.add_argument(
        "--inputs", metavar="JSON", help='inputs by name, as shapes or {"shape": [1], "dtype": "int64", "fill": 500}'
    )
    if policy:
        choices = "auto, dense, paper:DiT-XL/2@512, a JSON file, or JSON (default auto)"
        parser.add_argument("--policy", default="auto", help=choices)
        names = "exact savings: all, none, or names (default all)"
        parser.add_argument("--savings", type=some_savings, default=True, metavar="NAMES", help=names)
    parser.add_argument("--grid", metavar="HxW", type=a_grid, help="the token grid, where it cannot be read off the graph")
    parser.add_argument("--timestep", metavar="NAME", help="the input that carries the timestep, where it cannot be told")
    parser.add_argument("--device", default=device, help=f"where to build the model (default {device})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
