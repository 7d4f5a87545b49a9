"""Parse the command line and run one command. Errors that the user can act on are one line, not a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import SparsifyError
from . import commands

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
      dense against sparse, interleaved in one process
  sparsify demo
      all of it on a real-size DiT-XL/2
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
    bench.add_argument("--rounds", type=_positive, default=5, help="timed calls of each, interleaved (default 5)")
    bench.add_argument("--compile", action="store_true", help="torch.compile both sides")
    bench.set_defaults(run=commands.bench)

    demo = sub.add_parser("demo", help="a real-size DiT-XL/2 at 512x512, end to end", epilog=_EXAMPLES, formatter_class=form)
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture (default out)")
    demo.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="safetensors of a diffusers DiT-XL/2-512; random weights without"
    )
    demo.add_argument("--rounds", type=_positive, default=2, help="timed calls of each, interleaved (default 2)")
    demo.set_defaults(run=commands.demo)
    return parser


def _model_arguments(parser: argparse.ArgumentParser, device: str) -> None:
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
    parser.add_argument("--policy", default="auto", help="auto, dense, paper:DiT-XL/2@512, a JSON file, or JSON (default auto)")
    parser.add_argument("--grid", metavar="HxW", type=_grid, help="the token grid, where it cannot be read off the graph")
    parser.add_argument("--timestep", metavar="NAME", help="the input that carries the timestep, where it cannot be told")
    parser.add_argument("--device", default=device, help=f"where to build the model (default {device})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _grid(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 32x32") from error


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
