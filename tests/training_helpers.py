"""A model, data and settings small enough that a step takes milliseconds."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsify import SDTM, Density, Policy, SparseModel, sparsify
from sparsify.training import Images, TrainConfig, TrainResult, latest, read_metrics, train

from .plain_dit import PlainDiT, randomised

POLICY = Policy(0, SDTM(1, 1, 1, 1), 0, Density.table({0: (3, 3), 400: (2, 2)}))
CLASSES = 3


class Tiny(PlainDiT):
    """Four blocks on a grid of 4x4 tokens; noise, and variance where it is ``learned``."""

    def __init__(self, learned: bool = True, depth: int = 4, **options: Any) -> None:
        super().__init__(depth, 24, 2, (8, 8), 2, 1, CLASSES, **options)
        self.head = nn.Linear(24, 4 * (2 if learned else 1))


def tiny(seed: int = 0, **options: Any) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = randomised(Tiny(**options), seed)
    assert isinstance(model, Tiny)
    return model


def tiny_of_diffusers(drops_labels: bool = False) -> nn.Module:
    """A DiT of diffusers, for the same images and labels; its head reads weights of its first block."""
    from diffusers import DiTTransformer2DModel

    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 4,
        "sample_size": 8,
        "num_embeds_ada_norm": CLASSES,
    }
    model = DiTTransformer2DModel(in_channels=1, out_channels=2, **sizes)
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.1 if drops_labels else 0
    return model


def sparse_tiny(policy: Policy = POLICY, seed: int = 0, **options: Any) -> SparseModel:
    """What ``train`` makes of :func:`tiny`; captured once for all tests, because that takes longer than they do."""
    sparse = copy.deepcopy(_captured(policy, **options))
    sparse.load_state_dict(tiny(seed, **options).state_dict(), strict=False)
    return sparse


@functools.cache
def _captured(policy: Policy, **options: Any) -> SparseModel:
    example = (torch.zeros(4, 1, 8, 8), torch.full((4,), 500), torch.zeros(4).long())
    return sparsify(tiny(**options).train(), policy, example, savings=["narrow-linear", "mean-before-linear", "share"])


def images(count: int = 12, **options: Any) -> Images:
    generator = torch.Generator().manual_seed(5)
    return Images(torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(count) % CLASSES, **options)


def config(steps: int = 6, **fields: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "batch_size": 4,
        "learning_rate": 1e-3,
        "seed": 1,
        "save_every": 2,
        "log_every": 1,
        "tracker": "none",
        "label_dropout": 0.2,
        "keep": 3,
    }
    return TrainConfig(steps=steps, **(settings | fields))


def run(
    out: Path,
    steps: int = 6,
    policy: Policy | None = POLICY,
    model: nn.Module | None = None,
    weights: int = 0,
    **options: Any,
) -> TrainResult:
    """A run on the CPU; fields of the configuration and options of ``train`` by name.

    Without a model it is :func:`sparse_tiny`, under ``policy`` and with the random weights of this number.
    """
    own = {name: options.pop(name) for name in list(options) if name in TrainConfig.__dataclass_fields__}
    data = options.pop("data", None) or images()
    if model is None and policy is not None:
        model, policy = sparse_tiny(policy, weights), None
    assert model is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in all processes alike, because sums depend on it; more are no faster here
    try:
        return train(model, policy, data, config(steps, **own), out, device="cpu", quiet=True, **options)
    finally:
        torch.set_num_threads(threads)


def contents(out: Path) -> dict[str, torch.Tensor]:
    """Everything that the newest checkpoint of a run holds, by file and name."""
    from safetensors.torch import load_file

    folder = latest(out)
    assert folder is not None
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.relative_to(folder)} {name}": x for file in files for name, x in load_file(file).items()}


def curve(out: Path) -> list[tuple[float, ...]]:
    """Every record of a run, without what the clock says."""
    return [tuple(value for name, value in r.items() if name != "images_per_second") for r in read_metrics(out)]


def assert_same(first: Path, second: Path) -> None:
    """Two runs ended in the same state, to the last bit, along the same way."""
    a, b = contents(first), contents(second)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert curve(first) == curve(second)
