"""``sparsify opt``: run passes on a captured model and look at what each one does."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from ..api import saving_names
from ..calls import split_inputs
from ..dump import Dump
from ..errors import InputError, PolicyError, SparsifyError
from ..passes import Pipeline, pass_named, pass_names
from ..policy import Policy
from ..program import Program
from ..runtime import SparseModel
from ..stage import Request
from ..text import program_text
from .sources import load_model, load_policy
from .words import console, some_savings

EXAMPLES = """examples:
  sparsify opt sparsify.models:dit --policy auto
      the pipeline of a policy, as text to copy and change, and the program that it makes
  sparsify opt sparsify.models:dit --passes "fuse-attention,density{schedule=constant(8x8)},sparse-dense{blocks=2-7},cleanup"
      these passes and no others, on DiT-XL/2 at 512x512; the program goes to the output, all else to the error stream
  sparsify opt sparsify.models:dit --passes "pool-attention{blocks=0-1}" --print-after-all --time-passes
      the program after each pass, and how long each took
  sparsify opt MODEL --load my_package.my_pass --passes "my-pass{blocks=2-5}" --dump out/stages
      a pass of your own: --load imports the module that registers it; installed packages need no --load
  sparsify diff out/stages/DiT-000/01-analysed.txt out/stages/DiT-000/02-my-pass.txt --html out/my-pass.html
      what it changed
  sparsify opt --list
      the passes there are, with their options
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those besides the model's."""
    passes = "the passes to run, such as 'fuse-attention,pool-attention{blocks=0-1}'"
    parser.add_argument("--passes", metavar="TEXT", help=passes)
    parser.add_argument("--policy", help="run the passes of a policy, and those of --passes behind them (default auto)")
    names = "with --policy, the exact savings: all, none, or names (default all)"
    parser.add_argument("--savings", type=some_savings, default=True, metavar="NAMES", help=names)
    parser.add_argument("--load", action="append", default=[], metavar="MODULE", help="import a module that registers passes")
    parser.add_argument("--print-after-all", action="store_true", help="print the program after every pass")
    parser.add_argument("--print-after", action="append", default=[], metavar="PASS", help="print it after this pass")
    parser.add_argument("--time-passes", action="store_true", help="print what each pass rewrote, and how long it took")
    each = "verify the program after each pass (the default), or once at the end"
    parser.add_argument("--verify-each", action=argparse.BooleanOptionalAction, default=True, help=each)
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write every stage to files, as SPARSIFY_DUMP=DIR does")
    parser.add_argument("--list", action="store_true", help="only say which passes there are")


def opt(arguments: argparse.Namespace) -> None:
    """Capture, run the passes, print the program."""
    for module in arguments.load:
        _load(module)
    if arguments.list:
        _print_list(arguments.json)
        return
    request = _request(arguments)
    with console(stderr=True).status(f"building {arguments.model}"):
        model, inputs = load_model(arguments.model, arguments.kwargs, arguments.config, arguments.inputs, arguments.device)
    sparse = SparseModel(model, request)
    try:
        sparse.capture(*split_inputs(inputs))
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, SparsifyError):
            raise
        raise InputError(f"{arguments.model} does not run on its inputs: {type(error).__name__}: {error}") from error
    program, pipeline = sparse.program, sparse.report().pipeline
    if arguments.json:
        runs = [vars(run) for run in program.runs]
        skipped = [vars(skip) for skip in program.skips]
        print(json.dumps({"pipeline": pipeline, "runs": runs, "skipped": skipped, "program": program_text(program)}))
        return
    _say(f"pipeline: {pipeline or 'no passes'}")
    for skip in program.skips:
        _say(f"left alone by {skip.pass_name}: {skip.where}: {skip.reason}")
    if arguments.time_passes:
        _print_times(program)
    console().print(program_text(program), markup=False, highlight=False, soft_wrap=True)


def _request(arguments: argparse.Namespace) -> Request:
    passes = Pipeline.parse(arguments.passes).passes if arguments.passes is not None else ()
    alone = arguments.passes is not None and arguments.policy is None
    policy = Policy.dense() if alone else load_policy(arguments.policy or "auto")
    for name in arguments.print_after:
        pass_named(name)  # or an error that says which there are
    return Request(
        policy,
        arguments.grid,
        arguments.timestep,
        savings=saving_names(arguments.savings),
        passes=passes,
        alone=alone,
        observer=_observer(arguments),
        verify_each=arguments.verify_each,
        may_change_nothing=True,
    )


def _observer(arguments: argparse.Namespace) -> Callable[[str, Program], None]:
    dump = None if arguments.dump is None else Dump(arguments.dump, arguments.model.rpartition(":")[2])
    if dump is not None:
        _say(f"stages: {dump.folder}")

    def observe(stage: str, program: Program) -> None:
        if dump is not None:
            dump(stage, program)
        is_pass = program.stage == "sparse" and stage != "sparse"
        if (arguments.print_after_all and is_pass) or stage in arguments.print_after:
            _say(f"*** after {stage} ***\n{program_text(program)}\n")

    return observe


def _say(text: str) -> None:
    """On the error stream, so that the output is the program alone."""
    console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _print_times(program: Program) -> None:
    from rich.table import Table

    table = Table("pass", "places", "seconds", "seconds to verify")
    for run in program.runs:
        table.add_row(run.text, str(run.places), f"{run.seconds:.3f}", f"{run.verify_seconds:.3f}")
    total, verifying = sum(run.seconds for run in program.runs), sum(run.verify_seconds for run in program.runs)
    table.add_row("all", str(sum(run.places for run in program.runs)), f"{total:.3f}", f"{verifying:.3f}")
    console(stderr=True).print(table)


def _print_list(as_json: bool) -> None:
    found = {}
    for name in pass_names():
        try:
            found[name] = (pass_named(name).__doc__ or "").strip().split("\n")[0]
        except PolicyError as error:  # of another package; the rest can be used all the same
            found[name] = str(error)
    if as_json:
        print(json.dumps(found))
        return
    from rich.table import Table

    table = Table("pass", "what it does")
    for name, text in found.items():
        table.add_row(name, text.replace("[", r"\["))
    console().print(table)


def _load(module: str) -> None:
    sys.path.insert(0, "") if "" not in sys.path else None
    try:
        importlib.import_module(module)
    except SparsifyError:
        raise
    except Exception as error:  # whatever a module of somebody else raises
        raise InputError(f"--load {module}: {type(error).__name__}: {error}") from error
