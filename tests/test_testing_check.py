"""sparsify.testing.check_pass: good passes pass it, each kind of bad pass fails with its reason and code that shows it again."""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import strategies as st
from torch import fx

from examples.passes.pooled_keys import PooledKeys
from examples.passes.sprint import Sprint
from examples.passes.windowed import Windowed
from sparsify import SDTM, Density, InputError, Policy, sparsify
from sparsify.passes import (
    SAVINGS,
    BlockRange,
    Cleanup,
    FuseAttention,
    LinearBeforeCopy,
    MeanBeforeLinear,
    NarrowLinear,
    OnceForBlocks,
    Pass,
    PatternPass,
    PromptOnce,
    Share,
    replace_later_uses,
)
from sparsify.program import Program
from sparsify.shapes import annotate
from sparsify.testing import CheckFailure, DiTSpec, check_pass, replay, specs
from sparsify.testing.paste import call_to_paste

aten = torch.ops.aten

# Few specs, so that each is captured once for all tests of this file.
PLAIN = DiTSpec(depth=4, grid=(4, 4), modulation="adaln-zero", written=True, labels=True)
TEXT = DiTSpec(depth=4, grid=(4, 4), text="cross", rope=True, text_tokens=3)
HALF = Density.constant(rate=0.5)
MODULE = Policy(1, SDTM(1, 1, 1, 0), 0, HALF)


@pytest.mark.parametrize(
    ("rewrite", "spec"),
    [
        (FuseAttention(), PLAIN), (MeanBeforeLinear(), PLAIN), (LinearBeforeCopy(), PLAIN), (NarrowLinear(), PLAIN), (Share(), PLAIN),
        (Cleanup(), PLAIN), (OnceForBlocks(), PLAIN), (PromptOnce(), TEXT),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_exact_passes_of_the_package(rewrite: Pass, spec: DiTSpec) -> None:
    check_pass(rewrite, models=st.just(spec), policies=st.just(MODULE), max_examples=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rewrite", [FuseAttention(), *(saving() for saving in SAVINGS), Cleanup()], ids=lambda rewrite: rewrite.name
)
def test_exact_passes_of_the_package_on_random_models(rewrite: Pass) -> None:
    check_pass(rewrite, models=specs(depth=4), policies=st.just(MODULE), max_examples=20, seed=1)


def test_a_pass_on_models_that_are_not_chosen() -> None:
    check_pass(FuseAttention(), models=specs(written=True, text="none"), max_examples=1)


def test_the_example_passes() -> None:
    blocks = BlockRange(1, 2)
    images: dict[str, Any] = {"models": st.just(PLAIN), "max_examples": 1}
    check_pass(Sprint(blocks), policies=st.just(Policy.dense()), before="fuse-attention", **images)
    check_pass(Windowed(blocks), policies=st.just(MODULE), **images)
    density = "fuse-attention,density{schedule=constant(2x2)}"
    check_pass(PooledKeys(blocks), policies=st.just(Policy.dense()), before=density, **images)


# --- bad passes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad(Pass):
    """Puts something in the place of what the last block hands on."""

    name: ClassVar[str] = "bad"

    def match(self, program: Program) -> Iterable[fx.Node]:
        return [program.tokens_out(program.block_nodes[-1])]

    def rewrite(self, program: Program, place: fx.Node) -> None:
        with program.graph.inserting_before(place.next):
            replace_later_uses(place, self.instead(program.graph, place))

    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        raise NotImplementedError


class WrongShape(Bad):
    """Claims the shape of what it halves."""

    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        new = self.mark(graph.call_function(aten.slice.Tensor, (node, 1, 0, 1)), node)
        new.meta["val"] = node.meta["val"]
        return new


class WrongValue(Bad):
    """Wrong in the eighth digit, and has the same gradients to the eighth digit."""

    prepares: ClassVar[bool] = True

    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        return self.make(graph, aten.add.Tensor, (node, self.make(graph, aten.sin.default, (node,), node)), node, alpha=1e-8)


class NotIdempotent(Bad):
    """Exact, and adds a node every time."""

    prepares: ClassVar[bool] = True

    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        return self.make(graph, aten.neg.default, (self.make(graph, aten.neg.default, (node,), node),), node)


class NoProvenance(Bad):
    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        return annotate(graph.call_function(aten.neg.default, (node,)))


COUNT = itertools.count(1)


class Nondeterministic(Bad):
    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        return self.make(graph, aten.mul.Tensor, (node, float(next(COUNT))), node)


class MixesRows(Bad):
    """Keeps to itself as long as rows are in order: the mean over the batch is taken off."""

    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        return self.make(graph, aten.sub.Tensor, (node, self.make(graph, aten.mean.dim, (node, [0], True), node)), node)


class CountsRows(Bad):
    """Right for two rows: every row is taken by itself, but over their number."""

    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        rows = self.make(graph, aten.sym_size.int, (node, 0), node)
        return self.make(graph, aten.div.Tensor, (self.make(graph, aten.mul.Tensor, (node, 2.0), node), rows), node)


class LosesGradients(Bad):
    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        return self.make(graph, aten.mul.Tensor, (node, 0.0), node)


class NotFinite(Bad):
    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        return self.make(graph, aten.log.default, (self.make(graph, aten.mul.Tensor, (node, -0.0), node),), node)


class Crashes(Bad):
    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        raise KeyError("lost")


class ChangesTheModel(Bad):
    """Draws from the global random numbers while it rewrites."""

    def instead(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        torch.rand(())
        return self.make(graph, aten.mul.Tensor, (node, 2.0), node)


BAD = {
    WrongShape: ("verifier", r"pass bad left an illegal outer graph: .* claims float64\[.*but yields float64"),
    WrongValue: ("exact", r"output at \[.*the difference is .* eps of float64 x depth \d"),
    NotIdempotent: ("idempotence", r"%neg\w* of a .* has no node .* in b"),
    NoProvenance: ("provenance", r"%neg\w* of outer graph \(aten\.neg\.default\) does not say which pass made it"),
    Nondeterministic: ("determinism", r"two runs on the same program give different ones"),
    MixesRows: ("batch", r"output\[0\] changes by .* when the other rows of the batch change"),
    CountsRows: ("batch", r"output\[0\] changes by .* the result depends on how many rows there are"),
    LosesGradients: ("gradients", r"embed\.weight, .* and others had a gradient and has none with the pass"),
    NotFinite: ("finite", r"output has \d+ values that are no finite numbers"),
    Crashes: ("error", r"KeyError: 'lost' \(while the pass bad ran\)"),
    ChangesTheModel: ("model", "changed the state of random numbers"),
}


@pytest.mark.parametrize("kind", BAD, ids=lambda kind: kind.__name__)
def test_bad_passes_fail_with_their_reason(kind: type[Pass]) -> None:
    word, reason = BAD[kind]
    with pytest.raises(CheckFailure, match=reason) as error:
        check_pass(kind(), max_examples=2, models=st.sampled_from([DiTSpec(), PLAIN]))
    assert error.value.kind == word and f"bad fails the check {word!r}" in str(error.value)


def test_what_is_printed_shows_the_same_failure_again_and_is_the_smallest() -> None:
    with pytest.raises(CheckFailure) as first:
        check_pass(Padded(("a",), BlockRange(0, 1)), models=specs(grid=(2, 2)), may_lose=["nothing"])
    text, _, code = str(first.value).partition("To see it again:\n\n")
    assert "the difference is" in text and "DiTSpec()," in code and "Policy.dense()," in code
    with pytest.raises(CheckFailure) as second:
        exec(code, {})
    assert str(second.value) == str(first.value) and second.value.kind == "exact"


@dataclass(frozen=True)
class Words:
    """An option of a type of its own."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return "+".join(self.words)

    @classmethod
    def parse(cls, text: str) -> Words:
        return cls(tuple(text.split("+")))


@dataclass(frozen=True)
class Padded(WrongValue):
    """With options that are values of several types."""

    words: Words
    blocks: BlockRange
    name: ClassVar[str] = "padded"

    def __post_init__(self) -> None:
        if isinstance(self.words, tuple):
            object.__setattr__(self, "words", Words(self.words))


@dataclass(frozen=True)
class QuickGelu(PatternPass):
    """A pass with an oracle: the model with another activation."""

    slope: float = 1.702
    name: ClassVar[str] = "quick-gelu-tested"

    def pattern(self, x: Any) -> Any:
        return torch.nn.functional.gelu(x, approximate="tanh")

    def replacement(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.slope * x)


def with_quick_gelu(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    gelu = torch.nn.functional.gelu
    torch.nn.functional.gelu = lambda x, approximate="none": x * torch.sigmoid(1.702 * x)
    try:
        return model(**inputs)
    finally:
        torch.nn.functional.gelu = gelu


def test_an_oracle_and_options_that_are_not_read_back() -> None:
    here: dict[str, Any] = {"models": st.just(DiTSpec()), "policies": st.just(Policy.dense()), "max_examples": 1}
    check_pass(QuickGelu(), oracle=with_quick_gelu, **here)
    with pytest.raises(CheckFailure, match="a is the model with the pass and b the oracle") as error:
        check_pass(QuickGelu(1.6), oracle=with_quick_gelu, **here)
    assert error.value.kind == "oracle" and "oracle=with_quick_gelu," in str(error.value)
    with pytest.raises(CheckFailure, match="cannot be read back") as error:
        check_pass(QuickGelu("fast"), **here)  # type: ignore[arg-type]
    assert error.value.kind == "text"


@dataclass(frozen=True)
class Steep(QuickGelu):
    """An option that has no literal, and one that may have no name."""

    limits: tuple[float, ...] = ()
    name: ClassVar[str] = "steep-tested"


@pytest.mark.parametrize(
    ("oracle", "comment"),
    [
        (lambda model, inputs: inputs["x"], r"# oracle is the one that was given: <lambda>, line \d+ of .*test_testing_check"),
        (
            functools.partial(with_quick_gelu),
            r"# oracle is the one that was given: functools\.partial of with_quick_gelu, line ",
        ),
    ],
    ids=["lambda", "partial"],
)
def test_code_to_paste_is_valid_whatever_it_is_given(oracle: Any, comment: str) -> None:
    rewrite = Steep(float("-inf"), limits=(float("inf"), float("nan"), 0.5))
    code = call_to_paste("replay", (rewrite, DiTSpec(), Policy.dense()), {"oracle": oracle, "may_lose": ("*.q.*",)})
    assert re.search(comment, code) and "    oracle=oracle,\n" in code
    called: list[Any] = []
    names = {
        "Steep": Steep,
        "DiTSpec": DiTSpec,
        "Policy": Policy,
        "oracle": oracle,
        "replay": lambda *a, **k: called.append((a, k)),
    }
    exec(re.sub(r"(?m)^from .*$", "", code), names)
    (made, spec, policy), given = called[0]
    assert repr(made) == repr(rewrite) and (spec, policy) == (DiTSpec(), Policy.dense()) and given["oracle"] is oracle


def test_a_pass_that_rewrites_nothing_fails_with_the_nearest_miss() -> None:
    class ExactGelu(QuickGelu):
        name: ClassVar[str] = "exact-gelu-tested"

        def pattern(self, x: Any) -> Any:
            return torch.nn.functional.softplus(torch.nn.functional.gelu(x))

    with pytest.raises(CheckFailure, match=r"it rewrote nothing in 1 example\(s\).*matched") as error:
        check_pass(ExactGelu(), models=st.just(DiTSpec()), policies=st.just(Policy.dense()), max_examples=1)
    assert error.value.kind == "unused" and "# ExactGelu is defined in" in str(error.value)
    with pytest.raises(CheckFailure, match="trunk has blocks 0-1"):
        replay(Sprint(BlockRange(3, 5)), DiTSpec(), Policy.dense())


def test_arguments_are_checked() -> None:
    with pytest.raises(InputError, match="give an instance, not the class"):
        check_pass(Share)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_examples is 0"):
        check_pass(Share(), max_examples=0)
    with pytest.raises(InputError, match=r"may_lose is '\*q\*'"):
        check_pass(Share(), may_lose="*q*")
    with pytest.raises(InputError, match=r"may_lose is \(5,\); .* such as \('\*\.q\.\*',\)"):
        check_pass(Share(), may_lose=(5,))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="models gives a Linear"):
        check_pass(Share(), models=st.builds(torch.nn.Linear, st.just(1), st.just(1)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("models", DiTSpec()), ("policies", Policy.dense()), ("policies", Policy), ("oracle", 5), ("exact", "no"), ("idempotent", 1),
        ("seed", "a"), ("seed", -1), ("max_examples", True),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_check_pass_are_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{field} is {re.escape(repr(value))}"):
        check_pass(Share(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", 0),
        ("batch", 2.0),
        ("seed", None),
        ("timestep", -1),
        ("timestep", float("nan")),
        ("timestep", "a"),
        ("oracle", 5),
    ],
    ids=str,
)
def test_arguments_of_replay_are_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{field} is {re.escape(repr(value))}; it must be "):
        replay(Share(), DiTSpec(), Policy.dense(), **{field: value})


def test_what_is_no_spec_or_no_policy_is_refused() -> None:
    with pytest.raises(InputError, match=r"spec is a DiT; .* model\.spec"):
        replay(Share(), DiTSpec().build(), Policy.dense())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="policy is 'dense'; it must be a Policy"):
        replay(Share(), DiTSpec(), "dense")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="policies gives 'dense'; it must be a Policy"):
        check_pass(Share(), models=st.just(DiTSpec()), policies=st.just("dense"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="policies, called with a model, gives Policy"):
        check_pass(Share(), models=st.just(DiTSpec()), policies=lambda model: Policy.dense())  # type: ignore[arg-type,return-value]


def test_a_policy_that_fits_no_model_fails_and_is_told() -> None:
    with pytest.raises(CheckFailure, match="it never ran behind the policy's passes: no policy fits its model") as error:
        replay(FuseAttention(), DiTSpec(written=True), Policy(3, (), 3))
    assert error.value.kind == "unused"


def test_one_row_is_an_example_too() -> None:
    """The dense model is then called with the number of rows that it was not captured with."""
    replay(FuseAttention(), DiTSpec(written=True), Policy.dense(), batch=1)


def test_one_column_of_tokens_is_an_example_too() -> None:
    """The grid is that of the spec, also where a call of another number of rows captures anew."""
    spec = DiTSpec(
        depth=3, grid=(4, 1), patch=2, heads=2, mlp_ratio=4, qkv="split", positions="learned", rope=True, rope_style="half", mask="keys",
        modulation="shift-scale", parallel=True, seed=80, written=True,
    )  # fmt: skip
    replay(FuseAttention(), spec, Policy.dense())
    replay(PooledKeys(BlockRange(1, 2)), spec, Policy.dense(), before="fuse-attention,density{schedule=constant(2x1)}")


def test_passes_run_where_nothing_reads_the_pooled_grid() -> None:
    """A cleanup takes the sides of the grid away; conditions of traced code must do without them."""
    model, inputs = PLAIN.build(), PLAIN.example_inputs()
    policy = Policy(1, (), 3, HALF)
    sparse = sparsify(model, policy, inputs, passes=QuickGelu())
    assert sparse(**inputs).isfinite().all() and operator.truth(sparse.report().blocks)
