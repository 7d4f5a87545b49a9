"""The example passes on models of every family: where they do not refuse, at their trivial setting they change nothing.

A stride of one drops no token, one window as large as the grid is all of it, pooling onto the full grid pools nothing.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import pytest
import torch

import examples.passes.pooled_keys
import examples.passes.sprint
import examples.passes.windowed  # noqa: F401  # they register themselves
from sparsify import Policy, SparseModel, SparsifyError, sparsify
from sparsify.full_check import _pooled_to

from .zoo.__main__ import entries
from .zoo.check import IDENTITY, difference
from .zoo.entry import Entry

# What becomes of SPRINT, windows and pooled keys; where windows do not cover the grid they change the model, so it only runs.
EXPECTED = {
    "SiT": ("equal", "runs", "equal"),
    "MoEDiT": ("equal", "runs", "equal"),
    "HandSoftmaxDiT": ("equal", "has the mask bias", "equal"),
    "DiTTransformer2DModel": ("equal", "equal", "equal"),
    "PixArtTransformer2DModel": ("equal", "runs", "equal"),
    "SD3Transformer2DModel": ("equal", "joins other tokens to those of the grid", "equal"),
    "HunyuanDiT2DModel": ("the tokens of blocks.2 are read by blocks_5 too", "runs", "equal"),
    "LinearAttentionDiT": ("it does not take its tokens as one list", "it does not take its tokens as one list", "equal"),
    "AudioDiT1D": ("has to be that of an image", "windows of 24 x 24 do not fit", "equal"),
    "RegisterDiT": ("not those of the dense grid", "windows of 3 x 3 do not fit", "not those of the dense grid"),
}


def trivial(name: str, blocks: str, grid: tuple[int, ...]) -> str:
    half = "x".join(str(max(1, side // 2)) for side in grid)
    return {
        "sprint": f"fuse-attention,sprint{{blocks={blocks} stride=1}}",
        "windowed": f"fuse-attention,windowed{{blocks={blocks} window={math.gcd(*grid)}}}",
        "pooled-keys": f"fuse-attention,density{{schedule=constant({half})}},pooled-keys{{blocks={blocks}}}",
    }[name]


def opened(sparse: SparseModel) -> SparseModel:
    """SPRINT hands on the sparse tokens alone."""
    with torch.no_grad():
        for layer in getattr(sparse, "sparsify_sprint", ()):
            layer.weight.copy_(layer.weight.roll(layer.weight.shape[0], dims=1))
    return sparse


def outcome(entry: Entry, name: str) -> str:
    """``equal``, or the reason of a refusal."""
    model, inputs = entry.make(), entry.inputs(2, 0)
    try:
        report = sparsify(model, Policy.auto(), inputs, savings=False, **entry.options(0)).report()
        middle = f"2-{len(report.blocks) - 2}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            passes: Any = trivial(name, middle, report.grid)
            sparse = opened(sparsify(model, Policy.dense(), inputs, passes=passes, **entry.options(0)))
    except SparsifyError as error:
        return str(error).splitlines()[-1].strip()
    is_trivial = name != "windowed" or len(set(report.grid)) == 1
    for given in (inputs, entry.inputs(3, 0)):
        with torch.no_grad():
            sparse(**given)  # captured now if need be: a capture brings its own density
            with _pooled_to(sparse, report.grid) if name == "pooled-keys" else contextlib.nullcontext():
                error = difference(sparse(**given), model(**given))
        assert not math.isnan(error) and (error <= IDENTITY or not is_trivial), f"{entry.name} changes by {error:.1e}"
    return "equal" if is_trivial else "runs"


@pytest.mark.slow
@pytest.mark.parametrize("entry", [pytest.param(each, id=each.name) for each in entries() if each.name in EXPECTED])
def test_a_trivial_setting_changes_nothing_or_is_refused(entry: Entry) -> None:
    for name, expected in zip(("sprint", "windowed", "pooled-keys"), EXPECTED[entry.name], strict=True):
        assert expected in outcome(entry, name)
