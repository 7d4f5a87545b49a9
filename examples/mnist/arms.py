"""The models that are compared: dense, four sparse ones, and token merging at as many GFLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.token_merging import merged_at
from sparsify import Policy, SparseModel, lower, sparsify
from sparsify.training import train
from sparsify.training.loss import objective_of

from .data import Part
from .merging import merging
from .model import make
from .settings import Settings

_BATCH = 64


class Arm(NamedTuple):
    """A model to compare; ``kind`` is ``dense``, ``sparse`` or ``merging``."""

    title: str
    kind: str
    calibrated: bool = False
    finetuned: bool = False


ARMS = {
    "dense": Arm("dense", "dense"),
    "identity": Arm("sparse, identity start", "sparse"),
    "calibrated": Arm("sparse, calibrated", "sparse", calibrated=True),
    "identity-finetuned": Arm("sparse, identity start, fine-tuned", "sparse", finetuned=True),
    "calibrated-finetuned": Arm("sparse, calibrated, fine-tuned", "sparse", calibrated=True, finetuned=True),
    "merging": Arm("token merging, no training", "merging"),
}


def dense_model(settings: Settings, weights: Path | None, fused: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The dense model, with its trained weights, and the inputs of a call; ``fused`` where it is to run, not to train."""
    torch.manual_seed(0)
    model, inputs = make(**settings.model, fused=fused)
    if weights is not None:
        model.load_state_dict(in_float32(load_file(weights)))
    return model, inputs


def in_float32(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights lie on disk in half precision."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def save_halved(weights: dict[str, torch.Tensor], path: Path) -> None:
    """In half precision, which is enough to sample from; written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halved = {name: x.detach().half().contiguous() if x.is_floating_point() else x for name, x in weights.items()}
    save_file(halved, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def train_dense(settings: Settings, data: Part, out: Path, weights: Path) -> None:
    """From random weights; goes on where it was stopped."""
    model, inputs = dense_model(settings, None)
    result = train(model, Policy.dense(), (data.images, data.labels), settings.dense, out, example_inputs=inputs)
    with result.ema.applied():
        trained, own = result.model.state_dict(), model.state_dict()
        save_halved({name: trained[name] for name in own}, weights)


def sparse_model(settings: Settings, dense: Path, weights: Path | None = None, fused: bool = False) -> SparseModel:
    """The dense model in sparse form, with the weights of an arm if given."""
    model, inputs = dense_model(settings, dense, fused)
    sparse = sparsify(model.eval(), settings.policy, example_inputs=inputs)
    if weights is not None:
        sparse.load_state_dict(in_float32(load_file(weights)))
    return sparse


def noised_batches(settings: Settings, data: Part, times: Iterable[int], seed: int) -> list[dict[str, torch.Tensor]]:
    """Noised images as in the training, a batch of 64 for each timestep."""
    generator = torch.Generator().manual_seed(seed)
    objective = objective_of(settings.dense, torch.device("cpu"))
    batches = []
    for t in times:
        rows = torch.randint(len(data.labels), (_BATCH,), generator=generator)
        timestep = torch.full((_BATCH,), t)
        noise = torch.randn(_BATCH, 1, 32, 32, generator=generator)
        x = objective.noised(data.images[rows], noise, timestep)
        batches.append({"x": x, "timestep": timestep, "label": data.labels[rows]})
    return batches


def calibration_batches(settings: Settings, data: Part) -> list[dict[str, torch.Tensor]]:
    """Batches evenly over the schedule."""
    count = settings.calibration // _BATCH
    return noised_batches(settings, data, [int((index + 0.5) * 1000 / count) for index in range(count)], seed=0)


def make_sparse_arm(arm: Arm, settings: Settings, data: Part, dense: Path, out: Path, weights: Path) -> dict[str, Any]:
    """Calibrate and fine-tune as the arm says; what the calibration found."""
    sparse = sparse_model(settings, dense)
    found: dict[str, Any] = {}
    if arm.calibrated:
        calibration = sparse.calibrate(calibration_batches(settings, data))
        found["layers"] = [[fit.before, fit.after, fit.condition] for fit in calibration.fits]
    state = sparse.state_dict()
    if arm.finetuned:
        _, inputs = dense_model(settings, None)
        result = train(sparse, None, (data.images, data.labels), settings.finetune, out, example_inputs=inputs)
        with result.ema.applied():
            state = {name: x.clone() for name, x in result.model.state_dict().items()}
    save_halved(state, weights)
    return found


def callable_of(arm: Arm, settings: Settings, dense: Path, weights: Path | None) -> tuple[Callable[..., Any], float]:
    """What samples are drawn from, compiled, and its GFLOPs."""
    sparse = sparse_model(settings, dense, weights, fused=True)
    report = sparse.report()
    if arm.kind == "sparse":
        return lower(sparse, "inductor"), report.gflops
    model, inputs = dense_model(settings, dense, fused=True)
    if arm.kind == "dense":
        return torch.compile(model.eval(), dynamic=False), report.gflops_dense
    with torch.device("meta"):
        skeleton, _ = make(**settings.model)
    one = {name: x[:1].to("meta") for name, x in inputs.items()}
    merged, gflops = merged_at(skeleton, one, report.grid, report.gflops, make=merging)  # type: ignore[arg-type]
    return torch.compile(merging(model, report.grid, merged), dynamic=False), gflops  # type: ignore[arg-type]
