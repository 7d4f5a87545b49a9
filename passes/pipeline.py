"""An ordered list of passes that prints to text, parses from it, and verifies the program after each pass."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..density import Density
from ..errors import PolicyError
from ..plan import Part, Plan
from ..policy import Policy
from ..program import Program
from ..savings import Saving, Total
from ..verify import verify
from .base import BlockRange, Pass
from .cleanup import Cleanup
from .density import InsertDensity
from .fuse_attention import FuseAttention
from .linear_before_copy import LinearBeforeCopy
from .mean_before_linear import MeanBeforeLinear
from .narrow_linear import NarrowLinear
from .once_for_blocks import OnceForBlocks
from .pool_attention import PoolAttention
from .prompt_once import PromptOnce
from .share import Share
from .sparse_dense import SparseDense

# What is exact and makes the graph cheaper, in the order in which they run: each leaves the next one less to look at.
SAVINGS: tuple[type[Pass], ...] = (MeanBeforeLinear, LinearBeforeCopy, NarrowLinear, OnceForBlocks, Share, PromptOnce)
SAVING_NAMES = tuple([each.name for each in SAVINGS])
_ALL: list[type[Pass]] = [FuseAttention, PoolAttention, InsertDensity, SparseDense, *SAVINGS, Cleanup]
REGISTRY: dict[str, type[Pass]] = {each.name: each for each in _ALL}

# How an option of each type is read from text; str() writes it.
_READERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "BlockRange": BlockRange.parse,
    "Density": Density.parse,
}


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

    ``str(pipeline)`` is text such as ``pool-attention{blocks=0-1},cleanup``; :meth:`parse` reads it back.
    """

    passes: tuple[Pass, ...]
    timings: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def run(self, program: Program) -> int:
        """Run every pass and verify after each; the number of rewrites that count (cleanup does not).

        Raises:
            VerificationError: a pass left an illegal program; the message names it.
        """
        verify(program, "capture")
        rewritten, total = 0, None
        for rewrite in self.passes:
            program.stage = "sparse"
            if isinstance(rewrite, SAVINGS) and total is None:
                total = Total.of(program)
            started = time.perf_counter()
            done = rewrite.run(program)
            if isinstance(rewrite, (PoolAttention, SparseDense)):
                rewritten += done
            verify(program, rewrite.name)
            self.timings[rewrite.name] = self.timings.get(rewrite.name, 0.0) + time.perf_counter() - started
            if total is not None and isinstance(rewrite, SAVINGS):
                before, total = total, Total.of(program) if done else total
                program.savings.append(Saving.between(rewrite.name, done, before, total))
        return rewritten

    def __str__(self) -> str:
        return ",".join(map(_pass_text, self.passes))

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read a pipeline from text.

        Raises:
            PolicyError: an unknown pass or option, or text of another form.
        """
        items = re.findall(r"([\w-]+)(?:\{([^{}]*)\})?(?:,|$)", text)
        if ",".join(name + (f"{{{options}}}" if options else "") for name, options in items) != text.replace("{}", ""):
            raise PolicyError(f"pipeline {text!r} is not like 'pool-attention{{blocks=0-1}},cleanup'.")
        return cls(tuple(_pass_from_text(name, options) for name, options in items))


def pipeline_for(policy: Policy, depth: int) -> Pipeline:
    """The passes that turn a trunk of ``depth`` blocks into what ``policy`` describes."""
    return pipeline_of(Plan((Part(policy.fitted(depth), 0, depth),), str(policy)))


def pipeline_of(plan: Plan, savings: Collection[str] = SAVING_NAMES) -> Pipeline:
    """The passes that a plan asks for, and those of the exact savings that are named."""
    if not plan.rewrites:
        return Pipeline(())
    passes: list[Pass] = [FuseAttention(), InsertDensity(plan.schedule)]
    for policy, start, _ in plan.parts:
        if policy.poolingformer:
            passes.append(PoolAttention(BlockRange(start, start + policy.poolingformer - 1)))
        start += policy.poolingformer
        for module in policy.sdtm:
            blocks = BlockRange(start, start + module.depth - 1)
            passes.append(SparseDense(blocks, module.generate, module.sparse, module.recover))
            start += module.depth
    return Pipeline((*passes, *(saving() for saving in SAVINGS if saving.name in savings), Cleanup()))


def _pass_text(rewrite: Pass) -> str:
    options = " ".join(f"{f.name}={getattr(rewrite, f.name)}" for f in dataclasses.fields(rewrite))
    return f"{rewrite.name}{{{options}}}" if options else rewrite.name


def _pass_from_text(name: str, options: str) -> Pass:
    cls = REGISTRY.get(name)
    if cls is None:
        raise PolicyError(f"there is no pass {name!r}; there are {sorted(REGISTRY)}.")
    types = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for option in options.split():
        key, equals, value = option.partition("=")
        if not equals or key not in types:
            raise PolicyError(f"pass {name} has no option {option!r}; its options are {sorted(types) or 'none'}.")
        try:
            values[key] = _READERS[types[key]](value)
        except (ValueError, KeyError) as error:
            raise PolicyError(f"pass {name}: {option!r} is not a value of type {types[key]} ({error}).") from error
    try:
        return cls(**values)
    except TypeError as error:
        raise PolicyError(f"pass {name}: {error}; its options are {sorted(types)}.") from error
