"""``lower``: hand a sparse model to a target, by name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import LoweringError

if TYPE_CHECKING:
    from ..runtime import SparseModel

Lowered = Callable[..., Any]


@dataclass(frozen=True)
class Target:
    """One lowering: where its function is, and what must be installed for it.

    Attributes:
        module: of this package; imported when it is asked for.
        needs: modules that must be there, by the extra of this distribution that brings them.
        missing: names a function of ``module`` that says what else is missing here, if anything.
    """

    module: str
    needs: tuple[str, ...] = ()
    extra: str = ""
    missing: str = ""

    @property
    def function(self) -> Callable[..., Lowered]:
        """The lowering itself."""
        module = importlib.import_module(f".{self.module}", __package__)
        function: Callable[..., Lowered] = getattr(module, f"lower_{self.module}")
        return function

    def reason_against(self) -> str | None:
        """Why the target cannot be used here, and what to do, or None."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if absent:
            return f"{', '.join(absent)} is not installed; run pip install 'sparsedit[{self.extra}]'"
        if not self.missing:
            return None
        reason: str | None = getattr(importlib.import_module(f".{self.module}", __package__), self.missing)()
        return reason


TARGETS: dict[str, Target] = {
    "eager": Target("eager"),
    "inductor": Target("inductor"),
    "aot_inductor": Target("aot_inductor", needs=("safetensors",), extra="aot"),
    "onnx": Target("onnx", needs=("onnx", "onnxscript", "onnxruntime"), extra="onnx"),
    "tensorrt": Target("tensorrt", needs=("torch_tensorrt",), extra="tensorrt", missing="missing"),
}


def available() -> dict[str, str | None]:
    """By target, None if it can be used here, or else why not and what to do about it."""
    return {name: target.reason_against() for name, target in TARGETS.items()}


def lower(sparse: SparseModel, target: str = "inductor", *, check: bool = False, **options: Any) -> Lowered:
    """A callable with the model's signature that runs ``sparse`` through ``target``.

    Args:
        sparse: what :func:`sparsify.sparsify` returned, captured.
        target: ``"eager"``, ``"inductor"``, ``"aot_inductor"``, ``"onnx"`` or ``"tensorrt"``; ``available()`` says which of
            them work here.
        check: compare the result with the eager model at every pooled grid, on the call the model was captured with or on
            ``example_inputs``: 1e-4 of the largest output in float32, what rounding explains in lower precision.
        options: the target's own, see its file. Those that compile ahead of time take ``example_inputs``, ``grids``,
            ``batch`` and ``out``.

    Raises:
        LoweringError: no such target or option, something is not installed, the model does not allow it, or the check fails.
    """
    from ..runtime import SparseModel  # here, because what traces takes as long to import as torch itself

    if not isinstance(sparse, SparseModel):
        raise LoweringError(f"lower takes what sparsify() returned, not a {type(sparse).__name__}.")
    if target not in TARGETS:
        raise LoweringError(f"target {target!r} does not exist; there are {sorted(TARGETS)}.")
    if reason := TARGETS[target].reason_against():
        raise LoweringError(f"target {target} cannot be used here: {reason}.")
    function = TARGETS[target].function
    known = [name for name in inspect.signature(function).parameters if name != "sparse"]
    if unknown := sorted(set(options) - set(known)):
        raise LoweringError(f"target {target} has no option {unknown}; its options are {known or 'none'}.")
    lowered = function(sparse, **options)
    if check:
        from .check import check as check_against_eager

        check_against_eager(sparse, lowered, options.get("example_inputs"))
    return lowered
