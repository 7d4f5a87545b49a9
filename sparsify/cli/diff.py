"""``sparsify diff``: two dumped stages, compared."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..difference import html_page, svg_picture, text_difference
from ..errors import InputError
from .words import console

EXAMPLES = """examples:
  SPARSIFY_DUMP=out/stages sparsify report sparsify.models:dit
      first write the stages of a capture
  sparsify diff out/stages/DiTTransformer2DModel-000/{01-analysed,05-sparse-dense}.txt
      what the passes between two of them changed, as text
  sparsify diff A.txt B.txt --html changes.html --svg changes.svg
      side by side, in one file without links; and the blocks as a picture, changed nodes marked
"""

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two stages, and where pictures go."""
    parser.add_argument("before", type=Path, metavar="A", help="a dumped stage")
    parser.add_argument("after", type=Path, metavar="B", help="another one")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page that shows both side by side")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw the outer graphs, with what differs marked")
    parser.add_argument("--context", type=int, default=3, metavar="N", help="equal lines to show around changes (default 3)")


def diff(arguments: argparse.Namespace) -> None:
    """Print the difference; nothing if there is none."""
    before, after = _read(arguments.before), _read(arguments.after)
    names = str(arguments.before), str(arguments.after)
    pages = {arguments.html: html_page, arguments.svg: svg_picture}
    for path, made in pages.items():
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made(before, after, names))
            print(f"wrote {path}", file=sys.stderr)
    out = console()
    for line in text_difference(before, after, names, arguments.context):
        style = "bold" if line.startswith(("---", "+++")) else _COLOURS.get(line[:1])
        out.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}. A stage is a file that SPARSIFY_DUMP=DIR wrote.") from error
