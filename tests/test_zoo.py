"""Every model of the zoo that docs/models.md says works does work; what is slow runs with ``make test-all``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .zoo.__main__ import entries
from .zoo.check import check
from .zoo.entry import Entry

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
# One of each kind runs every time: about a minute.
QUICK = {"UViT", "LinearAttentionDiT", "MoEDiT", "HandSoftmaxDiT", "FluxTransformer2DModel", "WanTransformer3DModel"}


def works() -> set[str]:
    table = PAGE.read_text().split("## Refused")[0]
    return set(re.findall(r"^\| ([\w-]+) \|", table, flags=re.MULTILINE)) - {"Model"}


def parameters() -> list[object]:
    claimed = works()
    chosen = [entry for entry in entries() if entry.name in claimed]
    return [pytest.param(entry, id=entry.name, marks=() if entry.name in QUICK else pytest.mark.slow) for entry in chosen]


@pytest.mark.parametrize("entry", parameters())
def test_it_works(entry: Entry) -> None:
    result = check(entry)
    assert result.works, result.refusal


def test_the_page_speaks_of_models_that_exist() -> None:
    assert works() <= {entry.name for entry in entries()} and works() >= QUICK


def test_the_readme_has_the_number_of_the_page() -> None:
    counted = re.search(r"(\d+ of \d+) tiny", PAGE.read_text())
    readme = (PAGE.parents[1] / "README.md").read_text()
    assert counted is not None and set(re.findall(r"\d+ of \d+(?= tiny| \|)", readme)) == {counted[1]}
    assert len(works()) == int(counted[1].split()[0])
