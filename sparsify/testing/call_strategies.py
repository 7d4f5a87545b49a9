"""Strategies of a model's inputs: batches of one to three, timesteps from the whole schedule, values of several sizes."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..calls import split_inputs
from ..discretise import is_discrete
from ..errors import InputError
from ..passes.prompt_once import latent_inputs
from ..timestep import find_timestep
from .reading import dense, spec_of
from .spec import DiTSpec

_BATCHES = st.integers(1, 3)
_SEEDS = st.integers(0, 2**16)
_SCALES = st.sampled_from([1.0, 0.0, 0.1, 10.0])


def inputs(
    for_model: nn.Module, example_inputs: Any = None, *, timestep: str | None = None, timesteps: float | None = None
) -> st.SearchStrategy[Any]:
    """Inputs of one call: 1 to 3 rows, timesteps over the whole schedule, equal or each its own, and random values.

    Args:
        for_model: a model of :func:`~sparsify.testing.dits`, whose inputs are a dict of keyword inputs; or any other, which is
            captured here, once.
        example_inputs: one call's inputs, for a model that is not of ``dits``. What is drawn has their form: other latents,
            timesteps and number of rows; everything else, such as a prompt, repeats its rows.
        timestep: the name of that model's input with the timestep, where it cannot be told.
        timesteps: its timestep of pure noise; 1000 by default.

    Raises:
        InputError: example inputs are needed, or which input is the timestep is not clear.
        SparsifyError: as for ``sparsify``.
    """
    spec = spec_of(for_model)
    if spec is not None:
        return _BATCHES.flatmap(lambda batch: _calls(spec, batch))
    call = _Call(for_model, example_inputs, timestep)
    longest = 1000 if timesteps is None else timesteps
    return _BATCHES.flatmap(lambda batch: st.builds(call.drawn, _per_row(_timesteps(longest), batch), _SEEDS, _SCALES))


def _calls(spec: DiTSpec, batch: int) -> st.SearchStrategy[dict[str, Tensor]]:
    """Built by ``spec.example_inputs``, so that a failing example prints as that call."""
    timestep = _timesteps(spec.timesteps) | _per_row(_timesteps(spec.timesteps), batch)
    return st.builds(spec.example_inputs, batch=st.just(batch), seed=_SEEDS, timestep=timestep, scale=_SCALES)


def _timesteps(longest: float) -> st.SearchStrategy[float]:
    if is_discrete(longest):
        return st.integers(0, int(longest) - 1)
    return st.floats(0, longest, allow_subnormal=False)


def _per_row(step: st.SearchStrategy[float], batch: int) -> st.SearchStrategy[list[float]]:
    return step.map(lambda t: [t] * batch) | st.lists(step, min_size=batch, max_size=batch)


class _Call:
    """One call of a model of someone else's, of which variations are made."""

    def __init__(self, model: nn.Module, example_inputs: Any, timestep: str | None) -> None:
        program = dense(model, example_inputs).program
        args, kwargs = split_inputs(example_inputs)
        names = [node.name for node in program.placeholders]
        named: dict[str, Any] = dict(zip(names, program.call.flatten(args, kwargs), strict=False))
        program.timestep = find_timestep(program, timestep)
        self.example, self.time = example_inputs, named[program.timestep]
        if not isinstance(self.time, Tensor):
            raise InputError(f"the timestep {program.timestep!r} is no tensor among the inputs.")
        self.latents = [id(named[node.name]) for node in latent_inputs(program) if node.name in named]

    def drawn(self, timesteps: list[float], seed: int, scale: float) -> Any:
        """Inputs in the form of the example; a timestep without an axis takes the first of those given."""
        batch, random = len(timesteps), torch.Generator().manual_seed(seed)
        rows = self.time.shape[0] if self.time.ndim else None

        def changed(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if leaf is self.time:
                new = torch.tensor(timesteps if rows is not None else timesteps[0], dtype=torch.float64)
                return (
                    new.to(leaf).reshape(-1, *[1] * (leaf.ndim - 1)).expand(-1, *leaf.shape[1:]) if leaf.ndim else new.to(leaf)
                )
            if rows is not None and leaf.ndim and leaf.shape[0] == rows:
                leaf_of_batch = leaf[torch.arange(batch, device=leaf.device) % rows]
            else:
                leaf_of_batch = leaf
            if id(leaf) in self.latents and leaf.is_floating_point():
                noise = torch.randn(leaf_of_batch.shape, generator=random, dtype=torch.float64)
                return (scale * noise).to(leaf)
            return leaf_of_batch

        return pytree.tree_map(changed, self.example)
