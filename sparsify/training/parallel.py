"""One process or several: what a launcher set up, and the model wrapped for it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import InputError, TrainingError
from ..program import Program
from ..runtime import SparseModel
from ..tree import Block
from .config import TrainConfig

# torch has renamed it; buffers are equal in all processes at the start, and nothing synchronises them later.
_DDP = inspect.signature(nn.parallel.DistributedDataParallel).parameters
_NO_SYNC: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in _DDP else "broadcast_buffers": False}


class Group:
    """The processes of a run, as ``torchrun`` or ``accelerate launch`` started them; one without a launcher.

    accelerate finds out about them, picks the device and knows the trackers. Wrapping and autocast are done here, because
    its own would change the caller's model for good, and because it shards on accelerators alone.

    Args:
        config: batch size, parts, tracker.
        out: the folder of the run.
        device: ``"cpu"`` to use no accelerator although there is one.

    Raises:
        InputError: the batch does not divide among the processes.
        TrainingError: the tracker is not installed.
    """

    def __init__(self, config: TrainConfig, out: Path, device: str | None = None) -> None:
        self.accelerator = _accelerator(config, out, device)
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.is_main = self.rank == 0
        self.shards = config.parallel == "fsdp2" or str(self.accelerator.distributed_type) == "DistributedType.FSDP"
        if config.batch_size % (self.world * config.accumulate):
            raise InputError(
                f"TrainConfig.batch_size {config.batch_size} does not divide into {self.world} processes x accumulate "
                f"{config.accumulate} equal parts; a multiple of {self.world * config.accumulate} does."
            )

    @property
    def is_alone(self) -> bool:
        """Whether there is one process without a process group."""
        return not (dist.is_available() and dist.is_initialized())

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the processes."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def agree(self, problem: str | None) -> None:
        """Raise in all processes what the main one found, so that none waits for the others for ever.

        Raises:
            TrainingError: the main process found a problem.
        """
        found: list[Any] = [problem]
        if self.world > 1:
            dist.broadcast_object_list(found, src=0, device=self.device)
        if found[0] is not None:
            raise TrainingError(found[0])

    def equalise(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give all processes the main one's values: a model may have been made without a seed."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def wrap(self, sparse: SparseModel, program: Program) -> nn.Module:
        """The model as it is to be called in training.

        Raises:
            TrainingError: it cannot be sharded.
        """
        if self.shards and not self.is_alone:
            shard(sparse, program, self.device)
            return sparse
        if self.world == 1:
            return sparse
        return nn.parallel.DistributedDataParallel(
            sparse,
            device_ids=None if self.device.type == "cpu" else [self.device.index],
            **_NO_SYNC,
            gradient_as_bucket_view=True,
        )

    @contextmanager
    def part(self, model: nn.Module, is_last: bool) -> Iterator[None]:
        """Around forward and backward of a part of a batch: gradients are exchanged in the last one alone."""
        if isinstance(model, nn.parallel.DistributedDataParallel):
            with nullcontext() if is_last else model.no_sync():
                yield
        else:
            if (wait := getattr(model, "set_requires_gradient_sync", None)) is not None:
                wait(is_last)
            yield


def shard(sparse: SparseModel, program: Program, device: torch.device) -> None:
    """Spread the weights over the processes (FSDP2), each block a unit of its own, and the rest another.

    A block whose weights are also read outside of it (the head of diffusers' DiT reads its first block's embedding) goes with the
    rest, which is whole from the beginning of a step to its end.

    Raises:
        TrainingError: weights of all blocks are read outside of them, or the model runs in place.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if program.in_place:
        raise TrainingError(
            f"TrainConfig.parallel is 'fsdp2', but this model runs in place ({program.way}): its own code reads weights, and would "
            f"find them in shards. Use 'ddp'."
        )
    units = own_units(sparse, program)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for path, module in list(sparse.named_modules()):
        if isinstance(module, Block) and path in units:
            fully_shard(module, mesh=mesh)
    fully_shard(sparse, mesh=mesh)


def own_units(sparse: SparseModel, program: Program) -> set[str]:
    """The blocks whose weights nobody reads but they.

    Raises:
        TrainingError: there is none.
    """
    blocks = {str(node.target) for node in program.all_block_nodes}
    outside = {str(node.target) for graph in program.outer_graphs for node in graph.find_nodes(op="get_attr")}
    readers: dict[int, set[str]] = {}  # of each weight, by blocks, or the name it is read under elsewhere
    names: dict[int, str] = {}
    for name, parameter in sparse.named_parameters(remove_duplicate=False):
        block = next((path for path in blocks if name.startswith(f"{path}.")), name)
        readers.setdefault(id(parameter), set()).update({block} | ({name} if name in outside else set()))
        names.setdefault(id(parameter), name)
    shared = {number: who for number, who in readers.items() if len(who) > 1}
    units = blocks - set().union(*shared.values())
    if blocks and not units:
        raise TrainingError(
            f"TrainConfig.parallel is 'fsdp2', but weights of every block, such as {names[next(iter(shared))]}, are read outside of it; "
            f"sparsify with savings that leave out 'once-for-blocks' and 'prompt-once', or use 'ddp'."
        )
    return units


def whole(tensors: Mapping[str, torch.Tensor], is_main: bool) -> dict[str, torch.Tensor]:
    """Copies on the CPU, put together from their shards; the main process gets them. All must call it."""
    found = {}
    for name, tensor in tensors.items():  # one by one, because all together may not fit
        full = tensor.detach()
        if hasattr(full, "full_tensor"):
            full = full.full_tensor()
        if is_main:
            found[name] = full.to("cpu", copy=True).contiguous()
    return found


def _accelerator(config: TrainConfig, out: Path, device: str | None) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise TrainingError("training needs accelerate; run pip install 'sparsedit[train]'.") from error
    tracker = None if config.tracker == "none" else config.tracker
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    try:
        made = Accelerator(cpu=on_cpu, log_with=tracker, project_dir=str(out))
    except ValueError as error:
        raise TrainingError(f"TrainConfig.tracker is {config.tracker!r}, or accelerate is set up otherwise: {error}") from error
    if tracker is not None and not made.log_with:
        raise TrainingError(
            f"TrainConfig.tracker is {tracker!r}, which is not installed; run pip install {tracker}, or use 'none' "
            f"(metrics.jsonl is written all the same)."
        )
    return made
