"""What is changed: operators of cosmic-ray, and three that it lacks.

Cosmic-ray has eleven replacements for every binary operator and seven for every comparison. Most of them are errors of type, which
any test notices, so that they would make the score better and say nothing. Here a binary operator has one replacement, a
comparison its opposite and its neighbour at the boundary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import parso
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Keyword

Position = tuple[tuple[int, int], tuple[int, int]]

_BINARY = "Add_Sub Sub_Add Mul_FloorDiv Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul RShift_LShift LShift_RShift BitOr_BitAnd BitAnd_BitOr"
_COMPARISON = "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is"
_UNARY = "Delete_USub Delete_Not Delete_Invert"
_OTHERS = (
    "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd ReplaceBreakWithContinue "
    "ReplaceContinueWithBreak ExceptionReplacer NumberReplacer RemoveDecorator ZeroIterationForLoop"
)


class RemoveStatement(Operator):  # type: ignore[misc]
    """A call made for what it does, or an assignment to an attribute or an item, is left out."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if node.type == "simple_stmt" and _acts(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        old = node.children[0]
        node.children[0] = Keyword("pass", old.start_pos, old.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("f(x)\n", "pass\n"), Example("x.y = 1\n", "pass\n"), Example("x[0] += 1\n", "pass\n"))


class NegateFilter(Operator):  # type: ignore[misc]
    """The condition of a comprehension is negated."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if node.type == "comp_if":
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.children[1] = parso.parse(f" not ({node.children[1].get_code().strip()})")
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("[x for x in y if x]", "[x for x in y if not (x)]"),)


class ReplaceIn(Operator):  # type: ignore[misc]
    """``in`` becomes ``not in``, and the other way round."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if node.type == "comparison":
            for operator in node.children[1::2]:
                if operator.get_code().split() in (["in"], ["not", "in"]):
                    yield operator.start_pos, operator.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        places = [i for i, each in enumerate(node.children) if i % 2 and each.get_code().split() in (["in"], ["not", "in"])]
        old = node.children[places[index]].get_code().split()
        node.children[places[index]] = parso.parse(" not in" if old == ["in"] else " in")
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("x in y", "x not in y"), Example("x not in y", "x in y"))


OWN = (RemoveStatement, NegateFilter, ReplaceIn)


def operators() -> dict[str, Operator]:
    """All operators by name."""
    theirs = OperatorProvider()
    names = [
        *(f"ReplaceBinaryOperator_{each}" for each in _BINARY.split()),
        *(f"ReplaceComparisonOperator_{each}" for each in _COMPARISON.split()),
        *(f"ReplaceUnaryOperator_{each}" for each in _UNARY.split()),
        *_OTHERS.split(),
    ]
    return {name: theirs[name]() for name in names} | {each.__name__: each() for each in OWN}


def _acts(statement: Any) -> bool:
    if statement.type == "expr_stmt":  # of the targets the first alone
        return statement.children[0].type in ("atom_expr", "power") and statement.children[1].type != "annassign"
    last = statement.children[-1] if statement.type in ("atom_expr", "power") else None
    return last is not None and last.type == "trailer" and last.children[0].value == "("
