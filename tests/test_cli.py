"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from sparsify.cli.main import main

from .test_inductor import backend

SMALL = ["sparsify.models:dit", "--kwargs", '{"name": "DiT-S/2", "resolution": 128, "depth": 6}']
PLAIN = "tests.test_cli:factory"


def factory(depth: int = 6):
    from .helpers import inputs, plain

    return plain(depth), dict(zip("xty", inputs(1), strict=True))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "inspect", *SMALL, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["blocks"], found["grid"], found["timestep"]) == (6, [8, 8], "timestep")
    assert found["policy"]["poolingformer"] == 1
    assert found["structures"] == 1
    status, out, _ = run(capsys, "inspect", PLAIN, "--device", "cpu", "--graph")
    assert "block0.split @ blocks.1(%pool_tokens" in out and "8, 8" in out


def test_report_and_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "deep" / "tokens.png"
    status, out, _ = run(capsys, "report", *SMALL, "--picture", str(picture))
    assert status == 0 and "recover" in out and "GFLOPs" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    status, out, _ = run(capsys, "report", "--policy", "paper:DiT-XL/2@512", "--json")
    assert json.loads(out)["gflops_dense"] == pytest.approx(525, rel=1e-3)


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "bench", PLAIN, "--rounds", "2", "--json")
    data = json.loads(out)
    assert status == 0 and data["dense_seconds"] > 0 and data["speedup"] > 0
    assert sum(t["share"] for t in data["timings"]) == pytest.approx(1)
    status, out, _ = run(capsys, "bench", PLAIN, "--rounds", "1", "--policy", "dense")
    assert status == 0 and "dense against sparse" in out


@pytest.mark.parametrize(
    "words, options",
    [
        ([], {"scope": "blocks", "shapes": "dynamic"}),
        (["--scope", "model"], {"scope": "model", "shapes": "per_grid"}),
    ],
)
def test_bench_of_compiled_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], options: dict[str, str]
) -> None:
    from sparsify.cli import commands

    asked: list[dict[str, str]] = []
    lower = commands.lower
    monkeypatch.setattr(commands, "lower", lambda *target, **given: asked.append(given) or lower(*target, **given))
    with backend("eager"):
        status, out, _ = run(capsys, "bench", "--rounds", "1", "--compile", *words, PLAIN)
    assert status == 0 and "dense against sparse" in out and asked == [options]


def test_policy_from_a_file_and_diffusers_class_with_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from sparsify import SDTM, Density, Policy

    policy, config = tmp_path / "policy.json", tmp_path / "config.json"
    policy.write_text(Policy(1, SDTM(1, 1, 1, 0), 0, Density.constant(grid=(3, 3))).to_json())
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 4,
        "sample_size": 16,
        "norm_num_groups": 4,
        "in_channels": 4,
    }
    config.write_text(json.dumps(settings))
    given = '{"hidden_states": [1, 4, 16, 16], "timestep": {"shape": [1], "dtype": "int64", "fill": 3}, "class_labels": {"shape": [1], "dtype": "int64", "fill": 1}}'
    words = ("DiTTransformer2DModel", "--config", str(config), "--inputs", given, "--policy", str(policy), "--json")
    status, out, _ = run(capsys, "report", *words)
    assert status == 0
    assert [block["tokens"] for block in json.loads(out)["blocks"]] == [[64], [9], [9], [64]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("report", "no.such:model"), "no.such:model cannot be loaded"),
        (("report", "sparsify.models:dit", "--kwargs", "{"), "--kwargs is not JSON"),
        (("report", "sparsify.models:dit", "--kwargs", '{"nam": 1}'), "failed with --kwargs"),
        (("report", "sparsify.models:dit", "--kwargs", '{"name": "DiT"}'), "name is 'DiT'; there are"),
        (("report", "sparsify.models:dit", "--kwargs", '{"resolution": 100}'), "multiple of 16"),
        (("report", "DiTTransformer2DModel"), "give its --config FILE"),
        (("report", "NoSuchModel", "--config", "x"), "no model class NoSuchModel"),
        (("report", "DiTTransformer2DModel", "--config", "/no/such/file"), "--config /no/such/file"),
        (("report", PLAIN, "--policy", "fast"), "neither auto, dense, paper"),
        (("report", PLAIN, "--policy", "paper:DiT-XL/2"), "not like paper:DiT-XL/2@512"),
        (("bench", PLAIN, "--device", "meta"), "meta computes nothing"),
        (("report", PLAIN, "--device", "nope"), "--device nope cannot be used"),
        (("report", PLAIN, "--inputs", '{"t": {"shape": "q"}}'), "--inputs t"),
        (("report", PLAIN, "--device", "cpu", "--inputs", '{"x": [1, 3, 15, 16]}'), "does not run on its inputs"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_are_one_line_and_status_two(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    status, out, err = run(capsys, *words)
    assert status == 2 and out == ""
    assert message in err and "Traceback" not in err


def test_inputs_that_do_not_fit_leave_no_traceback_in_the_log(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    torch_log = logging.getLogger("torch._subclasses.fake_tensor")  # torch's logs do not reach the root, where caplog listens
    torch_log.addHandler(caplog.handler)
    try:
        run(capsys, "report", PLAIN, "--device", "cpu", "--inputs", '{"x": [1, 3, 15, 16]}')
    finally:
        torch_log.removeHandler(caplog.handler)
    assert not caplog.records


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["report", "--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
        assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["bench", "--rounds", "0"], ["report", "--grid", "ax3"], ["fly"]], ids=str)
def test_arguments_of_the_wrong_form(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    capsys.readouterr()
