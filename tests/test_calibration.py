"""Restore layers fitted in closed form, against least squares on tokens of the plain eager SparseDiT."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from sparsify import SDTM, Density, InputError, Policy, SparseModel, sparsify
from sparsify.ridge import NormalEquations

from . import oracle
from .helpers import POLICY, inputs, plain
from .plain_dit import PlainDiT, randomised
from .side_input_models import SequenceDiT
from .side_input_streams import SD3
from .test_in_place import expected, given, looking
from .test_side_inputs import image_call

TWO = Policy(1, SDTM(1, 1, 1, 0) * 2, 1, Density.paper(r_min=0.5, r_max=0.9))
RIDGE = 1e-3


def model_and_batches(count: int = 3) -> tuple[PlainDiT, list[tuple[torch.Tensor, ...]]]:
    torch.manual_seed(0)
    model = plain(depth=8).double()
    batches = [inputs(batch=4, t=t) for t in (50, 450, 900)[:count]]
    return model, [(x.double(), t, y) for x, t, y in batches]


def least_squares(features: torch.Tensor, change: torch.Tensor, ridge: float) -> torch.Tensor:
    """By QR on the equations with the damping as further rows: no normal equations."""
    rms = features.square().mean(dim=0).sqrt()
    damping = torch.diag(rms * (ridge * len(features)) ** 0.5)
    a = torch.cat([features, damping])
    y = torch.cat([change, change.new_zeros(len(damping), change.shape[1])])
    return torch.linalg.lstsq(a, y).solution


def fitted_by_hand(model: PlainDiT, batches: list[Any], ridge: float) -> list[tuple[torch.Tensor, ...]]:
    """(W1, b1, W2, b2) of both modules of ``TWO``, each fitted on tokens from below with the fitted ones in force."""
    restores: list[tuple[torch.Tensor, ...]] = []
    width = model.width
    for module in range(2):
        features, changes = [], []
        for x, t, y in batches:
            run, pooled = oracle.plain_dit_run(model.conditioning(t, y)), TWO.density.grid_at(float(t[0]), model.grid)
            blocks = list(model.blocks)
            below = 1 + 3 * module
            segments = [(1, 1, 1, 0)] * module
            tokens = oracle.sparse_trunk(blocks[:below], model.embed(x), run, model.grid, pooled, 1, segments, restores)
            few = oracle.average(tokens, model.grid, pooled)
            few = run(blocks[below], few, tokens, False)
            few = run(blocks[below + 1], few, few, False)
            dense = model.embed(x)
            for block in blocks[: below + 2]:
                dense = run(block, dense, dense, False)
            up = oracle.nearest(few, pooled, model.grid)
            features.append(torch.cat([up, tokens, torch.ones_like(up[..., :1])], -1).flatten(0, 1))
            changes.append((dense - tokens).flatten(0, 1))
        change = least_squares(torch.cat(features), torch.cat(changes), ridge)
        w1, w2 = change[:width].T, change[width : 2 * width].T + torch.eye(width, dtype=change.dtype)
        restores.append((w1, torch.zeros(width, dtype=change.dtype), w2, change[2 * width]))
    return restores


def layers(sparse: SparseModel) -> list[tuple[torch.Tensor, ...]]:
    found = [sparse.get_submodule(restore.name) for restore in sparse.program.restores]
    return [tuple(p.detach() for part in (x.sparse, x.dense) for p in (part.weight, part.bias)) for x in found]


@pytest.mark.parametrize("savings", [True, False])
@torch.no_grad()
def test_the_fit_is_that_of_least_squares_on_the_plain_models_tokens(savings: bool) -> None:
    model, batches = model_and_batches()
    sparse = sparsify(model, TWO, example_inputs=batches[0], savings=savings)
    sparse.calibrate(batches, ridge=RIDGE)
    for got, want in zip(layers(sparse), fitted_by_hand(model, batches, RIDGE), strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


@torch.no_grad()
def test_too_few_tokens_for_a_fit_without_ridge_are_named() -> None:
    model, batches = model_and_batches()
    sparse = sparsify(model, TWO, example_inputs=batches[0])
    before = [x.clone() for layer in layers(sparse) for x in layer]
    few = tuple(torch.zeros_like(x[:1]) for x in batches[0])
    with pytest.raises(InputError, match=r"ridge is 0.0, and the tokens .* do not determine its restore layer; use a little"):
        sparse.calibrate([few], ridge=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, (x for layer in layers(sparse) for x in layer), strict=True))


@torch.no_grad()
def test_it_says_what_it_gained_and_the_numbers_are_those_of_the_tokens() -> None:
    model, batches = model_and_batches()
    sparse = sparsify(model, TWO, example_inputs=batches[0])
    found = sparse.calibrate(batches, ridge=RIDGE)
    again = sparse.calibrate(batches, ridge=RIDGE)  # what was fitted is now what was there before
    assert [fit.name for fit in found.fits] == ["sparsify_restore.0", "sparsify_restore.1"]
    for fit, repeated in zip(found.fits, again.fits, strict=True):
        assert fit.after < fit.before
        assert repeated.before == pytest.approx(fit.after, rel=1e-9)
        assert repeated.after == pytest.approx(fit.after, rel=1e-9)
        assert fit.rows == sum(len(x) for x, _, _ in batches) * 64
        assert 1 <= fit.condition < 1e6
        assert list(fit.grids) == sorted(
            {"x".join(map(str, TWO.density.grid_at(t, (8, 8)))) for t in (50, 450, 900)}, reverse=True
        )
    assert json.loads(found.to_json())["fits"][0]["block"] == "blocks.3"
    assert "sparsify_restore.1" in str(found)


@torch.no_grad()
def test_it_lessens_the_error_of_the_output() -> None:
    model, batches = model_and_batches()
    sparse = sparsify(model, TWO, example_inputs=batches[0])
    other = (torch.randn_like(batches[0][0]), *batches[1][1:])
    before = (sparse(*other) - model(*other)).norm()
    sparse.calibrate(batches)
    assert (sparse(*other) - model(*other)).norm() < 0.8 * before


@torch.no_grad()
def test_where_nothing_is_lost_the_identity_start_is_the_best_fit() -> None:
    """Blocks whose gates are 0 hand their tokens on: the dense tokens in front of the recover block are X itself."""
    model, batches = model_and_batches()
    for block in model.blocks:
        block.modulation[1].weight.zero_()
        block.modulation[1].bias.zero_()
    sparse = sparsify(model, TWO, example_inputs=batches[0])
    before = [tuple(p.clone() for p in layer) for layer in layers(sparse)]
    found = sparse.calibrate(batches)
    assert all(fit.before < 1e-28 and fit.after < 1e-20 for fit in found.fits)
    for got, want in zip(layers(sparse), before, strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@torch.no_grad()
def test_only_restore_layers_change_and_modes_and_random_state_stay() -> None:
    model, batches = model_and_batches()
    sparse = sparsify(model, TWO, example_inputs=batches[0])
    sparse.train()
    sparse.blocks.eval()
    flags = {name: module.training for name, module in sparse.named_modules()}
    kept = {name: tensor.clone() for name, tensor in sparse.state_dict().items() if "sparsify_restore" not in name}
    random_state = torch.get_rng_state()
    sparse.calibrate(batches)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name: module.training for name, module in sparse.named_modules()} == flags
    assert not model.training
    for name, tensor in kept.items():
        assert torch.equal(sparse.state_dict()[name], tensor), name
    assert all(p.grad is None and p.requires_grad for p in sparse.parameters())


@torch.no_grad()
def test_another_teacher_is_matched_instead() -> None:
    model, batches = model_and_batches()
    teacher = plain(depth=8).double()
    for p in teacher.parameters():
        p.mul_(1.1)
    sparse = sparsify(model, TWO, example_inputs=batches[0])
    own = sparse.calibrate(batches).fits[0]
    other = sparse.calibrate(batches, teacher=teacher).fits[0]
    assert other.after > own.after


def test_what_depends_on_the_prompt_follows_the_fit() -> None:
    """Kept results of the prompt's part do not hide new weights."""
    model, batches = model_and_batches()
    sparse = sparsify(model, TWO, example_inputs=batches[0])
    with torch.no_grad():
        before = sparse(*batches[0])
        sparse.calibrate(batches)
        assert not torch.equal(sparse(*batches[0]), before)
        twin = sparsify(model, TWO, example_inputs=batches[0])
        twin.load_state_dict(sparse.state_dict())
        torch.testing.assert_close(twin(*batches[0]), sparse(*batches[0]), rtol=0, atol=1e-12)


def test_progress_ends_at_the_whole() -> None:
    model, batches = model_and_batches()
    sparse, seen = sparsify(model, TWO, example_inputs=batches[0]), []
    sparse.calibrate(batches, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 9) for i in range(9)]


# --- sums in doubles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1])
def test_normal_equations_give_the_least_squares_solution_whatever_the_scale_of_channels(ridge: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(500, 12, generator=generator, dtype=torch.float64) * torch.logspace(-4, 4, 12, dtype=torch.float64)
    y = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    equations, second = NormalEquations(12, 3), NormalEquations(12, 3)
    equations.add(a[:200], y[:200])
    second.add(a[200:], y[200:])
    equations += second
    solution = equations.solve(ridge)
    torch.testing.assert_close(solution.weights, least_squares(a, y, ridge), rtol=1e-9, atol=0)
    assert solution.condition < 3
    wanted = (a @ solution.weights - y).square().sum()
    assert equations.residual(solution.weights) == pytest.approx(float(wanted), rel=1e-12)


def test_a_channel_that_is_always_zero_gets_no_weight() -> None:
    a = torch.randn(50, 4, dtype=torch.float64)
    a[:, 2] = 0
    equations = NormalEquations(4, 1)
    equations.add(a, a[:, :1] + 1)
    weights = equations.solve(1e-6).weights
    assert torch.isfinite(weights).all()
    assert abs(float(weights[2])) < 1e-9


# --- other kinds of model ---------------------------------------------------------------------------------------------


def tokens_in_front(sparse: SparseModel, path: str, example: Any) -> torch.Tensor:
    """What a block of a sparse model, or of a dense one in that form, gets for its tokens."""
    seen: list[torch.Tensor] = []
    position = sparse.program.bodies[sparse.program.all_block_nodes[0].meta["body"]].tokens
    hook = sparse.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[position]))
    sparse(**example) if isinstance(example, dict) else sparse(*example)
    hook.remove()
    return seen[0]


def check_other_kind(model: Any, policy: Policy, example: Any, text: int = 0, **options: Any) -> None:
    """What the fit says of its error is what blocks of the sparse and of the dense model are really given."""
    sparse = sparsify(model, policy, example_inputs=example, **options)
    (fit,) = sparse.calibrate([example]).fits
    assert fit.after < 0.9 * fit.before
    dense = sparsify(model, Policy.dense(), example_inputs=example)
    want = tokens_in_front(dense, fit.block, example)[:, text:]
    got = tokens_in_front(sparse, fit.block, example)[:, text:]
    assert fit.after == pytest.approx(float((got - want).square().sum() / want.square().sum()), rel=1e-6)


ONE = Policy(0, SDTM(1, 1, 1, 0), 2, Density.paper(0.5, 0.9))


@torch.no_grad()
def test_text_in_the_sequence_is_no_part_of_the_fit() -> None:
    example = image_call(text=5)
    check_other_kind(randomised(SequenceDiT()).double().eval(), ONE, example, text=5)


@torch.no_grad()
def test_two_streams_have_their_image_tokens_fitted() -> None:
    example = image_call(text=7)
    check_other_kind(randomised(SD3()).double().eval(), Policy(0, SDTM(2, 0, 1, 0), 2, Density.paper(0.5, 0.9)), example)


@torch.no_grad()
def test_models_that_run_in_place_are_fitted_too() -> None:
    model = looking()
    sparse = sparsify(model, POLICY, example_inputs=given())
    assert sparse.program.in_place
    (fit,) = sparse.calibrate([given(), given(t=100)]).fits
    assert fit.after < 0.9 * fit.before
    x, t, y = given()
    wanted = expected(model, sparse, x, t, y, 1.0)
    torch.testing.assert_close(sparse(x, t, y), wanted, rtol=0, atol=1e-9)  # the fitted layers are in force


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_nothing_to_calibrate_is_said() -> None:
    model, batches = model_and_batches(1)
    sparse = sparsify(model, Policy.dense(), example_inputs=batches[0])
    with pytest.raises(InputError, match="no sparse-dense module"):
        sparse.calibrate(batches)
    sparse = sparsify(model, TWO, example_inputs=batches[0])
    with pytest.raises(InputError, match="batches is empty"):
        sparse.calibrate([])
    for ridge in (-1.0, float("nan"), "much", True):
        with pytest.raises(InputError, match="ridge is"):
            sparse.calibrate(batches, ridge=ridge)  # type: ignore[arg-type]


def test_tokens_that_are_no_numbers_leave_every_layer_as_it_was() -> None:
    """Also those below the layer at which it shows: here the second batch has them from the start, and a block in between."""
    model, batches = model_and_batches()
    sparse = sparsify(model, TWO, example_inputs=batches[0])
    before = [tuple(p.clone() for p in layer) for layer in layers(sparse)]
    with torch.no_grad():
        model.blocks[4].attn.proj.weight.fill_(float("nan"))  # behind the first layer, in front of the second
    with pytest.raises(InputError, match=r"batches\[0\].*blocks\.6 are not finite numbers\.$"):
        sparse.calibrate(batches)
    for got, want in zip(layers(sparse), before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_teacher_with_other_blocks_is_refused() -> None:
    model, batches = model_and_batches(1)
    sparse = sparsify(model, TWO, example_inputs=batches[0])
    with pytest.raises(InputError, match=r"has no block blocks\.6"):
        sparse.calibrate(batches, teacher=plain(depth=4).double())
