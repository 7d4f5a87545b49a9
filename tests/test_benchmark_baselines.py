"""What we are timed against does what it says: SparseDiT by hand equals ours, token merging merges, the cache caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.common import counted
from benchmarks.first_block_cache import first_block_cache
from benchmarks.handwritten import fix_grid, handwritten
from benchmarks.token_merging import Matching, cells, merged_at, merging
from sparsify import SDTM, Density, Policy, SparseModel, sparsify
from sparsify.models import flux_stack

from .plain_dit import randomised
from .test_exact import randomise_restores, tiny_diffusers_dit, tiny_pixart

POLICY = Policy(1, SDTM(1, 1, 1, 1), 1, Density.paper(r_min=0.5, r_max=0.9))
SIZE = (16, 16)


def dit_and_inputs() -> tuple[Any, dict[str, Any]]:
    labels = {"class_labels": torch.tensor([3, 7]), "timestep": torch.tensor([500, 500])}
    return randomised(tiny_diffusers_dit()).eval(), {"hidden_states": torch.randn(2, 4, *SIZE), **labels}


def pixart_and_inputs() -> tuple[Any, dict[str, Any]]:
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    inputs = {
        "hidden_states": torch.randn(2, 4, *SIZE),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "encoder_attention_mask": mask,
        "timestep": torch.tensor([500, 500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return randomised(tiny_pixart()).eval(), inputs


MODELS = pytest.mark.parametrize("make", [dit_and_inputs, pixart_and_inputs], ids=["dit", "pixart"])


def share_restores(sparse: SparseModel, twin: Any) -> None:
    """Ours into the one by hand."""
    for mine, theirs in zip(sparse.sparsify_restore, twin.transformer_blocks[0].restores, strict=True):
        theirs.load_state_dict({f"{side}.{name}": t for side in mine for name, t in mine[side].state_dict().items()})


@MODELS
def test_handwritten_equals_ours(make: Any) -> None:
    model, inputs = make()
    sparse = sparsify(model, POLICY, example_inputs=inputs)
    randomise_restores(sparse)
    for ones in (False, True):
        twin = handwritten(model, POLICY, (8, 8), ones=ones)
        share_restores(sparse, twin)
        with torch.no_grad():
            for density in sparse.report().densities:
                want = fix_grid(twin, density.grid)(**inputs).sample
                got = sparse.fix(density.grid)(**inputs).sample
                assert want.abs().max() > 0.05
                torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@MODELS
def test_making_one_by_hand_leaves_the_model_alone(make: Any) -> None:
    model, inputs = make()
    names = dict(model.named_parameters())
    with torch.no_grad():
        before = model(**inputs).sample
        twins = handwritten(model, POLICY, (8, 8)), merging(model, (8, 8), 20)
        assert torch.equal(model(**inputs).sample, before)
    assert dict(model.named_parameters()).keys() == names.keys()
    held = {id(p) for twin in twins for p in twin.parameters()}
    assert {id(p) for p in names.values()} <= held


def test_matching_with_nothing_to_merge_is_the_identity() -> None:
    x = torch.randn(2, 35, 16)
    matching = Matching(x, (5, 7), 0)
    assert torch.equal(matching.unmerge(matching.merge(x)), x)


@MODELS
def test_a_model_that_merges_nothing_is_the_model(make: Any) -> None:
    model, inputs = make()
    with torch.no_grad():
        torch.testing.assert_close(merging(model, (8, 8), 0)(**inputs).sample, model(**inputs).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("merged", [1, 10, 26])
def test_merged_tokens_become_means_and_come_back_alike(merged: int) -> None:
    grid, batch = (5, 7), 3
    x = torch.randn(batch, 35, 16)
    matching = Matching(x, grid, min(merged, len(cells(grid)[0])))
    few = matching.merge(x)
    gone = 35 - few.shape[1]
    assert gone == min(merged, len(cells(grid)[0]))
    # What every token gets back is the mean of all tokens that get the same back.
    back = matching.unmerge(few)
    for image in range(batch):
        for value in torch.unique(back[image], dim=0):
            alike = (back[image] == value).all(dim=-1)
            torch.testing.assert_close(x[image, alike].mean(dim=0), value)


def test_the_most_similar_pair_is_merged_first() -> None:
    x = torch.randn(1, 16, 8)
    x[0, 5] = 3 * x[0, 10]  # the same direction; 5 may vanish, 10 is the first of its cell
    back = Matching(x, (4, 4), 1)
    restored = back.unmerge(back.merge(x))
    assert torch.equal(restored[0, 5], restored[0, 10])
    rest = [i for i in range(16) if i not in (5, 10)]
    assert torch.equal(restored[0, rest], x[0, rest])


def test_merging_is_chosen_to_cost_what_is_asked() -> None:
    """To half a token; counting on the meta device is the same."""
    model, inputs = dit_and_inputs()
    one = {name: value[:1] for name, value in inputs.items()}
    with torch.device("meta"):
        twin = tiny_diffusers_dit()
    on_meta = {name: value.to("meta") for name, value in one.items()}
    costs = [counted(merging(model, (8, 8), merged), **one) for merged in (10, 11)]
    assert merged_at(twin, on_meta, (8, 8), costs[0]) == (10, costs[0])
    assert merged_at(twin, on_meta, (8, 8), 0.4 * costs[0] + 0.6 * costs[1])[0] == 11
    assert merged_at(twin, on_meta, (8, 8), 0.0)[0] == len(cells((8, 8))[0])
    dense = counted(twin, **on_meta)
    assert merged_at(twin, on_meta, (8, 8), dense) == (0, dense)


@pytest.mark.parametrize("kind", ["dit", "pixart", "flux"])
def test_first_block_cache_hits_or_misses_as_told(kind: str) -> None:
    """On these three families diffusers' cache runs; the models are left as they are."""
    makers = {"dit": dit_and_inputs, "pixart": pixart_and_inputs, "flux": lambda: flux_stack(64, 1, 2, heads=1, text_tokens=4)}
    model, inputs = makers[kind]()
    last = [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", ())][-1]
    ran: list[int] = []
    next(m for m in last.modules() if isinstance(m, torch.nn.Linear)).register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        want = model(**inputs).sample
        for hit, times in ((True, 1), (False, 3)):
            run = first_block_cache(model, hit)
            ran.clear()
            for _ in range(3):  # the same inputs each time, so that what was cached is right
                torch.testing.assert_close(run(**inputs).sample, want, atol=1e-4, rtol=1e-4)
            assert len(ran) == times
        ran.clear()
        assert torch.equal(model(**inputs).sample, want) and ran == [1]
