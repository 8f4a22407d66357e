"""Blocks that a page is made of, in Markdown; and how numbers are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

#: Columns of a table that lists ages, nights or days; of more, some are picked.
COLUMNS = 10


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading; ``level`` 1 is the title. ``**`` marks what is bold in every text."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list."""

    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first column names the row."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture in a file beside the page."""

    alt: str
    file: str


Block = Heading | Text | Bullets | Table | Picture


def render_page(content: Iterable[Block]) -> str:
    """Blocks as Markdown."""
    return "\n\n".join(_markdown(block) for block in content) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Bullets(lines):
            return "\n".join(f"- {line}" for line in lines)
        case Picture(alt, file):
            return f"![{alt}]({file})"
        case Table(headings, rows):
            table = [headings, ["---"] * len(headings), *rows]
            cells = [[cell.replace("|", "\\|") for cell in row] for row in table]
            return "\n".join("| " + " | ".join(line) + " |" for line in cells)
        case Text(text):
            return text


def picked(count: int, most: int = COLUMNS) -> list[int]:
    """At most ``most`` of 0 to ``count`` - 1, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(step * (count - 1) / (most - 1)) for step in range(most)]


def spread(figure: Mapping[str, Any] | None, show: Callable[[Any], str]) -> str:
    """Mean and interval of a figure; nothing without the mean, or where there is no figure."""
    if figure is None or figure["mean"] is None:
        return ""
    mean, low, high = (figure[part] for part in ("mean", "low", "high"))
    return show(mean) if low is None else f"{show(mean)} ({show(low)} to {show(high)})"


def number(shape: str) -> Callable[[Any], str]:
    """Writes numbers in the format ``shape``, and nothing for None."""
    return lambda value: "" if value is None else format(value, shape)


share, signed, nats, small = (number(shape) for shape in (".3f", "+.3f", "+.2f", ".3g"))


def bold(text: str) -> str:
    """``text`` in bold."""
    return f"**{text}**" if text else ""


def yes(ok: bool) -> str:
    """A truth in words."""
    return "yes" if ok else "no"
