"""GFLOPs: the paper's table, and torch's own counter as a check of the counting."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from benchmarks.common import counted
from sparsify import SDTM, Density, Policy, sparsify
from sparsify.models import dit, pixart
from sparsify.paper import ROWS, Row

from .helpers import inputs, plain, sparse_plain
from .test_exact import tiny_diffusers_dit, tiny_pixart

# (dense, sparse, how many times the paper's sparse figure we may need without the exact savings, ours with them)
PAPER = {
    ("DiT-XL/2", 512, (0.90, 0.96)): (525, 235, 1.02, 224.75),
    ("DiT-XL/2", 512, (0.61, 0.86)): (525, 286, 1.04, 286.1),
    ("DiT-XL/2", 256, (0.61, 0.86)): (118.64, 68.05, 1.02, 67.65),
    ("DiT-XL/2", 256, (0.44, 0.61)): (118.64, 88.91, 1.02, 82.26),
    ("DiT-B/2", 256, (0.61, 0.86)): (23.01, 14.34, 1.02, 14.0),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.model}-{row.resolution}-{row.rates}")
def test_gflops_of_the_papers_rows(row: Row) -> None:
    with torch.device("meta"):  # counting needs no weights
        model, given = dit(row.model, row.resolution)
    policy = Policy.paper(row.model, row.resolution, rates=row.rates)
    report = sparsify(model, policy, example_inputs=given, savings=False).report()
    dense, sparse, allowance, saved = PAPER[row.model, row.resolution, row.rates]
    cheaper = sparsify(model, policy, example_inputs=given).report()
    assert cheaper.gflops <= saved
    assert sum(saving.gflops for saving in cheaper.savings) == pytest.approx(report.gflops - cheaper.gflops)
    assert all(saving.megabytes >= 0 for saving in cheaper.savings)
    assert report.gflops_dense == pytest.approx(dense, rel=1e-3)
    assert 0.9 * sparse <= report.gflops <= allowance * sparse
    assert report.gflops == pytest.approx(sum(d.share * d.gflops for d in report.densities))


POLICY = Policy(1, SDTM(1, 1, 1, 0), 2, Density.paper(r_min=0.5, r_max=0.9))


@pytest.mark.parametrize("style", ["fused", "manual", "separate"])
def test_agrees_with_torchs_counter_at_every_density(style: str) -> None:
    model = plain(style=style)
    sparse = sparsify(model, POLICY, example_inputs=inputs(2))
    report = sparse.report()
    assert report.gflops_dense == pytest.approx(counted(model, *inputs(1)), rel=1e-12)
    for density in report.densities:
        t = next(t for t in range(1000) if POLICY.density.grid_at(t, (8, 8)) == density.grid)
        assert density.gflops == pytest.approx(counted(sparse, *inputs(1, t=t)), rel=1e-12)


def test_agrees_with_torchs_counter_on_diffusers_models() -> None:
    x, t = torch.randn(1, 4, 16, 16), torch.tensor([999])
    for model, given in (
        (tiny_diffusers_dit().eval(), {"class_labels": torch.tensor([3])}),
        (
            tiny_pixart().eval(),
            {"encoder_hidden_states": torch.randn(1, 7, 24), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        ),
    ):
        call = {"hidden_states": x, "timestep": t} | given
        sparse = sparsify(model, POLICY, example_inputs=call)
        assert sparse.report().gflops_dense == pytest.approx(counted(model, **call), rel=1e-12)
        report = sparse.report()
        for _ in range(2):  # who counts sees the prompt's part at every call
            assert report.densities[-1].gflops + report.gflops_once == pytest.approx(counted(sparse, **call), rel=1e-12)


@pytest.mark.parametrize("make", [lambda: dit("DiT-B/2", 256), lambda: pixart(256, depth=6)], ids=["dit", "pixart"])
def test_real_sizes_agree_with_torchs_counter_on_fake_weights(make) -> None:
    with torch.device("meta"):
        model, given = make()
    sparse = sparsify(model, Policy.auto(), example_inputs=given)
    assert sparse.report().gflops_dense == pytest.approx(counted(model, **given), rel=1e-9)


def test_report_tells_every_block() -> None:
    sparse = sparse_plain(policy=POLICY)[1]
    report = sparse.report()
    assert [b.role for b in report.blocks] == ["pooling", "generate", "sparse", "recover", "dense", "dense"]
    assert [b.tokens[0] for b in report.blocks] == [64, 25, 25, 64, 64, 64]
    assert [b.keys[0] for b in report.blocks] == [64, 64, 25, 25, 64, 64]
    assert all(b.gflops_mean < b.gflops_dense for b in report.blocks[:4])
    assert all(b.gflops_mean == pytest.approx(b.gflops_dense) for b in report.blocks[4:])
    assert all(above.gflops < below.gflops for below, above in pairwise(report.densities))
    assert report.timestep == "t" and report.grid == (8, 8)
    text = str(report)
    for part in ("PlainDiT", "blocks.3", "recover", "8x8 token grid", "25 to 4"):
        assert part in text


def test_report_json_holds_everything() -> None:
    import json

    report = sparse_plain(policy=POLICY)[1].report()
    data = json.loads(report.to_json())
    assert data["gflops"] == report.gflops and len(data["blocks"]) == 6
    assert data["blocks"][1]["tokens"] == list(report.blocks[1].tokens)
