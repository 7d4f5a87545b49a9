"""What depends on the prompt alone is computed once for each prompt, and never from a prompt that has changed since."""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx.experimental.proxy_tensor

from sparsify import SDTM, Density, Policy, SparseModel, sparsify
from sparsify.prompt import KEPT
from sparsify.text import program_text
from sparsify.verify import verify

from .plain_dit import randomised
from .test_exact import tiny_diffusers_dit, tiny_pixart

POLICY = Policy(1, SDTM(1, 1, 1, 1), 1, Density.paper(r_min=0.5, r_max=0.9))


TEXT = "sparsify_prompt_0"  # the other one holds the mask


def prompt(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {
        "encoder_hidden_states": torch.randn(2, 7, 24, dtype=torch.float64, generator=generator),
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def step(t: int = 500, seed: int = 5) -> dict[str, torch.Tensor]:
    latents = torch.randn(2, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return {"hidden_states": latents, "timestep": torch.tensor([t, t])}


@pytest.fixture(scope="module")
def pixart() -> SparseModel:
    model = randomised(tiny_pixart()).double().eval()
    return sparsify(model, POLICY, example_inputs=prompt() | step())


@pytest.fixture
def sparse(pixart: SparseModel) -> SparseModel:
    return copy.deepcopy(pixart)


def runs(sparse: SparseModel) -> list[str]:
    """Names of the prompt graphs, appended at every run of one."""
    found: list[str] = []
    for name in sparse.program.prompts:
        module = getattr(sparse, name)
        module._run[0].register_forward_hook(lambda *_, name=name: found.append(name))
    return found


def fresh(sparse: SparseModel, call: dict[str, Any]) -> torch.Tensor:
    """The same call where nothing is kept: with everything saved anew."""
    with torch.no_grad():
        return copy.deepcopy(sparse)(**call).sample


def test_blocks_get_their_keys_and_values_from_the_prompt(sparse: SparseModel) -> None:
    text = program_text(sparse.program)
    assert len(sparse.program.prompts) == 2, "what the text gives, and what its mask gives"
    graph = sparse.program.prompts[TEXT]
    linears = [str(node.args[1]) for node in graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)]
    assert sorted(linears) == sorted(
        ["caption_projection_linear_1_weight", "caption_projection_linear_2_weight"]
        + [f"transformer_blocks_{i}_attn2_to_{x}_weight" for i in range(6) for x in "kv"]
    )
    bodies = text[text.index("\nblock0") :]
    assert "@attn2.to_k.weight" not in bodies and "@attn2.to_q.weight" in bodies
    line = next(line for line in text.splitlines() if f"getitem(%{TEXT}, 0)" in line)
    assert re.search(r"# prompt-once from linear\w*$", line)
    verify(sparse.program, "test")
    assert sparse.report().gflops_once > 0


def test_prompt_graphs_run_once_for_a_whole_sampling_run(sparse: SparseModel) -> None:
    found, call = runs(sparse), prompt()
    with torch.no_grad():
        for t in (900, 500, 10):
            got = sparse(**call, **step(t)).sample
            assert (got - fresh(sparse, call | step(t))).abs().max() == 0
    assert sorted(found) == ["sparsify_prompt_0", "sparsify_prompt_1"]


def _in_place(sparse: SparseModel, call: dict[str, Any]) -> None:
    call["encoder_hidden_states"].mul_(2)


def _through_a_view(sparse: SparseModel, call: dict[str, Any]) -> None:
    call["encoder_hidden_states"][1, 2:4].zero_()


def _another_tensor(sparse: SparseModel, call: dict[str, Any]) -> None:
    call["encoder_hidden_states"] = call["encoder_hidden_states"] * 2


def _at_the_same_address(sparse: SparseModel, call: dict[str, Any]) -> None:
    shape = call["encoder_hidden_states"].shape
    del call["encoder_hidden_states"]
    gc.collect()
    call["encoder_hidden_states"] = torch.full(shape, 0.3, dtype=torch.float64)


def _a_weight_in_place(sparse: SparseModel, call: dict[str, Any]) -> None:
    with torch.no_grad():
        sparse.get_parameter("transformer_blocks.2.attn2.to_k.weight").mul_(2)


def _an_optimiser(sparse: SparseModel, call: dict[str, Any]) -> None:
    optimiser = torch.optim.SGD(sparse.parameters(), lr=0.5)
    sparse(**call, **step()).sample.square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()


def _a_fused_optimiser(sparse: SparseModel, call: dict[str, Any]) -> None:
    """It writes to weights and leaves their versions as they were."""
    optimiser = torch.optim.AdamW(sparse.parameters(), lr=0.1, fused=True)
    for parameter in sparse.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    optimiser.zero_grad()


def _a_checkpoint(sparse: SparseModel, call: dict[str, Any]) -> None:
    sparse.load_state_dict({name: value * 1.5 for name, value in sparse.state_dict().items()})


def _an_assigned_checkpoint(sparse: SparseModel, call: dict[str, Any]) -> None:
    sparse.load_state_dict({name: value * 1.5 for name, value in sparse.state_dict().items()}, assign=True)


def _replaced_data(sparse: SparseModel, call: dict[str, Any]) -> None:
    weight = sparse.get_parameter("transformer_blocks.2.attn2.to_v.weight")
    weight.data = weight.data * 2


def _other_strides(sparse: SparseModel, call: dict[str, Any]) -> None:
    weight = sparse.get_parameter("transformer_blocks.2.attn2.to_v.weight")
    square = sparse.get_parameter("transformer_blocks.2.attn1.to_v.weight")
    weight.data = square.data[:, :24] if weight.shape != square.shape else weight.data.T


def _the_mask(sparse: SparseModel, call: dict[str, Any]) -> None:
    call["encoder_attention_mask"][0, 1:3] = 0


@pytest.mark.parametrize(
    "change",
    [
        _in_place, _through_a_view, _another_tensor, _at_the_same_address, _a_weight_in_place, _an_optimiser, _a_checkpoint,
        _an_assigned_checkpoint, _replaced_data, _the_mask, _a_fused_optimiser, _other_strides,
    ],
    ids=lambda change: change.__name__.strip("_"),
)  # fmt: skip
def test_a_change_is_never_overlooked(sparse: SparseModel, change: Callable[[SparseModel, dict[str, Any]], None]) -> None:
    call = prompt()
    with torch.no_grad():
        before = sparse(**call, **step()).sample
        assert torch.equal(sparse(**call, **step()).sample, before)
    change(sparse, call)
    with torch.no_grad():
        after = sparse(**call, **step()).sample
    assert (after - before).abs().max() > 1e-6
    assert (after - fresh(sparse, call | step())).abs().max() == 0


def test_an_address_that_recurs_is_not_taken_for_the_same(sparse: SparseModel) -> None:
    """The allocator gives freed memory out again; the object and its version are those of before."""
    call, weight = prompt(), sparse.get_parameter("transformer_blocks.2.attn2.to_v.weight")
    with torch.no_grad():
        for _ in range(6):
            weight.data = weight.data * 1.1
            call["encoder_hidden_states"].data = call["encoder_hidden_states"].data * 1.1
            assert torch.equal(sparse(**call, **step()).sample, fresh(sparse, call | step()))


def test_tracing_writes_no_prompt_down(sparse: SparseModel) -> None:
    module = getattr(sparse, TEXT)
    first, second = (prompt(seed)["encoder_hidden_states"] for seed in (0, 1))
    with torch.no_grad():
        module(first)
        traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x: module(x)[0])(first)
        assert torch.equal(traced(second), module(second)[0])


def test_what_is_kept_is_safe_from_those_who_get_it(sparse: SparseModel) -> None:
    call = prompt()
    with torch.no_grad():
        before = sparse(**call, **step()).sample
        module = getattr(sparse, TEXT)
        module(call["encoder_hidden_states"])[0].zero_()
        assert torch.equal(sparse(**call, **step()).sample, before)


def test_gradients_flow_through_the_prompt_at_every_call(sparse: SparseModel) -> None:
    call = prompt()
    with torch.no_grad():
        sparse(**call, **step())
    call["encoder_hidden_states"].requires_grad_()
    grads = []
    for _ in range(2):
        output = sparse(**call, **step()).sample
        grads.append(torch.autograd.grad(output.square().sum(), call["encoder_hidden_states"])[0])
    assert grads[0].abs().max() > 0
    assert torch.equal(grads[0], grads[1])


def test_inference_tensors_are_not_kept(sparse: SparseModel) -> None:
    found = runs(sparse)
    with torch.inference_mode():
        call = prompt()
        before = sparse(**call, **step()).sample
        call["encoder_hidden_states"].mul_(2)
        after = sparse(**call, **step()).sample
    assert (after - before).abs().max() > 1e-6
    assert len(found) == 4


def test_results_of_inference_mode_serve_elsewhere(sparse: SparseModel) -> None:
    call = prompt()
    with torch.inference_mode():
        first = sparse(**call, **step()).sample
    with torch.no_grad():
        assert torch.equal(sparse(**call, **step()).sample, first)
    sparse(**call, **step()).sample.sum().backward()


def test_few_prompts_are_kept_and_none_that_is_gone(sparse: SparseModel) -> None:
    module = getattr(sparse, TEXT)
    prompts = [prompt(seed) for seed in range(KEPT + 2)]
    with torch.no_grad():
        for call in prompts:
            sparse(**call, **step())
        assert len(module._kept) == KEPT
        del prompts, call
        gc.collect()
        assert len(module._kept) == 0
        call = prompt()
        sparse(**call, **step())
        sparse.forget_prompts()
        assert len(module._kept) == 0


def test_forgetting_is_for_writes_that_torch_does_not_count(sparse: SparseModel) -> None:
    call = prompt()
    with torch.no_grad():
        before = sparse(**call, **step()).sample
        call["encoder_hidden_states"].data.mul_(2)
        sparse.forget_prompts()
        after = sparse(**call, **step()).sample
    assert (after - before).abs().max() > 1e-6
    assert (after - fresh(sparse, call | step())).abs().max() == 0


def test_copies_moves_and_dtypes_keep_nothing_of_each_other(sparse: SparseModel) -> None:
    call = prompt()
    with torch.no_grad():
        before = sparse(**call, **step()).sample
        twin = copy.deepcopy(sparse)
        twin.get_parameter("transformer_blocks.0.attn2.to_v.weight").mul_(3)
        assert (twin(**call, **step()).sample - before).abs().max() > 1e-6
        assert torch.equal(sparse(**call, **step()).sample, before)
        low = copy.deepcopy(sparse).float()
        single = {
            k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in (call | step()).items()
        }
        assert (low(**single).sample - before).abs().max() < 1e-3


def test_off_means_nothing_is_split_off() -> None:
    model = randomised(tiny_pixart()).double().eval()
    sparse = sparsify(model, POLICY, prompt() | step(), savings=["share"])
    assert not sparse.program.prompts
    assert sparse.report().gflops_once == 0


def test_timesteps_and_latents_are_no_prompt() -> None:
    """DiT embeds its label in every block together with the time; an embedding alone is not worth keeping."""
    model = randomised(tiny_diffusers_dit()).eval()
    call = {"hidden_states": torch.randn(2, 4, 16, 16), "timestep": torch.tensor([9, 9]), "class_labels": torch.tensor([3, 7])}
    sparse = sparsify(model, POLICY, call)
    assert not sparse.program.prompts


@pytest.mark.parametrize("savings", ["shares", ["share", "no-such"], 3, None])
def test_an_unknown_saving_is_an_error(savings: Any) -> None:
    from sparsify import InputError

    with pytest.raises(InputError, match=r"savings has .*must be True, False, or some of .*mean-before-linear"):
        sparsify(randomised(tiny_pixart()).eval(), POLICY, savings=savings)
