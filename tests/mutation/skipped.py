"""What is not changed, because no test could or should notice: types, texts, and what mypy alone reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator

Point = tuple[int, int]


def skipped(source: str) -> list[tuple[Point, Point]]:
    """From where to where nothing is changed, as (line, column) with columns in characters.

    Annotations and names of types, ``if TYPE_CHECKING`` and ``if __name__ == "__main__"``, ``__all__``, assertions (which are there for mypy),
    f-strings and the arguments of errors that are raised. Docstrings, comments and other strings have nothing that an operator changes.
    """
    lines = source.splitlines()

    def point(line: int, column: int) -> Point:
        return line, len(lines[line - 1].encode()[:column].decode())  # the columns of ast count bytes

    return [
        (point(node.lineno, node.col_offset), point(node.end_lineno or 0, node.end_col_offset or 0))
        for node in _nodes(ast.parse(source))
    ]


def _nodes(tree: ast.Module) -> Iterator[ast.expr | ast.stmt]:
    yield from (node for node in tree.body if _is_declaration(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is not None:
            yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation
        elif isinstance(node, (ast.Assert, ast.JoinedStr)):
            yield node
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from node.exc.args
            yield from (keyword.value for keyword in node.exc.keywords)


def _is_declaration(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):
        return {"TYPE_CHECKING", "__name__"} & {each.id for each in ast.walk(node.test) if isinstance(each, ast.Name)} != set()
    if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
        return False
    name, value = node.targets[0].id, node.value
    is_type = name.lstrip("_")[:1].isupper() and not name.isupper() and isinstance(value, (ast.Subscript, ast.BinOp))
    return name == "__all__" or is_type


def is_skipped(position: tuple[Point, Point], ranges: list[tuple[Point, Point]]) -> bool:
    """Whether a position lies in one of the ranges."""
    return any(start <= position[0] and position[1] <= end for start, end in ranges)
