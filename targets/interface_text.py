"""An interface as JSON, for files that are loaded where the model's Python code is not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..calls import CallSpec
from ..density import Density
from ..errors import LoweringError
from ..grid_readers import GridOfPositions
from .interface import FlatInput, Interface
from .nesting import Nesting, decode, encode

VERSION = 1
_EMPTY = inspect.Parameter.empty


def interface_to_dict(interface: Interface) -> dict[str, Any]:
    """Plain JSON types.

    Raises:
        LoweringError: an argument or a result holds what a file cannot.
    """
    call = interface.call
    arguments = pytree.tree_unflatten(list(call.constants), call.spec)
    return {
        "version": VERSION,
        "parameters": [_parameter(parameter) for parameter in call.signature.parameters.values()],
        "arguments": encode(arguments, "the call"),
        "output": encode(_output_tree(interface.output), "the result"),
        "inputs": [asdict(i) | {"dtype": None if i.dtype is None else str(i.dtype)[6:]} for i in interface.inputs],
        "device": interface.device,
        "batch": interface.batch,
        "dense_grid": interface.dense_grid,
        "density": None if interface.density is None else interface.density.to_dict(),
        "timestep": interface.timestep,
        "grids": interface.grids,
        "between": interface.between,
        "positions": None if interface.positions is None else [interface.positions[0], interface.positions[1].rank],
    }


def interface_from_dict(data: Mapping[str, Any]) -> Interface:
    """The inverse of :func:`interface_to_dict`.

    Raises:
        LoweringError: another version, or data of another form.
    """
    if not isinstance(data, Mapping):
        raise LoweringError(f"the file's interface is damaged: it is a {type(data).__name__}, not an object.")
    if data.get("version") != VERSION:
        raise LoweringError(f"the file has an interface of version {data.get('version')!r}; this release reads {VERSION}.")
    try:
        return Interface(
            call=_call(data),
            output=Nesting(decode(data["output"])),
            inputs=tuple(_input(item) for item in data["inputs"]),
            device=data["device"],
            batch=tuple(data["batch"]),
            dense_grid=tuple(data["dense_grid"]),
            density=None if data["density"] is None else Density.from_dict(data["density"]),
            timestep=data["timestep"],
            grids=tuple(map(tuple, data["grids"])),
            between=data["between"],
            positions=None if data["positions"] is None else (data["positions"][0], GridOfPositions(data["positions"][1])),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LoweringError(f"the file's interface is damaged: {type(error).__name__}: {error}.") from error


def _output_tree(output: Any) -> Any:
    if isinstance(output, Nesting):
        return output.tree
    return pytree.tree_unflatten(list(output.constants), output.spec)


def _parameter(parameter: inspect.Parameter) -> dict[str, Any]:
    data: dict[str, Any] = {"name": parameter.name, "kind": parameter.kind.name}
    if parameter.default is not _EMPTY:
        data["default"] = encode(parameter.default, f"the default of {parameter.name}")
    return data


def _call(data: Mapping[str, Any]) -> CallSpec:
    parameters = [
        inspect.Parameter(
            p["name"], inspect._ParameterKind[p["kind"]], default=decode(p["default"]) if "default" in p else _EMPTY
        )
        for p in data["parameters"]
    ]
    pairs, spec = pytree.tree_flatten_with_path(decode(data["arguments"]))
    names = tuple(pytree.keystr(path) for path, _ in pairs)
    return CallSpec(inspect.Signature(parameters), spec, tuple(leaf for _, leaf in pairs), names)


def _input(item: Mapping[str, Any]) -> FlatInput:
    dtype = None if item["dtype"] is None else getattr(torch, item["dtype"])
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"{item['dtype']!r} is no dtype")
    return FlatInput(item["name"], tuple(item["shape"]), dtype, item["value"])
