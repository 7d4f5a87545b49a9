"""A model made ready to train: captured at the size of its calls, its inputs told apart, checked against the data."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from ..api import sparsify
from ..calls import split_inputs
from ..errors import InputError
from ..passes.pipeline import SAVING_NAMES
from ..policy import Policy
from ..program import Program
from ..runtime import SparseModel
from ..stage import Stage
from .calling import Caller, Roles, example_for
from .config import TrainConfig
from .data import Images
from .labels import drops_labels, known_labels
from .parallel import Group

Policies: TypeAlias = Policy | Mapping[str, Policy]

_COMMA = re.compile(r",(?![^{]*\})")  # between passes, not between the options of one


@dataclass(frozen=True)
class Options:
    """What a caller may say about the model where it cannot be told; see :func:`~sparsify.training.train`."""

    example_inputs: Any = None
    inputs: Mapping[str, str | None] | None = None
    grid: tuple[int, ...] | None = None
    savings: bool | Collection[str] | None = None


@dataclass(frozen=True)
class Setup:
    """A model that is ready, in training mode and on its device.

    Attributes:
        sparse: the model.
        stage: its capture for the calls of the training.
        caller: makes the arguments of these calls.
        example: the inputs of one of them.
        parameters: what is trained, by name.
        frozen: parameters that no graph reads; they stay as they are, and have no gradient to wait for.
    """

    sparse: SparseModel
    stage: Stage
    caller: Caller
    example: Any
    parameters: dict[str, nn.Parameter]
    frozen: tuple[str, ...]

    @property
    def program(self) -> Program:
        """The graphs of the capture."""
        return self.stage.program

    @property
    def passes(self) -> str:
        """The passes that made the model, without those that change no result."""
        each = _COMMA.split(self.stage.report.pipeline)
        return ",".join(text for text in each if text not in (*SAVING_NAMES, "cleanup"))

    def tensors(self) -> dict[str, torch.Tensor]:
        """All parameters and the buffers that are saved, each under one name."""
        saved = self.sparse.state_dict(keep_vars=True)
        first: dict[int, str] = {}
        named = {name: value for name, value in saved.items() if isinstance(value, torch.Tensor)}
        return {name: tensor for name, tensor in named.items() if first.setdefault(id(tensor), name) == name}


def prepared(
    model: nn.Module,
    policy: Policies | None,
    images: Images,
    config: TrainConfig,
    group: Group,
    options: Options,
    init: Path | None,
) -> Setup:
    """Make a model ready; weights are read from ``init`` if it is given.

    Raises:
        SparsifyError: the model, the policy, the data and the configuration do not fit each other.
    """
    _check_precision(model)
    rows = config.batch_size // config.accumulate // group.world
    sparse, example = _sparse(model, policy, images, rows, group, options, config)
    stage, inputs = sparse.prepare(*split_inputs(example))
    program = stage.program
    roles = Roles.of(program, inputs, images.shape, options.inputs or {})
    _check_density(program, config)
    _check_labels(program, roles, images, config)
    if init is not None:
        load_weights(sparse, init)
    names = read_parameters(sparse, program)
    trained = {name: p for name, p in sparse.named_parameters() if p.requires_grad and name in names}
    if not trained:
        raise InputError("no parameter of the model requires a gradient; there is nothing to train.")
    frozen = tuple(name for name, p in sparse.named_parameters() if p.requires_grad and name not in names)
    return Setup(sparse, stage, Caller(program, inputs, roles), example, trained, frozen)


def read_parameters(sparse: SparseModel, program: Program) -> set[str]:
    """The parameters that the graphs read; those between the blocks are all taken for read where a model runs in place."""
    named = dict(sparse.named_parameters(remove_duplicate=False))
    read = {str(node.target) for graph in program.outer_graphs for node in graph.find_nodes(op="get_attr")}
    blocks = {str(node.target): program.body_of(node) for node in program.all_block_nodes}
    for path, body in blocks.items():
        read |= {f"{path}.{node.target}" for node in body.graph.find_nodes(op="get_attr")}
    if program.in_place:
        read |= {name for name in named if not name.startswith(tuple(f"{path}." for path in blocks))}
    same = {id(named[name]) for name in read if name in named}  # what is tied has several names
    return {name for name, parameter in named.items() if id(parameter) in same}


@contextmanager
def only_read_parameters(setup: Setup) -> Iterator[None]:
    """Within this context, what no graph reads requires no gradient: DDP would wait for it for ever."""
    for name in setup.frozen:
        setup.sparse.get_parameter(name).requires_grad_(False)
    try:
        yield
    finally:
        for name in setup.frozen:  # other objects than before where they came in shards
            setup.sparse.get_parameter(name).requires_grad_(True)


def load_weights(sparse: SparseModel, path: Path) -> None:
    """Read a safetensors file of the dense model, or of the sparse one.

    Raises:
        InputError: it cannot be read, or is of another model; only restore layers may be missing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        given = load_file(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(f"the weights {path} cannot be used: {error}") from error
    own = sparse.state_dict()
    new = set(own) - set(sparse._source[0].state_dict())  # layers that the dense model does not have
    missing = [name for name in own if name not in given and name not in new]
    further = [name for name in given if name not in own]
    if missing or further:
        raise InputError(
            f"the weights {path} are of another model: it lacks {missing[0] if missing else 'nothing'} and has "
            f"{further[0] if further else 'nothing'} beside ({len(missing)} and {len(further)} in all)."
        )
    for name, tensor in given.items():  # all before the first is taken, so that an error leaves the model as it was
        _check_weight(path, name, tensor, own[name])
    sparse.load_state_dict(given, strict=False)


def _check_weight(path: Path, name: str, given: torch.Tensor, own: torch.Tensor) -> None:
    is_like = (given.is_floating_point(), given.is_complex()) == (own.is_floating_point(), own.is_complex())
    if given.shape != own.shape or not is_like:
        raise InputError(
            f"the weights {path} are of another model: {name} is {given.dtype} {tuple(given.shape)} there, and {own.dtype} "
            f"{tuple(own.shape)} here."
        )
    if not bool(given.isfinite().all()):
        raise InputError(f"the weights {path} cannot be used: {name} holds NaN or infinity; all numbers must be finite.")


def _sparse(
    model: nn.Module,
    policy: Policies | None,
    images: Images,
    rows: int,
    group: Group,
    options: Options,
    config: TrainConfig,
) -> tuple[SparseModel, Any]:
    is_sparse = isinstance(model, SparseModel)
    if is_sparse and policy is not None:
        raise InputError("the model is sparse already; pass policy=None to train it as it is.")
    if not is_sparse and policy is None:
        raise InputError("policy is None, but the model is not sparse; pass a Policy, or Policy.dense() to train it as it is.")
    model = model.to(group.device).train()
    if isinstance(model, SparseModel):
        given = _captured_example(model) if options.example_inputs is None else options.example_inputs
        return model, example_for(model._source[0], images, given, rows, group.device)
    example = example_for(model, images, options.example_inputs, rows, group.device)
    savings = _savings(group.shards) if options.savings is None else options.savings
    timestep = (options.inputs or {}).get("timestep")
    assert policy is not None  # noqa: S101  # checked above
    return sparsify(model, policy, example, grid=options.grid, timestep=timestep, savings=savings), example


def _savings(shards: bool) -> tuple[str, ...]:
    """Those that gain something under gradients, and leave a block's weights in the block where these come in shards."""
    without = {"prompt-once", "once-for-blocks"} if shards else {"prompt-once"}
    return tuple(name for name in SAVING_NAMES if name not in without)


def _captured_example(sparse: SparseModel) -> Any:
    """The inputs that a sparse model was captured with, if it was."""
    if sparse._stages:
        stage = sparse._stages[-1]
        args, kwargs = stage.program.call.unflatten(stage.example)
        return dict(stage.program.call.signature.bind(*args, **kwargs).arguments) if kwargs else args
    return None


def _check_precision(model: nn.Module) -> None:
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    if half := next((name for name, dtype in trained.items() if dtype in (torch.float16, torch.bfloat16)), None):
        raise InputError(
            f"the parameter {half} is {trained[half]}, in which small updates of weights and averages are lost. Train model.float(); "
            f"TrainConfig.precision 'bf16' computes in half precision all the same."
        )


def _check_density(program: Program, config: TrainConfig) -> None:
    density = program.density
    if density is None:
        return
    if density.timesteps != config.timesteps:
        raise InputError(
            f"TrainConfig.timesteps is {config.timesteps}, but the policy's density has timesteps from 0 to {density.timesteps}; "
            f"they must be equal."
        )
    if density.reversed != config.reversed:
        raise InputError(
            f"TrainConfig.reversed is {config.reversed}, but that of the policy's density is {density.reversed}; they must be equal."
        )


def _check_labels(program: Program, roles: Roles, images: Images, config: TrainConfig) -> None:
    if config.label_dropout and (images.labels is None or roles.labels is None):
        who = "the data have" if images.labels is None else "the model takes"
        raise InputError(f"TrainConfig.label_dropout is {config.label_dropout}, but {who} no labels; use 0.")
    if roles.labels is None:
        return
    if images.labels is None:
        raise InputError(
            f"the model takes labels ({roles.labels}), but the data have none, and all images would be trained as one class. Give "
            f"labels with them, in a .npz or .safetensors file for example. If {roles.labels} is something else, pass inputs={{'labels': None}} "
            f"(--labels none)."
        )
    if config.distills and drops_labels(program, roles.labels):
        raise InputError(
            "the model drops labels by itself in training, and the dense model that is distilled would not know which. Turn that off "
            "in the model (in those of diffusers: class_embedder.dropout_prob = 0), and let TrainConfig.label_dropout and null_label "
            "do it, which both see."
        )
    known = known_labels(program, roles.labels)
    if known is not None and images.classes > known:
        raise InputError(f"the data have labels up to {images.classes - 1}, but the model knows labels from 0 to {known - 1}.")
    null = images.classes if config.null_label is None else config.null_label
    if config.label_dropout and known is not None and null >= known:
        raise InputError(
            f"TrainConfig.null_label is {null}, but the model knows labels from 0 to {known - 1}; name the one that stands for no "
            f"label, or use label_dropout 0."
        )
