"""A trunk's roles as a word, one letter for each block from the bottom up: ``PGSSSRDGSSSRDD``.

``P`` is pooling, ``G`` generate, ``S`` sparse, ``R`` recover, ``D`` dense. What a :class:`~sparsify.policy.Policy` can say is
``P* (G+ S* R+ D*)* D*``; a trial may have dense blocks at the bottom, too, which a :class:`~sparsify.plan.Plan` can say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..density import Density
from ..plan import Part, Plan
from ..policy import SDTM, Policy, RoleName

LETTERS: dict[RoleName, str] = {"pooling": "P", "generate": "G", "sparse": "S", "recover": "R", "dense": "D"}
REWRITTEN = "PGSR"

_MODULE = re.compile(r"(G+)(S*)(R+)(D*)")


def word_of(policy: Policy, depth: int) -> str:
    """The roles of ``policy`` on a trunk of ``depth`` blocks."""
    return "".join(LETTERS[role.name] for role in policy.roles(depth))


def policy_of(word: str, density: Density) -> Policy:
    """The policy with these roles; dense blocks above the last module are its dense top."""
    bottom = len(word) - len(word.lstrip("P"))
    middle = word[bottom:].rstrip("D")
    modules = tuple(SDTM(len(g), len(s), len(r), len(d)) for g, s, r, d in _MODULE.findall(middle))
    if sum(module.depth for module in modules) != len(middle):
        raise ValueError(f"{word} is no word of the form P*(G+S*R+D*)*D*")
    if not bottom and not modules:
        return Policy.dense()
    return Policy(bottom, modules, len(word) - bottom - len(middle), density)


def plan_of(word: str, density: Density) -> Plan:
    """The plan with these roles; dense blocks at the bottom are fine."""
    first = len(word) - len(word.lstrip("D"))
    parts = [Part(Policy(kind="dense", density=density), 0, first)] if first else []
    if first < len(word):
        parts.append(Part(policy_of(word[first:], density), first, len(word) - first))
    return Plan(tuple(parts), word)


def trial_words(depth: int, spans: Sequence[int]) -> list[str]:
    """One block pooling, for each block; then one module of each number of sparse blocks in ``spans``, from each block on."""
    found = ["D" * first + "P" + "D" * (depth - first - 1) for first in range(depth)]
    for sparse in spans:
        module = "G" + "S" * sparse + "R"
        found += ["D" * first + module + "D" * (depth - first - len(module)) for first in range(depth - len(module) + 1)]
    return found


def neighbours(word: str) -> set[str]:
    """Words one step away: a block moves from one segment to another, two modules become one, or one becomes two."""
    counts = _counts(word)
    if counts is None:
        return set()
    moved = (_moved(counts, a, b) for a in range(len(counts)) for b in range(len(counts)) if a != b and counts[a])
    return {_word(found) for found in (*moved, *_merged(counts), *_parted(counts))} - {word, "D" * len(word)}


def _counts(word: str) -> list[int] | None:
    """Blocks of the segments: pooling, then sparse and dense of each module, or else the dense top; None for other words."""
    bottom = len(word) - len(word.lstrip("P"))
    modules = _MODULE.findall(word[bottom:])
    counts = [bottom, *(len(part) for _, sparse, _, dense in modules for part in (sparse, dense))]
    counts += [] if modules else [len(word) - bottom]
    return counts if _word(counts) == word else None


def _word(counts: Sequence[int]) -> str:
    bottom, *rest = counts
    if len(rest) == 1:
        return "P" * bottom + "D" * rest[0]
    return "P" * bottom + "".join("G" + "S" * s + "R" + "D" * d for s, d in zip(rest[::2], rest[1::2], strict=True))


def _moved(counts: Sequence[int], source: int, target: int) -> list[int]:
    return [count - (index == source) + (index == target) for index, count in enumerate(counts)]


def _merged(counts: Sequence[int]) -> Iterator[list[int]]:
    for at in range(1, len(counts) - 3, 2):
        sparse, dense, above = counts[at : at + 3]
        yield [*counts[:at], sparse + dense + 2 + above, *counts[at + 3 :]]


def _parted(counts: Sequence[int]) -> Iterator[list[int]]:
    for at in range(1, len(counts) - 1, 2):
        if (left := counts[at] - 2) >= 0:
            yield [*counts[:at], left - left // 2, 0, left // 2, *counts[at + 1 :]]
