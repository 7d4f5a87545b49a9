"""The dense model as a teacher: its output, and its tokens after each sparse-dense module."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ..api import sparsify
from ..errors import TrainingError
from ..policy import Policy, Role
from ..runtime import SparseModel
from ..tree import Block


class Features:
    """The tokens that some blocks hand on, recorded by forward hooks as a model runs.

    Args:
        sparse: a model whose blocks are :class:`~sparsify.tree.Block`; the dense teacher is one too, under the dense policy.
        paths: which blocks.

    Attributes:
        tokens: by path, what the latest call gave: (batch, tokens, channels), with its gradients.
    """

    def __init__(self, sparse: SparseModel, paths: Iterable[str]) -> None:
        self.tokens: dict[str, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for path in paths:
            self._handles.append(sparse.get_submodule(path).register_forward_hook(self._recorder(path)))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _recorder(self, path: str) -> Callable[..., None]:
        def record(block: Block, _: Any, results: Any) -> None:
            many = isinstance(results, (tuple, list))
            self.tokens[path] = results[block.sparsify_body.token_output] if many else results

        return record


def module_ends(paths: Iterable[str], roles: Iterable[Role]) -> list[str]:
    """The last block of each sparse-dense module: behind it the tokens are dense again, as they are in the dense model."""
    pairs = list(zip(paths, roles, strict=True))
    ends = []
    for index, (path, role) in enumerate(pairs):
        following = pairs[index + 1][1] if index + 1 < len(pairs) else None
        if role.module is None:
            continue
        if following is None or following.module != role.module or _begins(role, following):
            ends.append(path)
    return ends


def _begins(role: Role, following: Role) -> bool:
    """Whether a module begins behind a block, also one with the same number, which another chain has."""
    return following.name == "generate" and role.name != "generate"


def output_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The mean square difference of two outputs.

    Raises:
        TrainingError: they differ in shape.
    """
    if student.shape != teacher.shape:
        raise TrainingError(f"the teacher's output has the shape {tuple(teacher.shape)}, the model's {tuple(student.shape)}.")
    return F.mse_loss(student, teacher)


def feature_loss(student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The squared distance of an image's tokens over the squared length of the teacher's, a mean over images and modules.

    It is relative because the residual stream grows from block to block; the last module would drown the others.
    """
    terms = []
    for path, want in teacher.items():
        wanted = want.float().flatten(1)
        apart = (student[path].float().flatten(1) - wanted).square().sum(1)
        terms.append(apart / wanted.square().sum(1).clamp(min=1e-12))
    return torch.stack(terms).mean()


def dense_teacher(model: nn.Module, example: Any, device: torch.device, **options: Any) -> SparseModel:
    """A frozen copy of a dense model in evaluation mode, with blocks that can be hooked.

    Args:
        model: the model with its dense weights; it is copied.
        example: inputs of one call of as many rows as calls will have.
        device: where it is to run.
        options: as for :func:`~sparsify.sparsify`.
    """
    twin = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    return sparsify(twin, Policy.dense(), example, savings=False, **options)


def weights_digest(model: nn.Module) -> str:
    """A text that differs for other weights: a run with a teacher goes on with the same one alone."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
