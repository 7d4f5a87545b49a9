"""What a random DiT consists of: plain values that print as the code which builds the model again."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from ..errors import InputError
from .rules import RULES, first_refusal

if TYPE_CHECKING:
    from .model import DiT

_LEAST = {"depth": 2, "heads": 1, "head_width": 2, "mlp_ratio": 1, "patch": 1, "single": 0, "text_tokens": 1, "seed": 0}


@dataclass(frozen=True, repr=False)
class DiTSpec:
    """The options of a Diffusion Transformer with random weights; the defaults are the plainest model.

    ``repr`` names the options that differ from the defaults, and is code: ``DiTSpec(depth=4, rope=True)``.

    Attributes:
        depth: blocks in all.
        grid: sides of the token grid in row-major order: (length,), (height, width) or (time, height, width).
        patch: latents along each side of a token; frames of a video are not patched.
        heads: attention heads.
        head_width: channels of a head, an even number; tokens have ``heads * head_width`` channels.
        mlp_ratio: hidden channels of the MLP per channel of a token.
        qkv: one projection for queries, keys and values, or three.
        written: whether attention is written out as softmax(Q K^T) V, and not one operator.
        qk_norm: norm of queries and keys, head by head.
        positions: a table that is added to the tokens, learned (which fixes the resolution) or made of sines.
        rope: whether queries and keys are rotated by tables of the grid's axes, which every block is given.
        rope_style: which channels of a head are turned together, neighbours or those half a head apart.
        mask: ``"keys"``: a mask of (batch, tokens) says which tokens are attended to; ``"bias"``: (batch, tokens, tokens) is added
            to the logits of attention. Text, if it is joined to the tokens, is always seen.
        modulation: ``"adaln-zero"``: shifts, scales and gates by an MLP in each block; ``"shift-scale"``: the same without gates;
            ``"adaln-single"``: by one projection for all blocks plus a table in each. With ``"none"`` timestep and label are
            added to the tokens.
        parallel: whether attention and MLP stand side by side in blocks of one stream, after Flux.
        text: ``"cross"``: cross-attention in each block; ``"joint"``: text and image attend to each other as one sequence.
        text_tokens: length of the text.
        text_first: whether joint text stands before the image in the sequence, and not behind it.
        single: how many blocks, the upper ones, have one stream of weights for joint text and image; the others have two.
        skips: whether upper blocks are given the results of lower ones, after U-ViT.
        labels: whether there are class labels.
        flow: whether timesteps are fractions in [0, 1], and not whole numbers in [0, 1000].
        seed: of the weights.

    Raises:
        InputError: a value is not allowed, or values do not go together; the message names the fields.
    """

    depth: int = 2
    grid: tuple[int, ...] = (2, 2)
    patch: int = 1
    heads: int = 1
    head_width: int = 4
    mlp_ratio: int = 1
    qkv: Literal["fused", "split"] = "fused"
    written: bool = False
    qk_norm: Literal["none", "layer", "rms"] = "none"
    positions: Literal["none", "learned", "sinusoid"] = "none"
    rope: bool = False
    rope_style: Literal["interleaved", "half"] = "interleaved"
    mask: Literal["none", "keys", "bias"] = "none"
    modulation: Literal["none", "shift-scale", "adaln-zero", "adaln-single"] = "none"
    parallel: bool = False
    text: Literal["none", "cross", "joint"] = "none"
    text_tokens: int = 1
    text_first: bool = False
    single: int = 0
    skips: bool = False
    labels: bool = False
    flow: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.grid, list):
            object.__setattr__(self, "grid", tuple(self.grid))
        if reason := self._refusal():
            raise InputError(f"DiTSpec: {reason}")

    def _refusal(self) -> str | None:
        """Why no model is built of these options, or None."""
        values = asdict(self)
        wrong = (reason for name, value in values.items() if (reason := wrong_value(name, value)) is not None)
        return next(wrong, None) or first_refusal(RULES, values)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_width

    @property
    def timesteps(self) -> float:
        """The largest timestep, pure noise, as a density takes it."""
        return 1.0 if self.flow else 1000

    def build(self) -> DiT:
        """The model in float64 and evaluation mode, equal bit for bit for equal specs; torch's random state is left alone."""
        from .model import DiT

        return DiT(self)

    def example_inputs(
        self, batch: int = 2, seed: int = 0, timestep: float | Sequence[float] | None = None, scale: float = 1.0
    ) -> dict[str, Tensor]:
        """Keyword inputs of one call, equal for equal arguments.

        Args:
            batch: rows.
            seed: of everything random.
            timestep: of all rows, or of each; without it one is drawn for each row.
            scale: standard deviation of latents, text and bias.

        Raises:
            InputError: ``timestep`` has another length than the batch, or leaves [0, ``timesteps``].
        """
        from .example import example_inputs

        return example_inputs(self, batch, seed, timestep, scale)

    def __repr__(self) -> str:
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return f"DiTSpec({', '.join(f'{name}={value!r}' for name, value in given)})"


@functools.cache
def choices_of(name: str) -> tuple[Any, ...]:
    """What a field that is a truth value or a word may be, the default first; () for numbers and the grid."""
    hint = get_type_hints(DiTSpec)[name]
    return (False, True) if hint is bool else get_args(hint) if get_origin(hint) is Literal else ()


def wrong_value(name: str, value: object) -> str | None:
    """Why a field may not have this value, whatever the others are, or None."""
    if name == "grid":
        whole = isinstance(value, tuple) and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
        if isinstance(value, tuple) and whole and 1 <= len(value) <= 3 and min(value) >= 1:
            return None
        return f"grid is {value!r}; it must be one to three integers of at least 1, such as (4, 4)."
    if name in _LEAST:
        if isinstance(value, bool) or not isinstance(value, int) or value < _LEAST[name]:
            return f"{name} is {value!r}; it must be an integer of at least {_LEAST[name]}."
        odd = name == "head_width" and value % 2
        return f"head_width is {value}; it must be even, because RoPE turns pairs of channels." if odd else None
    allowed = choices_of(name)
    known = isinstance(value, type(allowed[0])) and value in allowed
    return None if known else f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}."
