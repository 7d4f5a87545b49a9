"""docs/custom_passes.md, run from top to bottom: its files are saved, its commands and its Python are run."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from sparsify.cli.main import main
from sparsify.passes import pass_named, registry

PAGE = Path(__file__).parents[1] / "docs" / "custom_passes.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
FILES = ["quick_gelu.py", "scale_updates.py", "test_scale_updates.py"]


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    names: dict[str, object] = {"__name__": "custom_passes_page"}
    saved: list[str] = []
    output = ""
    for language, code in BLOCK.findall(PAGE.read_text()):
        if language == "python" and (title := re.match(r"# (\w+\.py)\n", code)):
            (tmp_path / title[1]).write_text(code.removeprefix(title[0]))
            saved.append(title[1])
        elif language == "python":
            exec(compile(code, str(PAGE), "exec"), names)
        elif language == "sh":
            for command in code.replace("\\\n", " ").strip().splitlines():
                run(command)
        elif language == "toml":
            offered(tmp_path, code)
        else:
            assert language == "text"
            shown = [line.strip() for line in code.splitlines() if "%" in line and "..." not in line]
            seen = re.sub(r"\bs\d+\b", "s", output + capsys.readouterr().out)
            missing = [line for line in shown if re.sub(r"\bs\d+\b", "s", line) not in seen]
            assert not missing, missing
        captured = capsys.readouterr()
        output += captured.out
    assert saved == FILES
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def run(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "pytest":
        names: dict[str, object] = {}
        exec(compile(Path(words[1]).read_text(), words[1], "exec"), names)
        names["test_scale_updates"]()  # type: ignore[operator]
        return
    words = words[2:] if words[:2] == ["python", "-m"] else words
    assert words[0] == "sparsify"
    assert main(words[1:]) == 0


def offered(folder: Path, code: str) -> None:
    """The entry point of the page leads to the pass of the page."""
    ((name, value),) = tomllib.loads(code)["project"]["entry-points"]["sparsify.passes"].items()
    info = folder / "page-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: page\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sparsify.passes]\n{name} = {value}\n")
    registry._offered.cache_clear()
    registered = registry._REGISTERED.pop(name)
    assert pass_named(name) is registered


def test_every_name_of_the_table_exists() -> None:
    import sparsify.ops
    import sparsify.passes

    table = PAGE.read_text().partition("## Further")[2]
    for name in re.findall(r"`([a-zA-Z_]+)(?:\(|`)", table):
        here = hasattr(sparsify.passes, name) or hasattr(sparsify.ops, name) or hasattr(sparsify.passes.Levels, name)
        assert here or name in ("f", "block_nodes"), name
