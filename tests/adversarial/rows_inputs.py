"""Rows: calls that do not fit what was captured, or that are merely unusual. They share one capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sparsify import SDTM, Density, InputError, Policy, PolicyError
from sparsify.errors import NotCapturedError

from ..test_exact import randomise_restores
from .builders import any_size
from .rows_models import refused
from .scene import Row, Scene
from .tiny import POLICY, TOLERANCE, expected, given, shared, tiny

GROUP = "call"
Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]


def call(change: Call, pooled: tuple[int, int] = (2, 2), batch: int = 2) -> Callable[[Scene], None]:
    """The changed call gives what the oracle makes of it."""

    def act(scene: Scene) -> None:
        model, sparse = shared()
        inputs = change(*given(batch))
        scene.watch(model, inputs)
        with torch.no_grad():
            scene.same(sparse(*inputs), expected(sparse, model, inputs, pooled), TOLERANCE)

    return act


def bad(change: Call) -> Callable[[Scene], None]:
    """The changed call must raise, and the next good one must work."""

    def act(scene: Scene) -> None:
        model, sparse = shared()
        inputs = change(*given())
        scene.watch(model, inputs)
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        try:
            sparse(*args, **kwargs)
        finally:
            good = given()
            with torch.no_grad():
                scene.same(sparse(*good), expected(sparse, model, good), TOLERANCE)

    return act


def spoiled(number: float) -> Callable[[Scene], None]:
    """One image of the batch holds a number that is not finite: the answer for the other one is right."""

    def act(scene: Scene) -> None:
        model, sparse = shared()
        x, t, y = given()
        x[0, 0, 0, 0] = number
        with torch.no_grad():
            found, want = sparse(x, t, y), expected(sparse, model, (x, t, y))
        scene.same(found[1], want[1], TOLERANCE)
        scene.same((bool(found[1].isfinite().all()), bool(found[0].isfinite().any())), (True, False))

    return act


def wants_a_gradient(scene: Scene) -> None:
    model, sparse = shared()
    x, t, y = given()
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (found,) = torch.autograd.grad(sparse(mine, t, y).square().sum(), mine)
    with torch.enable_grad():
        want = expected.__wrapped__(sparse, model, (theirs, t, y))
    scene.same(found, torch.autograd.grad(want.square().sum(), theirs)[0], 1e-4)


def other_sizes(scene: Scene) -> None:
    model = any_size()
    sparse = scene.sparsify(model, POLICY, given())
    randomise_restores(sparse)
    for size in ((8, 8), (12, 6), (9, 7)):  # the last one is no multiple of the patch
        inputs = given(size=size)
        with torch.no_grad():
            scene.same(sparse(*inputs), expected(sparse, model, inputs), TOLERANCE)
            scene.same(sparse(*inputs).shape, model(*inputs).shape)


def too_small(scene: Scene) -> None:
    model = any_size()
    sparse = scene.sparsify(model, POLICY, given())
    sparse(*given(size=(2, 8)))


def a_row(scene: Scene) -> None:
    policy = Policy(0, SDTM(1, 1, 1, 0), 0, Density.constant(grid=(1, 3)))
    model = tiny(image=(2, 16))
    sparse = scene.sparsify(model, policy, given(size=(2, 16)))
    randomise_restores(sparse)
    inputs = given(size=(2, 16))
    with torch.no_grad():
        scene.same(sparse(*inputs), expected(sparse, model, inputs, (1, 3), policy=policy), TOLERANCE)


def of_none(scene: Scene) -> None:
    model = any_size()
    sparse = scene.sparsify(model, POLICY, given())
    sparse(*given(0))


def at_first_call(scene: Scene) -> None:
    scene.sparsify(tiny(), POLICY, None).parameters().__next__()


def at_a_large_number(scene: Scene) -> None:
    with shared()[1].at(10**400):
        pass


_T = "['t']"
ROWS = [
    Row(GROUP, "a latent that is not contiguous", call(lambda x, t, y: (x.transpose(2, 3).contiguous().transpose(2, 3), t, y))),
    Row(GROUP, "a latent with channels last", call(lambda x, t, y: (x.to(memory_format=torch.channels_last), t, y))),
    Row(GROUP, "an expanded latent and timestep", call(lambda x, t, y: (x[:1].expand(4, -1, -1, -1), t[:1].expand(4), y[:1].expand(4)))),
    Row(GROUP, "a latent that is every other row of a larger one", call(lambda x, t, y: (torch.randn(2, 3, 16, 16)[:, :, ::2, ::2], t, y))),
    Row(GROUP, "a batch of one", call(lambda x, t, y: (x, t, y), batch=1)),
    Row(GROUP, "a batch of none", of_none, InputError, ("batch has a size of 0", "at least 1")),
    Row(GROUP, "a batch of seven", call(lambda x, t, y: (x, t, y), batch=7)),
    Row(GROUP, "captured with a batch of none", refused(any_size, inputs=lambda: given(0)), InputError, ("batch has a size of 0", "at least 1")),
    Row(GROUP, "NaN in one image", spoiled(float("nan"))),
    Row(GROUP, "infinity in one image", spoiled(float("inf"))),
    Row(GROUP, "a latent in float16", bad(lambda x, t, y: (x.half(), t, y)), RuntimeError, ("Half", "should be the same")),
    Row(GROUP, "a latent in float64", bad(lambda x, t, y: (x.double(), t, y)), RuntimeError, ("double", "should be the same")),
    Row(GROUP, "whole numbers for a latent", bad(lambda x, t, y: (x.long(), t, y)), RuntimeError, ("long int", "should be the same")),
    Row(GROUP, "a latent on another device", bad(lambda x, t, y: (x.to("meta"), t, y)), RuntimeError, ("device", "meta")),
    Row(GROUP, "a sparse tensor for a latent", bad(lambda x, t, y: (x.to_sparse(), t, y)), RuntimeError, ("sparse", "should be the same")),
    Row(GROUP, "a latent without a batch axis", bad(lambda x, t, y: (x[0], t, y)), RuntimeError, ("must match the size",)),
    Row(GROUP, "a latent that wants a gradient", wants_a_gradient),
    Row(GROUP, "timesteps as floating-point numbers", call(lambda x, t, y: (x, t.float(), y))),
    Row(GROUP, "timesteps in int32", call(lambda x, t, y: (x, t.int(), y)), slow=True),
    Row(GROUP, "timesteps of two densities in a batch", call(lambda x, t, y: (x, torch.tensor([700, 100]), y), (3, 3))),
    Row(GROUP, "a timestep above the schedule", bad(lambda x, t, y: (x, t + 301, y)), InputError, ("timestep 1001", "outside [0, 1000]", "Density(timesteps=...)")),
    Row(GROUP, "a negative timestep", bad(lambda x, t, y: (x, t - 701, y)), InputError, ("timestep -1", "outside [0, 1000]")),
    Row(GROUP, "a timestep of NaN", bad(lambda x, t, y: (x, t * float("nan"), y)), InputError, ("timestep nan", "outside [0, 1000]")),
    Row(GROUP, "a complex timestep", bad(lambda x, t, y: (x, t + 0j, y)), InputError, ("complex64", "real numbers")),
    Row(GROUP, "a numpy array for a latent", bad(lambda x, t, y: (x.numpy(), t, y)), InputError, ("['x'] is a numpy array of float32 [2, 3, 8, 8]", "a tensor")),
    Row(GROUP, "an integer of 401 digits for at()", at_a_large_number, InputError, ("timestep inf", "outside [0, 1000]")),
    Row(GROUP, "a timestep as a Python number", bad(lambda x, t, y: (x, 700, y)), InputError, (_T, "700 (int)", "a tensor")),
    Row(GROUP, "a timestep as a scalar tensor", bad(lambda x, t, y: (x, t[0], y)), IndexError, ("too many indices",)),
    Row(GROUP, "fewer timesteps than images", bad(lambda x, t, y: (torch.cat([x, x[:1]]), t, torch.cat([y, y[:1]]))), RuntimeError, ("must match the size",)),
    Row(GROUP, "a missing input", bad(lambda x, t, y: (x, t)), InputError, ("missing a required argument: 'y'",)),
    Row(GROUP, "an input too many", bad(lambda x, t, y: (x, t, y, y)), InputError, ("too many positional arguments",)),
    Row(GROUP, "a keyword that the model does not know", bad(lambda x, t, y: {"x": x, "t": t, "label": y}), InputError, ("missing a required argument: 'y'",)),
    Row(GROUP, "lists in place of tensors", bad(lambda x, t, y: (x, [700, 700], y)), InputError, (_T, "differ in structure")),
    Row(GROUP, "None in place of a tensor", bad(lambda x, t, y: (x, t, None)), InputError, ("['y']", "None")),
    Row(GROUP, "another resolution than the positional table's", bad(lambda x, t, y: (torch.randn(2, 3, 12, 8), t, y)), RuntimeError, ("must match the size",)),
    Row(GROUP, "a class that the model does not have", bad(lambda x, t, y: (x, t, y + 90)), IndexError, ("out of range",)),
    Row(GROUP, "other resolutions, one of them no multiple of the patch", other_sizes),
    Row(GROUP, "a resolution below the pooled grid", too_small, PolicyError, ("(3, 3)", "larger than the token grid (1, 4)")),
    Row(GROUP, "a grid of 1 x 8 tokens", a_row),
    Row(GROUP, "example inputs without a timestep", refused(tiny, inputs=lambda: given()[:1]), InputError, ("missing a required argument: 't'",)),
    Row(GROUP, "example inputs under other names", refused(tiny, inputs=lambda: {"x": torch.ones(1), "z": 1}), InputError, ("do not fit the model's signature", "'t'")),
    Row(GROUP, "a number for example inputs", refused(tiny, inputs=lambda: 5), InputError, ("example_inputs is a int", "tuple", "dict")),
    Row(GROUP, "parameters asked for before the first call", at_first_call, NotCapturedError, ("Pass example_inputs",)),
]  # fmt: skip
