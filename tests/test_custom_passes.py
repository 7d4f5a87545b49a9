"""Passes of one's own: the three examples against plain eager code, and what a pass can count on."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import fx, nn

from examples.passes.pooled_keys import PooledKeys
from examples.passes.sprint import Sprint
from examples.passes.windowed import Windowed
from sparsify import SDTM, Density, InputError, Policy, PolicyError, RewriteError, SparseModel, VerificationError, sparsify
from sparsify.passes import BlockRange, Pass, Pipeline, PoolAttention, copy_body, give
from sparsify.program import Program
from sparsify.text import graph_text

from . import custom_oracle as custom
from .helpers import inputs, plain, slow
from .oracle import Run, diffusers_dit_run, plain_dit_run
from .plain_dit import PlainDiT, randomised
from .test_exact import tiny_diffusers_dit

EXAMPLES = Path(__file__).parents[1] / "examples" / "passes"
DENSITY = "fuse-attention,density{schedule=constant(4x4)}"


def freshened(sparse: SparseModel) -> SparseModel:
    """New parameters away from their start, so that each shows in the output."""
    with torch.no_grad():
        for name, parameter in sparse.named_parameters():
            if name.startswith("sparsify_"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return sparse


def compare(sparse: SparseModel, twin: nn.Module, got: torch.Tensor, want: torch.Tensor) -> None:
    """Outputs, and gradients of all parameters."""
    assert got.dtype == torch.float64 and want.abs().max() > 0.05
    assert (got - want).abs().max() <= 1e-10
    cotangent = torch.randn_like(want) / want.numel() ** 0.5
    mine = dict(sparse.named_parameters())
    theirs = dict(twin.named_parameters()) | {n: p for n, p in mine.items() if n.startswith("sparsify_")}
    grads = [
        torch.autograd.grad(y, [p[n] for n in mine], cotangent, allow_unused=True) for y, p in ((got, mine), (want, theirs))
    ]
    for name, g, w in zip(mine, *grads, strict=True):
        assert (torch.zeros(()) if g is None else g).sub(torch.zeros(()) if w is None else w).abs().max() <= 1e-10, name


Trunk = Callable[[Any, torch.Tensor, Run], torch.Tensor]


def check_plain(
    policy: Policy, passes: Any, trunk: Callable[[SparseModel], Trunk], batch: int = 2, **options: Any
) -> SparseModel:
    model = randomised(PlainDiT(depth=6, **options)).double().eval()
    h, w = (side * model.patch for side in model.grid)
    x, t, y = torch.randn(batch, 3, h, w, dtype=torch.float64), torch.full((batch,), 500), torch.arange(batch) % 5
    twin = copy.deepcopy(model)
    sparse = freshened(sparsify(model, policy, example_inputs=(x, t, y), passes=passes))
    c = twin.conditioning(t, y)
    tokens = trunk(sparse)(list(twin.blocks), twin.embed(x), plain_dit_run(c))
    compare(sparse, twin, sparse(x, t, y), twin.finish(tokens, c))
    return sparse


def check_diffusers(policy: Policy, passes: Any, trunk: Callable[[SparseModel], Trunk]) -> SparseModel:
    model = randomised(tiny_diffusers_dit()).double().eval()
    twin = copy.deepcopy(model)
    x, y, t = torch.randn(2, 4, 16, 16, dtype=torch.float64), torch.tensor([3, 7]), torch.tensor([400, 400])
    given = {"hidden_states": x, "timestep": t, "class_labels": y}
    sparse = freshened(sparsify(model, policy, example_inputs=given, passes=passes))

    class Replaced(nn.Module):  # diffusers' own code around the trunk, with the oracle in place of the blocks
        norm1 = twin.transformer_blocks[0].norm1

        def forward(self, tokens: torch.Tensor, **_: Any) -> torch.Tensor:
            return trunk(sparse)(blocks, tokens, diffusers_dit_run(t, y))

    blocks = list(twin.transformer_blocks)
    outside = copy.copy(twin)
    outside._modules = dict(twin._modules) | {"transformer_blocks": nn.ModuleList([Replaced()])}
    compare(sparse, twin, sparse(**given).sample, outside(**given).sample)
    return sparse


# --- the examples --------------------------------------------------------------------------------------------------------


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("[!_]*.py"):
        source = path.read_text()
        texts = {line for node in ast.walk(ast.parse(source)) for line in _lines_of_docstring(node)}
        lines = [n for n, line in enumerate(source.splitlines(), 1) if line.strip() and not line.strip().startswith("#")]
        assert len(set(lines) - texts) <= 40, path


def _lines_of_docstring(node: ast.AST) -> range:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
        return range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    return range(0)


@pytest.mark.parametrize(
    ("image", "stride"),
    [((12, 10), 2), slow((16, 16), 2), slow((16, 12), 3)],
    ids=str,
)
def test_sprint_on_a_plain_dit(image: tuple[int, int], stride: int) -> None:
    def trunk(sparse: SparseModel) -> Trunk:
        grid = (image[0] // 2, image[1] // 2)
        return lambda blocks, tokens, run: custom.sprint_trunk(
            blocks, tokens, run, grid, slice(2, 5), stride, sparse.sparsify_sprint[0]
        )

    sparse = check_plain(Policy.dense(), Sprint(BlockRange(2, 4), stride), trunk, image=image)
    report = sparse.report()
    assert report.pipeline.startswith(f"sprint{{blocks=2-4 stride={stride}}},")
    assert [block.role for block in report.blocks] == ["dense"] * 2 + ["sprint"] * 3 + ["dense"]
    assert report.gflops < report.gflops_dense
    assert report.parameters_added == 2 * 32 * 32 + 2 * 32
    assert "sprint 1" in str(report)


def test_sprint_on_diffusers_dit() -> None:
    def trunk(sparse: SparseModel) -> Trunk:
        return lambda blocks, tokens, run: custom.sprint_trunk(
            blocks, tokens, run, (8, 8), slice(1, 5), 2, sparse.sparsify_sprint[0]
        )

    check_diffusers(Policy.dense(), "sprint{blocks=1-4}", trunk)


WINDOWS = Policy(1, SDTM(1, 2, 1, 1), 0, Density.table({0: (6, 4), 450: (4, 2)}))


def test_windows_in_sparse_blocks_of_a_plain_dit() -> None:
    def trunk(sparse: SparseModel) -> Trunk:
        pooled = WINDOWS.density.grid_at(500, (8, 8))
        return lambda blocks, tokens, run: custom.windows_in_sparse_blocks(
            blocks, tokens, run, (8, 8), pooled, 2, sparse.sparsify_restore[0]
        )

    sparse = check_plain(WINDOWS, Windowed(BlockRange(2, 3)), trunk)
    roles = [(block.role, "; then windowed" in block.why) for block in sparse.report().blocks]
    assert roles[2:4] == [("sparse", True)] * 2 and not any(then for _, then in roles[:2] + roles[4:])
    assert set(sparse.program.bodies) >= {"block0.windowed2"}
    names = [run.text.partition("{")[0] for run in sparse.report().passes]
    assert names[:6] == ["fuse-attention", "density", "pool-attention", "sparse-dense", "windowed", "mean-before-linear"]
    assert names[-1] == "cleanup"


def test_windows_in_sparse_blocks_of_diffusers_dit() -> None:
    def trunk(sparse: SparseModel) -> Trunk:
        pooled = WINDOWS.density.grid_at(400, (8, 8))
        return lambda blocks, tokens, run: custom.windows_in_sparse_blocks(
            blocks, tokens, run, (8, 8), pooled, 2, sparse.sparsify_restore[0]
        )

    check_diffusers(WINDOWS, "windowed{blocks=2-3 window=2}", trunk)


@pytest.mark.parametrize("style", ["manual-after", slow("fused")])
def test_windows_on_the_dense_grid(style: str) -> None:
    def trunk(_: SparseModel) -> Trunk:
        def run_trunk(blocks: Any, tokens: torch.Tensor, run: Run) -> torch.Tensor:
            for index, block in enumerate(blocks):
                windowed = custom.windowed_run(run, (8, 6), 2)
                tokens = (windowed if index in (1, 2) else run)(block, tokens, tokens, False)
            return tokens

        return run_trunk

    check_plain(Policy.dense(), ["fuse-attention", Windowed(BlockRange(1, 2))], trunk, image=(16, 12), style=style)


@pytest.mark.parametrize("style", ["fused", slow("manual")])
def test_pooled_keys_on_a_plain_dit(style: str) -> None:
    def trunk(_: SparseModel) -> Trunk:
        return lambda blocks, tokens, run: custom.pooled_keys_trunk(blocks, tokens, run, (8, 8), (4, 4), range(1, 5))

    sparse = check_plain(Policy.dense(), [DENSITY, PooledKeys(BlockRange(1, 4))], trunk, style=style)
    blocks = sparse.report().blocks
    assert [block.keys for block in blocks] == [(64,), *[(16,)] * 4, (64,)]
    assert {block.tokens for block in blocks} == {(64,)}


def test_pooled_keys_on_diffusers_dit() -> None:
    def trunk(_: SparseModel) -> Trunk:
        return lambda blocks, tokens, run: custom.pooled_keys_trunk(blocks, tokens, run, (8, 8), (4, 4), range(6))

    check_diffusers(Policy.dense(), f"{DENSITY},pooled-keys{{blocks=0-5}}", trunk)


def test_printed_ir_of_the_examples() -> None:
    sparse = sparsify(plain(), Pipeline.parse("sprint{blocks=2-3}"), example_inputs=inputs())
    text = re.sub(": .*? = ", " = ", graph_text(sparse.program.graph))
    start = text.index("%arange_start_step ")
    lines = [line.split("  # ")[0].strip() for line in text[start:].splitlines()]
    names = [line.split(" = ")[1].split("(")[0] for line in lines if " = " in line]
    assert names[:5] == ["arange.start_step", "arange.start_step", "slice.Tensor", "unsqueeze.default", "mul.Tensor"]
    assert names[5:8] == ["add.Tensor", "flatten.using_ints", "index_select.default"]
    assert names[8:14] == ["block0 @ blocks.2", "block0 @ blocks.3", "expand_as.default", "index_copy.default", "cat.default", "linear.default"]  # fmt: skip
    assert "# sprint from blocks_3" in graph_text(sparse.program.graph)
    assert str(sparse.program.layers[0].name) == "sparsify_sprint.0"


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passes", "reason"),
    [
        ("pooled-keys{blocks=0-1}", "pooled-keys at blocks.0: there is no density node; run the density pass first"),
        (
            "windowed{blocks=0-1 window=3}",
            r"windowed at blocks.1: its tokens lie on \[\(8, 8\)\], where windows of 3 x 3 do not fit",
        ),
        ("pool-attention{blocks=0-1},windowed{blocks=0-1}", None),
        ("sprint{blocks=2-9}", "blocks=2-9 but the trunk has blocks 0-5"),
    ],
)
def test_a_refusal_carries_its_reason(passes: str, reason: str | None) -> None:
    if reason is None:  # one of them did something: the refusal is in the report
        report = sparsify(plain(), Policy.dense(), inputs(), passes=passes).report()
        assert [(s.pass_name, s.reason) for s in report.skipped] == [
            ("windowed", "no attention over the trunk's tokens was recognised in the block")
        ] * 2
        return
    with pytest.raises((RewriteError, PolicyError), match=reason):
        sparsify(plain(), Policy.dense(), inputs(), passes=passes)


def test_passes_that_change_nothing_are_an_error_even_behind_a_policy() -> None:
    policy = Policy(1, SDTM(1, 2, 1, 1), 0, Density.constant(grid=(4, 4)))
    with pytest.raises(RewriteError, match=r"windowed changed nothing:\n  windowed at .*windows of 3 x 3 do not fit"):
        sparsify(plain(), policy, inputs(), passes="windowed{blocks=2-3 window=3}")
    with pytest.raises(
        RewriteError, match="fuse-attention changed nothing:\n  fuse-attention at the whole model: there is no place"
    ):
        sparsify(plain(), Policy.dense(), inputs(), passes="fuse-attention")


@pytest.mark.parametrize(
    ("passes", "error", "message"),
    [
        ([PoolAttention], InputError, "passes holds <class .*give an instance, not the class"),
        (3, InputError, "passes holds 3; it must hold passes, or text"),
        ("no-such-pass", PolicyError, "there is no pass 'no-such-pass'"),
    ],
)
def test_what_is_no_pass_is_refused(passes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sparsify(plain(), Policy.dense(), inputs(), passes=passes)


def test_a_pipeline_runs_as_it_is() -> None:
    pipeline = Pipeline.parse("pool-attention{blocks=0-1}")
    sparse = sparsify(plain(), pipeline, inputs())
    assert sparse.report().pipeline == str(pipeline)
    with pytest.raises(InputError, match="put them into it"):
        sparsify(plain(), pipeline, inputs(), passes="cleanup")
    with pytest.raises(PolicyError, match="the pipeline is empty"):
        sparsify(plain(), Pipeline(()), inputs())


# --- what a pass can count on --------------------------------------------------------------------------------------------


def test_new_parameters_behave_as_parameters() -> None:
    model, given = plain(), inputs()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sparse = sparsify(model, Policy.dense(), given, passes=Sprint(BlockRange(2, 4)))
    assert torch.equal(torch.rand(3), expected), "start values leave random numbers as they were"
    new = {f"sparsify_sprint.0.{name}" for name in ("mask", "weight", "bias")}
    assert set(sparse.state_dict()) - set(model.state_dict()) == new
    outcome = sparse.load_state_dict(model.state_dict(), strict=False)
    assert set(outcome.missing_keys) == new and not outcome.unexpected_keys
    layer = sparse.sparsify_sprint[0]
    assert torch.equal(layer.weight, torch.eye(32, 64)) and not layer.mask.any()
    before = sparse(*given)
    twin = copy.deepcopy(sparse)
    assert torch.equal(twin(*given), before)
    with torch.no_grad():
        twin.sparsify_sprint[0].weight.mul_(2)
    assert torch.equal(sparse(*given), before) and not torch.equal(twin(*given), before)
    optimiser = torch.optim.SGD(sparse.parameters(), lr=0.1)
    sparse(*given).square().mean().backward()
    assert all(p.grad is not None for p in layer.parameters())
    optimiser.step()
    sparse.double()
    more = [x.double() if x.is_floating_point() else x for x in inputs(4)]
    assert sparse(*more).dtype == torch.float64 and layer.mask.dtype == torch.float64


@dataclass(frozen=True)
class Shout(Pass):
    """Does to the tokens behind one block what it is given."""

    what: Callable[[torch.Tensor], torch.Tensor]
    name: ClassVar[str] = "shout"

    def match(self, program: Program) -> list[fx.Node]:
        return program.block_nodes[:1]

    def rewrite(self, program: Program, place: fx.Node) -> None:
        with program.graph.inserting_before(place.next):
            made = self.trace(program.graph, self.what, place, origin=place)
        place.replace_all_uses_with(made, delete_user_cb=lambda user: user > made)


def test_the_verifier_runs_after_a_pass_and_names_it() -> None:
    with pytest.raises(VerificationError, match="pass shout left an illegal outer graph"):
        sparsify(plain(), Policy.dense(), inputs(), passes=Shout(lambda x: x[:, :1].relu_()))


def test_a_function_that_does_not_run_is_a_refusal_with_shapes() -> None:
    with pytest.raises(
        RewriteError, match=r"shout at blocks.0: <lambda> does not run on %blocks_0: \[s\d+, .*, 32\]: Expected size"
    ):
        sparsify(plain(), Policy.dense(), inputs(), passes=Shout(lambda x: x @ x))


def test_an_error_of_a_pass_says_which_pass_it_was() -> None:
    with pytest.raises(AttributeError) as caught:
        sparsify(plain(), Policy.dense(), inputs(), passes=Shout(lambda x: x.no_such_method()))
    assert any("while the pass shout" in note for note in caught.value.__notes__)


def test_traced_code_keeps_sizes_open() -> None:
    model = plain()
    sparse = sparsify(model, Policy.dense(), inputs(), passes=Shout(lambda x: x + torch.arange(x.shape[0])[:, None, None]))
    for batch in (3, 5):
        given = inputs(batch)
        c = model.conditioning(*given[1:])
        tokens = model.blocks[0](model.embed(given[0]), c) + torch.arange(batch)[:, None, None]
        for block in model.blocks[1:]:
            tokens = block(tokens, c)
        assert torch.allclose(sparse(*given), model.finish(tokens, c), atol=1e-5)
    assert len(sparse._stages) == 1


@pytest.mark.parametrize("after", [True, False])
def test_traced_code_keeps_its_order_wherever_it_is_written(after: bool) -> None:
    class Placed(Shout):
        def rewrite(self, program: Program, place: fx.Node) -> None:
            graph, following = program.graph, place.next
            with graph.inserting_after(place) if after else graph.inserting_before(following):
                made = self.trace(graph, lambda x: (-x + 1) * 2, place, origin=place)
            nodes = list(graph.nodes)
            between = nodes[nodes.index(place) + 1 : nodes.index(following)]
            assert [node.target._opname for node in between] == ["neg", "add", "mul"]
            place.replace_all_uses_with(made, delete_user_cb=lambda user: user > made)

    model, given = plain(), inputs()
    sparse = sparsify(model, Policy.dense(), given, passes=Placed(torch.neg))
    c, tokens = model.conditioning(*given[1:]), model.embed(given[0])
    for index, block in enumerate(model.blocks):
        tokens = (1 - block(tokens, c)) * 2 if index == 0 else block(tokens, c)
    assert torch.allclose(sparse(*given), model.finish(tokens, c), atol=1e-5)


def test_what_traced_code_asks_of_sizes_is_a_condition_of_the_capture() -> None:
    model = plain()
    sparse = sparsify(model, Policy.dense(), inputs(), passes=Shout(lambda x: x * 2 if x.shape[0] > 2 else x * 3))
    for batch, factor, captures in ((2, 3, 1), (5, 2, 2)):
        given = inputs(batch)
        c = model.conditioning(*given[1:])
        tokens = model.blocks[0](model.embed(given[0]), c) * factor
        for block in model.blocks[1:]:
            tokens = block(tokens, c)
        assert torch.allclose(sparse(*given), model.finish(tokens, c), atol=1e-5)
        assert len(sparse._stages) == captures


@dataclass(frozen=True)
class Counting(Pass):
    """Looks at the number of tokens in a block."""

    name: ClassVar[str] = "counting"

    def match(self, program: Program) -> list[fx.Node]:
        return program.block_nodes[2:3]

    def rewrite(self, program: Program, place: fx.Node) -> None:
        body = copy_body(program.body_of(place), "counting")
        (output,) = body.graph.output_node().all_input_nodes
        with body.graph.inserting_before(body.graph.output_node()):
            made = self.trace(body.graph, lambda x: x * 2 if x.shape[1] > 20 else x * 3, output, origin=output)
        body.graph.output_node().replace_input_with(output, made)
        give(program, place, body)
        self.mark(place, place)


def test_what_it_asks_must_hold_at_every_density() -> None:
    with pytest.raises(RewriteError, match=r"was traced where .*20.*, which does not hold at the pooled grid \(4, 2\)"):
        sparsify(plain(), WINDOWS, inputs(), passes=Counting())


class Anywhere(PlainDiT):
    """A model without a table of positions, which runs at any resolution."""

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.x_embedder(x).flatten(2).transpose(1, 2)

    def finish(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


def test_a_pass_that_decides_by_resolution_is_asked_again_at_another() -> None:
    model = randomised(Anywhere(depth=4)).eval()
    sparse = sparsify(model, Policy.dense(), inputs(), passes="windowed{blocks=1-2 window=4}")
    assert sparse(*inputs(size=(24, 16))).shape[1] == 96
    assert len(sparse._stages) == 2
    with pytest.raises(RewriteError, match=r"\[\(6, 8\)\], where windows of 4 x 4 do not fit"):
        sparse(*inputs(size=(12, 16)))


@pytest.mark.parametrize("name", ["Shouting", "a b", "restore", ""])
def test_names_of_passes_are_checked(name: str) -> None:
    with pytest.raises(PolicyError, match="must be like 'pool-attention'"):
        type("Named", (Shout,), {"name": name})
