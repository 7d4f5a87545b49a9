"""What a sampling run is estimated to take is what the loop takes."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import sampling
from benchmarks.common import timed
from sparsify import SDTM, Density, Policy, SparseModel, sparsify

from .plain_dit import randomised
from .test_exact import tiny_diffusers_dit

POLICY = Policy(1, SDTM(1, 1, 1, 1), 1, Density.paper(r_min=0.5, r_max=0.9))


def inputs_of(batch: int) -> dict[str, Any]:
    latents = torch.randn(batch, 4, 16, 16)
    return {"hidden_states": latents, "timestep": torch.full((batch,), 500), "class_labels": torch.full((batch,), 3)}


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, SparseModel, dict[str, Any]]:
    model, inputs = randomised(tiny_diffusers_dit()).eval(), inputs_of(2)
    return model, sparsify(model, POLICY, example_inputs=inputs), inputs


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_the_loop_visits_each_grid_as_often_as_estimated(tiny: Any, sampler: str) -> None:
    _, sparse, inputs = tiny
    density = sparse.program.density
    assert density is not None
    seen: Counter[Any] = Counter()

    def run(**given: Any) -> Any:
        (grid,) = {density.grid_at(t, (8, 8)) for t in given["timestep"].tolist()}
        seen[grid] += 1
        return SimpleNamespace(sample=torch.zeros(2, 8, 16, 16))

    sampling.loop(run, inputs, sampling.scheduler_of(sampler), guided=True)
    assert dict(seen) == sampling.visits(sparse, sampling.scheduler_of(sampler))
    assert sum(seen.values()) == sampling.SAMPLERS[sampler][2] and len(seen) > 1


@pytest.mark.slow  # it compares times, and others may want the processor too
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_estimated_seconds_are_those_of_a_real_loop(tiny: Any, kind: str) -> None:
    """Within a third, at the best of four attempts: other work on the machine may slow either."""
    model, sparse, inputs = tiny
    errors = []
    for _ in range(4):
        seconds = sampling.step_seconds({"dense": model, "sparse": sparse}, sparse, inputs, ["dpm-25"], rounds=5)
        arithmetic = sampling.arithmetic_of("dpm-25", inputs, guided=True)
        expected = getattr(sampling.estimate("dpm-25", sparse, seconds, arithmetic, images=1), kind)
        run = model if kind == "dense" else sparse
        real = timed(lambda run=run: sampling.loop(run, inputs, sampling.scheduler_of("dpm-25"), guided=True))
        errors.append(abs(expected / real - 1))
        if errors[-1] < 1 / 3:
            return
    pytest.fail(f"off by {[f'{error:.0%}' for error in errors]}")


@pytest.mark.slow
def test_the_command_prints_estimates_beside_real_loops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    case = sampling.Case("tiny DiT", lambda: (randomised(tiny_diffusers_dit()).eval(), inputs_of(1)), POLICY)
    monkeypatch.setattr(sampling, "cases", lambda quick: {"dit-256": case})
    assert sampling.main(["--full", "--samplers", "dpm-25", "--rounds", "1", "--json", str(tmp_path / "x.json")]) == 0
    printed = capsys.readouterr().out
    assert "DPM-Solver" in printed and "loop sparse" in printed and "with guidance" in printed
