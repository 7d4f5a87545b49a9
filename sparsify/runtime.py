"""The module that ``sparsify`` returns: the model's own parameters, run by the rewritten graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from .calls import Leaf, split_inputs
from .clock import Clock, DensityModule, Timed
from .density import Density
from .errors import CaptureError, ConstantError, InputError, NotCapturedError, RewriteError
from .full_check import check_fully
from .grid_readers import GridModule
from .in_place_run import InPlace
from .layers import module_lists
from .program import DENSITY, GRID, Program
from .prompt import PromptModule
from .report import Report
from .stage import Request, Stage, build_stage
from .tree import kind_of, mirror, outer_module, share_tensors

if TYPE_CHECKING:
    from .calibration import Calibration


class SparseModel(Timed, nn.Module):
    """A model in sparse form, called like the model.

    It holds the model's own parameters and buffers under their own names, and what passes add under names that begin with
    ``sparsify_``: training or moving it trains or moves the model's parameters, which are the same objects.
    Attributes it does not have are looked up on the model.

    The model is captured once for each of: training or evaluation mode, dtype and device of its parameters, and set of
    input sizes for which tracing takes another path.
    """

    def __init__(self, model: nn.Module, request: Request) -> None:
        super().__init__()
        self.__dict__["_source"] = (model,)  # in a tuple, so that its parameters are not registered twice
        self._request = request
        self._stages: list[Stage] = []
        self._outers: dict[Stage, fx.GraphModule] = {}
        self._active: Stage | None = None
        self._clock = Clock()
        self.training = model.training
        modes = {module.training for module in model.modules()}
        # None stands for a mixture, as the model came; train() and eval() make it uniform.
        self._mode: bool | None = modes.pop() if len(modes) == 1 else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns for these arguments, computed sparsely."""
        stage, inputs = self.prepare(args, kwargs)
        if stage.program.in_place:
            return self.in_place(stage)(*inputs)
        return stage.program.output_spec.unflatten(self._outers[stage](*inputs))

    def prepare(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Stage, list[Leaf]]:
        """The capture that covers a call, made now if there is none yet and put in force, and the call's flat inputs."""
        if not self._stages:
            self.capture(args, kwargs)
        stage, inputs = self._stage_for(args, kwargs)
        return self._activate(stage), inputs

    def in_place(self, stage: Stage, calls: Mapping[str, Callable[..., Any]] | None = None, observer: Any = None) -> InPlace:
        """The model's own forward with rewritten blocks in it, or with ``calls``, by path, in their place."""
        return InPlace(stage.program, self, _model_of(self), calls or {}, observer)

    def capture(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Capture the model as called with these arguments and take over its parameters."""
        model = _model_of(self)
        self.adopt(build_stage(model, self._request, args, kwargs, self._mode, kind_of(model)), args, kwargs)

    def adopt(self, stage: Stage, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Take a finished first capture of a call with these arguments, and the model's parameters."""
        mirror(_model_of(self), self, [str(node.target) for node in stage.program.all_block_nodes])
        for name, layers in module_lists(stage.program.layers).items():
            self.register_module(name, layers)
        self._admit(stage, args, kwargs)

    def _admit(self, stage: Stage, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Keep a new capture, unless a full check is asked for and fails."""
        self._stages.append(stage)
        self._activate(stage)
        if self._request.verify == "full":
            program = stage.program
            try:
                check_fully(program, stage.plan, self, _model_of(self), program.call.flatten(args, kwargs))
            except Exception:
                self._stages.remove(stage)
                raise

    @property
    def graph_module(self) -> fx.GraphModule:
        """The whole model as one FX graph, with the trunk's blocks as calls of :class:`Block`."""
        return self._outers[self._captured()]

    @property
    def program(self) -> Program:
        """The program behind :attr:`graph_module`."""
        return self._captured().program

    @property
    def policy(self) -> Any:
        """The policy this model was made with."""
        return self._request.policy

    def report(self) -> Report:
        """What was done to which block, and what it saves."""
        return self._captured().report

    def forget_prompts(self) -> None:
        """Compute what depends on the prompt anew: after a write through ``.data``, which torch does not count as one."""
        for module in self._modules.values():
            if isinstance(module, PromptModule):
                module.forget()

    def calibrate(
        self,
        batches: Iterable[Any],
        *,
        ridge: float = 1e-4,
        teacher: nn.Module | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Calibration:
        """Fit every restore layer in closed form to the dense model's tokens at that depth; other weights stay as they are.

        Args:
            batches: a few calls' inputs, each as for ``example_inputs``, at timesteps all over the schedule: of each grid at
                least as many tokens as twice the width. The dense tokens of all are kept until the end.
            ridge: damping, as a share of each feature's mean square; it pulls towards the identity start.
            teacher: the dense model to match, with the same blocks; the model that was sparsified if left out.
            on_progress: called with how much of how much is done.

        Returns:
            Errors before and after and the conditioning of each fit, to print.

        Raises:
            InputError: there is nothing to calibrate, or tokens are not finite numbers. The layers are as they were.
        """
        from .calibration import calibrate

        return calibrate(self, batches, ridge=ridge, teacher=teacher, on_progress=on_progress)

    def stage_for(self, example_inputs: Any = None) -> tuple[Stage, list[Leaf]]:
        """The capture that covers a call, given as for ``sparsify``, and its flat inputs; the latest capture without one.

        Raises:
            InputError: the latest capture was for another mode, dtype or device than the model has now.
        """
        if example_inputs is None:
            stage = self._captured()
            if (stage.mode, stage.kind) != (self._mode, kind_of(self)):
                raise InputError("the model has been moved or switched between modes since its last call; give example_inputs.")
            return stage, list(stage.example)
        args, kwargs = split_inputs(example_inputs)
        if not self._stages:
            self.capture(args, kwargs)
        return self._stage_for(args, kwargs)

    def _density(self) -> Density:
        if (density := self._captured().program.density) is None:
            raise InputError(f"the policy {self._request.policy} has no density here: no block works on pooled tokens.")
        return density

    def _captured(self) -> Stage:
        if self._active is None:
            raise NotCapturedError(
                "this sparse model is captured at its first call; until then it has no parameters, graph or report. "
                "Pass example_inputs to sparsify() to capture it at once."
            )
        return self._active

    def _stage_for(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Stage, list[Leaf]]:
        """The capture that covers this call, made now if there is none yet, and the call's flat inputs."""
        kind = kind_of(self)
        for stage in self._stages:
            try:
                inputs = stage.program.call.flatten(args, kwargs)
            except ConstantError:
                continue
            if stage.accepts(inputs, self._mode, kind):
                return stage, inputs
        model = _model_of(self)
        share_tensors(self, model)
        flags = [(module, module.training) for module in model.modules()]
        try:
            if self._mode is not None:
                model.train(self._mode)
            stage = build_stage(model, self._request, args, kwargs, self._mode, kind)
        finally:
            for module, training in flags:
                module.training = training
        inputs = stage.program.call.flatten(args, kwargs)
        if not stage.accepts(inputs, self._mode, kind):
            raise CaptureError(f"the graph captured for these inputs does not hold for them: {stage.guards.violation(inputs)}.")
        if _shapes(stage.program) != _shapes(self._stages[0].program):
            raise RewriteError("this call would need other new layers than the model was made with.")
        self._admit(stage, args, kwargs)
        return stage, inputs

    def _activate(self, stage: Stage) -> Stage:
        if stage is self._active:
            return stage
        if stage not in self._outers:
            self._outers[stage] = outer_module(stage.program, self)
        program, readers = stage.program, dict[str, nn.Module]()
        if program.density is not None:
            readers[DENSITY] = DensityModule(program.density, self._clock)
        if program.grid_reader is not None:
            readers[GRID] = GridModule(program.grid_reader, bool(program.rows_before))
        readers |= {name: PromptModule(outer_module(program, self, graph)) for name, graph in program.prompts.items()}
        for name, reader in readers.items():
            if program.graph.find_nodes(op="call_module", target=name):
                self.register_module(name, reader)
        for node in stage.program.all_block_nodes:
            block = self.get_submodule(str(node.target))
            body = stage.program.body_of(node)
            block.__dict__.update(body.constants, sparsify_body=body, sparsify_code=stage.code[body.name])
        self._active = stage
        return stage

    # --- what a module must do -----------------------------------------------------------------------------------

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As for any module; before the capture it raises, so that no optimiser misses the new layers."""
        self._captured()
        return super().named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own entries, and the new layers'."""
        self._captured()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Loads a sparse checkpoint; a dense one too with ``strict=False``, where only new layers are missing."""
        self._captured()
        outcome = super().load_state_dict(*args, **kwargs)
        share_tensors(self, _model_of(self))  # with assign=True the tensors are others now
        return outcome

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SparseModel:
        if not self._stages:
            _model_of(self)._apply(fn)
            return self
        super()._apply(fn, recurse)
        share_tensors(self, _model_of(self))
        return self

    def train(self, mode: bool = True) -> SparseModel:
        """Training or evaluation mode; the model is captured in the mode it is called in."""
        if not self._stages:
            _model_of(self).train(mode)
        self._mode = mode
        super().train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "_source" not in self.__dict__:
                raise
            return getattr(_model_of(self), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseModel:
        for stage in self._stages:  # finished programs never change, so copies share them
            memo[id(stage)] = stage
            memo.update((id(body), body) for body in stage.program.bodies.values())
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        active = self._active
        state = {key: value for key, value in self.__dict__.items() if key not in ("_active", "_outers")}
        twin.__dict__.update(copy.deepcopy(state, memo), _active=None, _outers={})
        if active is not None:
            twin._activate(active)
        return twin

    def __reduce__(self) -> Any:
        raise TypeError("a SparseModel is not pickled; save state_dict() and policy.to_json(), and sparsify again.")

    def __repr__(self) -> str:
        state = "captured at its first call" if self._active is None else f"{len(self._stages)} capture(s)"
        return f"SparseModel({type(_model_of(self)).__name__}, {self._request.policy}, {state})"


def _model_of(sparse: SparseModel) -> nn.Module:
    """The model that a sparse model was made of."""
    source: tuple[nn.Module] = sparse._source
    (model,) = source
    return model


def _shapes(program: Program) -> dict[str, object]:
    """Of the new layers; dtype and device may be others by now."""
    return {layer.name: layer.shapes for layer in program.layers}
