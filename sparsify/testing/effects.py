"""Which operators of a graph do more than compute their result: draw random numbers, or write where others read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import fx, nn

from ..probe import is_random

Effect = Literal["random", "writes"]

_RANDOM = {"gumbel_softmax", "multi_head_attention_forward", "fractional_max_pool2d", "fractional_max_pool3d"}
_RANDOM |= {"dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout", "dropout", "rrelu", "alpha_dropout"}
_WRITES = {"setitem", "delitem", "setattr", "delattr", "__setitem__", "__delitem__"}
_WRITES |= {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor", "iconcat"}
_WRITES |= {"ilshift", "irshift"}
_PURE_HOMES = ("torch", "math", "operator", "_operator", "builtins", "sparsify")


def effect_of(node: fx.Node, module: nn.Module | None) -> Effect | None:
    """What a node does besides; of a function or module that is not known, the worst.

    Args:
        node: of any kind.
        module: what a ``call_module`` calls; None if that is not known.
    """
    if node.op == "call_module":
        return None if "body" in node.meta else _of_module(module)  # blocks of a program write nothing
    if node.op == "call_method":
        return _by_name(node, str(node.target)) if hasattr(torch.Tensor, str(node.target)) else "writes"
    if node.op != "call_function":
        return None
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return "writes" if target._schema.is_mutable else "random" if is_random(node) else None
    if isinstance(target, torch._ops.HigherOrderOperator):
        return None
    if isinstance(target, torch._ops.OpOverloadPacket):
        return _of_overloads(target)
    home = str(getattr(target, "__module__", None) or "torch")  # functions of C have none
    known = home.split(".")[0] in _PURE_HOMES
    return _by_name(node, str(getattr(target, "__name__", target))) if known else "writes"


def _by_name(node: fx.Node, name: str) -> Effect | None:
    in_place = name.endswith("_") and not name.endswith("__")
    if in_place or name in _WRITES or "seed" in name or "set_" in name or name.startswith("_enter"):
        return "writes"
    if node.op == "call_method" and name.startswith("__i") and name.strip("_") in _WRITES:
        return "writes"
    given = node.kwargs
    if given.get("out") is not None or given.get("inplace") or given.get("max_norm") is not None:
        return "writes"
    if name in ("batch_norm", "instance_norm"):  # running statistics; whether they are written may stand anywhere
        return "writes"
    if name == "scaled_dot_product_attention":
        return "random" if (node.args[4] if len(node.args) > 4 else given.get("dropout_p", 0.0)) != 0.0 else None
    if given.get("training") is False:
        return None
    return "random" if name in _RANDOM else _of_overloads(getattr(torch.ops.aten, name, None), writes=False)


def _of_overloads(packet: Any, writes: bool = True) -> Effect | None:
    """Of an operator whose overload is not known. Overloads that write into ``out`` are told by that argument."""
    overloads: Iterable[Any] = [getattr(packet, name) for name in packet.overloads()] if packet is not None else ()
    overloads = [overload for overload in overloads if not any(a.is_out for a in overload._schema.arguments)]
    if writes and any(overload._schema.is_mutable for overload in overloads):
        return "writes"
    return "random" if any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads) else None


def _of_module(module: nn.Module | None) -> Effect | None:
    if module is None:
        return "writes"
    effects = [_of_layer(layer) for layer in module.modules()]
    return "writes" if "writes" in effects else "random" if "random" in effects else None


def _of_layer(layer: nn.Module) -> Effect | None:
    if not type(layer).__module__.startswith("torch.nn.modules.") or getattr(layer, "inplace", False):
        return "writes"
    if getattr(layer, "max_norm", None) is not None or (layer.training and any(True for _ in layer.buffers(recurse=False))):
        return "writes"
    if isinstance(layer, (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)):
        return "random"
    drops = isinstance(layer, (nn.modules.dropout._DropoutNd, nn.RReLU)) or getattr(layer, "dropout", 0.0) != 0.0
    return "random" if layer.training and drops else None
