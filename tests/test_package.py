"""What a user gets who installs the package: light import, one top-level name, typed, short files."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("sparsify", "passes", "targets") for path in (ROOT / folder).rglob("*.py")]


def python(code: str, cwd: Path = ROOT) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = (
        "diffusers",
        "transformers",
        "torch_tensorrt",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "safetensors",
        "matplotlib",
        "rich",
        "networkx",
        "hypothesis",
        # What traces: as long to import as torch itself. The first call of sparsify waits for it.
        "sympy",
        "torch._dynamo",
        "torch._inductor.compile_fx",
        "sparsify.runtime",
    )
    used = "from sparsify import SDTM, Density, Policy, available, lower, sparsify; Policy.auto()"
    code = (
        f"import sys, torch; before = set(sys.modules); {used}; print([m for m in {heavy!r} if m in set(sys.modules) - before])"
    )
    assert python(code, tmp_path) == "[]"


def test_every_public_name_is_there_whenever_it_is_imported(tmp_path: Path) -> None:
    code = "from sparsify import *; import sparsify; print({*sparsify.__all__} <= {*globals()}, SparseModel.__name__, sparsify.passes.Pass.__name__)"
    assert python(code, tmp_path) == "True SparseModel Pass"
    code = "import sparsify; print(hasattr(sparsify, 'nonsense'), {*sparsify.__all__} <= {*dir(sparsify)})"
    assert python(code, tmp_path) == "False True"


def test_passes_and_targets_live_inside_the_package(tmp_path: Path) -> None:
    code = "import sparsify.passes, sparsify.targets, importlib.util as u; print(u.find_spec('passes'), u.find_spec('targets'))"
    assert python(code, tmp_path) == "None None"
    for name in ("passes", "targets"):
        link = ROOT / "sparsify" / name
        assert link.is_symlink() and str(link.readlink()) == f"../{name}"


def test_a_wheel_holds_everything_under_one_name(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("sparsedit-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"sparsify", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    assert {"sparsify/passes/base.py", "sparsify/targets/base.py", "sparsify/cli/main.py", "sparsify/py.typed"} <= set(names)


def test_files_are_short() -> None:
    long = {path.name: count for path in SOURCES if (count := len(path.read_text().splitlines())) >= 300}
    assert long == {}
