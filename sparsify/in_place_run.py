"""Run a model whose blocks are answered from the rewritten graph of its trunk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import fx, nn

from .calls import Leaf
from .errors import CaptureError, ConstantError, InputError
from .export import flat_outputs
from .program import Program


class InPlace:
    """Calls the source model with its blocks' forwards exchanged for the length of the call.

    Nodes of the graph run when a block needs them: by then the model's own code has given all that they depend on.
    ``calls`` has functions to call in place of the root's modules, by path. ``observer`` is shown each node with the values so
    far before it is computed.
    """

    def __init__(
        self,
        program: Program,
        root: nn.Module,
        model: nn.Module,
        calls: Mapping[str, Callable[..., Any]],
        observer: Callable[[fx.Node, Mapping[fx.Node, Any]], None] | None = None,
    ) -> None:
        self._program, self._root, self._model, self._calls = program, root, model, calls
        self._observer = observer
        self._names = [node for node in program.placeholders]
        self._inputs = len(program.call.input_names)
        self._read = dict(zip(program.read, flat_outputs(program.graph), strict=True))

    def __call__(self, *inputs: Leaf) -> Any:
        """What the model returns, in its own nesting."""
        values: dict[fx.Node, Any] = dict(zip(self._names[: self._inputs], inputs, strict=True))
        args, kwargs = self._program.call.unflatten(inputs)
        with self._exchanged(values):
            return self._model(*args, **kwargs)

    @contextlib.contextmanager
    def _exchanged(self, values: dict[fx.Node, Any]) -> Iterator[None]:
        blocks = {str(node.target): node for node in self._program.all_block_nodes}
        modules = {path: self._model.get_submodule(path) for path in blocks}
        before = {path: module.__dict__.get("forward") for path, module in modules.items()}
        flags = [(module, module.training) for module in self._model.modules()]
        try:
            for path, module in modules.items():
                module.__dict__["forward"] = self._answer(path, blocks[path], values)
            for path, module in self._model.named_modules():
                module.training = self._root.get_submodule(path).training
            yield
        finally:
            for path, module in modules.items():
                module.__dict__.pop("forward")
                if before[path] is not None:
                    module.__dict__["forward"] = before[path]
            for module, training in flags:
                module.training = training

    def _answer(self, path: str, node: fx.Node, values: dict[fx.Node, Any]) -> Callable[..., Any]:
        spec, outputs = self._program.in_place[path], self._program.outputs[path]
        original = list(self._program.given[path])

        def forward(*args: Any, **kwargs: Any) -> Any:
            try:
                inputs = spec.flatten(args, kwargs)
            except (InputError, ConstantError) as error:
                raise CaptureError(f"{path} is called otherwise than when the model was captured: {error}") from error
            for placeholder, value in zip(original, inputs, strict=True):
                if placeholder.op == "placeholder":
                    values.setdefault(placeholder, value)
            result = self._value(node, values)
            results = list(result) if isinstance(result, (tuple, list)) else [result]
            for index in range(len(results)):
                if (path, index) in self._read:  # at the level of the model's own code, where nothing is sparse
                    results[index] = self._value(self._read[path, index], values)
            return outputs.unflatten(results)

        return forward

    def _value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        pending: list[fx.Node] = [node]
        while pending:
            current = pending[-1]
            missing = [source for source in current.all_input_nodes if source not in values]
            if current in values:
                pending.pop()
            elif missing:
                pending += missing
            else:
                if self._observer is not None:
                    self._observer(current, values)
                values[pending.pop()] = self._run(current, values)
        return values[node]

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "call_module":
            path = str(node.target)
            return (self._calls.get(path) or self._root.get_submodule(path))(*args, **kwargs)
        if node.op == "get_attr":
            module, _, name = str(node.target).rpartition(".")
            return getattr(self._root.get_submodule(module), name)
        if node.op == "placeholder":
            raise CaptureError(
                f"{node.name} is needed before the model has made it; its blocks do not run in the recorded order."
            )
        return node.target(*args, **kwargs)  # type: ignore[operator]
