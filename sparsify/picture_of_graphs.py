"""Draw two outer graphs side by side as SVG, with what differs marked."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .difference import Line, Row

_WIDTH, _GAP, _MARGIN, _TOP = 520, 90, 60, 56
_HEIGHTS = {"block": 30, "node": 22, "many": 20}
_SPACE = 6
_LETTERS = 68  # that fit into a box
_FILLS = {"same": "#eef1f4", "changed": "#ffe8b3", "removed": "#ffd4d0", "added": "#cdeed3"}
_EDGES = {"same": "#9aa5b1", "changed": "#b07d00", "removed": "#b3261e", "added": "#1f7a35"}
_MANY = 3  # equal nodes in a row that are drawn as one line


class Box(NamedTuple):
    """One line of the picture: a row, or several equal ones of which only the number is said."""

    rows: Sequence[Row]
    top: int
    height: int

    @property
    def is_many(self) -> bool:
        """Whether it stands for several."""
        return len(self.rows) > 1


def draw(rows: Sequence[Row], names: tuple[str, str]) -> str:
    """An SVG document: left the nodes before, right those after, top to bottom in order, arrows to where they are read."""
    boxes = list(_boxes(rows))
    height = (boxes[-1].top + boxes[-1].height if boxes else _TOP) + 20
    width = 2 * (_MARGIN + _WIDTH) + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *_legend(width),
    ]
    for side in (0, 1):
        parts.append(f'<text x="{_left(side)}" y="44" font-weight="bold">{html.escape(names[side][-70:])}</text>')
        parts += _arrows(boxes, side)
        for box in boxes:
            parts += _drawn(box, side)
    return "\n".join([*parts, "</svg>"])


def _boxes(rows: Sequence[Row]) -> Iterator[Box]:
    top = _TOP
    for is_plain, group in itertools.groupby(rows, _is_plain):
        some = list(group)
        for each in [some] if is_plain and len(some) >= _MANY else [[row] for row in some]:
            line = each[0].after or each[0].before
            kind = "many" if len(each) > 1 else "block" if line is not None and line.is_block else "node"
            yield Box(each, top, _HEIGHTS[kind])
            top += _HEIGHTS[kind] + _SPACE


def _is_plain(row: Row) -> bool:
    return row.change == "same" and row.after is not None and not row.after.is_block


def _drawn(box: Box, side: int) -> Iterator[str]:
    left, middle = _left(side), box.top + box.height // 2 + 4
    if box.is_many:
        yield f'<text x="{left + 12}" y="{middle}" fill="#6b7785">... {len(box.rows)} operators, equal in both</text>'
        return
    line, change = _line(box, side), box.rows[0].change
    if line is None:
        return
    weight = ' font-weight="bold"' if line.is_block else ""
    origin = f"\nby {line.origin}" if line.origin else ""
    yield f"<g><title>{html.escape(str(line) + origin)}</title>"
    yield (
        f'<rect x="{left}" y="{box.top}" width="{_WIDTH}" height="{box.height}" rx="5" fill="{_FILLS[change]}" '
        f'stroke="{_EDGES[change]}" stroke-width="{1.6 if change != "same" else 0.8}"/>'
    )
    yield f'<text x="{left + 10}" y="{middle}"{weight}>{html.escape(_short(line))}</text></g>'


def _arrows(boxes: Sequence[Box], side: int) -> Iterator[str]:
    """From each node that is drawn to those that read it: straight to the next one, in a bow beside the boxes to others."""
    drawn = [(box, line) for box in boxes if not box.is_many and (line := _line(box, side)) is not None]
    at = {line.name: index for index, (_, line) in enumerate(drawn)}
    edge = _left(side) if side == 0 else _left(side) + _WIDTH
    for index, (box, line) in enumerate(drawn):
        for source in sorted({at[name] for name in line.operands if name in at}):
            above = drawn[source][0]
            if source == index - 1:
                x = _left(side) + 24
                yield f'<path d="M{x} {above.top + above.height} V{box.top}" stroke="#52606d" fill="none"/>'
            else:
                bow = min(_MARGIN - 8, 12 + 3 * (index - source)) * (-1 if side == 0 else 1)
                start, end = above.top + above.height // 2, box.top + box.height // 2
                path = f"M{edge} {start} C{edge + bow} {start} {edge + bow} {end} {edge} {end}"
                yield f'<path d="{path}" stroke="#52606d" stroke-opacity="0.45" fill="none"/>'


def _legend(width: int) -> Iterator[str]:
    for index, (name, fill) in enumerate(_FILLS.items()):
        x = _MARGIN + index * 110
        yield f'<rect x="{x}" y="10" width="14" height="14" rx="3" fill="{fill}" stroke="{_EDGES[name]}"/>'
        yield f'<text x="{x + 20}" y="22">{name}</text>'


def _line(box: Box, side: int) -> Line | None:
    return box.rows[0].before if side == 0 else box.rows[0].after


def _left(side: int) -> int:
    return _MARGIN + side * (_WIDTH + _GAP)


def _short(line: Line) -> str:
    body, _, path = line.call.partition("(")[0].partition(" @ ")
    text = f"{path} runs {body}: {line.type}" if line.is_block else f"{line.name} = {line.call}"
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}\u2026"
