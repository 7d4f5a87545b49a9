"""Random DiTs of ``sparsify.testing``: their parts against plain oracles, their specs, and what the compiler makes of them."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sparsify import SDTM, Density, InputError, Policy, sparsify
from sparsify.accounting import check_density
from sparsify.testing import DiTSpec, dits, inputs, policies, specs
from sparsify.testing.attention import Attention, rope_tables, rotate
from sparsify.testing.embedding import cells, unpatched
from sparsify.testing.spec import choices_of

from .helpers import plain

WIDTH, HEADS = 8, 2


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# --- the parts of a model against plain oracles ------------------------------------------------------------------------


def attend_slowly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention on (batch, tokens, channels), one row, head and query at a time."""
    out, size = torch.zeros_like(q), q.shape[-1] // heads
    for row, head, query in itertools.product(range(q.shape[0]), range(heads), range(q.shape[1])):
        part = slice(head * size, (head + 1) * size)
        logits = torch.stack([(q[row, query, part] * key[part]).sum() / math.sqrt(size) for key in k[row]])
        weights = logits.exp() / logits.exp().sum()
        out[row, query, part] = sum(weight * value[part] for weight, value in zip(weights, v[row], strict=True))
    return out


def projected(project: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values of (batch, tokens, channels)."""
    if hasattr(project, "qkv"):
        rows = [slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3)]
        return [F.linear(x, project.qkv.weight[part], project.qkv.bias[part]) for part in rows]
    return [layer(x) for layer in (project.q, project.k, project.v)]


def parts_of(block: Any, kind: str, c: torch.Tensor) -> list[Any]:
    """Shift, scale and gate of attention, then of the MLP; 0, 0 and 1 where there are none."""
    if kind == "none":
        return [0.0, 0.0, 1.0] * 2
    if kind == "adaln-single":
        return [block.modulation.table[i] + c[:, i : i + 1] for i in range(6)]
    linear, rows = block.modulation.mlp[1], 4 if kind == "shift-scale" else 6
    found: list[Any] = [
        F.linear(F.silu(c), linear.weight[i * WIDTH : (i + 1) * WIDTH], linear.bias[i * WIDTH : (i + 1) * WIDTH])[:, None]
        for i in range(rows)
    ]
    return [*found[:2], 1.0, *found[2:], 1.0] if rows == 4 else found


def normed(norm: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + norm.eps).sqrt()
    return y if norm.weight is None else y * norm.weight + norm.bias


def condition(kind: str) -> torch.Tensor | None:
    return {"none": None, "adaln-single": randn(2, 6, WIDTH)}.get(kind, randn(2, WIDTH))


@pytest.mark.parametrize("qkv", ["fused", "split"])
@pytest.mark.parametrize("kind", ["none", "shift-scale", "adaln-zero", "adaln-single"])
def test_a_block_of_one_stream_is_what_it_says(kind: str, qkv: str) -> None:
    spec = DiTSpec(heads=HEADS, modulation=kind, qkv=qkv, text="cross", mlp_ratio=2)  # type: ignore[arg-type]
    block, x, text, c = spec.build().blocks[0], randn(2, 5, WIDTH), randn(2, 3, WIDTH), condition(kind)
    shift1, scale1, gate1, shift2, scale2, gate2 = parts_of(block, kind, c)  # type: ignore[arg-type]
    q, k, v = projected(block.project, normed(block.norm1, x) * (1 + scale1) + shift1)
    y = x + gate1 * block.out(attend_slowly(q, k, v, HEADS))
    q, k, v = block.cross.q(normed(block.cross_norm, y)), block.cross.k(text), block.cross.v(text)
    y = y + block.cross.proj(attend_slowly(q, k, v, HEADS))
    hidden = block.mlp[0](normed(block.norm2, y) * (1 + scale2) + shift2)
    expected = y + gate2 * block.mlp[2](F.gelu(hidden, approximate="tanh"))
    torch.testing.assert_close(block(x, c, None, None, text), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["none", "shift-scale", "adaln-zero", "adaln-single"])
def test_a_parallel_block_is_what_it_says(kind: str) -> None:
    block = DiTSpec(heads=HEADS, modulation=kind, parallel=True, mlp_ratio=2).build().blocks[0]  # type: ignore[arg-type]
    x, c = randn(2, 5, WIDTH), condition(kind)
    if kind == "none":
        shift, scale, gate = 0.0, 0.0, 1.0
    elif kind == "shift-scale":
        (shift, scale), gate = block.modulation.mlp(c)[:, None].split(WIDTH, dim=-1), 1.0
    elif kind == "adaln-zero":
        shift, scale, gate = block.modulation.mlp(c)[:, None].split(WIDTH, dim=-1)
    else:
        shift, scale, gate = (block.modulation.table[i] + c[:, i : i + 1] for i in range(3))  # type: ignore[index]
    y = normed(block.norm, x) * (1 + scale) + shift
    hidden = F.linear(y, block.project.qkv.weight[3 * WIDTH :], block.project.qkv.bias[3 * WIDTH :])
    beside = torch.cat([attend_slowly(*projected(block.project, y), HEADS), F.gelu(hidden, approximate="tanh")], dim=-1)
    torch.testing.assert_close(block(x, c), x + gate * block.out(beside), rtol=0, atol=1e-12)


@pytest.mark.parametrize("text_first", [False, True])
def test_a_block_of_two_streams_is_what_it_says(text_first: bool) -> None:
    block = DiTSpec(heads=HEADS, modulation="adaln-zero", text="joint", text_first=text_first).build().double_blocks[0]
    x, text, c = randn(2, 4, WIDTH), randn(2, 3, WIDTH), randn(2, WIDTH)
    streams = [
        (block.text, text, parts_of(block.text, "adaln-zero", c)),
        (block.image, x, parts_of(block.image, "adaln-zero", c)),
    ]
    heads = [projected(s.project, normed(s.norm1, y) * (1 + p[1]) + p[0]) for s, y, p in streams]
    out = attend_slowly(*(torch.cat(pair, dim=1) for pair in zip(*heads, strict=True)), HEADS)
    expected = []
    for (s, y, p), attended in zip(streams, (out[:, :3], out[:, 3:]), strict=True):
        y = y + p[2] * s.out(attended)
        expected.append(y + p[5] * s.mlp(normed(s.norm2, y) * (1 + p[4]) + p[3]))
    new, new_text = block(x, text, c)
    torch.testing.assert_close((new_text, new), tuple(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("style", ["interleaved", "half"])
def test_rope_turns_pairs_of_channels_by_the_positions_of_each_axis(style: str) -> None:
    x, places = randn(2, 3, 6, 10), cells((2, 3), randn(1))
    assert places.tolist() == [[i, j] for i in range(2) for j in range(3)]
    angles = [(axis, 20.0 ** (-i / count)) for axis, count in ((0, 3), (1, 2)) for i in range(count)]  # 5 pairs, 2 axes
    turned = rotate(x, rope_tables(places, 10, style), style)
    for pair, (axis, speed) in enumerate(angles):
        a, b = (2 * pair, 2 * pair + 1) if style == "interleaved" else (pair, pair + 5)
        z = torch.complex(x[..., a], x[..., b]) * torch.exp(1j * places[:, axis] * speed)
        torch.testing.assert_close(torch.complex(turned[..., a], turned[..., b]), z, rtol=0, atol=1e-14)


@pytest.mark.parametrize("style", ["interleaved", "half"])
def test_written_attention_is_the_operator(style: str) -> None:
    q, k, v, bias = (randn(2, 2, 6, 4) for _ in range(3)), None, None, randn(2, 1, 6, 6)
    q, k, v = q
    rope = rope_tables(cells((2, 3), q), 4, style)
    one, other = (Attention(written, style)(q, k, v, rope, bias) for written in (True, False))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_queries_and_keys_are_normed_head_by_head(kind: str) -> None:
    project = DiTSpec(heads=HEADS, qk_norm=kind).build().blocks[0].project  # type: ignore[arg-type]
    x = randn(2, 5, WIDTH)
    for index, (norm, given_) in enumerate(zip((project.q_norm, project.k_norm), project(x), strict=False)):
        y = projected(project, x)[index].unflatten(-1, (HEADS, -1)).transpose(1, 2)
        y = y - y.mean(-1, keepdim=True) if kind == "layer" else y
        y = y / (y.square().mean(-1, keepdim=True) + (norm.eps or torch.finfo(y.dtype).eps)).sqrt() * norm.weight
        torch.testing.assert_close(given_, y + norm.bias if kind == "layer" else y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(4,), (2, 3), (2, 3, 2)])
def test_patches_come_apart_where_they_were_put_together(grid: tuple[int, ...]) -> None:
    patch = (1, 2, 2) if len(grid) == 3 else (2,) * len(grid)
    tokens = randn(2, math.prod(grid), 3 * math.prod(patch))
    latent = unpatched(tokens, grid, patch)
    for cell, place in enumerate(itertools.product(*map(range, grid))):
        window = (slice(None), slice(None), *(slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True)))
        expected = tokens[:, cell].reshape(2, *patch, 3).movedim(-1, 1)
        assert torch.equal(latent[window], expected)


MASKED = [
    DiTSpec(mask="keys"),
    DiTSpec(mask="keys", written=True, rope=True),
    DiTSpec(mask="keys", text="joint", text_tokens=2),
    DiTSpec(depth=4, mask="keys", text="joint", text_tokens=2, text_first=True, single=2, parallel=True),
    DiTSpec(mask="bias"),
    DiTSpec(mask="bias", written=True, rope=True),
]


@pytest.mark.parametrize("spec", MASKED, ids=repr)
def test_a_mask_truly_masks(spec: DiTSpec) -> None:
    model, call = spec.build(), spec.example_inputs(batch=2)
    if spec.mask == "keys":
        call["mask"] = torch.tensor([[True, True, False, True]] * 2)
    else:
        call["mask"][:, :, 2] = -1e6
    before = model(**call).flatten(2)
    for cell in (1, 2):  # seen by all, and by none
        x = call["x"].clone()
        x.flatten(2)[:, :, cell] += 1
        change = (model(**{**call, "x": x}).flatten(2) - before).abs().amax(dim=(0, 1))
        others = [index for index in range(4) if index != cell]
        assert change[cell] > 1e-3
        assert (change[others].max() <= 1e-13) == (cell == 2), change


@pytest.mark.parametrize("text_first", [False, True])
def test_joint_text_sees_and_is_seen_whatever_the_mask(text_first: bool) -> None:
    image, text = (slice(2, 6), slice(0, 2)) if text_first else (slice(0, 4), slice(4, 6))
    bias, keys = randn(2, 4, 4), torch.tensor([[True, False, True, True], [False, True, True, False]])
    seen: list[torch.Tensor] = []
    for spec in (
        DiTSpec(mask="bias", text="joint", text_tokens=2, text_first=text_first),
        DiTSpec(mask="keys", text="joint", text_tokens=2, text_first=text_first, written=True),
    ):
        model = spec.build()
        model.double_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[4]))
        model(**{**spec.example_inputs(), "mask": bias if spec.mask == "bias" else keys})
    expected = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    expected[:, 0, image, image] = bias
    assert torch.equal(seen[0], expected)
    assert seen[1].shape == (2, 1, 1, 6) and (seen[1][..., text] == 0).all()
    assert torch.equal(seen[1][:, 0, 0, image] == 0, keys) and seen[1].min() < -1e300


def test_long_skips_join_mirrored_blocks() -> None:
    model = DiTSpec(depth=5, skips=True).build()
    given_: dict[int, Any] = {}
    results: dict[int, torch.Tensor] = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(
            lambda _, args, output, index=index: (given_.update({index: args[5]}), results.update({index: output}), None)[-1]
        )
    model(**model.spec.example_inputs())
    assert [given_[index] is None for index in range(5)] == [True, True, True, False, False]
    assert given_[3] is results[1] and given_[4] is results[0]
    skip, x, y = model.blocks[4].skip, randn(1, 2, 4), randn(1, 2, 4)
    torch.testing.assert_close(skip(x, y), x @ skip.weight[:, :4].T + y @ skip.weight[:, 4:].T + skip.bias, rtol=0, atol=1e-14)


EVERYTHING = DiTSpec(depth=4, rope=True, mask="bias", modulation="adaln-single", text="joint", single=2, labels=True)


@pytest.mark.parametrize(
    "spec", [EVERYTHING, DiTSpec(text="cross", labels=True, modulation="adaln-zero"), DiTSpec(labels=True)], ids=repr
)
def test_every_input_matters_to_its_row_alone(spec: DiTSpec) -> None:
    model, call = spec.build(), spec.example_inputs(batch=2, timestep=[100, 900])
    before = model(**call)
    for name, value in call.items():
        new = value.clone()
        new[1] = new[1] * 0.5 if new.is_floating_point() else (new[1] + 1) % 5
        change = (model(**{**call, name: new}) - before).flatten(1).abs().amax(dim=1)
        assert change[0] <= 1e-13 and change[1] > 1e-6, name


# --- specs -------------------------------------------------------------------------------------------------------------

VALUES = [(name, value) for name in DiTSpec.__dataclass_fields__ for value in choices_of(name)]


def test_every_value_is_drawn_and_all_that_is_drawn_is_small() -> None:
    seen: dict[str, set[Any]] = {name: set() for name in (*DiTSpec.__dataclass_fields__, "axes")}

    @settings(max_examples=300)
    @given(specs())
    def look(spec: DiTSpec) -> None:
        assert spec.width <= 32 and math.prod(spec.grid) <= 81 and 2 <= spec.depth <= 8
        for name in DiTSpec.__dataclass_fields__:
            seen[name].add(getattr(spec, name))
        seen["axes"].add(len(spec.grid))

    look()
    assert all(value in seen[name] for name, value in VALUES)
    numbers = {"depth": {*range(2, 9)}, "heads": {1, 2, 4}, "head_width": {4, 6, 8, 16}, "patch": {1, 2}, "axes": {1, 2, 3}}
    assert all(expected <= seen[name] for name, expected in numbers.items())
    assert {0, 2, 3, 4} <= seen["single"] and {1, 2, 3, 5} <= seen["text_tokens"] and len(seen["grid"]) > 30


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_every_value_can_be_fixed_and_builds(name: str, value: Any) -> None:
    @settings(max_examples=2)
    @given(specs(**{name: value}))
    def builds(spec: DiTSpec) -> None:
        assert getattr(spec, name) == value
        model, call = spec.build(), spec.example_inputs()
        output = model(**call)
        assert output.shape == call["x"].shape and output.dtype == torch.float64 and output.isfinite().all()

    builds()


class Found(Exception):
    pass


def simplest(strategy: st.SearchStrategy[Any], condition: Callable[[Any], bool] = lambda value: True) -> Any:
    """What a failing example shrinks to; ``hypothesis.find`` may return what it tried last."""

    @settings(max_examples=200, database=None, phases=(Phase.generate, Phase.shrink))
    @given(strategy)
    def fails(value: Any) -> None:
        if condition(value):
            raise Found(value)

    with pytest.raises(Found) as found:
        fails()
    return found.value.args[0]


def test_specs_shrink_to_the_default() -> None:
    assert simplest(specs()) == DiTSpec()
    assert simplest(specs(skips=True, text="joint")) == DiTSpec(depth=3, text="joint", single=3, skips=True)
    assert simplest(specs(), lambda spec: spec.heads > 1 and spec.rope) == DiTSpec(heads=2, rope=True)


@settings(max_examples=40)
@given(specs())
def test_a_spec_prints_as_code_that_builds_an_equal_model(spec: DiTSpec) -> None:
    text = repr(spec)
    again = eval(text, {"DiTSpec": DiTSpec})
    assert again == spec and hash(again) == hash(spec)
    assert all((f"{name}=" in text) == (getattr(spec, name) != f.default) for name, f in DiTSpec.__dataclass_fields__.items())
    state = torch.get_rng_state()
    model, call = spec.build(), spec.example_inputs(batch=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(int(state.sum()))  # the twin is built in another random state
    twin = eval(f"{model!r}", {"DiTSpec": DiTSpec})
    weights = dict(twin.named_parameters())
    assert weights.keys() == dict(model.named_parameters()).keys() and not model.training and not list(model.buffers())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]) and parameter.dtype == torch.float64
        assert (parameter != 0).all() and (parameter != 1).all()
    assert all(
        torch.equal(value, other) for value, other in zip(call.values(), twin.spec.example_inputs(1).values(), strict=True)
    )
    assert torch.equal(model(**call), twin(**call))


def test_the_seed_changes_the_weights() -> None:
    one, other = (dict(DiTSpec(seed=seed).build().named_parameters()) for seed in (0, 1))
    assert not any(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"depth": 1}, "depth is 1"),
        ({"heads": True}, "heads is True"),
        ({"head_width": 5}, "head_width is 5"),
        ({"grid": (2, 2, 2, 2)}, "grid is"),
        ({"grid": (1, 1)}, r"grid=\(1, 1\)"),
        ({"grid": (4, 1, 1)}, r"grid=\(4, 1, 1\)"),
        ({"qkv": "both"}, "qkv is 'both'; allowed: 'fused', 'split'"),
        ({"rope": 1}, "rope is 1"),
        ({"rope": True, "grid": (2, 2, 2)}, "head_width=4"),
        ({"rope_style": "half"}, "rope_style='half', rope=False"),
        ({"text_tokens": 2}, "text_tokens=2, text='none'"),
        ({"text_first": True, "text": "cross"}, "text_first=True, text='cross'"),
        ({"single": 2, "depth": 4}, "single=2, text='none'"),
        ({"single": 1, "depth": 4, "text": "joint"}, "single=1, depth=4"),
        ({"single": 3, "depth": 4, "text": "joint"}, "single=3, depth=4"),
        ({"skips": True}, "skips=True, depth=2"),
        ({"skips": True, "depth": 4, "text": "joint"}, "skips=True, text='joint', single=0, depth=4"),
        ({"parallel": True, "text": "cross"}, "parallel=True, text='cross'"),
        ({"parallel": True, "text": "joint"}, "parallel=True, text='joint', single=0"),
    ],
)
def test_an_illegal_spec_names_its_fields(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        DiTSpec(**values)


def test_fixed_fields_are_checked_at_once() -> None:
    with pytest.raises(InputError, match=r"no field \['ropes'\]"):
        dits(ropes=True)
    with pytest.raises(InputError, match="modulation is 'film'"):
        dits(modulation="film")
    with pytest.raises(InputError, match="parallel=True, text='cross'"):
        dits(parallel=True, text="cross")
    with pytest.raises(InputError, match="timestep is 1001"):
        DiTSpec().example_inputs(timestep=1001)
    with pytest.raises(InputError, match="or 2 of them"):
        DiTSpec(flow=True).example_inputs(batch=2, timestep=[0.5])


@settings(max_examples=25)
@given(st.data())
def test_any_legal_fields_can_be_fixed(data: st.DataObject) -> None:
    spec = data.draw(specs())
    names = data.draw(st.sets(st.sampled_from(sorted(DiTSpec.__dataclass_fields__))))
    fixed = {name: getattr(spec, name) for name in names}
    drawn = data.draw(specs(**fixed))
    assert {name: getattr(drawn, name) for name in names} == fixed


# --- policies and inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", [DiTSpec(grid=(3, 4)), DiTSpec(depth=7, grid=(9,), flow=True), DiTSpec(depth=8, grid=(3, 1, 4))], ids=repr
)
def test_policies_are_legal_and_change_something(spec: DiTSpec) -> None:
    seen: set[str] = set()

    @settings(max_examples=60)
    @given(policies(spec.build()))
    def look(policy: Policy) -> None:
        roles = {role.name for role in policy.roles(spec.depth)}
        assert roles != {"dense"} and Policy.from_json(policy.to_json()) == policy
        if policy.sdtm:
            assert policy.schedule.timesteps == spec.timesteps and check_density(policy.schedule, spec.grid)
            assert all(math.prod(pooled) < math.prod(spec.grid) for pooled in policy.schedule.grids(spec.grid))
            seen.add(policy.density.schedule)
            seen.add("time" if policy.sdtm[0].time else "frames")
            seen.add("grid" if isinstance(policy.density.finest, tuple) else "rate")
        seen.update(roles)

    look()
    assert {"constant", "paper", "linear", "cosine", "table", "grid", "rate", "pooling", "generate", "recover", "dense"} <= seen
    assert spec.depth == 2 or "sparse" in seen
    assert len(spec.grid) < 3 or {"time", "frames"} <= seen


@pytest.mark.parametrize("spec", [EVERYTHING, DiTSpec(flow=True, text="cross", mask="keys")], ids=repr)
def test_inputs_run_and_span_the_schedule(spec: DiTSpec) -> None:
    model = spec.build()
    seen: set[Any] = set()

    @settings(max_examples=60)
    @given(inputs(model))
    def look(call: dict[str, torch.Tensor]) -> None:
        assert len({value.shape[0] for value in call.values()}) == 1
        t = call["t"]
        assert t.min() >= 0 and t.max() <= spec.timesteps and t.is_floating_point() == spec.flow
        assert model(**call).isfinite().all()
        seen.update((len(t), "low" if t.min() < spec.timesteps / 2 else "high"))
        seen.add("mixed" if len(t.unique()) > 1 else "equal" if len(t) > 1 else "one")
        if spec.mask == "keys":
            assert call["mask"].any(dim=1).all() and not call["mask"].all(dim=1).any()

    look()
    assert seen == {1, 2, 3, "low", "high", "mixed", "equal", "one"}


def test_a_failing_example_prints_as_code() -> None:
    @settings(max_examples=40, database=None, phases=(Phase.generate, Phase.shrink))
    @given(st.data())
    def fails(data: st.DataObject) -> None:
        model = data.draw(dits(depth=3))
        call = data.draw(inputs(model))
        assert not model.spec.rope or call["t"].shape[0] < 2

    with pytest.raises(AssertionError) as failure:
        fails()
    notes = "".join("".join(failure.value.__notes__).split()).replace(",)", ")")  # as if on one line
    assert "DiTSpec(depth=3,rope=True).build()" in notes
    assert "DiTSpec(depth=3,rope=True).example_inputs(batch=2,seed=0,timestep=0,scale=1.0)" in notes


def test_other_models_are_looked_at() -> None:
    model = plain(4)
    example = {"x": torch.randn(2, 3, 16, 16), "t": torch.tensor([10, 20]), "y": torch.tensor([1, 2])}
    drawn = simplest(policies(model, example), lambda policy: len(policy.sdtm) > 0 and policy.density.schedule == "constant")
    assert drawn.depth == 4 and drawn.density.grid_at(0, (8, 8)) == (5, 5)
    strategy, seen = inputs(model, example), set()

    @settings(max_examples=20)
    @given(strategy)
    def look(call: dict[str, torch.Tensor]) -> None:
        batch = len(call["t"])
        seen.add(batch)
        assert call["x"].shape == (batch, 3, 16, 16) and call["t"].dtype == torch.int64
        assert call["y"].tolist() == [1, 2, 1][:batch] and not torch.equal(call["x"][0], example["x"][0])
        assert model(**call).isfinite().all()

    look()
    assert seen == {1, 2, 3}
    for make in (policies, inputs):
        with pytest.raises(InputError, match="example_inputs"):
            make(model)


# --- the compiler ------------------------------------------------------------------------------------------------------

COMPILED = [
    DiTSpec(depth=3, grid=(2, 3), labels=True),
    DiTSpec(depth=3, grid=(9,), patch=2, heads=2, qkv="split", positions="learned", mask="keys", modulation="shift-scale", skips=True),
    DiTSpec(depth=2, grid=(2, 2, 3), head_width=6, rope=True, text="cross", text_tokens=3, flow=True),
    DiTSpec(depth=2, grid=(3, 3), written=True, qk_norm="layer", rope=True, rope_style="half", mask="bias", modulation="adaln-zero", text="joint"),
    DiTSpec(
        grid=(3, 3), qk_norm="rms", positions="sinusoid", modulation="adaln-single", parallel=True, text="joint",
        text_tokens=2, text_first=True, single=2,
    ),
]  # fmt: skip


WHOLE = Policy(sdtm=SDTM(1, 0, 1, 0), density=Density.constant(rate=0.0))  # type: ignore[arg-type]


def test_every_value_is_compiled() -> None:
    assert {len(spec.grid) for spec in COMPILED} == {1, 2, 3}
    assert all(any(getattr(spec, name) == value for spec in COMPILED) for name, value in VALUES)


@pytest.mark.parametrize("spec", COMPILED, ids=repr)
def test_models_are_compiled(spec: DiTSpec) -> None:
    model, example = spec.build(), spec.example_inputs()

    @settings(max_examples=1)
    @given(policies(model).filter(lambda policy: policy.sdtm and policy.density.schedule != "constant"), inputs(model))
    def compiles(policy: Policy, call: dict[str, torch.Tensor]) -> None:
        sparse = sparsify(model, policy, example, verify="full")
        assert not sparse.report().skipped
        assert [block.role for block in sparse.report().blocks] == [role.name for role in policy.roles(spec.depth)]
        output = sparse(**call)
        assert output.shape == call["x"].shape and output.isfinite().all()

    compiles()


@pytest.mark.parametrize("policy", [Policy.dense(), WHOLE], ids=["dense", "full grid"])
@pytest.mark.filterwarnings("ignore:the pooled grid is the full")
def test_without_pooling_it_is_the_model(policy: Policy) -> None:
    spec = DiTSpec(grid=(2, 3), rope=True, mask="keys", modulation="adaln-zero")
    model, example = spec.build(), spec.example_inputs()
    same = sparsify(model, policy, example)
    for call in (example, spec.example_inputs(batch=2, seed=1, timestep=[0, 999])):
        torch.testing.assert_close(same(**call), model(**call), rtol=0, atol=1e-12)


def test_without_hypothesis_the_package_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\ntry: import sparsify.testing\nexcept ImportError as error: print(error)"
    )
    root = Path(__file__).parent.parent
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True).stdout
    assert "pip install 'sparsedit[testing]'" in printed
