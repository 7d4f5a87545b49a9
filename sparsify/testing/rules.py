"""Which options of a random DiT go together: each rule names its fields, so that it can be asked of a part of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A condition on the values of some fields, given in their order, and what to say where it does not hold."""

    fields: tuple[str, ...]
    holds: Callable[..., bool]
    says: str

    def refusal(self, values: Mapping[str, Any]) -> str | None:
        """Why ``values`` break this rule; None if they do not, or do not have all of its fields yet."""
        if not all(name in values for name in self.fields) or self.holds(*(values[name] for name in self.fields)):
            return None
        return f"{', '.join(f'{name}={values[name]!r}' for name in self.fields)}: {self.says}"


def first_refusal(rules: tuple[Rule, ...], values: Mapping[str, Any]) -> str | None:
    """What the first broken rule says, or None."""
    return next((reason for rule in rules if (reason := rule.refusal(values)) is not None), None)


# What a model of these options would be lacks a meaning or a part that another option has.
RULES = (
    Rule(("rope_style", "rope"), lambda style, rope: rope or style == "interleaved", "rope_style needs rope=True."),
    Rule(
        ("rope", "grid", "head_width"),
        lambda rope, grid, width: not rope or width >= 2 * len(grid),
        "RoPE turns pairs of channels, so head_width must be at least 2 for each axis of the grid.",
    ),
    Rule(
        ("grid",),
        lambda grid: math.prod(grid[-2:]) >= 2,
        "there is nothing to pool; the grid, of a video each frame, must have at least 2 tokens.",
    ),
    Rule(
        ("text_tokens", "text"),
        lambda tokens, text: tokens == 1 or text != "none",
        "text_tokens needs text='cross' or 'joint'.",
    ),
    Rule(("text_first", "text"), lambda first, text: not first or text == "joint", "text_first needs text='joint'."),
    Rule(("single", "text"), lambda single, text: single == 0 or text == "joint", "single-stream blocks need text='joint'."),
    Rule(
        ("single", "depth"),
        lambda single, depth: single != 1 and depth - single != 1 and single <= depth,
        "single of the depth blocks are single-stream and the rest double-stream; each is none or at least 2, or it is no chain.",
    ),
    Rule(("skips", "depth"), lambda skips, depth: not skips or depth >= 3, "long skips need a depth of at least 3."),
    Rule(
        ("skips", "text", "single", "depth"),
        lambda skips, text, single, depth: not skips or text != "joint" or single == depth,
        "long skips need one stream; with text='joint' set single to the depth.",
    ),
    Rule(
        ("skips", "single", "depth"),
        lambda skips, single, depth: not skips or single in (0, depth),
        "long skips need one stream; set single to the depth, or to 0 without joint text.",
    ),
    Rule(
        ("parallel", "text"),
        lambda parallel, text: not parallel or text != "cross",
        "parallel leaves no place for text='cross'.",
    ),
    Rule(
        ("parallel", "text", "single"),
        lambda parallel, text, single: not parallel or text != "joint" or single > 0,
        "parallel is for blocks of one stream; with text='joint' set single to at least 2.",
    ),
)

# What is drawn stays small, so that an example takes milliseconds; specs written by hand may be larger.
LIMITS = (
    Rule(("heads", "head_width"), lambda heads, width: heads * width <= 32, "drawn models are at most 32 wide."),
    Rule(("grid",), lambda grid: math.prod(grid) <= 81, "drawn models have at most 81 tokens."),
)
