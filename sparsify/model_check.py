"""Modules that cannot be captured whatever they are called with, told before anything is traced."""

from __future__ import annotations

from torch import jit, nn
from torch.nn.parameter import is_lazy

from .errors import InputError


def check_model(model: nn.Module) -> None:
    """Check that every module is eager Python code with weights.

    Raises:
        InputError: one is compiled, or TorchScript, or has a parameter without a shape.
    """
    for path, module in model.named_modules():
        where = f"{path} ({type(module).__name__})" if path else f"model, a {type(module).__name__},"
        if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(
                f'{where} is compiled; call sparsify on the original model, and compile the result with lower(sparse, "inductor").'
            )
        if isinstance(module, jit.ScriptModule):
            raise InputError(f"{where} is TorchScript, whose Python code is gone; call sparsify on the original model.")
        for name, parameter in module._parameters.items():
            if parameter is not None and is_lazy(parameter):
                own = f"{path}.{name}" if path else name
                raise InputError(
                    f"{own} of {type(module).__name__} is not initialised; call the model once before sparsify, so that it gets a shape."
                )
