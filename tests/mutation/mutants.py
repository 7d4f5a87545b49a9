"""The mutants of a module: its source with one thing changed."""

from __future__ import annotations

import ast
import difflib
import hashlib
import random
import re
import warnings
from dataclasses import dataclass

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

from .operators import operators
from .skipped import is_skipped, skipped


@dataclass(frozen=True)
class Mutant:
    """A changed module. ``before`` and ``after`` are the first line that differs, without indentation."""

    path: str
    operator: str
    line: int
    before: str
    after: str
    code: str

    @property
    def identity(self) -> str:
        """Equal for the same change of the same source."""
        return hashlib.sha256(f"{self.path}\n{self.code}".encode()).hexdigest()[:16]


def places(source: str) -> list[tuple[str, int]]:
    """All changes that are made: the operator, and which of its occurrences."""
    tree, ranges = get_ast(source), skipped(source)
    found = []
    for name, operator in operators().items():
        positions = [position for node in ast_nodes(tree) for position in operator.mutation_positions(node)]
        found += [(name, index) for index, position in enumerate(positions) if not is_skipped(position, ranges)]
    return found


def mutants(path: str, source: str) -> list[Mutant]:
    """All mutants, in a fixed order; no two that mean the same, and none that is no Python."""
    chosen, seen, found = operators(), {_meaning(source), None}, []
    for name, occurrence in places(source):
        code = mutate_code(source, chosen[name], occurrence)
        meaning = _meaning(code)
        if meaning not in seen:
            seen.add(meaning)
            found.append(Mutant(path, name, *_difference(source, code), code))
    return found


def sampled(found: list[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """``count`` of the mutants of a module, drawn by ``seed``; all if it is None or there are no more."""
    if count is None or count >= len(found):
        return found
    return random.Random(f"{seed} {found[0].path}").sample(found, count)


class _Plain(ast.NodeTransformer):
    """``not a == b`` is ``a != b``, and ``not not a`` is ``a``, as conditions."""

    PAIRS = ((ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.Lt, ast.GtE), (ast.Gt, ast.LtE))
    OPPOSITES = dict(PAIRS) | {second: first for first, second in PAIRS}

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        inner = node.operand
        if not isinstance(node.op, ast.Not):
            return node
        if isinstance(inner, ast.Compare) and len(inner.ops) == 1 and type(inner.ops[0]) in self.OPPOSITES:
            return ast.Compare(inner.left, [self.OPPOSITES[type(inner.ops[0])]()], inner.comparators)
        return inner.operand if isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.Not) else node


def _meaning(code: str) -> str | None:
    """Equal for code that does the same in other words; None for what is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `x is 1` and the like
        try:
            compile(code, "<mutant>", "exec")
            return ast.dump(_Plain().visit(ast.parse(code)))
        except SyntaxError:
            return None


def _difference(source: str, code: str) -> tuple[int, str, str]:
    """The number of the first line that changed, that line, and what stands there now."""
    before, after = source.splitlines(), code.splitlines()
    for tag, i, i_end, j, j_end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag != "equal":
            while i + 1 < i_end and not before[i].strip():  # with a decorator go the blank lines in front of it
                i += 1
            return i + 1, _tidy(before[i]) if i < i_end else "", _tidy(after[j]) if j < j_end else ""
    return 0, "", ""


def _tidy(line: str) -> str:
    """Without the blanks that operators leave."""
    return re.sub(r"([\[(]) +", r"\1", " ".join(line.split()))
