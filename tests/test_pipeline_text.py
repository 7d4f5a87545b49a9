"""Pipelines print to text and parse from it; what is wrong with a text is named."""

from __future__ import annotations

import pytest

from sparsify import SDTM, Density, Policy, PolicyError
from sparsify.passes import BlockRange, Pipeline, PoolAttention, SparseDense, pipeline_for

from .helpers import analysed, plain


def test_pipeline_of_a_policy_in_text() -> None:
    policy = Policy(2, SDTM(1, 3, 1, 1) * 2, 1, Density.paper(finest=(10, 10), coarsest=(6, 6)))
    text = (
        "fuse-attention,density{schedule=paper(10x10..6x6)},pool-attention{blocks=0-1},"
        "sparse-dense{blocks=2-7 generate=1 sparse=3 recover=1},sparse-dense{blocks=8-13 generate=1 sparse=3 recover=1},"
        "mean-before-linear,linear-before-copy,narrow-linear,once-for-blocks,share,prompt-once,cleanup"
    )
    assert str(pipeline_for(policy, 15)) == text
    assert Pipeline.parse(text) == pipeline_for(policy, 15)
    assert str(pipeline_for(Policy.dense(), 15)) == ""
    assert Pipeline.parse("sparse-dense{blocks=3-5 sparse=1}").passes == (SparseDense(BlockRange(3, 5), sparse=1),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool-attention{blocks=x}", "blocks=x is not a block or a range"),
        ("cleanup,,cleanup", "is not like"),
    ],
)
def test_pipeline_text_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Pipeline.parse(text)


def test_blocks_beyond_the_trunk() -> None:
    with pytest.raises(PolicyError, match="blocks=4-7 but the trunk has blocks 0-5"):
        PoolAttention(BlockRange(4, 7)).run(analysed(plain()))
