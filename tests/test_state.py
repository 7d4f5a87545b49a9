"""State dicts, moves, copies, modes: the sparse model behaves as a module should."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from sparsify import SDTM, Density, NotCapturedError, Policy, sparsify

from .helpers import POLICY, inputs, plain, sparse_plain


def test_dense_state_dict_loads_with_only_restore_weights_missing_and_every_key_comes_back() -> None:
    model, sparse = sparse_plain()
    other = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    outcome = sparse.load_state_dict(other, strict=False)
    expected = {f"sparsify_restore.0.{part}.{kind}" for part in ("sparse", "dense") for kind in ("weight", "bias")}
    assert set(outcome.missing_keys) == expected
    assert outcome.unexpected_keys == []
    back = sparse.state_dict()
    assert set(back) == set(other) | expected
    assert all(torch.equal(back[key], value) for key, value in other.items())
    model.load_state_dict({key: value for key, value in back.items() if key not in expected})


def test_loaded_weights_change_the_output_of_the_captured_graph() -> None:
    model, sparse = sparse_plain()
    given, before = inputs(), None
    before = sparse(*given)
    sparse.load_state_dict({key: value * 1.5 for key, value in model.state_dict().items()}, strict=False)
    fresh = sparsify(copy.deepcopy(model), POLICY, example_inputs=given)
    assert not torch.allclose(sparse(*given), before)
    assert torch.equal(sparse(*given), fresh(*given))


def test_restore_layers_start_as_the_paper_says_and_are_parameters() -> None:
    _, sparse = sparse_plain()
    pair = sparse.sparsify_restore[0]
    assert torch.equal(pair["sparse"].weight, torch.zeros(32, 32))
    assert torch.equal(pair["dense"].weight, torch.eye(32))
    assert not pair["sparse"].bias.any() and not pair["dense"].bias.any()
    assert sparse.report().parameters_added == sum(p.numel() for p in pair.parameters())
    assert {id(p) for p in pair.parameters()} <= {id(p) for p in sparse.parameters()}


def test_parameters_are_the_models_own() -> None:
    model, sparse = sparse_plain()
    mine = dict(sparse.named_parameters())
    assert all(mine[name] is parameter for name, parameter in model.named_parameters())


def test_it_trains() -> None:
    _, sparse = sparse_plain()
    sparse.train()
    optimiser = torch.optim.AdamW(sparse.parameters(), lr=3e-3)
    x, t, y = inputs(8)
    target, losses = torch.randn_like(x), []
    for _ in range(30):
        loss = (sparse(x, t, y) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert sparse.sparsify_restore[0]["sparse"].weight.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_move_to_another_dtype_and_back(dtype: torch.dtype) -> None:
    model, sparse = sparse_plain()
    x, t, y = inputs()
    expected = sparse(x, t, y)
    sparse.to(dtype)
    moved = sparse(x.to(dtype), t, y)
    assert moved.dtype == dtype
    assert (moved.float() - expected).abs().max() <= (1e-5 if dtype == torch.float64 else 0.1)
    assert model.pos_embed.dtype == dtype, "the model's buffers move along"
    sparse.float()
    tolerance = 1e-6 if dtype == torch.float64 else 0.1
    assert (sparse(x, t, y) - expected).abs().max() <= tolerance


def test_autocast_at_the_call() -> None:
    _, sparse = sparse_plain()
    given = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        loud = sparse(*given)
    assert (loud.float() - sparse(*given)).abs().max() < 0.1
    assert not torch.equal(loud.float(), sparse(*given))


def test_deepcopy_is_independent_and_equal() -> None:
    _, sparse = sparse_plain()
    given = inputs()
    sparse.train(), sparse(*given), sparse.eval()  # two captures
    twin = copy.deepcopy(sparse)
    expected = sparse(*given)
    assert torch.equal(twin(*given), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert torch.equal(sparse(*given), expected)
    assert not torch.allclose(twin(*given), expected)
    twin.double()
    assert twin(given[0].double(), *given[1:]).dtype == torch.float64
    assert torch.equal(sparse(*given), expected)


def test_pickling_is_refused_with_what_to_do_instead() -> None:
    _, sparse = sparse_plain()
    with pytest.raises(TypeError, match=r"state_dict\(\) and policy.to_json\(\)"):
        pickle.dumps(sparse)


def test_without_inputs_it_is_captured_at_the_first_call() -> None:
    model = plain()
    sparse = sparsify(model, POLICY)
    for ask in (
        sparse.parameters,
        sparse.state_dict,
        sparse.report,
        lambda: sparse.graph_module,
        lambda: sparse.load_state_dict({}),
    ):
        with pytest.raises(NotCapturedError, match="example_inputs"):
            list(ask() or ())
    given = inputs()
    eager = sparsify(copy.deepcopy(model), POLICY, example_inputs=given)
    assert torch.equal(sparse(*given), eager(*given))
    assert [name for name, _ in sparse.named_parameters()] == [name for name, _ in eager.named_parameters()]


def test_modes_and_moves_before_the_capture_reach_it() -> None:
    sparse = sparsify(plain(dropout=0.5), POLICY).train().double()
    x, t, y = inputs()
    assert not torch.equal(sparse(x.double(), t, y), sparse(x.double(), t, y)), "dropout is active"


def test_attributes_of_the_model_are_found() -> None:
    model, sparse = sparse_plain()
    assert sparse.grid == model.grid
    with pytest.raises(AttributeError):
        _ = sparse.no_such_thing


def test_batch_of_one_as_example_serves_every_batch() -> None:
    model = plain()
    sparse = sparsify(model, POLICY, example_inputs=inputs(1))
    many = inputs(3)
    one_by_one = torch.cat([sparse(*(tensor[i : i + 1] for tensor in many)) for i in range(3)])
    assert (sparse(*many) - one_by_one).abs().max() < 1e-5
    assert len(sparse._stages) == 2, "tracing takes a size of one for special, so it has a capture of its own"
    sparse(*inputs(7)), sparse(*inputs(1))
    assert len(sparse._stages) == 2


def test_a_batch_of_mixed_timesteps_takes_the_densest_grid() -> None:
    _, sparse = sparse_plain()
    x, _, y = inputs(2)
    seen = []
    sparse.sparsify_density.register_forward_hook(lambda module, args, output: seen.append(output))
    sparse(x, torch.tensor([999, 10]), y)
    sparse(x, torch.tensor([10, 10]), y)
    sparse(x, torch.tensor([999, 999]), y)
    assert seen[0] == seen[1] > seen[2]


def test_other_resolutions_without_a_new_capture() -> None:
    """A fully convolutional patch embedding and no table: nothing pins the size, so one graph serves all."""

    class AnySize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()

        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            c = self.inner.conditioning(t, y)
            z = self.inner.x_embedder(x)
            tokens = z.flatten(2).transpose(1, 2)
            for block in self.inner.blocks:
                tokens = block(tokens, c)
            return tokens.transpose(1, 2).reshape(z.shape)

    model = AnySize().eval()
    sparse = sparsify(model, POLICY, example_inputs=inputs(2, (16, 16)))
    wide = inputs(3, (12, 28))
    fresh = sparsify(AnySize().eval(), POLICY)
    fresh._source[0].load_state_dict(model.state_dict())
    assert torch.allclose(sparse(*wide), fresh(*wide), atol=1e-6)
    assert len(sparse._stages) == 1


def test_tied_parameters_stay_tied() -> None:
    model = plain()
    model.blocks[1].attn.proj.weight = model.blocks[0].attn.proj.weight
    sparse = sparsify(model, POLICY, example_inputs=inputs())
    tree = sparse.blocks
    assert tree.get_submodule("0.attn.proj").weight is tree.get_submodule("1.attn.proj").weight
    assert len(list(sparse.parameters())) == len(list(model.parameters())) + 4


def test_blocks_that_differ_get_bodies_of_their_own() -> None:
    model = plain()
    model.blocks[3].norm1.eps = 0.5  # not a parameter: only the structure tells
    sparse = sparsify(model, Policy.dense(), example_inputs=inputs())
    assert sorted(sparse.program.bodies) == ["block0", "block1"]
    given = inputs()
    assert torch.equal(sparse(*given), model(*given))


def test_graph_module_prints_and_shows_the_rewrite() -> None:
    _, sparse = sparse_plain()
    text = sparse.graph_module.print_readable(print_output=False)
    for name in ("density", "pool_tokens", "restore_tokens", "pooled_height", "blocks_5"):
        assert name in text
    called = [node.target for node in sparse.graph_module.graph.find_nodes(op="call_module")]
    assert called == ["sparsify_density", *(f"blocks.{i}" for i in range(6))]
    given = inputs()
    (direct,) = sparse.graph_module(*given)
    assert torch.equal(direct, sparse(*given))


def test_policy_is_kept() -> None:
    _, sparse = sparse_plain(policy=Policy(1, SDTM(1, 2, 1, 1), 0, Density.constant(grid=(3, 4))))
    assert sparse.policy.density == Density.constant(grid=(3, 4))
