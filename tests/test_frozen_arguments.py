"""Arguments that are no tensors are part of the graph: what they hold is compared, not whether they are the same object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy
import pytest
import torch

from sparsify import CaptureError, InputError, Policy, SparseModel, sparsify
from sparsify.frozen import frozen, same

from .adversarial.tiny import AnySize, given, tiny


@dataclass
class Settings:
    factor: float = 2.0
    more: dict[str, Any] = field(default_factory=dict)


class Plain:
    __slots__ = ("factor",)

    def __init__(self, factor: Any = 2.0) -> None:
        self.factor = factor


class Scales(AnySize):
    """Takes an argument that is no tensor; ``calls`` counts how often its code ran."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, by: Any) -> torch.Tensor:
        factor = by[0] if isinstance(by, numpy.ndarray) else getattr(by, "factor", by)
        return super().forward(x * float(factor), t, y)


def captured(by: Any) -> tuple[Scales, SparseModel]:
    model = tiny(Scales)
    return model, sparsify(model, Policy.dense(), (*given(), by))


def written(by: Any, factor: float) -> None:
    if isinstance(by, numpy.ndarray):
        by[0] = factor
    else:
        by.factor = factor


@pytest.mark.parametrize("by", [numpy.array([2.0, 3.0]), Settings(), Plain()], ids=["array", "dataclass", "object"])
def test_a_write_into_an_argument_is_seen(by: Any) -> None:
    model, sparse = captured(by)
    call = given()
    assert torch.equal(sparse(*call, by), model(*call, by))
    written(by, 5.0)
    assert torch.equal(sparse(*call, by), model(*call, by))
    assert len(sparse._stages) == 2
    written(by, 2.0)
    assert torch.equal(sparse(*call, by), model(*call, by))
    assert len(sparse._stages) == 2


def test_nan_as_an_argument_is_captured_once() -> None:
    model, sparse = captured(float("nan"))
    call = given()
    torch.testing.assert_close(sparse(*call, float("nan")), model(*call, float("nan")), rtol=0, atol=0, equal_nan=True)
    assert len(sparse._stages) == 1


def test_a_model_that_writes_into_an_argument_is_refused() -> None:
    class Writes(Scales):
        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, by: Any) -> torch.Tensor:
            by.factor += 1
            return super().forward(x, t, y, by)

    by = Plain()
    with pytest.raises(CaptureError, match="writes into an argument that is no tensor"):
        sparsify(tiny(Writes), Policy.dense(), (*given(), by))
    assert by.factor == 2.0


def test_an_argument_that_cannot_be_copied_is_refused() -> None:
    class Stubborn(Plain):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise TypeError("it stays where it is")

    with pytest.raises(InputError, match="cannot be copied: it stays where it is"):
        captured(Stubborn())


PARTS = [
    numpy.arange(3), numpy.array([1.0, float("nan")]), numpy.array([{"a": [1]}, None]), numpy.float32("nan"), Settings(3.0, {"a": [1, 2]}),
    Plain(numpy.ones(2)), Plain(torch.tensor([1.0, float("nan")])), {1, 2}, [Plain(1)], float("nan"), complex("nan"), print, object(), "text",
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(PARTS)))
def test_a_copy_is_the_same_and_nothing_else_is(index: int) -> None:
    assert same(frozen(PARTS[index]), PARTS[index])
    assert [same(PARTS[index], other) for other in PARTS] == [i == index for i in range(len(PARTS))]


def test_what_differs_in_one_part_differs() -> None:
    assert not same(numpy.zeros(2), numpy.zeros(2, numpy.float32))
    assert not same(numpy.zeros(2), numpy.zeros((2, 1)))
    assert not same(Settings(2.0, {"a": [Plain(1)]}), Settings(2.0, {"a": [Plain(2)]}))
    assert not same(Plain(torch.zeros(2)), Plain(torch.ones(2)))
    assert not same(1, True)
    assert not same(complex("nan+1j"), complex("nan+2j"))
    assert not same(numpy.array([complex("nan+1j")]), numpy.array([complex("nan+2j")]))
    loop, other = Plain(), Plain()
    loop.factor, other.factor = [loop], [other]
    assert same(loop, other)
    assert same(frozen(loop), loop)
