"""Turn command-line words into a model with inputs, and into a policy."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, PolicyError, SparsifyError
from ..json_text import read_json
from ..policy import Policy

_DIGITS = 6  # of a resolution
_SHOWN = 80  # characters of a text that a message repeats


def load_model(
    name: str, kwargs: str | None, config: str | None, inputs: str | None, device: str
) -> tuple[nn.Module, dict[str, Any]]:
    """The model that ``name`` stands for, with the keyword inputs of one call.

    Args:
        name: ``package.module:factory``, which returns a model or a pair of model and keyword inputs; or the name of a
            diffusers class, with ``config``.
        kwargs: JSON object of keyword arguments for the factory.
        config: path of a diffusers ``config.json``.
        inputs: JSON object from input names to shapes, or to ``{"shape": [...], "dtype": "int64", "fill": 500}``.
        device: where to build it; on ``meta`` nothing is computed or stored.
    """
    with _device(device):
        made = _from_factory(name, _json_object("--kwargs", kwargs)) if ":" in name else _from_diffusers(name, config)
        model, example = made if isinstance(made, tuple) else (made, {})
        if not isinstance(model, nn.Module):
            raise InputError(
                f"{name} made a {type(model).__name__}; it must return a torch.nn.Module, or a pair of it and inputs."
            )
        example = dict(example) | {key: _tensor(key, value) for key, value in _json_object("--inputs", inputs).items()}
    if not example:
        raise InputError(f"{name} comes without inputs; give --inputs '{{\"hidden_states\": [1, 4, 32, 32], ...}}'.")
    return model.eval(), example


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def load_policy(text: str) -> Policy:
    """``auto``, ``dense``, ``paper:DiT-XL/2@512``, a JSON file, or JSON itself."""
    if text == "auto":
        return Policy.auto()
    if text == "dense":
        return Policy.dense()
    if text.startswith("paper:"):
        model, _, resolution = text.removeprefix("paper:").partition("@")
        if not resolution.isdecimal() or len(resolution) > _DIGITS:
            raise PolicyError(f"policy {text!r} is not like paper:DiT-XL/2@512.")
        return Policy.paper(model, int(resolution))
    if text.lstrip().startswith("{"):
        return Policy.from_json(text)
    try:
        content = Path(text).read_bytes() if Path(text).is_file() else None
    except OSError as error:  # a name that is too long, or a file that may not be read
        raise PolicyError(f"policy {text[:_SHOWN]!r} cannot be read: {error.strerror}.") from error
    if content is None:
        raise PolicyError(f"policy {text!r} is neither auto, dense, paper:MODEL@RESOLUTION, JSON, nor a file.")
    return Policy.from_json(content)


def _from_factory(name: str, kwargs: Mapping[str, Any]) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"{name} cannot be loaded: {error}. A model is named as package.module:factory.") from error
    try:
        return factory(**kwargs)
    except SparsifyError:
        raise
    except Exception as error:  # whatever a user's factory raises
        raise InputError(f"{name} failed with --kwargs {json.dumps(kwargs)}: {type(error).__name__}: {error}") from error


def _from_diffusers(name: str, config: str | None) -> nn.Module:
    if config is None:
        raise InputError(
            f"{name} is taken for a diffusers class: give its --config FILE. Other models are package.module:factory."
        )
    import diffusers

    cls = getattr(diffusers, name, None)
    if cls is None or not hasattr(cls, "from_config"):
        raise InputError(f"diffusers {diffusers.__version__} has no model class {name}.")
    try:
        settings = read_json(Path(config).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--config {config}: {error}.") from error
    try:
        model: nn.Module = cls.from_config(settings)
    except Exception as error:  # whatever a class of diffusers makes of a configuration
        raise InputError(f"--config {config} makes no {name}: {type(error).__name__}: {error}") from error
    return model


def _json_object(flag: str, text: str | None) -> dict[str, Any]:
    try:
        value = read_json(text or "{}")
    except ValueError as error:
        raise InputError(f"{flag} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{flag} must be a JSON object, not {value!r}.")
    return value


def _tensor(name: str, value: Any) -> Any:
    """A list of integers is a shape; an object may name shape, dtype and fill; anything else is passed on as it is."""
    if isinstance(value, list) and all(isinstance(n, int) for n in value):
        value = {"shape": value}
    if not isinstance(value, dict) or "shape" not in value:
        return value
    dtype = getattr(torch, str(value.get("dtype", "float32")), None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"--inputs {name}: {value['dtype']!r} is no torch dtype.")
    try:
        if "fill" in value:
            return torch.full(value["shape"], value["fill"], dtype=dtype)
        return torch.randn(value["shape"]).to(dtype)
    except (TypeError, RuntimeError) as error:
        raise InputError(f"--inputs {name}: {json.dumps(value)} is no tensor: {error}") from error
