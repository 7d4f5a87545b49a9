"""What nodes may claim to yield, and when they are run to see it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from sparsify import verify as module
from sparsify.verify import verify

from .sketch import aten
from .verified import Made


def test_an_operator_claims_a_value_and_can_run() -> None:
    made = Made()
    made.last.meta.pop("val")
    made.refused("neg_default claims no value")
    for target, args in ((aten.matmul.default, (made.x, made.x)), (aten.view.default, (made.x, [5]))):
        made = Made()
        made.insert(target, *(made.x if isinstance(arg, fx.Node) else arg for arg in args))
        made.refused(f"{target.overloadpacket.__name__}.* cannot run: ")
    made = Made()
    node = made.insert(math.trunc, 3, 4)
    made.refused(f"{node.name} cannot run: ")


def test_a_fresh_capture_is_not_run_again_but_noted() -> None:
    made = Made("captured")
    made.last.meta["val"] = made.sketch.fake(1)
    verify(made.program, "nothing")
    made.program.stage = "analysed"
    verify(made.program, "nothing")
    made.insert(aten.neg.default, made.last).meta["val"] = made.sketch.fake(2)
    made.refused("neg_default_1 claims")


def test_what_was_run_is_not_run_again_while_arguments_and_claims_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ran = Made(), list[str]()
    compute = module.compute_value

    def watched(node: fx.Node, *rest: Any) -> Any:
        ran.append(node.name)
        return compute(node, *rest)

    monkeypatch.setattr(module, "compute_value", watched)
    verify(made.program, "nothing")
    assert sorted(ran) == ["neg_default", "relu_default"]
    verify(made.program, "nothing")
    assert len(ran) == 2
    again = made.insert(aten.neg.default, made.second)
    verify(made.program, "nothing")
    assert len(ran) == 2, "one that looks the same"
    again.meta["val"] = made.sketch.fake(2, made.n, 8)
    verify(made.program, "nothing")
    assert len(ran) == 3, "another claim"
    again.args = (made.c,)
    made.refused("neg_default_1 claims")
    assert len(ran) == 4, "another argument"


def test_what_is_kept_of_a_run_keeps_the_values_that_it_is_known_by() -> None:
    made = Made()
    verify(made.program, "nothing")
    kept = [value for values in made.program.verified.values() for value in values]
    assert any(value is made.last.meta["val"] for value in kept) and any(value is made.second.meta["val"] for value in kept)


def test_a_restated_value_may_say_the_same_in_other_sizes() -> None:
    made = Made()
    made.last.meta.update(val=made.sketch.fake(2, made.sketch.size(12), 8), restated=True)
    verify(made.program, "nothing")
    made.last.meta.pop("restated")
    made.program.verified.clear()
    made.refused("neg_default claims")


def test_a_region_is_not_run() -> None:
    made = Made()
    made.insert(torch.ops.higher_order.cond, made.last)
    verify(made.program, "nothing")


CLAIMS: list[tuple[Callable[[Made], Any], bool]] = [
    (lambda made: made.sketch.fake(2, made.n, 8), True),
    (lambda made: made.sketch.fake(2, made.n * 2 - made.n, 8), True),
    (lambda made: made.sketch.fake(2, 12, 8), True),  # a number that was a size by a guard
    (lambda made: made.sketch.fake(2, 13, 8), False),
    (lambda made: made.sketch.fake(2, made.n + 1, 8), False),
    (lambda made: made.sketch.fake(2, made.sketch.size(12), 8), False),
    (lambda made: made.sketch.fake(2, made.n, 9), False),
    (lambda made: made.sketch.fake(3, made.n, 8), False),
    (lambda made: made.sketch.fake(2, made.n), False),
    (lambda made: made.sketch.fake(2, made.n, 8, 1), False),
    (lambda made: made.sketch.fake(2, made.n, 8, dtype=torch.float64), False),
    (lambda made: made.sketch.fake(2, made.n, 8, device="meta"), False),
    (lambda made: (made.sketch.fake(2, made.n, 8),), False),
    (lambda made: made.n, False),
    (lambda made: None, False),
]


@pytest.mark.parametrize(("claim", "true"), CLAIMS)
def test_what_a_node_may_claim_of_a_tensor(claim: Callable[[Made], Any], true: bool) -> None:
    made = Made()
    made.last.meta["val"] = claim(made)
    if true:
        verify(made.program, "nothing")
    else:
        made.refused("neg_default claims .* but yields float32")


@pytest.mark.parametrize(
    ("claim", "true"),
    [
        (lambda made, part: [part, part], True),
        (lambda made, part: (part, part), True),
        (lambda made, part: (part, part, part), False),
        (lambda made, part: (part,), False),
        (lambda made, part: (part, made.x.meta["val"]), False),
        (lambda made, part: (made.x.meta["val"], part), False),
        (lambda made, part: part, False),
    ],
)
def test_what_a_node_may_claim_of_several_tensors(claim: Callable[..., Any], true: bool) -> None:
    made = Made()
    node = made.insert(aten.unbind.int, made.x)
    node.meta["val"] = claim(made, made.sketch.fake(made.n, 8))
    if true:
        verify(made.program, "nothing")
    else:
        made.refused("unbind.* claims .* but yields")


@pytest.mark.parametrize(
    ("claim", "true"),
    [
        (lambda made: 2 * made.n, True),
        (lambda made: made.n + made.n, True),
        (lambda made: 24, True),
        (lambda made: 25, False),
        (lambda made: made.n, False),
        (lambda made: made.sketch.size(24), False),
    ],
)
def test_what_a_node_may_claim_of_a_size(claim: Callable[..., Any], true: bool) -> None:
    made = Made()
    with made.graph.inserting_before(made.first):
        count = made.sketch.number("count", made.n)
    node = made.insert(operator.mul, count, 2)
    node.meta["val"] = claim(made)
    if true:
        verify(made.program, "nothing")
    else:
        made.refused("mul claims .* but yields")


def test_a_size_that_depends_on_values_agrees_with_any() -> None:
    made = Made()
    with made.graph.inserting_before(made.first):
        flags = made.sketch.input("flags", 5, dtype=torch.bool)
    node = made.insert(aten.nonzero.default, flags)
    node.meta["val"] = made.sketch.fake(made.sketch.env.create_unbacked_symint(), 1, dtype=torch.long)
    verify(made.program, "nothing")
    node.meta["val"] = made.sketch.fake(made.sketch.env.create_unbacked_symint(), 2, dtype=torch.long)
    made.refused("nonzero_default claims")


@pytest.mark.parametrize("patch", [4, 2])
def test_a_side_that_is_one_by_a_guard_is_one(patch: int) -> None:
    """The rows of a grid of 1 x 8 tokens, say: torch puts in symbols alone."""
    made = Made()
    height, step, rows = made.sketch.sizes(4, patch, 3)
    side = height // step
    assert bool(side == 1) is (patch == 4), "which is a guard, or a guard that it is not"
    with made.graph.inserting_before(made.first):
        image = made.sketch.input("image", rows * side, 8)
    node = made.insert(aten.neg.default, image)
    node.meta["val"] = made.sketch.fake(rows, 8)
    if patch == 4:
        verify(made.program, "nothing")
    else:
        made.refused("neg_default_1 claims")
    node.meta["val"] = made.sketch.fake(2 * rows, 8)
    made.refused("neg_default_1 claims")
