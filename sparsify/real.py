"""Complex numbers as pairs of real ones, for compilers that have none: rotary tables are often complex."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_any

from .errors import LoweringError
from .tree import share_registries

REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


@dataclass(frozen=True)
class Pair:
    """A complex value: its real and its imaginary part, each a tensor of the graph that is being written, or a number."""

    real: Any
    imag: Any


def without_complex(module: fx.GraphModule) -> fx.GraphModule:
    """The same function in real arithmetic: every complex value inside becomes two real ones.

    Args:
        module: a graph of ATen operators and of those of :mod:`sparsify.ops`; it is not changed.

    Returns:
        A module that shares the parameters and buffers of ``module``; ``module`` itself where no value is complex.

    Raises:
        LoweringError: an input or output is complex, or an operator on complex values has no rule here.
    """
    rewrite = _Rewrite(module)
    rewrite.run(enable_io_processing=False)
    if not rewrite.found:
        return module
    rewrite.new_graph.eliminate_dead_code()
    rewrite.new_graph.lint()
    return with_graph(module, rewrite.new_graph, rewrite.constants)


def with_graph(module: fx.GraphModule, graph: fx.Graph, constants: Mapping[str, Any]) -> fx.GraphModule:
    """A module with another graph and some more constants, that shares all else with ``module``, which stays as it is."""
    made = fx.GraphModule(torch.nn.Module(), fx.Graph(), class_name=type(module).__name__)
    read = {node.target for node in module.graph.find_nodes(op="get_attr")}
    share_registries(made, module, {name: value for name, value in vars(module).items() if name in read} | dict(constants))
    made.graph = graph
    return made


class _Rewrite(fx.Transformer):
    """Writes the graph anew. Where a value was complex, a :class:`Pair` goes from node to node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.constants: dict[str, torch.Tensor] = {}
        self.found = False

    def run_node(self, n: fx.Node) -> Any:
        """The value that stands for this node."""
        if n.op == "placeholder" and getattr(n.meta.get("val"), "dtype", None) in REAL:
            raise LoweringError(
                f"input {n.name} is complex, which this target has no numbers for; give the model its two parts."
            )
        value = super().run_node(n)
        if isinstance(value, fx.Proxy):
            value.node.meta.update(n.meta)
        return value

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The output node; the run ends here."""
        if _has_pair(args):
            raise LoweringError("an output of this model is complex, which this target has no numbers for.")
        return self.new_graph.output(map_aggregate(args[0], lambda value: value.node if isinstance(value, fx.Proxy) else value))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A constant; a complex one becomes two."""
        value = self.fetch_attr(target)
        if not (isinstance(value, torch.Tensor) and value.is_complex()):
            return super().get_attr(target, args, kwargs)
        self.found = True
        parts = {f"{target}_{part}".replace(".", "_"): getattr(value.detach(), part).clone() for part in ("real", "imag")}
        self.constants |= parts
        return Pair(*(super(_Rewrite, self).get_attr(name, (), {}) for name in parts))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A node of the new graph, or what the rule for complex values makes of it."""
        name = _name(target)
        args, kwargs = map_aggregate((args, kwargs), _imaginary)
        if not (_has_pair((args, kwargs)) or name in SOURCES or _asks_for_complex(args, kwargs)):
            if name in ("view_as_real", "imag", "real"):
                raise LoweringError(f"{name} reads complex numbers from an input; give the model its two parts instead.")
            return self._node(target, *args, **kwargs)
        self.found = True
        if (rule := RULES.get(name)) is not None:
            return rule(functools.partial(self._node, target), *args, **kwargs)
        raise LoweringError(f"{target} works on complex numbers here, and sparsify/real.py has no rule for it.")

    def _node(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Proxy:
        """A node that calls the function; calling it with proxies would trace into it."""
        return self.tracer.create_proxy("call_function", target, args, kwargs)


def _name(target: Any) -> str:
    """``mul`` for every overload of ``aten.mul``, or the name of a function."""
    return target._schema.name.split("::")[1] if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", "")


def _has_pair(values: Any) -> bool:
    return tree_any(lambda value: isinstance(value, Pair), values)


def _imaginary(value: Any) -> Any:
    return Pair(value.real, value.imag) if isinstance(value, complex) else value


def _asks_for_complex(args: Any, kwargs: Any) -> bool:
    return tree_any(lambda value: isinstance(value, torch.dtype) and value in REAL, (args, kwargs))


def _paired(value: Any) -> Pair:
    """A real value as a complex one."""
    if isinstance(value, Pair):
        return value
    return Pair(value, torch.ops.aten.zeros_like.default(value) if isinstance(value, fx.Proxy) else 0)


# --- rules: what an operator becomes on pairs, as plain torch --------------------------------------------------------


def _partwise(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Pair:
    """The operator on either part: for all that moves numbers about, and for maps that are linear over the reals."""

    def part(name: str) -> Any:
        args_, kwargs_ = map_aggregate((args, kwargs), lambda value: getattr(value, name) if isinstance(value, Pair) else value)
        return target(*args_, **kwargs_)

    return Pair(part("real"), part("imag"))


def _joined(target: Callable[..., Any], values: Any, *args: Any, **kwargs: Any) -> Pair:
    return _partwise(target, [_paired(value) for value in values], *args, **kwargs)


def _added(target: Callable[..., Any], a: Any, b: Any, **kwargs: Any) -> Pair:
    return _partwise(target, _paired(a), _paired(b), **kwargs)


def _where(target: Callable[..., Any], condition: Any, a: Any, b: Any) -> Pair:
    return _partwise(target, condition, _paired(a), _paired(b))


def _product(target: Callable[..., Any], a: Any, b: Any) -> Pair:
    """Any product that is linear in both factors; a real factor costs no more than it must."""
    if not (isinstance(a, Pair) and isinstance(b, Pair)):
        return _partwise(target, a, b)
    return Pair(
        target(a.real, b.real) - target(a.imag, b.imag),
        target(a.real, b.imag) + target(a.imag, b.real),
    )


def _quotient(target: Callable[..., Any], a: Any, b: Any) -> Pair:
    if not isinstance(b, Pair):
        return _partwise(target, a, b)
    square = b.real * b.real + b.imag * b.imag
    return _partwise(target, _product(torch.ops.aten.mul.Tensor, a, Pair(b.real, -b.imag)), square)


def _modulus(target: Callable[..., Any], a: Pair) -> Any:
    return torch.sqrt(a.real * a.real + a.imag * a.imag)


def _exponential(target: Callable[..., Any], a: Pair) -> Pair:
    return _polar(target, torch.exp(a.real), a.imag)


def _polar(target: Callable[..., Any], modulus: Any, angle: Any) -> Pair:
    return Pair(modulus * torch.cos(angle), modulus * torch.sin(angle))


def _complex_of(target: Callable[..., Any], real: Any, imag: Any) -> Pair:
    return Pair(real, imag)


def _from_last_axis(target: Callable[..., Any], parts: Any) -> Pair:
    return Pair(torch.select(parts, -1, 0), torch.select(parts, -1, 1))


def _on_last_axis(target: Callable[..., Any], a: Pair) -> Any:
    return torch.stack((a.real, a.imag), -1)


def _cast(target: Callable[..., Any], a: Any, *args: Any, **kwargs: Any) -> Any:
    """Another dtype or device. A complex dtype stands for that of its parts; a real one drops the imaginary part."""
    dtypes = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
    if any(dtype not in REAL for dtype in dtypes):
        return target(a.real, *args, **kwargs)
    args, kwargs = map_aggregate((args, kwargs), _real_dtype)
    return _partwise(target, _paired(a), *args, **kwargs)


def _filled(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Pair:
    """A new tensor of one real number, such as ``ones``."""
    args, kwargs = map_aggregate((args, kwargs), lambda value: value.real if isinstance(value, Pair) else _real_dtype(value))
    real = target(*args, **kwargs)
    return Pair(real, torch.ops.aten.zeros_like.default(real))


def _real_dtype(value: Any) -> Any:
    return REAL.get(value, value) if isinstance(value, torch.dtype) else value


def _size(target: Callable[..., Any], a: Pair, *args: Any) -> Any:
    return target(a.real, *args)


def _conjugate(target: Callable[..., Any], a: Pair) -> Pair:
    return Pair(a.real, -a.imag)


def _rotation(target: Callable[..., Any], a: Pair, form: str) -> Pair:
    """``as_rotation`` of complex numbers: each part is the other's partner."""
    return Pair(target(a.real, "partner", a.imag), target(a.imag, "partner", a.real))


PARTWISE = (
    *("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "flatten", "unflatten"),
    *("slice", "select", "narrow", "index", "index_select", "gather", "repeat", "repeat_interleave", "roll", "flip", "getitem"),
    *("split", "split_with_sizes", "chunk", "unbind", "clone", "contiguous", "detach", "detach_", "alias", "lift_fresh_copy"),
    *("resolve_conj", "zeros_like", "neg", "sum", "mean", "cumsum", "pool_tokens", "pool_tokens_portably", "restore_tokens"),
)
RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(PARTWISE, _partwise),
    **dict.fromkeys(("add", "sub"), _added),
    **dict.fromkeys(("cat", "stack"), _joined),
    **dict.fromkeys(("mul", "matmul", "mm", "bmm"), _product),
    **dict.fromkeys(("to", "_to_copy"), _cast),
    **dict.fromkeys(("ones", "zeros", "full", "ones_like", "full_like"), _filled),
    **dict.fromkeys(("sym_size", "sym_numel"), _size),
    **dict.fromkeys(("conj", "_conj", "conj_physical"), _conjugate),
    "where": _where,
    "div": _quotient,
    "abs": _modulus,
    "exp": _exponential,
    "polar": _polar,
    "complex": _complex_of,
    "view_as_complex": _from_last_axis,
    "view_as_real": _on_last_axis,
    "real": lambda target, a: a.real,
    "imag": lambda target, a: a.imag,
    "angle": lambda target, a: torch.atan2(a.imag, a.real),
    "as_rotation": _rotation,
    "_assert_tensor_metadata": lambda target, a, *args, **kwargs: None,  # it speaks of a dtype that is gone
}
SOURCES = frozenset(("polar", "complex", "view_as_complex"))
