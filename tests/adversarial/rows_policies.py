"""Rows: policies, densities and their JSON, and pipelines as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from sparsify import SDTM, Density, GridError, InputError, Policy, PolicyError
from sparsify.passes import Pipeline

from .rows_models import refused
from .scene import Row, Scene
from .tiny import POLICY, TOLERANCE, expected, given, tiny

NAN, INF = float("nan"), float("inf")
Fields = dict[str, Any]


def made(make: Callable[[], Any]) -> Callable[[Scene], None]:
    """Making it must raise."""

    def act(scene: Scene) -> None:
        make()

    return act


def read(text: Any) -> Callable[[Scene], None]:
    """Reading this JSON must raise."""
    return made(lambda: Policy.from_json(text))


def changed(**fields: Any) -> str:
    """The JSON of a good policy with other fields."""
    return json.dumps(json.loads(POLICY.to_json()) | fields)


def with_density(**fields: Any) -> str:
    """The same, with other fields of its density."""
    return changed(density={"schedule": "paper", "finest": 0.5, "coarsest": 0.9, "timesteps": 1000} | fields)


def complex_time() -> tuple[torch.Tensor, ...]:
    x, t, y = given()
    return x, t + 0j, y


def round_trip(scene: Scene) -> None:
    model, policy = tiny(), Policy.from_json(POLICY.to_json())
    scene.same(policy, POLICY)
    sparse, inputs = scene.sparsify(model, policy, given()), given()
    scene.same(sparse(*inputs), expected(sparse, model, inputs), TOLERANCE)


def longer_than_memory(scene: Scene) -> None:
    Policy.from_json(with_density(timesteps=10**15)).density.grids((32, 32))


def in_the_model(policy: Any) -> Callable[[Scene], None]:
    return refused(tiny, policy)


def constant(*grid: int) -> Policy:
    return Policy(0, SDTM(1, 1, 1, 0), 0, Density.constant(grid=grid))


_POLICIES = (
    ("covers more blocks than the trunk has", in_the_model(Policy.fit(28)), PolicyError, ("covers 28 blocks", "the trunk has 3", "Policy.fit(3)")),
    ("covers fewer blocks than the trunk has", in_the_model(Policy(1)), PolicyError, ("covers 1 blocks", "the trunk has 3")),
    ("auto, for a trunk that is too short", in_the_model(Policy.auto()), PolicyError, ("depth is 3", "at least 4")),
    ("the name of one, and not a policy", in_the_model("auto"), PolicyError, ("policy is a str", "Policy.auto()")),
    ("a mapping to a chain that is not there", in_the_model({"layers": Policy(1)}), PolicyError, ("layers", "blocks")),
    ("an empty mapping", in_the_model({}), PolicyError, ("policy is a dict",)),
    ("a pooled grid larger than the model's", in_the_model(constant(4, 5)), PolicyError, ("(4, 5) is larger than the token grid (4, 4)",)),
    ("a pooled grid with another number of axes", in_the_model(constant(4)), PolicyError, ("has 1 axes but the token grid (4, 4) has 2",)),
    ("a grid= of the wrong size", refused(tiny, grid=(3, 3)), GridError, ("(3, 3)", "9", "16")),
    ("a grid= of the right size the wrong way", refused(tiny, grid=(2, 8)), GridError, ("grid (2, 8) is not the grid (4, 4)", "pass (4, 4)")),
    ("a grid= of no size", refused(tiny, grid=(16, 0)), GridError, ("integers of at least 1",)),
    ("a timestep= that the model does not have", refused(tiny, timestep="when"), InputError, ("timestep='when'", "'t'")),
    ("the latent for a timestep=", refused(tiny, timestep="x"), InputError, ("timestep='x' is a float32 tensor of 4 axes", "(batch,)")),
    ("a complex timestep=", refused(tiny, inputs=complex_time, timestep="t"), InputError, ("timestep='t' is a complex64 tensor", "real tensor")),
    ("a trunk of a billion blocks", made(lambda: Policy.fit(10**9)), PolicyError, ("depth is more than 10000",)),
    ("a negative number of blocks", made(lambda: Policy(-1)), PolicyError, ("Policy.poolingformer is -1", "at least 0")),
    ("True for a number of blocks", made(lambda: Policy(True)), PolicyError, ("Policy.poolingformer is True", "integer")),
    ("text for a number of blocks", made(lambda: Policy(1, dense="2")), PolicyError, ("Policy.dense is '2'", "integer")),  # type: ignore[arg-type]
    ("a module without a block that generates", made(lambda: SDTM(0)), PolicyError, ("SDTM.generate is 0", "at least 1")),
    ("no segments", made(Policy), PolicyError, ("Policy.dense()",)),
    ("a grid with a side of 0", made(lambda: Density.constant(grid=(0, 4))), PolicyError, ("(0, 4)", "integers of at least 1")),
    ("a grid of four axes", made(lambda: Density.constant(grid=(1, 2, 3, 4))), PolicyError, ("one to three integers",)),
    ("a pruning rate of 1", made(lambda: Density.constant(rate=1.0)), PolicyError, ("1.0", "lies in [0, 1)")),
    ("a pruning rate of NaN", made(lambda: Density.constant(rate=NAN)), PolicyError, ("nan", "lies in [0, 1)")),
    ("rates the wrong way round", made(lambda: Density.paper(0.9, 0.5)), PolicyError, ("r_max 0.5 is below r_min 0.9",)),
    ("timesteps without end", made(lambda: Density.paper(0.1, 0.5, timesteps=INF)), PolicyError, ("Density.timesteps is inf",)),
)  # fmt: skip

_TEXTS = (
    ("of this version, written and read", round_trip, None, ()),
    ("of a newer version", read(changed(version=2)), PolicyError, ("version is 2", "reads version 1", "Upgrade sparsify")),
    ("of the version True", read(changed(version=True)), PolicyError, ("version is True",)),
    ("of the version 1.0", read(changed(version=1.0)), PolicyError, ("version is 1.0",)),
    ("empty", read(""), PolicyError, ("not JSON",)),
    ("not text", read(5), PolicyError, ("int", "text")),
    ("behind a byte order mark", read("\ufeff" + POLICY.to_json()), PolicyError, ("not JSON", "BOM")),
    ("not UTF-8", read(b"\xff\xfe\xfa{"), PolicyError, ("not JSON",)),
    ("nested 100,000 deep", read("[" * 100_000), PolicyError, ("not JSON",)),
    ("nested deep in a field", read(changed(sdtm=0).replace('"sdtm": 0', '"sdtm": ' + "[" * 900 + "]" * 900)), PolicyError, ("sdtm",)),
    ("10 MB of text", read(changed(kind="x" * 10_000_000)), PolicyError, ("characters", "at most")),
    ("a list", read("[]"), PolicyError, ("JSON object, not list",)),
    ("a field twice", read(POLICY.to_json()[:-1] + ', "poolingformer": 1}'), PolicyError, ("poolingformer", "twice")),
    ("a field twice within the density", read(with_density().replace('"finest": 0.5', '"finest": 0.5, "finest": 0.6')), PolicyError, ("finest", "twice")),
    ("a field that is not known", read(changed(__class__="os.system")), PolicyError, ("unknown ['__class__']",)),
    ("a density's field that is not known", read(with_density(__reduce__="x")), PolicyError, ("__reduce__",)),
    ("a kind that is not known", read(changed(kind="eval")), PolicyError, ("Policy.kind is 'eval'", "allowed")),
    ("a schedule that is not known", read(with_density(schedule="lambda t: t")), PolicyError, ("Density.schedule is 'lambda t: t'", "allowed")),
    ("a schedule that is a list", read(with_density(schedule=["paper"])), PolicyError, ("Density.schedule is ['paper']",)),
    ("NaN for a rate", read(with_density(finest=NAN)), PolicyError, ("Density.finest is nan",)),
    ("infinity for a number of blocks", read(changed(dense=INF)), PolicyError, ("Policy.dense is inf",)),
    ("a number of 5,000 digits", read(changed(dense=0).replace('"dense": 0', '"dense": ' + "9" * 5000)), PolicyError, ("not JSON",)),
    ("a module with a number of 300 digits", read(changed(sdtm=[[1, 10**300, 1, 0, 5]])), PolicyError, ("SDTM.time is 5",)),
    ("a schedule longer than memory", longer_than_memory, PolicyError, ("Density.timesteps is 1000000000000000", "at most")),
    ("a number of levels beyond floating point", read(with_density(levels=10**400)), PolicyError, ("Density.levels", "at most")),
    ("a table that is a number", read(with_density(schedule="table", steps=5)), PolicyError, ("steps", "5")),
    ("a table of numbers", read(with_density(schedule="table", steps=[5])), PolicyError, ("steps",)),
    ("a table of text", read(with_density(schedule="table", steps=["ab"])), PolicyError, ("Density.steps",)),
    ("null for the density", read(changed(density=None)), PolicyError, ("density is None",)),
)  # fmt: skip

_PIPELINES = (
    ("an unknown pass", "pool", ("no pass 'pool'",)),
    ("code in place of a pass", "__import__('os').system('touch x')", ("is not like",)),
    ("a brace that is not closed", "cleanup{", ("is not like",)),
    ("a brace too many", "pool-attention{blocks={0}}", ("is not like",)),
    ("an option that is missing", "pool-attention", ("pool-attention", "'blocks'")),
    ("an option twice", "pool-attention{blocks=0 blocks=1}", ("blocks", "twice")),
    ("an option that is not known", "pool-attention{depth=3}", ("no option 'depth=3'", "['blocks']")),
    ("a value of the wrong type", "sparse-dense{blocks=0-2 sparse=two}", ("'sparse=two'", "int")),
    ("a range the wrong way round", "pool-attention{blocks=3-1}", ("blocks=3-1 is not",)),
    ("a block of 5,000 digits", "pool-attention{blocks=" + "9" * 5000 + "}", ("blocks=",)),
    ("a density of half a word", "density{schedule=half}", ("not like paper",)),
    ("a density with a number of 5,000 digits", "density{schedule=paper(" + "9" * 5000 + "x1..1x1)}", ("9999", "grid")),
)  # fmt: skip

ROWS = [
    *(Row("policy", *case) for case in _POLICIES),
    *(Row("policy in JSON", *case) for case in _TEXTS),
    *(Row("pipeline", name, made(lambda text=text: Pipeline.parse(text)), PolicyError, words) for name, text, words in _PIPELINES),  # type: ignore[misc]
    Row("pipeline", "empty, in place of a policy", refused(tiny, Pipeline(())), PolicyError, ("the pipeline is empty", "Policy.dense()")),
    Row("pipeline", "blocks beyond the trunk", refused(tiny, Pipeline.parse("pool-attention{blocks=2-7}")), PolicyError, ("blocks=2-7", "0-2")),
]  # fmt: skip
