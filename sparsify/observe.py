"""Look into a sparse model as it runs: the values of its outer graph, node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from .calls import Leaf
from .runtime import SparseModel
from .stage import Stage

Observer = Callable[[fx.Node, Mapping[fx.Node, Any]], None]


class Stop(Exception):  # no error: an observer has seen what it wanted
    """Raised by an observer to end the run."""


class _Watched(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, observer: Observer) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._observer = observer
        self.extra_traceback = False  # messages of errors are the observer's, for users to read

    def run_node(self, n: fx.Node) -> Any:
        self._observer(n, self.env)
        return super().run_node(n)


def observe(sparse: SparseModel, stage: Stage, inputs: Sequence[Leaf], observer: Observer) -> None:
    """Run ``sparse`` on a call's flat inputs and show ``observer`` each node with the values so far, before it is computed.

    All values stay alive until the run ends, or until ``observer`` raises :class:`Stop`.
    """
    try:
        if stage.program.in_place:
            sparse.in_place(stage, observer=observer)(*inputs)
        else:
            _Watched(sparse.graph_module, observer).run(*inputs)
    except Stop:
        pass
