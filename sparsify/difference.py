"""Two programs as text, compared: as text, as a page, as a picture of the outer graph."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .picture_of_graphs import draw

Names = tuple[str, str]
Change = Literal["same", "changed", "removed", "added"]

_NODE = re.compile(r"  %(?P<name>\S+): (?P<type>.*?) = (?P<call>.*?)(?:  # (?P<origin>.*))?")


@dataclass(frozen=True)
class Line:
    """One node of a graph, as printed by ``sparsify.text``."""

    name: str
    type: str
    call: str
    origin: str

    @property
    def is_block(self) -> bool:
        """Whether it calls a block of the trunk."""
        return " @ " in self.call.partition("(")[0]

    @property
    def operands(self) -> list[str]:
        """The names of the nodes that it reads."""
        return re.findall(r"%([\w.]+)", self.call)

    def __str__(self) -> str:
        return f"%{self.name}: {self.type} = {self.call}"


@dataclass(frozen=True)
class Row:
    """A node in both programs, or in one of them."""

    before: Line | None
    after: Line | None

    @property
    def change(self) -> Change:
        """What became of it."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        return "same" if str(self.before) == str(self.after) else "changed"


def outer_lines(text: str) -> list[Line]:
    """The nodes of the outer graph of a printed program."""
    section = text.partition("outer graph:\n")[2].partition("\n\n")[0]
    found = (_NODE.fullmatch(line) for line in section.splitlines())
    return [Line(match["name"], match["type"], match["call"], match["origin"] or "") for match in found if match is not None]


def rows(before: str, after: str) -> list[Row]:
    """The outer graphs of two printed programs beside one another; nodes of one name are the same node."""
    left, right = outer_lines(before), outer_lines(after)
    matcher = difflib.SequenceMatcher(None, [line.name for line in left], [line.name for line in right], autojunk=False)
    found: list[Row] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            found += [Row(one, other) for one, other in zip(left[a:b], right[c:d], strict=True)]
        else:
            found += [Row(line, None) for line in left[a:b]] + [Row(None, line) for line in right[c:d]]
    return found


def text_difference(before: str, after: str, names: Names, context: int = 3) -> Iterator[str]:
    """A unified difference; nothing where both are equal."""
    return difflib.unified_diff(before.splitlines(), after.splitlines(), *names, n=context, lineterm="")


def svg_picture(before: str, after: str, names: Names) -> str:
    """The outer graphs side by side as SVG: every block, everything that changed, and what lies between as a count."""
    return draw(rows(before, after), names)


def html_page(before: str, after: str, names: Names) -> str:
    """The picture, and below it all lines side by side; one file without links."""
    lines, titles = (before.splitlines(), after.splitlines()), [html.escape(name) for name in names]
    page = difflib.HtmlDiff(wrapcolumn=90).make_file(*lines, titles[0], titles[1], context=True, numlines=3, charset="utf-8")
    return page.replace("<body>", f"<body>\n{svg_picture(before, after, names)}\n", 1)
