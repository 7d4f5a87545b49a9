"""Whole runs of a tiny model: they learn, and every option does what it says."""

from __future__ import annotations

import copy
import errno
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sparsify import SDTM, InputError, Policy
from sparsify.errors import SparsifyError, TrainingError
from sparsify.training import Images, StepDone, TrainConfig, read_metrics, train
from sparsify.training.blocks import blocks_run
from sparsify.training.distill import module_ends
from sparsify.training.loss import objective_of
from sparsify.training.order import Order
from sparsify.tree import Block

from .helpers import sparse_plain
from .training_helpers import POLICY, Tiny, assert_same, config, contents, curve, images, run, sparse_tiny, tiny


def test_a_run_learns_and_leaves_what_it_promises(tmp_path: Path) -> None:
    """Two images, over and over: the noise in them becomes predictable."""
    data = Images(images(2).pixels, torch.zeros(2).long())
    seen: list[StepDone] = []
    model = sparse_tiny(learned=False)
    before = torch.random.get_rng_state()
    fields = {"batch_size": 8, "learning_rate": 3e-3, "save_every": 40, "log_every": 20, "label_dropout": 0.0, "ema_decay": 0.9}
    result = run(tmp_path, 120, None, model, data=data, on_step=seen.append, keep=2, **fields)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's random numbers go on as if nothing had been
    losses = [record["loss"] for record in result.history]
    assert len(losses) == 6 and losses[-1] < 0.75 * losses[0]
    assert result.history[0].keys() == {"step", "loss", "noise", "learning_rate", "images_per_second"}
    assert read_metrics(tmp_path) == list(result.history)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [".lock", "metrics.jsonl", "step-00000080", "step-00000120"]
    assert result.checkpoint == tmp_path / "step-00000120" and result.step == 120
    assert [done.step for done in seen] == list(range(1, 121)) and seen[3].loss.ndim == 0
    found = contents(tmp_path)
    live, averaged = result.model.state_dict(), {**result.model.state_dict(), **result.ema.values}
    for name, tensor in live.items():
        assert torch.equal(found[f"model.safetensors {name}"], tensor)
        assert torch.equal(found[f"ema.safetensors {name}"], averaged[name])
    assert not torch.equal(live["head.weight"], averaged["head.weight"])
    elsewhere = sparse_tiny(seed=9, learned=False)
    elsewhere.load_state_dict({name.split()[1]: x for name, x in found.items() if name.startswith("ema")})
    call = (torch.randn(2, 1, 8, 8), torch.tensor([3, 3]), torch.tensor([0, 0]))
    with result.ema.applied(), torch.no_grad():
        torch.testing.assert_close(elsewhere(*call), result.model(*call))


def test_every_batch_has_one_grid(tmp_path: Path) -> None:
    grids: list[set[Any]] = []
    density = POLICY.density

    def note(module: Any, args: Any, kwargs: Any) -> None:
        grids.append({density.grid_at(t, (4, 4)) for t in args[1].tolist()})

    model = sparse_tiny()
    model.register_forward_pre_hook(note, with_kwargs=True)
    run(tmp_path, 12, None, model, save_every=12)
    assert len(grids) == 12 and all(len(found) == 1 for found in grids) and len(set.union(*grids)) == 2


def test_a_step_is_that_of_a_loop_by_hand(tmp_path: Path) -> None:
    """Two parts of four images, each with its own timesteps; the mean of their gradients, and torch's AdamW."""
    settings = config(1, accumulate=2, batch_size=8)
    order, objective = Order(settings, images(), None, ()), objective_of(settings, torch.device("cpu"))
    model = tiny().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    loss = torch.zeros(())
    for part in range(2):
        batch = order.batch(0, part)
        noised = objective.noised(batch.images, batch.noise, batch.timesteps)
        terms = objective.losses(model(noised, batch.timesteps, batch.labels), batch.images, batch.noise, batch.timesteps)
        loss = loss + (terms["noise"] + terms["variance"]) / 2
    loss.backward()
    optimizer.step()
    result = run(tmp_path, 1, Policy.dense(), accumulate=2, batch_size=8)
    assert result.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    trained = result.model.state_dict()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach(), rtol=1e-4, atol=2e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    """Not one bit, also where blocks drop out: the second run sees the random numbers of the first."""
    for name, options in (("plain", {}), ("checkpointed", {"gradient_checkpointing": True})):
        run(tmp_path / name, 2, None, sparse_tiny(dropout=0.3), **options)
    first, second = contents(tmp_path / "plain"), contents(tmp_path / "checkpointed")
    assert all(torch.equal(first[name], second[name]) for name in first) and curve(tmp_path / "plain") == curve(
        tmp_path / "checkpointed"
    )


def test_gradient_checkpointing_keeps_the_inputs_of_blocks_alone() -> None:
    _, sparse = sparse_plain()
    kept = {False: 0, True: 0}

    def keep(x: torch.Tensor, checkpointing: bool) -> torch.Tensor:
        kept[checkpointing] += x.numel()
        return x

    for checkpointing in kept:
        with (
            torch.autograd.graph.saved_tensors_hooks(partial(keep, checkpointing=checkpointing), lambda x: x),
            blocks_run(sparse, checkpointing=checkpointing),
        ):
            sparse(torch.randn(4, 3, 16, 16), torch.full((4,), 900), torch.zeros(4).long())
    assert kept[True] < 0.3 * kept[False]
    assert not any("sparsify_run" in vars(module) for module in sparse.modules() if isinstance(module, Block))


def test_half_precision_is_close_and_weights_stay_whole(tmp_path: Path) -> None:
    exact = run(tmp_path / "exact", 3)
    half = run(tmp_path / "half", 3, precision="bf16")
    assert {x.dtype for x in contents(tmp_path / "half").values()} == {torch.float32}
    for a, b in zip(exact.history, half.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.03) and b["loss"] != a["loss"]


def test_flow_matching_learns(tmp_path: Path) -> None:
    fields = {"objective": "flow", "timesteps": 1.0, "label_dropout": 0.0, "batch_size": 8, "learning_rate": 3e-3}
    example = {"x": torch.zeros(1, 1, 8, 8), "t": torch.zeros(1), "y": torch.zeros(1).long()}
    data = Images(images(2).pixels, torch.zeros(2).long())
    result = run(
        tmp_path,
        100,
        Policy.dense(),
        tiny(learned=False),
        data=data,
        example_inputs=example,
        save_every=100,
        log_every=20,
        **fields,
    )
    losses = [record["velocity"] for record in result.history]
    assert losses[-1] < 0.75 * losses[0]


def test_distillation_is_what_it_says(tmp_path: Path) -> None:
    """The terms of a first step, and their gradient, computed from the dense model's own blocks."""
    fields = {"distill_output": 0.5, "distill_feature": 0.25, "save_every": 1}
    result = run(tmp_path, 1, **fields)
    settings = config(1, **fields)
    order, objective = Order(settings, images(), POLICY.density, (4, 4)), objective_of(settings, torch.device("cpu"))
    batch = order.batch(0)
    call = (objective.noised(batch.images, batch.noise, batch.timesteps), batch.timesteps, batch.labels)
    dense = tiny()
    tokens: dict[str, torch.Tensor] = {}
    dense.blocks[3].register_forward_hook(lambda module, args, out: tokens.update(dense=out))
    sparse = sparse_tiny()
    sparse.get_submodule("blocks.3").register_forward_hook(lambda module, args, out: tokens.update(sparse=out))
    with torch.no_grad():
        wanted = dense.eval()(*call)
    output = sparse(*call)
    near = 0.5 * F.mse_loss(output, wanted)
    apart, length = tokens["sparse"] - tokens["dense"], tokens["dense"]
    within = 0.25 * ((apart**2).sum((1, 2)) / (length**2).sum((1, 2))).mean()
    assert result.history[0]["distill_output"] == pytest.approx(near.item(), rel=1e-4)
    assert result.history[0]["distill_feature"] == pytest.approx(within.item(), rel=1e-4)
    terms = objective.losses(output, batch.images, batch.noise, batch.timesteps)
    optimizer = torch.optim.AdamW(sparse.parameters(), lr=1e-3, weight_decay=0.0)
    (sum(terms.values()) + near + within).backward()
    optimizer.step()
    trained = result.model.state_dict()
    for name, parameter in sparse.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().min() > 1e-6:  # AdamW's first step is the gradient's sign
            torch.testing.assert_close(trained[name], parameter.detach(), rtol=1e-3, atol=1e-4)


def test_features_are_compared_behind_each_module() -> None:
    policy = Policy(1, SDTM(1, 1, 1, 1) * 2, 1)
    assert module_ends([f"b.{i}" for i in range(10)], policy.roles(10)) == ["b.4", "b.8"]
    twice = SDTM(1, 1, 1, 0).depth
    roles = [role for _ in range(2) for role in Policy(0, SDTM(1, 1, 1, 0)).roles(twice)]  # two chains, both with a module 0
    assert module_ends([f"b.{i}" for i in range(6)], roles) == ["b.2", "b.5"]


def test_what_no_graph_reads_is_left_alone(tmp_path: Path) -> None:
    """A poolingformer block has no queries and keys; they keep their values, and their requires_grad afterwards."""
    model = Tiny(depth=5, style="separate")
    before = model.blocks[0].attn.q.weight.detach().clone()
    policy = Policy(1, POLICY.sdtm, 0, POLICY.density)
    run(tmp_path, 2, policy, model, weight_decay=0.5)
    assert torch.equal(model.blocks[0].attn.q.weight, before) and model.blocks[0].attn.q.weight.requires_grad
    assert not any("exp_avg.blocks.0.attn.q.weight" in name for name in contents(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("shapes", ["dynamic", "per_grid"])
def test_compiled_blocks_train_alike(tmp_path: Path, shapes: str) -> None:
    for name, options in (("eager", {}), ("compiled", {"compile": True, "compile_shapes": shapes})):
        run(tmp_path / name, 6, **options)
    run(tmp_path / "both", 6, compile=True, compile_shapes=shapes, gradient_checkpointing=True)
    want = torch.tensor(curve(tmp_path / "eager"))
    for name in ("compiled", "both"):
        torch.testing.assert_close(torch.tensor(curve(tmp_path / name)), want, rtol=2e-4, atol=1e-6)


@pytest.mark.slow
def test_compiled_runs_in_half_precision_go_on_bit_for_bit(tmp_path: Path) -> None:
    for name, steps in (("once", (4,)), ("twice", (2, 4))):
        for until in steps:
            run(tmp_path / name, until, compile=True, precision="bf16")
    assert_same(tmp_path / "once", tmp_path / "twice")


@pytest.mark.slow
def test_a_copy_made_while_blocks_are_compiled_has_weights_of_its_own() -> None:
    sparse, call = sparse_tiny(), (torch.randn(4, 1, 8, 8), torch.full((4,), 500), torch.zeros(4).long())
    with blocks_run(sparse, "dynamic"):
        before = sparse(*call)
        twin = copy.deepcopy(sparse)
        torch.nn.init.zeros_(twin.get_parameter("blocks.3.mlp.2.weight"))
        assert torch.equal(sparse(*call), before) and not torch.allclose(twin(*call), before)
    torch.testing.assert_close(sparse(*call), before, rtol=1e-3, atol=1e-5)


def test_tensorboard_gets_the_loss(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(tmp_path, 4, tracker="tensorboard")
    events = EventAccumulator(str(tmp_path / "sparsify"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(record["step"], pytest.approx(record["loss"])) for record in result.history]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"data": Images(torch.zeros(4, 1, 10, 10))}, "the data are images of 1x10x10, but no input of Tiny is.*1x8x8, one number"),
    (
        {"data": Images(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 7]))},
        "labels up to 7, but the model knows labels from 0 to 3",
    ),
    ({"null_label": 4}, "null_label is 4, but the model knows labels from 0 to 3"),
    ({"data": Images(torch.zeros(4, 1, 8, 8))}, "label_dropout is 0.2, but the data have no labels"),
    (
        {"data": Images(torch.zeros(4, 1, 8, 8)), "label_dropout": 0.0},
        r"the model takes labels \(y\), but the data have none, .* Give labels with them",
    ),
    (
        {"model": tiny().bfloat16(), "policy": Policy.dense()},
        r"the parameter \S+ is torch.bfloat16, in which small updates .* Train model.float\(\)",
    ),
    ({"timesteps": 500}, "timesteps is 500, but the policy's density has timesteps from 0 to 1000"),
    ({"policy": None, "model": tiny()}, "policy is None, but the model is not sparse"),
    ({"inputs": {"labels": "z"}}, r"the model has no input 'z'; its inputs are \['x', 't', 'y'\]"),
    ({"tracker": "nonsense"}, "tracker is 'nonsense'"),
    ({"distill_feature": 1.0, "policy": Policy.dense()}, "distill_feature is 1.0, but the policy has no sparse-dense module"),
    ({"init": Path("none.safetensors")}, "the weights none.safetensors cannot be used"),
    ({"example_inputs": {"x": torch.zeros(1, 1, 9, 9)}}, "no input of Tiny is"),
    ({"model": torch.nn.Linear(1, 1)}, r"Linear.forward takes 'input', and what that is cannot be told; pass example_inputs"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_what_does_not_fit_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    example = (torch.zeros(1, 1, 8, 8), torch.full((1,), 500), torch.zeros(1).long())
    given = {"example_inputs": example, **options}
    if isinstance(options.get("model"), torch.nn.Linear):
        given.pop("example_inputs")
    with pytest.raises(SparsifyError, match=message):
        run(tmp_path, 2, **given)
    assert not list(tmp_path.glob("step-*"))


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    def spoil(done: StepDone) -> None:
        if done.step == 3:
            torch.nn.init.constant_(done.model.head.weight, float("nan"))

    with pytest.raises(
        TrainingError, match=r"loss is nan at step 4. Begin another run, .*--init.*, with a lower learning_rate"
    ):
        run(tmp_path, on_step=spoil)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000002"]


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    def spoil(done: StepDone) -> None:  # behind the loss of the last step
        if done.step == 4:
            torch.nn.init.constant_(done.model.head.weight, float("inf"))

    message = r"head.weight.* holds NaN or infinity after step 4, which is not saved. Begin another"
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, 4, on_step=spoil)
    assert [path.name for path in tmp_path.glob("*step-*")] == ["step-00000002"]

    def spoil_average(done: StepDone) -> None:
        done.ema.values["head.bias"].fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"head.bias.* holds NaN or infinity after step 2"):
        run(tmp_path / "average", 2, on_step=spoil_average)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    def second(done: StepDone) -> None:
        with pytest.raises(TrainingError, match=r"another run is writing to .*; wait until it ends"):
            run(tmp_path, 1)

    run(tmp_path, 1, on_step=second)
    run(tmp_path, 2)  # the first has let go of it
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"nothing can be written to .*file/below"):
        run(tmp_path / "file" / "below", 1)


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert run(tmp_path, 1).step == 1


def test_other_errors_of_the_call(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config is a dict; it must be a TrainConfig"):
        train(tiny(), POLICY, images(), {"steps": 1}, tmp_path)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; it must be a folder"):
        train(tiny(), POLICY, images(), TrainConfig(1), tmp_path / "file")
    _, sparse = sparse_plain()
    with pytest.raises(InputError, match="sparse already; pass policy=None"):
        run(tmp_path, 1, POLICY, sparse)
    with pytest.raises(InputError, match="the teacher is sparse"):
        run(tmp_path, 1, teacher=sparse, distill_output=1.0)
