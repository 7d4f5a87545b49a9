"""What a training step needs, from the graph: bytes on each device, and multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..calls import split_inputs
from ..ends import check_whole
from ..errors import InputError
from ..tree import Block
from .calling import with_rows

if TYPE_CHECKING:
    from ..density import Grid
    from ..runtime import SparseModel

_OUTSIDE = ""  # stands for what is not in a block


@dataclass(frozen=True)
class Estimate:
    """Of one training step; bytes are those of one device at the peak.

    Attributes:
        batch: images on a device.
        grid: the pooled grid it was taken at: the finest of the schedule, at which most is kept.
        weights: and buffers, in float32.
        gradients: in float32.
        optimiser: the two moments of AdamW.
        ema: the moving average.
        activations: what the forward pass keeps for the backward pass.
        gflops: multiply-adds / 1e9 of forward and backward pass, mean over the schedule.
    """

    batch: int
    grid: Grid | None
    weights: int
    gradients: int
    optimiser: int
    ema: int
    activations: int
    gflops: float

    @property
    def total(self) -> int:
        """Bytes in all; the allocator and the libraries come on top."""
        return self.weights + self.gradients + self.optimiser + self.ema + self.activations

    def seconds(self, teraflops: float) -> float:
        """Of a step on a device that reaches so many multiply-adds a second, in units of 1e12 (half of what vendors count)."""
        return self.gflops / 1e3 / teraflops

    def to_dict(self) -> dict[str, Any]:
        """All numbers."""
        return asdict(self) | {"total": self.total}


def estimate(
    sparse: SparseModel,
    example_inputs: Any,
    batch: int,
    *,
    precision: str = "bf16",
    gradient_checkpointing: bool = True,
    devices: int = 1,
) -> Estimate:
    """What one step of :func:`sparsify.training.train` needs, without computing it.

    The forward pass runs on fake tensors, and what autograd would keep is counted. Under FSDP2 weights, gradients, moments and average are spread over ``devices``, and two blocks'
    weights are whole at a time.

    Args:
        sparse: the model, on the CPU, with float32 weights.
        example_inputs: as for ``sparsify``, of any batch size.
        batch: images that one device sees at a time.
        precision: ``"bf16"`` (autocast) or ``"fp32"``.
        gradient_checkpointing: of every block its inputs are kept alone, and it is computed once more.
        devices: over how many the state is spread.

    Raises:
        InputError: a value is not allowed.
    """
    if precision not in ("bf16", "fp32"):
        raise InputError(f"precision is {precision!r}; it must be 'bf16' or 'fp32'.")
    check_whole("devices", devices)
    check_whole("batch", batch)
    args, kwargs = split_inputs(with_rows(example_inputs, _batch(*split_inputs(example_inputs)), batch, torch.device("cpu")))
    sparse.prepare(args, kwargs)
    report = sparse.report()
    finest = report.densities[0].grid if report.densities else None
    kept, inputs = _kept(sparse, args, kwargs, finest, precision)
    blocks = {path: size for path, size in kept.items() if path != _OUTSIDE}
    activations = kept[_OUTSIDE] + sum(blocks.values())
    forward = report.gflops * batch
    passes = 3.0
    if gradient_checkpointing:
        activations = kept[_OUTSIDE] + sum(inputs.values()) + max(blocks.values(), default=0)
        passes += sum(block.gflops_mean for block in report.blocks) / report.gflops
    state = sum(p.numel() * p.element_size() for p in sparse.parameters())
    trained = sum(p.numel() * p.element_size() for p in sparse.parameters() if p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in sparse.buffers())
    whole = 0 if devices == 1 else 2 * max(_bytes_of(sparse.get_submodule(path)) for path in blocks)
    spread = [-(-size // devices) for size in (state, trained, 2 * trained, state)]
    return Estimate(
        batch,
        finest,
        spread[0] + buffers + whole,
        spread[1],
        spread[2],
        spread[3],
        activations,
        forward * passes,
    )


def _kept(
    sparse: SparseModel, args: Any, kwargs: Any, grid: Grid | None, precision: str
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that autograd keeps in each block and outside of blocks, and bytes of each block's inputs."""
    kept, inputs = {_OUTSIDE: 0}, dict[str, int]()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights = [
        mode.from_tensor(tensor) for tensor in (*sparse.parameters(), *sparse.buffers())
    ]  # alive: the mode keeps no hold
    known = set(map(_storage, weights))
    where = [_OUTSIDE]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in known:
            known.add(_storage(tensor))
            kept[where[0]] = kept.get(where[0], 0) + tensor.untyped_storage().nbytes()
        return tensor

    def enter(path: str) -> Any:
        def hook(module: nn.Module, tensors: Any) -> None:
            where[0] = path
            kept.setdefault(path, 0)
            inputs[path] = sum(x.untyped_storage().nbytes() for x in tensors if isinstance(x, torch.Tensor))

        return hook

    def leave(*_: Any) -> None:
        where[0] = _OUTSIDE

    with ExitStack() as stack:
        for path, module in sparse.named_modules():
            if isinstance(module, Block):
                stack.callback(module.register_forward_pre_hook(enter(path)).remove)
                stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(_at(sparse, grid))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(mode)
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        sparse(*args, **kwargs)
    return kept, inputs


@contextmanager
def _at(sparse: SparseModel, grid: Grid | None) -> Iterator[None]:
    before = sparse._clock.grid
    sparse._clock.grid = grid
    try:
        yield
    finally:
        sparse._clock.grid = before


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes_of(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _batch(args: Any, kwargs: Any) -> int:
    rows = [len(x) for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.ndim > 1]
    if not rows:
        raise InputError(
            "no example input has rows, one for each image: give the inputs of one call, with its images or latents."
        )
    return rows[0]
