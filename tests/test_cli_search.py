"""``sparsify search``, run as a user runs it, and the random latents it measures on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparsify import Density, InputError, Policy, sparsify
from sparsify.search import random_batches

from .helpers import inputs
from .search_models import lopsided
from .test_cli import run

SMALL = "tests.test_cli_search:factory"
QUICK = ("--batches", "2", "--candidates", "1", "--no-calibrate")


def factory(depth: int = 5):
    return lopsided({3: 1.0}, depth), dict(zip("xty", inputs(1), strict=True))


def test_search_writes_the_policy_and_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    policy, picture = tmp_path / "deep" / "policy.json", tmp_path / "search.png"
    status, out, _ = run(capsys, "search", SMALL, "--budget", "0.7", *QUICK, "--out", str(policy), "--picture", str(picture))
    assert status == 0 and "picked for 70.0% of dense" in out and "random latents" in out and "stand-in" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    status, out, _ = run(capsys, "report", SMALL, "--device", "cpu", "--policy", str(policy), "--json")
    report = json.loads(out)
    assert status == 0 and report["gflops"] <= 0.7 * report["gflops_dense"]


@pytest.mark.slow
def test_search_as_json_is_for_the_latents_of_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("search", SMALL, "--kwargs", '{"depth": 4}', "--budget", "0.8", *QUICK, "--json")
    found = [run(capsys, *words, "--seed", seed)[1] for seed in ("0", "1")]
    assert found[0] != found[1]
    data = json.loads(found[0])
    assert data["budget"] == 0.8 and data["batches"] == 2 and not data["calibrated"]
    assert Policy.from_json(json.dumps(data["pick"]["policy"])).depth == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "meta"), "meta has no weights to measure with"),
        (("--budget", "0.01", *QUICK), "budget is 0.01; the least that the 5 blocks can get to is"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    status, out, err = run(capsys, "search", SMALL, *words)
    assert status == 2 and out == "" and message in err and "Traceback" not in err


@pytest.mark.parametrize("words", [("--budget", "1.5"), ("--budget", "x"), ("--density", "paper"), ("--batches", "0")], ids=str)
def test_arguments_of_the_wrong_form(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(capsys, "search", SMALL, *words)
    assert stopped.value.code == 2
    capsys.readouterr()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(capsys, "search", "--help")
    out = capsys.readouterr().out
    assert "examples:" in out and "stand-in" in out and "--policy " not in out.split("examples:")[0]


def test_random_batches_are_other_latents_and_timesteps() -> None:
    model, given = factory()
    state = torch.get_rng_state()
    found = random_batches(model, given, 4, Density.paper(0.5, 0.9))
    assert [int(batch["t"][0]) for batch in found] == [125, 375, 625, 875]
    assert all(torch.equal(batch["y"], given["y"]) and batch["x"].shape == given["x"].shape for batch in found)
    assert len({float(batch["x"].sum()) for batch in found} | {float(given["x"].sum())}) == 5
    assert torch.equal(torch.get_rng_state(), state)
    sparsify(model, Policy.auto(), given)(**found[0])
    as_tuple = random_batches(model, tuple(given.values()), 1, Density.paper(0.5, 0.9), seed=3)
    assert isinstance(as_tuple[0], tuple) and int(as_tuple[0][1][0]) == 500
    with pytest.raises(InputError, match="count is 0"):
        random_batches(model, given, 0, Density.paper(0.5, 0.9))
