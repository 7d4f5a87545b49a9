"""``sparsify opt`` and ``sparsify diff``, run as a user runs them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from sparsify.cli.main import main
from sparsify.difference import outer_lines, rows

PLAIN = "tests.test_cli:factory"
PASSES = "fuse-attention,density{schedule=constant(4x4)},sparse-dense{blocks=1-5 generate=1 sparse=2 recover=1},cleanup"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_program_is_the_output_and_all_else_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "opt", PLAIN, "--passes", PASSES, "--print-after", "density")
    assert status == 0
    assert out.startswith("sparse program, 6 blocks") and "block0.split @ blocks.1(%pool_tokens" in out
    assert err.startswith("*** after density ***\nsparse program, 6 blocks") and err.count("*** after") == 1
    assert err.endswith(f"pipeline: {PASSES}\n")


def test_print_after_all_time_passes(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "opt", PLAIN, "--passes", PASSES, "--print-after-all", "--time-passes")
    assert status == 0
    titles = [line for line in err.splitlines() if line.startswith("***")]
    assert titles == [f"*** after {name} ***" for name in ("fuse-attention", "density", "sparse-dense", "cleanup")]
    assert "seconds to verify" in err and "sparse-dense{blocks=1-5" in err
    assert err.count("sparse program, 6 blocks") == 4


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--passes", "fuse-attention,pool-attention{blocks=0-1}", "--no-verify-each", "--json")
    status, out, err = run(capsys, "opt", PLAIN, *words)
    found = json.loads(out)
    assert status == 0 and err == ""
    first, last = (each["verify_seconds"] for each in found["runs"])
    assert first < last, "the verifier can wait"
    assert [(each["text"], each["places"]) for each in found["runs"]] == [
        ("fuse-attention", 0),
        ("pool-attention{blocks=0-1}", 2),
    ]
    assert found["program"].startswith("sparse program") and found["skipped"] == []


def test_a_policy_prints_its_pipeline_and_takes_passes_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--policy",
        "auto",
        "--savings",
        "share",
        "--passes",
        "pooled-keys{blocks=5}",
        "--load",
        "examples.passes.pooled_keys",
    )
    _, _, err = run(capsys, "opt", PLAIN, *words)
    assert err.startswith("pipeline: fuse-attention,density{schedule=paper(0.61..0.86)},pool-attention{blocks=0},sparse-dense{")
    assert err.endswith("},pooled-keys{blocks=5},share,cleanup\n")


def test_refusals_are_said_and_are_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "opt", PLAIN, "--passes", "sparse-dense{blocks=0-5}")
    assert status == 0 and out.startswith("sparse program")
    assert "left alone by sparse-dense: blocks.0 .. blocks.5: there is no density node; run the density pass first" in err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "opt", "--list", "--json", "--load", "examples.passes.sprint")
    found = json.loads(out)
    assert found["sprint"].startswith("Drop tokens") and "sparse-dense" in found
    _, out, _ = run(capsys, "opt", "--list")
    assert "pool-attention" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--passes", "pool"), "there is no pass 'pool'"),
        (("--passes", "cleanup", "--print-after", "clean"), "there is no pass 'clean'"),
        (("--load", "no.such.module"), "--load no.such.module: ModuleNotFoundError"),
        (("--passes", "pool-attention{blocks=0-9}"), "blocks=0-9 but the trunk has blocks 0-5"),
        (("--passes", "density{schedule=constant(40x40)}"), "40"),
    ],
)
def test_mistakes_are_one_line_and_status_two(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    status, out, err = run(capsys, "opt", PLAIN, *words)
    assert status == 2 and out == ""
    assert message in err and "Traceback" not in err


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["opt", "--help"], ["diff", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "examples:" in capsys.readouterr().out


# --- diff ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    assert main(["opt", PLAIN, "--passes", PASSES, "--dump", str(folder), "--json"]) == 0
    return folder / "factory-000"


def test_the_stages_are_files(stages: Path) -> None:
    names = ["captured", "analysed", "fuse-attention", "density", "sparse-dense", "cleanup", "sparse"]
    assert sorted(path.name for path in stages.iterdir()) == [f"{n:02d}-{name}.txt" for n, name in enumerate(names)]


def test_diff_as_text(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "diff", str(stages / "03-density.txt"), str(stages / "04-sparse-dense.txt"))
    assert status == 0
    assert out.startswith("--- ") and "+  %pool_tokens: " in out and "-  %blocks_1: " in out
    status, out, _ = run(capsys, "diff", str(stages / "05-cleanup.txt"), str(stages / "06-sparse.txt"))
    assert (status, out) == (0, "")


def test_diff_as_page_and_picture(stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, picture = tmp_path / "deep" / "a.html", tmp_path / "a.svg"
    words = (str(stages / "03-density.txt"), str(stages / "04-sparse-dense.txt"), "--html", str(page), "--svg", str(picture))
    status, _, err = run(capsys, "diff", *words)
    assert status == 0 and f"wrote {page}" in err
    drawing = ET.fromstring(picture.read_text())
    titles = [element.text or "" for element in drawing.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("%pool_tokens: ") and "by sparse-dense from blocks_0" in title for title in titles)
    assert sum(title.startswith("%blocks_1: ") for title in titles) == 2, "before and after"
    assert any("operators, equal in both" in (text.text or "") for text in drawing.iter("{http://www.w3.org/2000/svg}text"))
    assert "<svg" in page.read_text() and "http-equiv" in page.read_text()
    assert "src=" not in page.read_text()


def test_rows_of_two_stages(stages: Path) -> None:
    before, after = ((stages / name).read_text() for name in ("03-density.txt", "04-sparse-dense.txt"))
    changes = {(row.after or row.before).name: row.change for row in rows(before, after)}  # type: ignore[union-attr]
    assert changes["pool_tokens"] == "added" and changes["blocks_1"] == "changed" and changes["blocks_0"] == "same"
    assert len(outer_lines(after)) == after.partition("outer graph:\n")[2].partition("\n\n")[0].count("\n")
    assert [line.name for line in outer_lines(after) if line.is_block] == [f"blocks_{i}" for i in range(6)]


def test_diff_of_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "diff", "no-such-file", "neither")
    assert status == 2 and "A stage is a file that SPARSIFY_DUMP=DIR wrote" in err
