"""Rows: models that are wrong, or that do what the common ones do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparsify import SDTM, CaptureError, Density, GridError, InputError, Policy, PolicyError, RewriteError, TrunkError

from ..oracle import plain_dit_run
from ..test_exact import oracle_trunk, randomise_restores
from . import builders as b
from . import models as m
from .scene import Row, Scene
from .tiny import POLICY, TOLERANCE, Change, expected, given, shared, tiny

GROUP = "model"
SIX = Policy(0, SDTM(1, 1, 1, 0) * 2, 0, POLICY.density)


def refused(
    make: Callable[[], Any], policy: Any = POLICY, inputs: Callable[[], Any] = given, **options: Any
) -> Callable[[Scene], None]:
    """``sparsify`` must raise."""

    def act(scene: Scene) -> None:
        scene.sparsify(make(), policy, inputs(), **options)

    return act


def dense(make: Callable[[], Any], inputs: Callable[[], Any] = given) -> Callable[[Scene], None]:
    """The dense policy is the model, to the last bit; each side starts from the same random state."""

    def act(scene: Scene) -> None:
        model, example, others = make(), inputs(), inputs()
        sparse = scene.sparsify(model, Policy.dense(), example)
        torch.manual_seed(1)
        found = sparse(*others)
        torch.manual_seed(1)
        scene.same(found, model(*others))

    return act


def answers(
    make: Callable[[], Any], change: Change | None = None, inputs: Callable[[], Any] = given
) -> Callable[[Scene], None]:
    """The sparse policy is the hand-written SparseDiT, with blocks that do what ``change`` says besides."""

    def act(scene: Scene) -> None:
        model, example = make(), inputs()
        sparse = scene.sparsify(model, POLICY, example)
        randomise_restores(sparse)
        for t, pooled in ((700, (2, 2)), (100, (3, 3))):
            x, _, y = inputs()
            call = (x, torch.full((len(x),), t), y)
            scene.same(sparse(*call), expected(sparse, model, call, pooled, change), TOLERANCE)

    return act


def scaled(index: int, block: Any, value: torch.Tensor) -> torch.Tensor:
    return value * 1.2 if index == 2 else value


def written(index: int, block: Any, value: torch.Tensor) -> torch.Tensor:
    factors = torch.ones(value.shape[-1])
    factors[::2] = 1.1
    return value * factors + 0.01


def normed(index: int, block: Any, value: torch.Tensor) -> torch.Tensor:
    norm = block.over_batch
    return (value - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def of_other_sizes(make: Callable[[], Any]) -> Callable[[Scene], None]:
    """The dense policy is the model for other batches and pictures than it was captured with."""

    def act(scene: Scene) -> None:
        model = make()
        sparse = scene.sparsify(model, Policy.dense(), given())
        for call in (given(3), given(size=(12, 8))):
            scene.same(sparse(*call), model(*call))

    return act


def in_both_branches(scene: Scene) -> None:
    model = tiny(m.BranchesOnValues)
    sparse = scene.sparsify(model, Policy.dense(), given())
    x, t, y = given()
    for latent in (x, x + 200):
        scene.same(sparse(latent, t, y), model(latent, t, y))


def reads_a_number(scene: Scene) -> None:
    model = tiny(m.ReadsANumber)
    sparse = scene.sparsify(model, POLICY, given())
    randomise_restores(sparse)
    x, t, y = given()
    for time, pooled in ((700, (2, 2)), (100, (3, 3))):
        call = (x * (1 + time / 1000), torch.full_like(t, time), y)
        scene.same(sparse(x, call[1], y), expected(sparse, model, call, pooled), TOLERANCE)


def acts_as_ever(scene: Scene, model: m.PlainDiT, calls: int) -> m.PlainDiT:
    """Let a model that changes itself run in dense form, beside a copy that runs as it is; the copy."""
    twin = copy.deepcopy(model)
    sparse, call = scene.sparsify(model, Policy.dense(), given()), given()
    scene.forget()  # from here on the model changes, as it always does
    for _ in range(calls):
        scene.same(sparse(*call), twin(*call))
    return twin


def counts_on(scene: Scene) -> None:
    model = tiny(m.Counts)
    acts_as_ever(scene, model, calls=3)
    scene.same(model.calls, torch.tensor(3.0))


def writes_a_weight(scene: Scene) -> None:
    model = tiny(m.WritesAWeight)
    twin = acts_as_ever(scene, model, calls=2)
    scene.same(model.head.weight.detach(), twin.head.weight.detach())


def writes_its_input(cls: type[m.PlainDiT]) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        model, (x, t, y) = tiny(cls), given()
        sparse = scene.sparsify(model, Policy.dense(), given())
        mine, theirs = x.clone(), x.clone()
        scene.same(sparse(mine, t, y), model(theirs, t, y))
        scene.same(mine, theirs)

    return act


def remembers_nothing(scene: Scene) -> None:
    model = tiny(m.CountsInPython)
    sparse = scene.sparsify(model, POLICY, given())
    call = given()
    scene.same((len(model.cache), len(model.calls)), (0, 0))
    scene.same(sparse(*call), expected(sparse, model, call), TOLERANCE)


def under(mode: Callable[[], Any]) -> Callable[[Scene], None]:
    """Captured in a mode, and called in it and outside of it; what comes out trains."""

    def act(scene: Scene) -> None:
        model = tiny()
        with mode():
            example, call = given(), given()
            sparse = scene.sparsify(model, POLICY, example)
            scene.same(sparse(*call), expected(sparse, model, call), TOLERANCE)
        call = given()
        sparse(*call).square().mean().backward()
        scene.same(bool(model.head.weight.grad.abs().max() > 0), True)
        scene.same(sparse(*call).detach(), expected(sparse, model, call), TOLERANCE)

    return act


def block_is_compiled() -> Any:
    model = tiny()
    model.blocks[1].compile()
    return model


def parallel(scene: Scene) -> None:
    model = tiny()
    sparse, call = scene.sparsify(nn.DataParallel(model), POLICY, given()), given()
    scene.same(sparse(*call), expected(sparse, model, call), TOLERANCE)


def frozen(scene: Scene) -> None:
    model = b.frozen()
    sparse, call = scene.sparsify(model, POLICY, given()), given()
    found = sparse(*call)
    scene.same(found.detach(), expected(sparse, model, call), TOLERANCE)
    found.sum().backward()
    scene.same([p.grad is not None for p in model.parameters()], [p.requires_grad for p in model.parameters()])


def on_meta(scene: Scene) -> None:
    inputs = tuple(x.to("meta") for x in given())
    sparse = scene.sparsify(b.on_meta(), POLICY, inputs)
    with sparse.at(700):
        scene.same(sparse(*inputs), torch.empty(2, 3, 8, 8, device="meta"))
    sparse(*inputs)


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 24, 16), torch.tensor([5, 5])


def grid_is_given(scene: Scene) -> None:
    policy = Policy(0, SDTM(1, 1, 1, 0), 0, Density.constant(grid=(2, 3)))
    model, call = m.TokensGiven(), tokens()
    sparse = scene.sparsify(model, policy, tokens(), grid=(4, 6))
    randomise_restores(sparse)
    run = plain_dit_run(model.conditioning(call[1]))
    scene.same(sparse(*call), oracle_trunk(sparse, policy, model.blocks, call[0], run, (4, 6), (2, 3)), TOLERANCE)


def any_nesting(scene: Scene) -> None:
    model, call = m.Wrapped(), given()
    sparse = scene.sparsify(model, POLICY, given())
    scene.same(sparse(*call), {"sample": expected(sparse, model.inner, call)}, TOLERANCE)


_CASES: tuple[tuple[str, Callable[[Scene], None], Any, tuple[str, ...]], ...] = (
    ("no trunk", refused(m.NoTrunk, inputs=lambda: (torch.ones(2, 3, 4),)), TrunkError, ("no trunk found: NoTrunk",)),
    ("not a module", refused(lambda: print), InputError, ("model is a builtin_function_or_method", "torch.nn.Module")),
    ("a single block", refused(lambda: tiny(depth=1)), TrunkError, ("no trunk found",)),
    ("no block at all", refused(lambda: tiny(depth=0)), TrunkError, ("no trunk found",)),
    ("one module three times in the list of blocks", refused(lambda: tiny(m.OnePlaceForAll)), TrunkError, ("blocks.0", "share weights")),
    ("blocks that run in two rounds", refused(lambda: tiny(m.Rounds)), TrunkError, ("runs 2 times in one call", "share weights")),
    ("one parameter in two blocks", answers(b.tied_weights), None, ()),
    ("one module within all blocks", answers(b.shared_parts), None, ()),
    ("two trunks, one after the other", refused(lambda: tiny(m.TwoTrunks)), PolicyError, ("3 blocks", "6")),
    ("two trunks side by side", refused(lambda: tiny(m.Branches), SIX), CaptureError, ("more.0", "blocks.2", "no chain")),
    ("blocks without attention", refused(lambda: tiny(m.NoAttention)), RewriteError, ("no attention over the trunk's tokens",)),
    ("causal attention", refused(b.causal), RewriteError, ("blocks.0", "is causal")),
    ("no timestep among the inputs", refused(lambda: tiny(m.NoTimestep)), InputError, ("Pass timestep=",)),
    ("no grid to be read", refused(m.TokensGiven, inputs=tokens), GridError, ("Pass grid=",)),
    ("no grid to be read, and one given", grid_is_given, None, ()),
    ("sparsified already", refused(lambda: shared()[1]), RewriteError, ("sparsified already", "original model")),
    ("a sparsified model inside", refused(lambda: nn.Sequential(shared()[1])), RewriteError, ("sparsified already",)),
    ("blocks write into what they are given", refused(lambda: tiny(block=m.InPlaceBlock)), CaptureError, ("writes to",)),
    ("blocks write into a copy", answers(lambda: tiny(block=m.WritesIntoACopy), written), None, ()),
    ("batch norm in blocks, training", refused(lambda: b.with_batch_norm(True)), CaptureError, ("writes to", "running_mean")),
    ("batch norm in blocks, evaluation", answers(lambda: b.with_batch_norm(False), normed), None, ()),
    ("hooks on blocks", answers(b.with_hooks, scaled), None, ()),
    ("weight norm in blocks", answers(b.with_spectral_norm), None, ()),
    ("blocks keep what they computed on themselves", answers(lambda: tiny(block=m.KeepsTheAttention)), None, ()),
    ("a block branches on values", refused(lambda: tiny(block=m.LooksAtValues)), CaptureError, ("LooksAtValues", "data-dependent")),
    ("the model branches on values", in_both_branches, None, ()),
    ("the model reads a number with .item()", reads_a_number, None, ()),
    ("dropout in training mode", dense(lambda: tiny(dropout=0.5).train()), None, ()),
    ("noise is drawn in forward", dense(lambda: tiny(m.Noisy)), None, ()),
    ("draws from Python's random", refused(lambda: tiny(m.DrawsFromPython)), CaptureError, ("Python's random module",)),
    ("draws from numpy's random", refused(lambda: tiny(m.DrawsFromNumpy)), CaptureError, ("numpy",)),
    ("forward changes a buffer", counts_on, None, ()),
    ("forward fills a cache and a list", remembers_nothing, None, ()),
    ("forward writes a weight", writes_a_weight, None, ()),
    ("forward writes into its input", writes_its_input(m.WritesItsInput), None, ()),
    ("forward writes into its input by a number that it reads", writes_its_input(m.WritesItsInputAndReadsANumber), None, ()),
    ("forward returns its input and a view of it", dense(lambda: tiny(m.ReturnsItsInput)), None, ()),
    ("forward returns sizes of its input", of_other_sizes(lambda: tiny(m.ReturnsSizes)), None, ()),
    ("blocks return sizes of their input", of_other_sizes(lambda: tiny(m.ReturnsASizeFromBlocks, m.BlockWithASize)), None, ()),
    ("forward takes *args and **kwargs", any_nesting, None, ()),
    ("forward raises", refused(lambda: tiny(m.Fails)), ValueError, ("the model's own complaint",)),
    ("captured under no_grad", under(torch.no_grad), None, ()),
    ("captured under inference_mode", under(torch.inference_mode), None, ()),
    ("a compiled model", refused(lambda: torch.compile(tiny())), InputError, ("is compiled", "original model")),
    ("a compiled block", refused(block_is_compiled), InputError, ("blocks.1", "is compiled")),
    ("a TorchScript module", refused(b.traced), InputError, ("TorchScript", "original model")),
    ("DataParallel", parallel, None, ()),
    ("weights on the meta device, and a timestep", on_meta, InputError, ("meta device", "at(timestep)")),
    ("complex weights", answers(lambda: tiny(m.Fourier, width=24)), None, ()),
    ("frozen parameters", frozen, None, ()),
    ("a layer that is not initialised yet", refused(b.unwritten), InputError, ("head.weight", "LazyLinear")),
    ("a weight of NaN", dense(b.with_nan), None, ()),
    ("weights in float16", dense(lambda: b.in_dtype(torch.float16), lambda: half(torch.float16)), None, ()),
    ("weights in bfloat16", dense(lambda: b.in_dtype(torch.bfloat16), lambda: half(torch.bfloat16)), None, ()),
)  # fmt: skip


def half(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    x, t, y = given()
    return x.to(dtype), t, y


# Each captures a model for what a row beside it shows as well.
_SLOW = (
    "captured under no_grad",
    "forward writes into its input",
    "weights in bfloat16",
    "blocks keep what they computed on themselves",
    "one module within all blocks",
    "forward takes *args and **kwargs",
)

ROWS = [Row(GROUP, name, act, error, words, name in _SLOW) for name, act, error, words in _CASES]
