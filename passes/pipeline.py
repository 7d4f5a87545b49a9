"""An ordered list of passes that prints to text, parses from it, and verifies the program after each pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import InputError
from ..plan import Part, Plan
from ..policy import Policy
from ..program import PassRun, Program
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
from .options import pass_text, passes_from_text
from .pool_attention import PoolAttention
from .prompt_once import PromptOnce
from .registry import register_own
from .share import Share
from .sparse_dense import SparseDense

# What is exact and makes the graph cheaper, in the order in which they run: each leaves the next one less to look at.
SAVINGS: tuple[type[Pass], ...] = (MeanBeforeLinear, LinearBeforeCopy, NarrowLinear, OnceForBlocks, Share, PromptOnce)
SAVING_NAMES = tuple([each.name for each in SAVINGS])
register_own(FuseAttention, PoolAttention, InsertDensity, SparseDense, *SAVINGS, Cleanup)

Observer = Callable[[str, Program], None]  # is shown the program by the name of the pass or stage that it has just been through


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

    ``str(pipeline)`` is text such as ``pool-attention{blocks=0-1},cleanup``; :meth:`parse` reads it back.
    """

    passes: tuple[Pass, ...]
    timings: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def run(self, program: Program, observer: Observer | None = None, verify_each: bool = True) -> int:
        """Run every pass and verify after each; the number of rewrites of what a policy describes.

        Args:
            program: is changed.
            observer: is shown the program after each pass, before it is verified.
            verify_each: or else the program is verified once, after the last pass.

        Raises:
            VerificationError: a pass left an illegal program; the message names it.
        """
        verify(program, "capture")
        rewritten, total = 0, None
        for index, rewrite in enumerate(self.passes):
            program.stage = "sparse"
            if isinstance(rewrite, SAVINGS) and total is None:
                total = Total.of(program)
            started = time.perf_counter()
            done = _run(rewrite, program)
            seconds = time.perf_counter() - started
            if isinstance(rewrite, (PoolAttention, SparseDense)):
                rewritten += done
            if observer is not None:
                observer(rewrite.name, program)
            started = time.perf_counter()
            if verify_each or index == len(self.passes) - 1:
                verify(program, rewrite.name)
            program.runs.append(PassRun(pass_text(rewrite), done, seconds, time.perf_counter() - started))
            self.timings[rewrite.name] = self.timings.get(rewrite.name, 0.0) + seconds + program.runs[-1].verify_seconds
            if total is not None and isinstance(rewrite, SAVINGS):
                before, total = total, Total.of(program) if done else total
                program.savings.append(Saving.between(rewrite.name, done, before, total))
        return rewritten

    def __str__(self) -> str:
        return ",".join(map(pass_text, self.passes))

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read a pipeline from text.

        Raises:
            PolicyError: an unknown pass or option, or text of another form.
        """
        return cls(passes_from_text(text))

    @classmethod
    def of(cls, passes: Pipeline | Pass | str | Sequence[Pass | str]) -> Pipeline:
        """Passes however they are given: objects, text, or a list of both.

        Raises:
            InputError: something else is among them.
            PolicyError: a text is wrong.
        """
        if isinstance(passes, Pipeline):
            return passes
        if isinstance(passes, (Pass, str)):
            passes = [passes]
        each = list(passes) if isinstance(passes, Sequence) else [passes]
        if wrong := [item for item in each if not isinstance(item, (Pass, str))]:
            hint = " (give an instance, not the class)" if isinstance(wrong[0], type) else ""
            raise InputError(f"passes holds {wrong[0]!r}{hint}; it must hold passes, or text such as 'cleanup'.")
        read = [passes_from_text(item) if isinstance(item, str) else (item,) for item in each]
        return cls(tuple(one for some in read for one in some))


def _run(rewrite: Pass, program: Program) -> int:
    try:
        return rewrite.run(program)
    except Exception as error:
        error.add_note(f"while the pass {pass_text(rewrite)} ran")
        raise


def pipeline_for(policy: Policy, depth: int) -> Pipeline:
    """The passes that turn a trunk of ``depth`` blocks into what ``policy`` describes."""
    return pipeline_of(Plan((Part(policy.fitted(depth), 0, depth),), str(policy)))


def pipeline_of(plan: Plan, savings: Collection[str] = SAVING_NAMES, passes: Sequence[Pass] = ()) -> Pipeline:
    """The passes that a plan asks for, then ``passes``, then those of the exact savings that are named."""
    own = _passes_of(plan) if plan.rewrites else []
    if not own and not passes:
        return Pipeline(())
    return Pipeline((*own, *passes, *(saving() for saving in SAVINGS if saving.name in savings), Cleanup()))


def _passes_of(plan: Plan) -> list[Pass]:
    passes: list[Pass] = [FuseAttention(), InsertDensity(plan.schedule)]
    for policy, start, _ in plan.parts:
        if policy.poolingformer:
            passes.append(PoolAttention(BlockRange(start, start + policy.poolingformer - 1)))
        start += policy.poolingformer
        for module in policy.sdtm:
            blocks = BlockRange(start, start + module.depth - 1)
            passes.append(SparseDense(blocks, module.generate, module.sparse, module.recover))
            start += module.depth
    return passes
