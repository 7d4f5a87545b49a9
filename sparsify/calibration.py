"""Fit the restore layers in closed form, so that restored tokens match the dense model's at that depth.

A new restore layer hands on the dense tokens from before its module (``W1 = 0``, ``W2 = I``), so that at first whatever the
module's sparse blocks computed is lost. Here ``W1``, ``W2`` and a bias are the least-squares map from ``[up(X_s), X, 1]`` to the
tokens that the dense model has in front of the same block. No gradients; modules are fitted bottom up, each on what the
fitted ones below it give.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .calls import split_inputs
from .density import Grid
from .errors import InputError
from .observe import Stop, observe
from .pristine import pristine
from .restoring import restore_points
from .ridge import NormalEquations
from .stage import Stage
from .trunk import find_trunk

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .runtime import SparseModel


@dataclass(frozen=True)
class Fit:
    """How one restore layer was fitted.

    Attributes:
        name: of the layer.
        block: in front of which block the tokens were matched.
        rows: tokens it was fitted on.
        condition: condition number of the scaled equations; near 1e16 the doubles would be used up.
        before: squared error over squared length of the dense tokens, with the weights from before.
        after: the same with the fitted weights, on the same tokens.
        grids: the pooled grids among the batches, as "height x width", with ``(before, after)`` of each.
    """

    name: str
    block: str
    rows: int
    condition: float
    before: float
    after: float
    grids: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Calibration:
    """The account of a calibration, a fit for each layer, bottom up. Print it for a table; ``to_json()`` for machines."""

    fits: tuple[Fit, ...]
    ridge: float

    def to_json(self) -> str:
        """All numbers as JSON."""
        return json.dumps(asdict(self))

    def __rich__(self) -> RenderableType:
        from rich.table import Table

        table = Table(
            "layer", "in front of", "pooled grid", "error before", "after", "condition", title="calibrated restore layers"
        )
        for fit in self.fits:
            rows = [("all", (fit.before, fit.after)), *(fit.grids.items() if len(fit.grids) > 1 else ())]
            for index, (grid, (before, after)) in enumerate(rows):
                first = (fit.name, fit.block) if index == 0 else ("", "")
                table.add_row(*first, grid, f"{before:.4f}", f"{after:.4f}", "" if index else f"{fit.condition:.1e}")
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120).print(self)
        return text.getvalue()


def dense_tokens(model: nn.Module, batch: Any, positions: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """What the dense model has in front of some blocks on one call.

    Args:
        model: the dense model; it is left as it was, in its mode too.
        batch: the call's inputs, as for ``example_inputs``.
        positions: by the block's path, which of its flat inputs are the tokens.

    Returns:
        By path, usually (batch, tokens, channels), computed in evaluation mode.
    """
    args, kwargs = split_inputs(batch)
    with pristine(model), torch.no_grad():
        model.eval()
        calls = find_trunk(model, args, kwargs, fake=False)
    found = {call.path: call.inputs[positions[call.path]] for call in calls if call.path in positions}
    if missing := sorted(positions.keys() - found.keys()):
        raise InputError(
            f"the dense model has no block {missing[0]} in its trunk; give the model that was sparsified, or its like."
        )
    return found  # type: ignore[return-value]  # tokens are tensors


def calibrate(
    sparse: SparseModel,
    batches: Iterable[Any],
    *,
    ridge: float = 1e-4,
    teacher: nn.Module | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """See :meth:`sparsify.runtime.SparseModel.calibrate`."""
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 <= ridge < float("inf"):
        raise InputError(f"ridge is {ridge!r}; it must be a number of at least 0, such as 1e-4.")
    calls = [batches] if isinstance(batches, (Mapping, torch.Tensor)) else list(batches)
    if not calls:
        raise InputError(
            "batches is empty; give a few calls' inputs, each as for example_inputs, at timesteps all over the schedule."
        )
    with _evaluating(sparse), torch.no_grad():
        prepared = [sparse.prepare(*split_inputs(call))[0] for call in calls]
        layers = [sparse.get_submodule(restore.name) for restore in prepared[0].program.restores]
        if not layers:
            raise InputError(
                f"the policy {sparse.policy} has no sparse-dense module here: there is no restore layer to calibrate."
            )
        with _kept_on_failure([p for layer in layers for p in layer.parameters()]):
            run = _Run(sparse, calls, prepared, sparse._source[0] if teacher is None else teacher, on_progress or _quiet)
            return Calibration(tuple(run.fit(index, ridge) for index in range(len(layers))), ridge)


@dataclass
class _Gathered:
    """Rows at one pooled grid: the equations for the change from the identity start, and two squared lengths."""

    equations: NormalEquations
    before: float = 0.0
    length: float = 0.0


class _Run:
    """One calibration: the dense model's tokens are computed once, the sparse model runs up to each layer in turn."""

    def __init__(
        self,
        sparse: SparseModel,
        calls: Sequence[Any],
        stages: Sequence[Stage],
        dense: nn.Module,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._sparse, self._calls, self._on_progress = sparse, calls, on_progress
        points = {id(stage): restore_points(stage.program) for stage in stages}
        self._points = [points[id(stage)] for stage in stages]
        self._done, self._total = 0, len(calls) * (1 + len(self._points[0]))
        self._targets = []
        for call, stage, of_call in zip(calls, stages, self._points, strict=True):
            positions = {str(point.block.target): stage.program.body_of(point.block).tokens for point in of_call}
            self._targets.append(dense_tokens(dense, call, positions))
            self._advance()

    def fit(self, index: int, ridge: float) -> Fit:
        """Fit one layer, with all below it fitted."""
        gathered: dict[Grid, _Gathered] = {}
        for number in range(len(self._calls)):
            self._gather(number, index, gathered)
            self._advance()
        point = self._points[0][index]
        width = next(iter(gathered.values())).equations.cross.shape[1]
        whole = NormalEquations(2 * width + 1, width, next(iter(gathered.values())).equations.gram.device)
        for part in gathered.values():
            whole += part.equations
        try:
            solution = whole.solve(ridge)
        except torch.linalg.LinAlgError as error:
            raise InputError(
                f"ridge is {ridge}, and the tokens before {point.block.target} do not determine its restore layer; use a little, such as 1e-4."
            ) from error
        _write(self._sparse.get_submodule(point.name), solution.weights, width)
        grids = {
            "x".join(map(str, grid)): (part.before / part.length, part.equations.residual(solution.weights) / part.length)
            for grid, part in sorted(gathered.items(), reverse=True)
        }
        length = sum(part.length for part in gathered.values())
        before = sum(part.before for part in gathered.values()) / length
        after = whole.residual(solution.weights) / length
        return Fit(point.name, str(point.block.target), whole.rows, solution.condition, before, after, grids)

    def _gather(self, number: int, index: int, gathered: dict[Grid, _Gathered]) -> None:
        """Run one call up to one layer, and add its rows to those of the call's pooled grid."""
        stage, inputs = self._sparse.prepare(*split_inputs(self._calls[number]))
        point = self._points[number][index]
        tokens = self._targets[number][str(point.block.target)]

        def look(node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
            if node is not point.merged:
                return
            few, rows = point.features(values)
            target = point.rows_of(tokens, values)
            now = values[point.copied] + values[point.dense]
            if not all(bool(torch.isfinite(x).all()) for x in (few, rows, target)):
                raise InputError(f"batches[{number}]: tokens in front of {point.block.target} are not finite numbers.")
            grid = tuple(int(values[side]) for side in stage.program.pooled_nodes)
            if grid not in gathered:
                device = "cpu" if rows.device.type == "mps" else rows.device  # no doubles there
                width = rows.shape[-1]
                gathered[grid] = _Gathered(NormalEquations(2 * width + 1, width, device))
            part = gathered[grid]
            features = torch.cat([few, rows, torch.ones_like(rows[..., :1])], dim=-1)
            part.equations.add(features.flatten(0, -2), (target.double() - rows.double()).flatten(0, -2))
            part.before += float((now.double() - target.double()).square().sum())
            part.length += float(target.double().square().sum())
            raise Stop

        observe(self._sparse, stage, inputs, look)

    def _advance(self) -> None:
        self._done += 1
        self._on_progress(self._done, self._total)


def _write(layer: nn.Module, change: torch.Tensor, width: int) -> None:
    """``W1``, ``W2`` and the bias behind both, from the change that was fitted to the identity start."""
    sparse: Any = layer.get_submodule("sparse")
    dense: Any = layer.get_submodule("dense")
    sparse.weight.copy_(change[:width].T)
    dense.weight.copy_(change[width : 2 * width].T + torch.eye(width, dtype=change.dtype, device=change.device))
    sparse.bias.zero_()
    dense.bias.copy_(change[2 * width])


@contextlib.contextmanager
def _kept_on_failure(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put the old values back if the block fails: nothing is half changed."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    except BaseException:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
        raise


@contextlib.contextmanager
def _evaluating(sparse: SparseModel) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module's own mode again."""
    flags = [(module, module.training) for module in (*sparse.modules(), *sparse._source[0].modules())]
    mode = sparse._mode
    sparse.eval()
    try:
        yield
    finally:
        sparse._mode = mode
        for module, training in flags:
            module.training = training


def _quiet(done: int, total: int) -> None:
    """No progress to show."""
