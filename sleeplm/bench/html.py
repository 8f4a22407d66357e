"""A report as one HTML page that opens without a network: no scripts, pictures inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from sleeplm.bench.blocks import Block, Bullets, Heading, Picture, Table, Text

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 1400px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { margin-bottom: .3rem; } h2 { margin-top: 2.2rem; }
p, ul { max-width: 75ch; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid #555; }
td { border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
tbody tr:hover td { background: #f1f5fa; }
"""


def render_html(content: Iterable[Block], pictures: Mapping[str, bytes]) -> str:
    """Blocks as one self-contained page.

    Args:
      content: as from :func:`sleeplm.bench.page.blocks`.
      pictures: PNGs by the file name under which blocks know them.

    Raises:
      KeyError: a picture is missing.
    """
    content = list(content)
    titles = [block.text for block in content if isinstance(block, Heading)]
    title = _plain(titles[0]) if titles else "Report"
    body = "\n".join(_element(block, pictures) for block in content)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _element(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Bullets(lines):
            return "<ul>\n" + "\n".join(f"<li>{_inline(line)}</li>" for line in lines) + "\n</ul>"
        case Picture(alt, file):
            data = base64.b64encode(pictures[file]).decode("ascii")
            return f'<p><img alt="{_plain(alt)}" src="data:image/png;base64,{data}"></p>'
        case Table(headings, rows):
            return _table(headings, rows)
        case Text(text):
            return f"<p>{_inline(text)}</p>"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = "\n".join(_row(row, "td") for row in rows)
    head = f"<thead>\n{_row(headings, 'th')}\n</thead>"
    return f'<div class="wide"><table>\n{head}\n<tbody>\n{lines}\n</tbody>\n</table></div>'


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in cells) + "</tr>"


def _inline(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text, quote=False))


def _plain(text: str) -> str:
    return escape(text.replace("**", ""))
