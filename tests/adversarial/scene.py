"""Where a row of the table plays: it watches what must not change, and compares what came out with an oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin
from torch.utils import _pytree as pytree

from sparsify import SparseModel, sparsify
from sparsify.testing.state import random_state

_HOOKS = [name for name in vars(nn.Identity()) if name.endswith("hooks")]


@dataclass(frozen=True)
class Row:
    """One input.

    Attributes:
        group: what is wrong or unusual: the model, the inputs, the policy, ...
        name: what it is, in a few words.
        act: does it; it either shows its result to :meth:`Scene.same` or raises.
        error: what must be raised, exactly: one of sparsify's, or the model's own; None where the right answer must come.
        words: what the message must contain: the field, the value, what to do.
        slow: whether it is a variant of another row that costs seconds; ``make test-all`` plays it.
    """

    group: str
    name: str
    act: Callable[[Scene], None]
    error: type[Exception] | None = None
    words: tuple[str, ...] = ()
    slow: bool = False


@dataclass
class Scene:
    """What a row may use.

    Attributes:
        folder: an empty one.
        checks: how many comparisons with an oracle were made.
    """

    folder: Path
    checks: int = 0
    _watched: list[Snapshot] = field(default_factory=list)

    def watch(self, *values: Any) -> None:
        """From here to the end of the row these models and tensors must stay as they are."""
        self._watched.append(Snapshot.of(*values))

    def sparsify(self, model: Any, policy: Any, given: Any = None, **options: Any) -> SparseModel:
        """``sparsify``, which must leave the model, its inputs and all random states as they were, also where it raises."""
        self.watch(model, given)
        random_before = random_state()
        try:
            return sparsify(model, policy, given, **options)
        finally:
            self._watched[-1].check()
            assert random_state() == random_before, "a random state has changed"

    def same(self, found: Any, expected: Any, tolerance: float = 0.0) -> None:
        """Both hold the same numbers, NaN where the other has NaN; with tolerance 0 to the last bit."""
        self.checks += 1
        mine, theirs = pytree.tree_leaves(found), pytree.tree_leaves(expected)
        assert len(mine) == len(theirs) > 0
        for a, b in zip(mine, theirs, strict=True):
            if not isinstance(a, torch.Tensor):
                assert a == b, (a, b)
                continue
            assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device), (a.shape, a.dtype, b.shape, b.dtype)
            if not a.is_meta:
                torch.testing.assert_close(a, b, rtol=0, atol=tolerance, equal_nan=True)

    def forget(self) -> None:
        """What was watched may change from here on."""
        self._watched.clear()

    def end(self) -> None:
        """Check that what was watched is as it was."""
        for snapshot in self._watched:
            snapshot.check()


@dataclass(frozen=True)
class Snapshot:
    """Models and tensors as they are now."""

    values: tuple[Any, ...]
    before: tuple[Any, ...]

    @classmethod
    def of(cls, *values: Any) -> Snapshot:
        """Remember them, bit for bit."""
        return cls(values, tuple(map(_described, values)))

    def check(self) -> None:
        """AssertionError where something is not as it was; it names what."""
        for value, before in zip(self.values, self.before, strict=True):
            now = _described(value)
            assert now.keys() == before.keys(), now.keys() ^ before.keys()
            changed = [key for key in before if now[key] != before[key]]
            assert not changed, f"changed: {changed}"


def _described(value: Any) -> dict[str, Any]:
    if isinstance(value, nn.Module):
        return _model(value)
    pairs, _ = pytree.tree_flatten_with_path(value)
    return {pytree.keystr(path): _bits(leaf) for path, leaf in pairs}


def _model(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"class": type(model), "names": [name for name, _ in model.named_modules()]}
    for path, module in model.named_modules():
        found[f"{path}: module"] = (id(module), type(module), module.training, sorted(vars(module)))
        found[f"{path}: hooks"] = [list(map(id, getattr(module, name, {}).values())) for name in _HOOKS]
        for name, parameter in module._parameters.items():
            found[f"{path}.{name}"] = None if parameter is None else (id(parameter), parameter.requires_grad, _bits(parameter))
        for name, buffer in module._buffers.items():
            found[f"{path}.{name}"] = None if buffer is None else (id(buffer), _bits(buffer))
    return found


def _bits(value: Any) -> Any:
    """The bytes of a tensor, so that NaN equals itself; other values as text."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if isinstance(value, UninitializedTensorMixin) or value.is_meta or value.layout != torch.strided:
        return str(value.layout), str(value.dtype), str(value.device)
    kind = (tuple(value.shape), value.stride(), str(value.dtype), value.grad_fn is None)
    return *kind, value.detach().clone().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def played(row: Row, folder: Path) -> str:
    """Play a row; what it ended in, for the table.

    Raises:
        AssertionError: it did not end as the row says, or something has changed that must not.
    """
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
    scene = Scene(folder)
    try:
        row.act(scene)
    except Exception as error:
        if isinstance(error, AssertionError) and row.error is not AssertionError:
            raise
        message = str(error)
        assert row.error is not None, f"{type(error).__name__}: {message}"
        assert type(error) is row.error, f"{type(error).__name__} and not {row.error.__name__}: {message}"
        lacking = [word for word in row.words if word not in message]
        assert not lacking, f"{lacking} not in: {message}"
        scene.end()
        return message
    assert row.error is None, "no error came"
    assert scene.checks, "nothing was compared with an oracle"
    scene.end()
    return ""


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by group, in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return found
