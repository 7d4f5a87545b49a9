"""Weights of blocks are kept from the outer trace, but for those that the model reads outside of its blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify import Policy, SparseModel, sparsify
from sparsify.capture import capture_module
from sparsify.hidden import Hidden, Watch

from .helpers import POLICY, inputs, plain
from .plain_dit import PlainDiT, randomised


class Reads(PlainDiT):
    """Adds to its tokens what ``read`` makes of its blocks."""

    read: Callable[[nn.ModuleList, torch.Tensor], torch.Tensor]

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        x = super().embed(x)
        return x + Reads.read(self.blocks, x)


def a_weight(blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, blocks[2].modulation[1].weight[:32])


def what_a_weight_gives_alone(blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    """Nothing in it depends on the inputs: a trace that takes the weight for a constant would freeze the sum."""
    return (blocks[1].mlp[0].weight * 2).sum()


def a_submodule(blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    return blocks[0].modulation(x)[..., :32]


def in_the_trace_alone(blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    """The recorded run sees nothing of it."""
    return blocks[3].mlp[0].bias.sum() if torch.compiler.is_exporting() else torch.zeros(())


@pytest.mark.parametrize("read", [a_weight, what_a_weight_gives_alone, a_submodule, in_the_trace_alone])
def test_what_is_read_outside_of_a_block_stays_a_parameter(
    read: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reads, "read", staticmethod(read), raising=False)
    model = randomised(Reads()).eval()
    sparse = sparsify(model, Policy.dense(), example_inputs=inputs())
    given = inputs()
    with monkeypatch.context() as context:
        context.setattr(torch.compiler, "is_exporting", lambda: True)
        torch.testing.assert_close(sparse(*given), model(*given), rtol=0, atol=1e-5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.25)
        torch.testing.assert_close(sparse(*given), model(*given), rtol=0, atol=1e-4)
    sparse(*given).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert any(str(node.target).startswith("blocks.") for node in _weights(sparse))


def test_nothing_else_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[set[str]] = []

    def spied(module: nn.Module, *args: object, **options: object) -> object:
        if isinstance(module, Reads):
            hidden = args[2]
            assert isinstance(hidden, Hidden)
            with hidden.hide():
                shown.append({name.split(".")[1] for name, _ in module.named_parameters() if name.startswith("blocks.")})
        return capture_module(module, *args, **options)

    monkeypatch.setattr("sparsify.capture.capture_module", spied)
    monkeypatch.setattr(Reads, "read", staticmethod(a_weight), raising=False)
    sparsify(randomised(Reads()).eval(), POLICY, example_inputs=inputs())
    assert shown == [{"2"}]


def test_a_tensor_left_on_a_block_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which torch.export warns: a graph writes to nothing."""

    def leave(blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        blocks[4].attn.cache = x
        return torch.zeros(())

    monkeypatch.setattr(Reads, "read", staticmethod(leave), raising=False)
    with pytest.warns(UserWarning, match=r"blocks\.4\.attn\.cache was assigned"):
        sparsify(randomised(Reads()).eval(), POLICY, example_inputs=inputs())


def test_hiding_leaves_no_trace() -> None:
    model = plain()
    before = {name: vars(module)["_parameters"] for name, module in model.named_modules()}
    hidden = Hidden({"blocks.0": model.blocks[0]})
    with pytest.raises(ZeroDivisionError), hidden.hide():
        assert not any(name.startswith("blocks.0.") for name, _ in model.named_parameters())
        with hidden.show():
            assert any(name.startswith("blocks.0.") for name, _ in model.named_parameters())
        assert not list(model.blocks[0].children())
        raise ZeroDivisionError
    after = {name: vars(module)["_parameters"] for name, module in model.named_modules()}
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    assert hidden.touched == set()


def test_the_watch_sees_operators_methods_and_attributes() -> None:
    a, b, c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    for read in (
        lambda: a(torch.ones(2)),
        lambda: a.weight.sum(),
        lambda: a.weight.dtype,
        lambda: torch.stack([b.weight, a.weight]),
    ):
        watch = Watch({"a": a, "c": c})
        with watch:
            read()
            watch.pausing(c)(torch.ones(2))
        assert watch.seen == {"a"}


def _weights(sparse: SparseModel) -> list[torch.fx.Node]:
    return list(sparse.program.graph.find_nodes(op="get_attr"))
