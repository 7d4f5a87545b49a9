"""Rows: the same on the command line: exit status 2 and one line, no traceback."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import torch

from sparsify.cli.main import main
from sparsify.errors import SparsifyError

from . import files as f
from . import models as m
from .scene import Row, Scene
from .tiny import POLICY, given, tiny

MODEL = "tests.adversarial.rows_cli:factory"
Words = Callable[[Path], tuple[str, ...]]


class Said(SparsifyError):  # not raised by the package
    """What the command line printed before it ended with status 2."""


def factory(kind: str = "tiny") -> object:
    """What ``--kwargs`` asks for."""
    if kind == "none":
        return None
    if kind == "no trunk":
        return m.NoTrunk(), {"x": torch.ones(1, 4)}
    return tiny(), dict(zip("xty", given(1), strict=True))


def line(words: Words) -> Callable[[Scene], None]:
    """The command must end with status 2 and say one thing on the error stream alone."""

    def act(scene: Scene) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words(scene.folder))
        said = err.getvalue().strip()
        assert status == 2 and out.getvalue() == "", (status, out.getvalue())
        assert "Traceback" not in said and said.count("sparsify ") >= 1
        raise Said(said)

    return act


def report(*words: str) -> Words:
    return lambda folder: ("report", MODEL, "--device", "cpu", *words)


def with_policy(content: bytes) -> Words:
    return lambda folder: report("--policy", str(f.written(folder / "policy.json", content)))(folder)


def with_config(content: bytes) -> Words:
    def words(folder: Path) -> tuple[str, ...]:
        return "report", "DiTTransformer2DModel", "--config", str(f.written(folder / "config.json", content))

    return words


_CASES: tuple[tuple[str, Words, tuple[str, ...]], ...] = (
    ("a model without a trunk", report("--kwargs", '{"kind": "no trunk"}'), ("no trunk", "NoTrunk")),
    ("a factory that makes nothing", report("--kwargs", '{"kind": "none"}'), ("made a NoneType", "torch.nn.Module")),
    ("a factory without a module", lambda folder: ("report", ":factory"), (":factory cannot be loaded", "package.module:factory")),
    ("a relative module", lambda folder: ("report", "..os:system"), ("..os:system cannot be loaded",)),
    ("keyword arguments nested 100,000 deep", report("--kwargs", '{"kind": ' + "[" * 100_000), ("--kwargs is not JSON", "deep")),
    ("a keyword argument twice", report("--kwargs", '{"kind": "tiny", "kind": "none"}'), ("--kwargs is not JSON", "'kind' is there twice")),
    ("a dtype that is a number", report("--inputs", '{"t": {"shape": [1], "dtype": 5}}'), ("--inputs t", "no torch dtype")),
    ("a dtype that is a function of torch", report("--inputs", '{"t": {"shape": [1], "dtype": "load"}}'), ("--inputs t", "'load' is no torch dtype")),
    ("a shape beyond memory", report("--inputs", '{"x": [1, 3, 1000000000, 1000000000]}'), ("--inputs x", "is no tensor")),
    ("a size of 0", report("--inputs", '{"x": [1, 3, 0, 8]}'), ("does not run on its inputs",)),
    ("an input that the model does not have", report("--inputs", '{"z": [1]}'), ("unexpected keyword argument 'z'",)),
    ("a policy of a newer version", report("--policy", POLICY.to_json().replace('"version": 1', '"version": 2')), ("version is 2", "Upgrade sparsify")),
    ("a policy that is not UTF-8", with_policy(b"\xff\xfe\xfa\xfb"), ("policy is not JSON",)),
    ("a policy behind a byte order mark, cut short", with_policy(b"\xef\xbb\xbf{"), ("policy is not JSON",)),
    ("a policy that is the name of a folder", lambda folder: report("--policy", str(folder))(folder), ("neither auto, dense, paper",)),
    ("a policy with a name of 100,000 characters", report("--policy", "[" * 100_000), ("cannot be read", "name too long")),
    ("a resolution in other digits", report("--policy", "paper:DiT-XL/2@²"), ("not like paper:DiT-XL/2@512",)),
    ("a resolution of 5,000 digits", report("--policy", "paper:DiT-XL/2@" + "9" * 5000), ("not like paper:DiT-XL/2@512",)),
    ("a configuration that is a pickle", with_config(b"\x80\x04}\x94."), ("--config", "config.json")),
    ("a configuration of other types", with_config(b'{"num_layers": "x"}'), ("--config", "makes no DiTTransformer2DModel")),
    ("a grid that does not fit", report("--grid", "3x3"), ("(3, 3)", "16")),
)  # fmt: skip

ROWS = [Row("command line", name, line(words), Said, said) for name, words, said in _CASES]
