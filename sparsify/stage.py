"""From a call of a model to a verified sparse program: capture, analysis, passes, report."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch._dynamo.config
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from .accounting import Costs, make_report
from .analysis import analyse
from .calls import CallSpec, Leaf
from .capture import capture
from .dump import dump_from_environment
from .errors import CaptureError, ConstantError, InputError, RewriteError, SparsifyError
from .facts import facts_of
from .guards import Guards
from .in_place import capture_in_place
from .passes import InsertDensity, Pass, Pipeline, PoolAttention, SparseDense, pipeline_of
from .passes.pipeline import Observer
from .plan import Plan, Policies
from .program import Program, Skip
from .report import Report
from .side_inputs import SideValues
from .tree import function_of, tied_names

log = logging.getLogger("sparsify")


@dataclass(frozen=True)
class Request:
    """What the caller of ``sparsify`` asked for.

    Attributes:
        passes: the caller's own, behind those of the policy.
        alone: whether these are the whole pipeline, without savings and cleanup.
        observer: is shown the program after each stage.
        verify_each: whether the verifier runs after each pass, or once.
        may_change_nothing: whether an unchanged model is no error.
    """

    policy: Policies
    grid: tuple[int, ...] | None = None
    timestep: str | None = None
    verify: Literal["standard", "full"] = "standard"
    savings: tuple[str, ...] = ()
    passes: tuple[Pass, ...] = ()
    alone: bool = False
    observer: Observer | None = None
    verify_each: bool = True
    may_change_nothing: bool = False


@dataclass(frozen=True, eq=False)
class Stage:
    """One finished capture: a program, when it is valid, and its report.

    Attributes:
        mode: training (True) or evaluation (False), or None for a mixture, as the model came.
        kind: dtype and device of the parameters.
        example: the flat inputs it was captured with.
        sizes: set where the rewrite holds for one resolution only; shapes of the inputs without their batch axis.
    """

    program: Program
    plan: Plan
    guards: Guards
    report: Report
    mode: bool | None
    kind: object
    example: tuple[Leaf, ...]
    sizes: tuple[object, ...] | None

    @functools.cached_property
    def code(self) -> dict[str, Callable[..., Any]]:
        """The function of every body by name; made once, so that switching modes neither makes nor compiles it again."""
        return {name: function_of(body.graph) for name, body in self.program.bodies.items()}

    def accepts(self, inputs: Sequence[Leaf], mode: bool | None, kind: object) -> bool:
        """Whether a call with these inputs, in this mode and with parameters of this kind, is covered."""
        if (mode, kind) != (self.mode, self.kind):
            return False
        if self.program.in_place:
            return self.sizes == tuple(tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in inputs)
        if self.sizes is not None and self.sizes != _sizes(inputs):
            return False
        return self.guards.violation(inputs) is None


@dataclass(frozen=True)
class Analysed:
    """A captured call before its passes.

    Attributes:
        program: with its grid, trunk and timestep found.
        inputs: the call's flat inputs.
        values: what the program's placeholders were in this call.
        pools: whether the policy that it was analysed for pools anything.
        observer: who is shown the program at each stage.
    """

    program: Program
    guards: Guards
    inputs: Sequence[Leaf]
    values: Sequence[Leaf]
    pools: bool
    observer: Observer | None = None


def build_stage(
    model: nn.Module, request: Request, args: Sequence[Any], kwargs: dict[str, Any], mode: bool | None, kind: object
) -> Stage:
    """Capture ``model`` as called and rewrite it.

    Raises:
        SparsifyError: see the subclasses; the model is as it was.
    """
    with apart(args, kwargs):
        return finished(model, analysed(model, request, args, kwargs), request, mode, kind)


@contextlib.contextmanager
def apart(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[None]:
    """For work on the graphs of a call: a flop counter or the like around the call must not see it.

    Fake tensors go without their cache of operators here: for symbolic shapes an entry takes longer to make than the operator to run,
    and few are read again, since a block is traced once whatever the depth.
    """
    uncached = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    with (
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.enable_grad(),
        _no_autocast(_device_type(args, kwargs)),
        uncached,
    ):
        yield


def analysed(model: nn.Module, request: Request, args: Sequence[Any], kwargs: dict[str, Any]) -> Analysed:
    """Capture ``model`` as called and find out what passes need to know; within :func:`apart`."""
    observer = _observer(model, request)
    program, inputs, values = _captured(model, args, kwargs)
    _check_unwritten(program, model, args, kwargs)
    if observer is not None:
        observer("captured", program)
    guards = Guards(program)
    program.values = SideValues(program, model, values)
    program.tied = tied_names(model)
    program.trials = {} if request.verify == "full" else None
    density = next((each.schedule for each in request.passes if isinstance(each, InsertDensity)), None)
    pools = analyse(program, request.policy, request.grid, request.timestep, model, inputs, density, bool(request.passes))
    tensors = [x for x in inputs if isinstance(x, torch.Tensor) and x.ndim]
    if pools and not any(len(x) for x in tensors):
        raise InputError("the batch has a size of 0; a sparse model takes one of at least 1.")
    if observer is not None:
        observer("analysed", program)
    return Analysed(program, guards, inputs, values, pools, observer)


def finished(model: nn.Module, found: Analysed, request: Request, mode: bool | None, kind: object) -> Stage:
    """Rewrite an analysed program, which is used up; within :func:`apart`."""
    program, guards, inputs, pools = found.program, found.guards, found.inputs, found.pools
    plan = Plan.of(request.policy, program.paths)
    dense = Costs.of(program)
    pipeline = Pipeline(request.passes) if request.alone else pipeline_of(plan, request.savings, request.passes)
    if plan.rewrites and not pools:
        pipeline = _without_modules(pipeline, program, request.passes)
    rewritten = pipeline.run(program, found.observer, request.verify_each)
    if found.observer is not None:
        found.observer("sparse", program)
    program.values = None  # the example call is not kept
    if not request.may_change_nothing:
        if plan.rewrites and pools and not rewritten:
            raise RewriteError(f"the policy changed nothing, every rewrite was refused:{_reasons(program.skips)}")
        _check_given(pipeline, program, request.passes)
    if request.passes:
        guards.add(facts_of(program))
    parameters = sum(p.numel() for p in model.parameters())
    report = make_report(type(model).__name__, program, dense, plan, str(pipeline), pipeline.timings, parameters)
    log.info("captured %s: %.2f -> %.2f GFLOPs", report.model, report.gflops_dense, report.gflops)
    of_one_size = (plan.rewrites and not pools) or any(each.per_resolution for each in pipeline)
    sizes = _sizes(inputs) if of_one_size else None
    if program.in_place:  # what the model's own code does with other sizes is not known
        sizes = tuple(tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in inputs)
    return Stage(program, plan, guards, report, mode, kind, tuple(inputs), sizes)


def _observer(model: nn.Module, request: Request) -> Observer | None:
    """Who is shown the stages of a capture: the caller's, the dump of the environment, both, or nobody."""
    dump = dump_from_environment(type(model).__name__)
    if request.observer is None or dump is None:
        return request.observer or dump
    each = (request.observer, dump)

    def show(stage: str, program: Program) -> None:
        for observer in each:
            observer(stage, program)

    return show


def _check_given(pipeline: Pipeline, program: Program, given: Sequence[Pass]) -> None:
    """Whether the passes that were given changed anything; those that only prepare count if there are no others.

    Raises:
        RewriteError: they did not.
    """
    runs = [(each, run) for each, run in zip(pipeline, program.runs, strict=False) if any(each is one for one in given)]
    deciding = [(each, run) for each, run in runs if not each.prepares] or runs
    if runs and not any(run.places for _, run in deciding):
        names = dict.fromkeys(each.name for each, _ in deciding)
        skips = [skip for skip in program.skips if skip.pass_name in names]
        silent = names.keys() - {skip.pass_name for skip in skips}
        skips += [Skip(name, "the whole model", "there is no place for it") for name in names if name in silent]
        raise RewriteError(f"{', '.join(names)} changed nothing:{_reasons(skips)}")


def _reasons(skips: Sequence[Skip]) -> str:
    return "".join(f"\n  {skip.pass_name} at {skip.where}: {skip.reason}" for skip in skips)


def _captured(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Program, list[Leaf], list[Leaf]]:
    """The program of one call, the call's inputs, and the values of the program's placeholders.

    Integers are left open where the model lets them be; where it cannot be traced at all, its blocks run in place.
    """
    call, inputs = CallSpec.of(model.forward, args, kwargs, sizes=True)
    call = call.apart()
    if not any(isinstance(x, torch.Tensor) for x in inputs):
        raise SparsifyError("the example inputs hold no tensor.")
    inputs = [(x.clone() if x.is_inference() else x.detach()) if isinstance(x, torch.Tensor) else x for x in inputs]
    if call.has_sizes:
        try:
            return capture(model, call, inputs), inputs, inputs
        except CaptureError as error:  # it looks at the numbers
            log.debug("capturing %s with its integers as constants: %s", type(model).__name__, error)
            call = CallSpec.of(model.forward, args, kwargs)[0].apart()
            inputs = [x for x in inputs if isinstance(x, torch.Tensor)]
    try:
        return capture(model, call, inputs), inputs, inputs
    except CaptureError as error:
        reason = str(error).splitlines()[0]
        log.debug("running the blocks of %s in place: %s", type(model).__name__, error)
        program, values = capture_in_place(model, call, inputs, reason)
        return program, inputs, values


def _check_unwritten(program: Program, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Whether the model has left its arguments that are no tensors alone: a graph does not repeat what it writes there.

    Raises:
        CaptureError: it has not.
    """
    try:
        program.call.flatten(args, kwargs)
    except ConstantError as error:
        raise CaptureError(
            f"{type(model).__name__} writes into an argument that is no tensor, and a graph would not do so again: {error} "
            f"Pass what changes as a tensor."
        ) from error


def _device_type(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    tensors = (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
    return next((tensor.device.type for tensor in tensors), "cpu")


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Casts belong to the call, not to the graph: the graph's operators are cast as the model's are, when it runs."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _without_modules(pipeline: Pipeline, program: Program, given: Sequence[Pass]) -> Pipeline:
    """What is left of a pipeline when the pooled grid is the full grid: no module of the policy has anything to pool."""
    reason = f"the pooled grid is the full {program.grid_hint} grid, so there is nothing to pool"
    warnings.warn(f"{reason}: the policy's sparse-dense modules stay dense blocks.", stacklevel=2)
    own = [p for p in pipeline if not any(p is one for one in given)]
    modules = [p for p in own if isinstance(p, SparseDense)]
    program.skips += [Skip(p.name, f"blocks {p.blocks}", reason) for p in modules]
    if not given and not any(isinstance(p, PoolAttention) for p in own):
        return Pipeline(())
    dropped = [p for p in own if isinstance(p, (SparseDense, InsertDensity))]
    return Pipeline(tuple(p for p in pipeline if not any(p is one for one in dropped)))


def _sizes(inputs: Sequence[Leaf]) -> tuple[object, ...]:
    return tuple(x.shape[1:] if isinstance(x, torch.Tensor) else x for x in inputs)
