"""What torch_tensorrt can convert and how it is called, read from the sources in its wheel without importing it.

pip download --no-deps torch-tensorrt==2.13.0 -d wheels
python -m tests.tensorrt_sources wheels/torch_tensorrt-*.whl -o tests/data/torch_tensorrt.json

The file holds facts alone: names of operators, of decompositions and passes, signatures. It is what the tests of the target
``tensorrt`` go by where TensorRT cannot be installed.
"""

from __future__ import annotations

import argparse
import ast
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONVERSION = "torch_tensorrt/dynamo/conversion/"
LOWERING = "torch_tensorrt/dynamo/lowering/"
FUNCTIONS = {
    "dynamo.compile": ("torch_tensorrt/dynamo/_compiler.py", "compile"),
    "dynamo.refit_module_weights": ("torch_tensorrt/dynamo/_refit.py", "refit_module_weights"),
    "save": ("torch_tensorrt/_compile.py", "save"),
    "load": ("torch_tensorrt/_compile.py", "load"),
}


class Wheel:
    """The sources of one wheel."""

    def __init__(self, path: Path) -> None:
        self._files = zipfile.ZipFile(path)
        self.names = self._files.namelist()

    def text(self, name: str) -> str:
        return self._files.read(name).decode()

    def tree(self, name: str) -> ast.Module:
        return ast.parse(self.text(name))

    def metadata(self, field: str) -> list[str]:
        name = next(name for name in self.names if name.endswith(".dist-info/METADATA"))
        lines = self.text(name).split("\n\n")[0].splitlines()
        return [line.split(": ", 1)[1] for line in lines if line.startswith(f"{field}: ")]


def facts(path: Path) -> dict[str, Any]:
    """Everything the tests need to know of a wheel."""
    wheel = Wheel(path)
    defaults = constants(wheel.tree("torch_tensorrt/dynamo/_defaults.py"))
    return {
        "version": wheel.metadata("Version")[0],
        "requires": [line for line in wheel.metadata("Requires-Dist") if "extra ==" not in line],
        "converters": converters(wheel),
        "decompositions": decompositions(wheel),
        "passes": passes(wheel.tree(f"{LOWERING}passes/_aten_lowering_pass.py")),
        "signatures": {name: signature(wheel.tree(file), function, defaults) for name, (file, function) in FUNCTIONS.items()},
        "deprecated": keywords_read(wheel.tree(FUNCTIONS["dynamo.compile"][0]), "compile"),
        "input": keywords_read(wheel.tree("torch_tensorrt/_Input.py"), "__init__"),
    }


# --- converters ------------------------------------------------------------------------------------------------------


def converters(wheel: Wheel) -> dict[str, list[dict[str, Any]]]:
    """By operator, its converters: whether they take dynamic shapes, what else they check, what has to be installed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in wheel.names:
        if name.startswith(CONVERSION) and name.endswith(".py") and "/plugins/" not in name:
            for call, needs in _decorators(wheel.tree(name), "dynamo_tensorrt_converter"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
                if options.get("enabled") == "False":
                    continue
                found.setdefault(_operator(call.args[0]), []).append(
                    {
                        "dynamic": options.get("supports_dynamic_shapes") == "True",
                        "checks": options.get("capability_validator"),
                        "needs": needs,
                    }
                )
    return dict(sorted(found.items()))


def _decorators(tree: ast.AST, name: str, needs: str | None = None) -> Iterator[tuple[ast.Call, str | None]]:
    """Calls of a decorator, with what they depend on where they stand in a branch."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).split(".")[-1] == name:
                    yield decorator, needs
        if isinstance(node, ast.If):
            yield from _decorators(node, name, ast.unparse(node.test))
        elif isinstance(node, ast.Try):
            modules = [alias.name for part in node.body if isinstance(part, ast.Import) for alias in part.names]
            yield from _decorators(node, name, " ".join(modules) or needs)
        else:
            yield from _decorators(node, name, needs)


def _operator(node: ast.expr) -> str:
    """``torch.ops.aten.add.Tensor`` as it is printed in a graph: ``aten.add.Tensor``."""
    return ast.unparse(node).removeprefix("torch.ops.")


# --- lowering --------------------------------------------------------------------------------------------------------


def decompositions(wheel: Wheel) -> dict[str, list[str]]:
    """Operators that torch's own decompositions take apart, those it must leave, and those with another decomposition."""
    groups = wheel.tree(f"{LOWERING}_decomposition_groups.py")
    own = wheel.tree(f"{LOWERING}_decompositions.py")
    replaced = [_operator(call.args[0]) for call, _ in _decorators(own, "register_torch_trt_decomposition")]
    in_place = [_operator(call.args[0]) for call in _calls(own, "replace_inplace_op")]
    return {
        "enabled": _set_of(groups, "torch_enabled_decompositions"),
        "disabled": _set_of(groups, "torch_disabled_decompositions"),
        "own": sorted({name for name in replaced + in_place if name != "aten_op"}),
        "kept_attention": _set_of(own, "ATTENTION_DECOMPOSITION_OPS"),
    }


def passes(tree: ast.Module) -> dict[str, list[str]]:
    """The names of its graph passes, in order."""
    lists = {name: _assigned(tree, f"{name}_lowering_pass_list") for name in ("pre", "post")}
    return {name: [ast.unparse(item) for item in value.elts] for name, value in lists.items() if isinstance(value, ast.List)}


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


def _set_of(tree: ast.Module, name: str) -> list[str]:
    value = _assigned(tree, name)
    return sorted(_operator(item) for item in value.elts) if isinstance(value, ast.Set) else []


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if name in [ast.unparse(target) for target in targets]:
            return node.value  # type: ignore[union-attr]
    return None


# --- calls -----------------------------------------------------------------------------------------------------------


def constants(tree: ast.Module) -> dict[str, str]:
    """Module-level names and the text of their values."""
    return {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign)}


def signature(tree: ast.Module, name: str, defaults: dict[str, str]) -> list[dict[str, Any]]:
    """The parameters of a function: name, kind as in :mod:`inspect`, the text of the default if there is one."""
    function = _function(tree, name).args
    first = len(function.posonlyargs + function.args) - len(function.defaults)
    found = [
        _parameter(argument.arg, "POSITIONAL_OR_KEYWORD", function.defaults[i - first] if i >= first else None, defaults)
        for i, argument in enumerate(function.posonlyargs + function.args)
    ]
    if function.vararg:
        found.append(_parameter(function.vararg.arg, "VAR_POSITIONAL", None, defaults))
    for argument, default in zip(function.kwonlyargs, function.kw_defaults, strict=True):
        found.append(_parameter(argument.arg, "KEYWORD_ONLY", default, defaults))
    if function.kwarg:
        found.append(_parameter(function.kwarg.arg, "VAR_KEYWORD", None, defaults))
    return found


def _parameter(name: str, kind: str, default: ast.expr | None, defaults: dict[str, str]) -> dict[str, Any]:
    parameter: dict[str, Any] = {"name": name, "kind": kind}
    if default is not None:
        text = ast.unparse(default)
        parameter["default"] = defaults.get(text.removeprefix("_defaults."), text)
    return parameter


def keywords_read(tree: ast.Module, function: str) -> list[str]:
    """Keywords that a function reads from ``**kwargs``."""
    found = set()
    for node in ast.walk(_function(tree, function)):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "kwargs":
            key: ast.expr = node.slice
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) in ("kwargs", "kwargs.keys()"):
            key = node.left
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "kwargs.get":
            key = node.args[0]
        else:
            continue
        if isinstance(key, ast.Constant):
            found.add(str(key.value))
    return sorted(found)


def _function(tree: ast.AST, name: str) -> ast.FunctionDef:
    return next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="a wheel of torch_tensorrt")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    found = facts(options.wheel)
    options.out.write_text(as_text(found) + "\n")
    print(f"{options.out}: torch_tensorrt {found['version']}, converters for {len(found['converters'])} operators")


def as_text(value: Any, depth: int = 2) -> str:
    """JSON with a line for each operator and each list, so that the differences of two releases can be read."""
    if not isinstance(value, dict) or not depth:
        return json.dumps(value)
    lines = (f"{json.dumps(key)}: {as_text(item, depth - 1)}" for key, item in value.items())
    return "{\n" + ",\n".join(lines) + "\n}"


if __name__ == "__main__":
    main()
