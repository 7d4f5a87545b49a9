"""Find which input of the model is the timestep: the one that is embedded by sines and cosines."""

from __future__ import annotations

import re

import torch
from torch import fx

from .errors import InputError
from .program import Program

aten = torch.ops.aten

_SINUSOIDS = {aten.sin.default, aten.cos.default}
# A value keeps its meaning through these: it is reshaped, converted or scaled, but not mixed with weights.
_TRANSPARENT = {
    "slice", "select", "unsqueeze", "squeeze", "view", "reshape", "expand", "expand_as", "flatten", "to", "_to_copy", "mul",
    "div", "add", "sub", "clone", "contiguous", "repeat", "alias", "einsum", "outer", "neg", "unflatten", "permute",
}  # fmt: skip
_USUAL = ("timestep", "timesteps", "t")
_NAMES = re.compile(r"(^|_)(t|time|times|timestep|timesteps|sigma|sigmas|noise|noise_level|time_step)$", re.IGNORECASE)


def find_timestep(program: Program, given: str | None = None) -> str:
    """The name of the placeholder that carries the timestep, a tensor of shape (), (batch,) or (batch, frames or tokens).

    Raises:
        InputError: ``given`` names no tensor input, or one that is too large or complex; or none or several inputs look like a timestep.
    """
    names = [node.name for node in program.placeholders if isinstance(node.meta["val"], torch.Tensor)]
    if given is not None:
        if given not in names:
            raise InputError(f"timestep={given!r} is no tensor input of the model; its tensor inputs are {names}.")
        _check_given(next(node for node in program.placeholders if node.name == given))
        return given
    unclear: list[fx.Node] = []
    for axes in (1, 2):  # one per call or picture; or else one per frame or token
        small = [node for node in program.placeholders if getattr(node.meta["val"], "ndim", 3) <= axes]
        embedded = [node for node in small if _is_embedded(program, program.graph, node)]
        named = [node for node in (embedded or small) if _NAMES.search(node.name)]
        exact = [node for node in named if node.name in _USUAL]  # beside the step it goes to (r_timestep)
        for found in (named, exact, embedded):
            if len(found) == 1:
                return found[0].name
        unclear = unclear or named or embedded
    raise InputError(
        f"which input is the timestep is not clear: {[node.name for node in unclear] or 'none'} of {names} look like one. "
        f"Pass timestep='name' with a tensor of shape (), (batch,) or (batch, frames)."
    )


def _check_given(node: fx.Node) -> None:
    value = node.meta["val"]
    if value.ndim > 2 or value.is_complex():
        kind = f"a {str(value.dtype).removeprefix('torch.')} tensor of {value.ndim} axes"
        raise InputError(
            f"timestep={node.name!r} is {kind}; a timestep is a real tensor of shape (), (batch,) or (batch, frames or tokens)."
        )


def _is_embedded(program: Program, graph: fx.Graph, start: fx.Node) -> bool:
    """Whether sines or cosines are taken of ``start``, here or inside a block it is handed to."""
    queue, seen = [start], {start}
    while queue:
        for user in queue.pop().users:
            if user.target in _SINUSOIDS:
                return True
            if "body" in user.meta:
                body = program.body_of(user)
                inner = [p for p, argument in zip(body.placeholders, user.args, strict=True) if argument in seen]
                if any(_is_embedded(program, body.graph, node) for node in inner):
                    return True
            elif user not in seen and _is_transparent(user):
                seen.add(user)
                queue.append(user)
    return False


def _is_transparent(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._opname in _TRANSPARENT
