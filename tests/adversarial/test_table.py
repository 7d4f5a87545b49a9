"""Every row of the table: the right answer or a clear error, and nothing that was given is changed."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from .scene import Row, Scene, played
from .table import ROWS
from .tiny import tiny


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{row.group}: {row.name}", marks=[pytest.mark.slow] * row.slow) for row in ROWS]
)
def test_row(row: Row, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        played(row, tmp_path)


def test_the_table_is_long_and_names_each_row_once() -> None:
    assert len(ROWS) >= 50
    assert Counter((row.group, row.name) for row in ROWS).most_common(1)[0][1] == 1
    assert all(row.words for row in ROWS if row.error is not None), "an error without words is not checked"


def test_the_scene_sees_what_has_changed(tmp_path: Path) -> None:
    def weight(model: torch.nn.Module) -> None:
        model.head.weight.data[0, 0] += 1

    def flag(model: torch.nn.Module) -> None:
        model.head.weight.requires_grad_(False)

    def mode(model: torch.nn.Module) -> None:
        model.blocks[0].train()

    def hook(model: torch.nn.Module) -> None:
        model.blocks[0].register_forward_hook(print)

    def attribute(model: torch.nn.Module) -> None:
        model.blocks[0].more = 1

    def other_module(model: torch.nn.Module) -> None:
        model.blocks[0].norm1 = torch.nn.LayerNorm(16, elementwise_affine=False)

    for change in (weight, flag, mode, hook, attribute, other_module):
        scene, model = Scene(tmp_path), tiny()
        with torch.no_grad():
            model.head.bias[0] = torch.nan
        scene.watch(model)
        scene.end()  # NaN equals itself
        change(model)
        with pytest.raises(AssertionError, match="changed"):
            scene.end()
