"""``SPARSIFY_DUMP``: every stage of every capture as text."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from sparsify import SDTM, Density, InputError, Policy, VerificationError, sparsify
from sparsify.dump import Dump, dump_from_environment
from sparsify.text import program_text

from .helpers import inputs, plain
from .test_custom_passes import Shout

POLICY = Policy(1, SDTM(1, 2, 1, 1), 0, Density.constant(grid=(4, 4)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_stage_of_each_capture_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIFY_DUMP", str(tmp_path / "deep"))
    sparse = sparsify(plain(), POLICY, inputs(), savings=["share"])
    (folder,) = (tmp_path / "deep").iterdir()
    stages = [
        "captured",
        "analysed",
        "fuse-attention",
        "density",
        "pool-attention",
        "sparse-dense",
        "share",
        "cleanup",
        "sparse",
    ]
    assert folder.name == "PlainDiT-000"
    assert names(folder) == [f"{number:02d}-{stage}.txt" for number, stage in enumerate(stages)]
    assert (folder / "08-sparse.txt").read_text() == program_text(sparse.program) + "\n"
    assert (folder / "00-captured.txt").read_text().startswith("captured program, 6 blocks\n\nouter graph:\n")
    assert (folder / "01-analysed.txt").read_text().startswith("analysed program")
    copy.deepcopy(sparse).train()(*inputs())  # another capture
    assert names(tmp_path / "deep") == ["PlainDiT-000", "PlainDiT-001"]


def test_the_program_that_a_broken_pass_left_is_there_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIFY_DUMP", str(tmp_path))
    with pytest.raises(VerificationError):
        sparsify(plain(), Policy.dense(), inputs(), passes=Shout(lambda x: x.clone().relu_()))
    assert names(tmp_path / "PlainDiT-000")[-1] == "02-shout.txt"
    assert "relu_" in (tmp_path / "PlainDiT-000" / "02-shout.txt").read_text()


def test_without_the_variable_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSIFY_DUMP", raising=False)
    monkeypatch.chdir(tmp_path)
    assert dump_from_environment("x") is None
    sparsify(plain(), Policy.dense(), inputs())
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="SPARSIFY_DUMP="):
        Dump(tmp_path / "file", "model")


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = Dump(tmp_path, "a model/with odd: letters")
    assert dump.folder.name == "a_model_with_odd_letters-000"

    def fails(program: object) -> str:
        raise RuntimeError

    monkeypatch.setattr("sparsify.dump.program_text", fails)
    with pytest.raises(RuntimeError):
        dump("captured", object())  # type: ignore[arg-type]
    assert names(dump.folder) == []
