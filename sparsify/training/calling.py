"""How a batch becomes a call of the model, whatever its inputs are named and however they are nested."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..calls import CallSpec, Leaf, split_inputs
from ..errors import InputError, TrainingError
from ..program import Program
from ..timestep import find_timestep
from .data import Images
from .labels import is_whole

# For models whose example inputs are left out: what the usual names of their arguments stand for.
_NAMES = {
    "images": ("x", "hidden_states", "sample", "latents"),
    "timestep": ("t", "timestep", "timesteps"),
    "labels": ("y", "label", "labels", "class_labels"),
}


@dataclass(frozen=True)
class Roles:
    """Which of a call's inputs get the noised images, the timesteps and the labels, by name; the others stay as they are."""

    images: str
    timestep: str
    labels: str | None

    @classmethod
    def of(cls, program: Program, inputs: Sequence[Leaf], shape: Sequence[int], given: Mapping[str, str | None]) -> Roles:
        """Find the roles in a captured call.

        Args:
            program: the captured model.
            inputs: the flat inputs of the call it was captured with.
            shape: of one image.
            given: roles that are known, by ``images``, ``timestep`` or ``labels``; labels may be None, where no input takes them.

        Raises:
            InputError: an input that is given does not exist, or which input has a role is not clear.
        """
        named = _named(program, inputs)
        if wrong := [name for role, name in given.items() if name not in named and (role, name) != ("labels", None)]:
            raise InputError(f"the model has no input {wrong[0]!r}; its inputs are {list(named)}.")
        images = given.get("images") or _one("images", _fitting(named, shape))
        timestep = given.get("timestep") or program.timestep or _timestep(program)
        rows = _tensors(named)[images].shape[:1]
        if "labels" in given:
            return cls(images, timestep, given["labels"])
        whole = [name for name, x in _tensors(named).items() if is_whole(x) and x.shape == rows]
        labels = [name for name in whole if name != timestep]
        return cls(images, timestep, _one("labels", labels) if labels else None)


class Caller:
    """Builds the arguments of calls.

    Args:
        program: the captured model.
        inputs: the flat inputs that keep their values, for as many rows as every call has.
        roles: which of them do not.
    """

    def __init__(self, program: Program, inputs: Sequence[Leaf], roles: Roles) -> None:
        self.roles = roles
        self._call = program.call
        self._inputs = _named(program, inputs)

    def arguments(
        self, images: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for noised images (rows, C, ...), timesteps (rows,) and labels (rows,)."""
        inputs = dict(self._inputs)
        example = self._inputs[self.roles.images]
        inputs[self.roles.images] = images.to(example.dtype) if isinstance(example, torch.Tensor) else images
        inputs[self.roles.timestep] = _as(self._inputs[self.roles.timestep], timesteps)
        if labels is not None and self.roles.labels is not None:
            inputs[self.roles.labels] = _as(self._inputs[self.roles.labels], labels)
        return self._call.unflatten(list(inputs.values()))


def prediction(output: Any) -> torch.Tensor:
    """The tensor that a model predicts, in float32: what it returns, its ``sample``, or the first of a tuple.

    Raises:
        TrainingError: it is none of these.
    """
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    output = getattr(output, "sample", output)
    if not isinstance(output, torch.Tensor):
        raise TrainingError(
            f"the model returns a {type(output).__name__}; it must return a tensor, an object with .sample, or a tuple that begins "
            f"with a tensor."
        )
    return output.float()


def example_for(model: nn.Module, images: Images, example_inputs: Any, rows: int, device: torch.device) -> Any:
    """Example inputs with as many rows as the calls of a training have, on ``device``, in the nesting they were given in.

    What has a row for each image of the example gets its first row as often as it takes; so does a lone number, such as
    a timestep that all rows share. Other inputs stay as they are.

    Raises:
        InputError: no input has the shape of the images, or none were given and the model's arguments do not tell.
    """
    example = guessed(model, images) if example_inputs is None else example_inputs
    split_inputs(example)  # for its error
    tensors = {f"input {i}": x for i, x in enumerate(pytree.tree_leaves(example)) if isinstance(x, torch.Tensor)}
    found = _fitting(tensors, images.shape)
    if not found:
        shapes = ", ".join("x".join(map(str, x.shape[1:])) or "one number" for x in tensors.values())
        raise InputError(
            f"the data are images of {'x'.join(map(str, images.shape))}, but no input of {type(model).__name__} is: per row, its "
            f"inputs are {shapes}. Give data of the model's size, or example_inputs of the data's."
        )
    return with_rows(example, tensors[found[0]].shape[0], rows, device)


def with_rows(example: Any, count: int, rows: int, device: torch.device) -> Any:
    """Example inputs of ``count`` rows with ``rows`` of them, all like the first; see :func:`example_for`."""

    def expanded(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        x = x.to(device)
        if x.ndim == 0:
            return x.expand(rows).clone()
        return x[:1].expand(rows, *x.shape[1:]).clone() if x.shape[0] == count else x

    return pytree.tree_map(expanded, example)


def guessed(model: nn.Module, images: Images) -> dict[str, Any]:
    """Keyword inputs of one call, made from the names of the model's arguments.

    Raises:
        InputError: an argument that must be given has no usual name.
    """
    values: dict[str, Callable[[], Any]] = {
        "images": lambda: torch.zeros(1, *images.shape),
        "timestep": lambda: torch.full((1,), 500),
        "labels": lambda: torch.zeros(1, dtype=torch.long),
    }
    example: dict[str, Any] = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        role = next((role for role, names in _NAMES.items() if name in names), None)
        if role == "labels" and images.labels is None and parameter.default is not parameter.empty:
            continue
        if role is not None:
            example[name] = values[role]()
        elif parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InputError(
                f"{type(model).__name__}.forward takes {name!r}, and what that is cannot be told; pass example_inputs, the inputs "
                f"of one call."
            )
    return example


def flat(call: CallSpec, example: Any) -> list[Leaf]:
    """Example inputs as a captured model takes them."""
    return call.flatten(*split_inputs(example))


def _named(program: Program, inputs: Sequence[Leaf]) -> dict[str, Leaf]:
    """The flat inputs by the names that the graph has for them; a model that runs in place has further placeholders."""
    return dict(zip([node.name for node in program.placeholders], inputs, strict=False))


def _timestep(program: Program) -> str:
    try:
        return find_timestep(program)
    except InputError as error:
        raise InputError(f"{error} In training: inputs={{'timestep': name}}.") from error


def _fitting(named: Mapping[str, Any], shape: Sequence[int]) -> list[str]:
    """The floating-point inputs that hold images of this shape."""
    return [name for name, x in _tensors(named).items() if x.is_floating_point() and tuple(x.shape[1:]) == tuple(shape)]


def _tensors(named: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}


def _one(role: str, names: Sequence[str]) -> str:
    if len(names) != 1:
        raise InputError(
            f"which input takes the {role} is not clear: {list(names) or 'none'} could. Pass inputs={{'{role}': name}}."
        )
    return names[0]


def _as(example: Leaf, values: torch.Tensor) -> torch.Tensor:
    """``values`` (rows,) in the dtype and on the device of the example, repeated over its further axes."""
    if not isinstance(example, torch.Tensor):
        return values
    values = values.to(example.device, example.dtype, non_blocking=True)
    return values.view(-1, *[1] * (example.ndim - 1)).expand(example.shape)
