"""The dense model beside the one that is trained, and how far apart the two are."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from ..errors import InputError
from ..runtime import SparseModel
from ..tree import Block
from .calling import prediction
from .config import TrainConfig
from .distill import Features, dense_teacher, feature_loss, module_ends, output_loss, weights_digest
from .setup import Setup


class Teacher:
    """A frozen dense model; within its context, tokens of both models are recorded.

    Attributes:
        digest: of its weights.
        dense: the model.
    """

    def __init__(self, setup: Setup, config: TrainConfig, dense: SparseModel, digest: str) -> None:
        self.digest, self.dense = digest, dense
        self._weights = (config.distill_output, config.distill_feature)
        self._sparse = setup.sparse
        program = setup.program
        self._paths = module_ends(program.paths, setup.stage.plan.roles()) if config.distill_feature else []
        self._features: list[Features] = []
        if config.distill_feature and not self._paths:
            raise InputError(
                f"TrainConfig.distill_feature is {config.distill_feature}, but the policy has no sparse-dense module to compare after."
            )

    @classmethod
    def of(cls, setup: Setup, config: TrainConfig, model: nn.Module | None, device: torch.device) -> Teacher:
        """The teacher for a run: a copy of ``model``, or of the model that is trained as it is now.

        Raises:
            InputError: it is sparse, or has other blocks.
        """
        if isinstance(model, SparseModel):
            raise InputError("the teacher is sparse; give the dense model.")
        source: nn.Module = setup.sparse._source[0] if model is None else model
        request = setup.sparse._request
        dense = dense_teacher(source, setup.example, device, grid=request.grid, timestep=request.timestep)
        made = cls(setup, config, dense, weights_digest(source))
        for path in made._paths:
            if not isinstance(dict(dense.named_modules()).get(path), Block):
                raise InputError(f"the teacher has no block {path}; features are compared between models with the same blocks.")
        return made

    def __enter__(self) -> Self:
        self._features = [Features(model, self._paths) for model in (self._sparse, self.dense)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for features in self._features:
            features.remove()

    def losses(self, output: torch.Tensor, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, torch.Tensor]:
        """How far the model, which has just run, is from its teacher in the same call; weighted terms of the loss."""
        args, kwargs = arguments
        with torch.no_grad():
            wanted = prediction(self.dense(*args, **kwargs))
        mine, theirs = (features.tokens for features in self._features)
        terms = {}
        if self._weights[0]:
            terms["distill_output"] = self._weights[0] * output_loss(output, wanted)
        if self._weights[1]:
            terms["distill_feature"] = self._weights[1] * feature_loss(mine, theirs)
        for features in self._features:
            features.tokens.clear()
        return terms
