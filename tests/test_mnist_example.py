"""The MNIST experiment's parts: its measures against the formulae, its model, its data, and all stages in small."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import linalg

from examples.mnist import demo, metrics, published, report, sampling
from examples.mnist.__main__ import main
from examples.mnist.data import parts
from examples.mnist.merging import merging
from examples.mnist.model import MnistDiT, make
from examples.mnist.settings import FOLDER, Settings
from sparsify import SDTM, Policy, sparsify
from sparsify.training import TrainConfig
from sparsify.training.loss import objective_of

from .plain_dit import randomised


def test_fid_is_the_formula() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(300, 6)) * [1, 2, 3, 1, 1, 1], generator.normal(size=(200, 6)) + 0.5
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert metrics.fid(torch.tensor(a), torch.tensor(b)) == pytest.approx(want, rel=1e-6)


def test_precision_and_recall_point_by_point() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(40, 3, generator=generator), torch.randn(30, 3, generator=generator) * 0.5
    inside = 0
    for point in fake:
        for other in real:
            radius = sorted(float((other - third).norm()) for third in real)[3]  # the first is the point itself
            if float((point - other).norm()) <= radius * (1 + 1e-9):
                inside += 1
                break
    assert metrics.share_inside(fake, real) == pytest.approx(inside / len(fake))
    assert 0 < inside < len(fake) or inside == len(fake)
    assert metrics.share_inside(real, real) == 1
    assert metrics.share_inside(real + 100, real) == 0


def test_the_judge_never_sees_what_the_model_is_trained_on() -> None:
    mine, held_out = parts()
    assert mine.images.shape == (4000, 1, 32, 32)
    assert held_out.images.shape == (1000, 1, 32, 32)
    assert torch.bincount(mine.labels).tolist() == [400] * 10
    assert torch.bincount(held_out.labels).tolist() == [100] * 10
    assert (mine.images.min(), mine.images.max()) == (-1, 1)
    seen = {image.numpy().tobytes() for image in mine.images}
    assert len(seen) == 4000
    assert not seen & {image.numpy().tobytes() for image in held_out.images}


def test_a_new_model_predicts_nothing_and_its_patches_lie_where_they_came_from() -> None:
    model, inputs = make(depth=2, width=32, heads=2)
    assert model(**inputs).shape == (2, 2, 32, 32)
    assert not model(**inputs).any()
    randomised(model)
    x = inputs["x"].clone().requires_grad_()
    for block in model.blocks:  # without blocks each patch of the output depends on its own patch alone
        torch.nn.init.zeros_(block.modulation.weight)
        torch.nn.init.zeros_(block.modulation.bias)
    model(x, inputs["timestep"], inputs["label"])[:, :, 4:6, 10:12].sum().backward()
    touched = x.grad.abs().sum(dim=(0, 1)) > 0
    assert touched[4:6, 10:12].all()
    assert int(touched.sum()) == 4


@torch.no_grad()
def test_merging_nothing_changes_nothing_and_merging_much_changes_little_where_tokens_are_alike() -> None:
    model = randomised(MnistDiT(depth=3, width=32, heads=2)).eval()
    x, t, y = torch.randn(2, 1, 32, 32), torch.tensor([3, 700]), torch.tensor([1, 10])
    assert torch.equal(merging(model, (16, 16), 0)(x, t, y), model(x, t, y))
    assert (merging(model, (16, 16), 100)(x, t, y) - model(x, t, y)).abs().max() > 1e-3


def test_fused_attention_is_the_attention_that_was_trained() -> None:
    model, inputs = make(depth=2, width=32, heads=2)
    fused, _ = make(depth=2, width=32, heads=2, fused=True)
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    fused.load_state_dict(model.state_dict())
    torch.testing.assert_close(fused(**inputs), model(**inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["diffusion", "flow"])
def test_a_model_that_knows_the_image_draws_it(objective: str) -> None:
    """The right answer at any noise, from what training adds the noise with."""
    config, image = TrainConfig(1, objective=objective, noise_schedule="cosine"), torch.rand(3, 1, 32, 32) * 2 - 1
    one, none = torch.ones(3, 1, 32, 32), torch.zeros(3, 1, 32, 32)

    def model(x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        noised = objective_of(config, torch.device("cpu")).noised
        noise = (x - noised(one, none, timestep) * image) / noised(none, one, timestep)
        return noise - image if objective == "flow" else torch.cat([noise, noise], dim=1)

    (drawn,) = sampling.drawn(model, sampling.noise_of(3, 0), torch.arange(3), objective, steps=10)
    assert (drawn - image).abs().max() <= 1e-4


def test_the_settings_are_what_the_experiment_promises() -> None:
    settings = Settings.read()
    model, inputs = make(**settings.model)
    made = sparsify(model, settings.policy, example_inputs=inputs).report()
    assert len(made.blocks) >= 12
    assert made.grid == (16, 16)
    assert made.gflops_dense / made.gflops >= 2
    assert settings.finetune.steps * 10 <= settings.dense.steps
    assert (settings.samples, len(settings.seeds)) == (5000, 3)
    found = json.loads((FOLDER / "search.json").read_text())
    assert settings.policy == Policy.from_json(json.dumps(found["pick"]["policy"])), "the policy that the search picked"
    assert settings.budget == found["budget"]


def test_results_of_other_settings_are_not_taken_for_these(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights").mkdir()
    changed = json.loads((FOLDER / "settings.json").read_text())
    for name, value, refused in (("seeds", [1], False), ("samples", 20, True)):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(changed | {name: value}))
        Settings.read().claim(tmp_path)
        words = ["--settings", str(file), "--out", str(tmp_path), "--stages", "publish", "--arms", "dense"]
        if not refused:
            Settings.read(file).claim(tmp_path)
            continue
        with pytest.raises(SystemExit):
            main(words)
        assert "was made with another samples" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main(["--settings", str(file), "--out", str(tmp_path / "fresh"), "--published", "--stages", "publish"])
        assert "what lies in" in capsys.readouterr().err
        assert [x.name for x in (tmp_path / "fresh").iterdir()] == ["settings.json"], "nothing was mixed in"


@pytest.mark.parametrize(("text", "message"), [(None, "No such file"), ("{", "is not JSON"), ("{}", "lacks model")])
def test_settings_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    file = tmp_path / "mine.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit):
        main(["--settings", str(file), "--out", str(tmp_path)])
    assert "mine.json" in (shown := capsys.readouterr().err) and message in shown


@pytest.mark.slow
def test_all_stages_in_small_and_a_second_run_does_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = json.loads((FOLDER / "settings.json").read_text())
    small["model"] |= {"depth": 6, "width": 32, "heads": 2}
    small["policy"] = json.loads(Policy(1, (SDTM(1, 2, 1, 0),), 1).to_json())
    small["dense"] |= {"steps": 20, "batch_size": 16, "compile": False, "save_every": 10, "log_every": 5}
    small["finetune"] |= {"steps": 2}
    small |= {"calibration": 128, "samples": 40, "seeds": [0]}
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(small))
    words = ["--settings", str(settings), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["arms"]) == {"dense", "identity", "calibrated", "identity-finetuned", "calibrated-finetuned", "merging"}
    assert all(math.isfinite(arm["seeds"]["0"]["fid"]) for arm in results["arms"].values())
    assert sum(results["one_step"]["calibrated"]) < sum(results["one_step"]["identity"])
    assert results["classifier_accuracy"] > 0.95
    assert report.table(results).count("\n") == 10
    assert main([*words, "--stages", "search"]) == 0
    found = json.loads((tmp_path / "out" / "search.json").read_text())
    assert found["pick"]["fraction"] <= small["budget"]
    assert found["pick"]["error"] <= min(p["error"] for p in found["curve"] if p["fraction"] <= small["budget"])
    assert (tmp_path / "out" / "search.png").exists()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "samples").rglob("*")}
    assert main(words) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "samples").rglob("*")} == times
    assert (tmp_path / "out" / "samples.png").exists()

    monkeypatch.setattr(published, "FOLDER", tmp_path / "committed")
    assert main([*words, "--stages", "publish"]) == 0
    shutil.rmtree(tmp_path / "out" / "samples")
    elsewhere = ["--settings", str(settings), "--out", str(tmp_path / "elsewhere"), "--published"]
    assert main(elsewhere) == 0
    assert json.loads((tmp_path / "elsewhere" / "results.json").read_text()) == results
    assert not (tmp_path / "elsewhere" / "train").exists(), "nothing was trained again"
    assert not (tmp_path / "elsewhere" / "samples").exists(), "nor drawn"
    assert (tmp_path / "elsewhere" / "samples.png").read_bytes() == (tmp_path / "out" / "samples.png").read_bytes()


def test_the_demo_draws_the_same_digits_in_turns_and_compares() -> None:
    calls: list[str] = []

    def model(name: str, level: float) -> demo.Timed:
        def forward(x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            calls.append(name)
            return torch.full((len(x), 2, 32, 32), level)

        return demo.Timed(forward)

    models = [model("dense", 0.0), model("sparse", 0.0)]
    first, second = demo.side_by_side(models, 12, seed=1, objective="diffusion")
    assert first.shape == (12, 1, 32, 32)
    assert torch.equal(first, second), "from the same noise"
    assert calls == (["dense"] * 50 + ["sparse"] * 50) * 2
    models[0].seconds, models[1].seconds = [0.3, 0.1, 0.2], [0.1]
    results = {"arms": {"dense": {"seeds": {"0": {"fid": 2.0}, "1": {"fid": 4.0}}}}}
    console = Console(width=120, file=io.StringIO())
    console.print(demo.table(models, [0.5, 0.25], results))
    shown = console.file.getvalue()
    assert [word in shown for word in ("200.0", "100.0", "3.00", "2.00x", "not measured yet")] == [True] * 5
