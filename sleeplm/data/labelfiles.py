"""Labelled texts of your own: ``--config.world=labels:DIR``.

``DIR/train.csv`` and ``DIR/test.csv`` have the columns ``text`` and ``label`` (CSV in UTF-8;
quoted fields may hold commas, line ends and doubled quotes). A label belongs to one day, said by
a column ``day`` (in both files, or in ``train.csv`` alone), or by ``DIR/days.json``: a map
``{"label": day}``, or lists ``[[labels of day 1], [labels of day 2], ...]``. Otherwise labels
are shuffled by the seed and split evenly.
"""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Iterable, Mapping

from sleeplm.core.checks import require
from sleeplm.core.errors import ConfigError
from sleeplm.data.files import check_name, did_you_mean, place, read_json, read_text
from sleeplm.data.labels import Labelled, Row, split_evenly


def read_labels(directory: str, days: int = 0, seed: int = 0) -> Labelled:
    """Reads ``train.csv``, ``test.csv`` and, if it is there, ``days.json`` of a directory.

    Args:
      days: into how many days labels are split if the files do not say; else not used.
      seed: of that split.

    Raises:
      ConfigError: FILE:LINE with the column, the value and what would be right.
    """
    folder = pathlib.Path(directory).expanduser()
    require(folder.is_dir(), "world", f"labels:{directory}", "name a directory with train.csv")
    day_of: dict[str, tuple[int, str]] = {}
    train = _read_rows(folder / "train.csv", day_of, None)
    labels = dict.fromkeys(label for _, label in train)
    test = _read_rows(folder / "test.csv", day_of, labels)
    file = folder / "days.json"
    if day_of and file.exists():
        remedy = "the column 'day' says it already: use one of the two"
        raise ConfigError("world", str(file), remedy)
    if day_of:
        groups = _by_day({label: day for label, (day, _) in day_of.items()})
    elif file.exists():
        groups = _read_days(file, list(labels))
    else:
        groups = split_evenly(list(labels), days, seed)
    return Labelled(folder.resolve().name, groups, tuple(train), tuple(test))


def _by_day(day_of: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    numbers = sorted(set(day_of.values()))
    return tuple(tuple(label for label, day in day_of.items() if day == n) for n in numbers)


def _read_rows(
    file: pathlib.Path, day_of: dict[str, tuple[int, str]], known: Iterable[str] | None
) -> list[Row]:
    """Rows of a file; adds to ``day_of``: label -> its day and the place that says so.

    Args:
      known: the labels that may be there; None for any.
    """
    rows = []
    lines = csv.reader(io.StringIO(read_text(file, "world"), newline=""), strict=True)
    columns: list[str] | None = None
    while True:
        where = place(file, lines.line_num + 1)
        try:
            fields = next(lines)
        except StopIteration:
            break
        except csv.Error as error:
            remedy = "is not CSV: close every quote, and double quotes inside of quotes"
            raise ConfigError(where, str(error), remedy) from None
        if columns is None:
            columns = _columns(where, fields)
        elif fields:
            remedy = f"needs {len(columns)} fields ({', '.join(columns)}): quote commas"
            require(len(fields) == len(columns), where, fields, remedy)
            rows.append(_row(where, dict(zip(columns, fields, strict=True)), day_of, known))
    require(bool(rows), "world", str(file), "has no rows below its first line")
    return rows


def _columns(where: str, fields: list[str]) -> list[str]:
    possible = ("text", "label", "day")
    columns = [field.strip() for field in fields]
    for name in columns:
        remedy = f"is not a column here: use {', '.join(possible)}{did_you_mean(name, possible)}"
        require(name in possible, where, name, remedy)
    for name in possible[:2]:
        require(name in columns, where, columns, f"lacks the column {name!r}")
    require(len(set(columns)) == len(columns), where, columns, "names a column twice")
    return columns


def _row(
    where: str,
    row: Mapping[str, str],
    day_of: dict[str, tuple[int, str]],
    known: Iterable[str] | None,
) -> Row:
    text, label = " ".join(row["text"].split()), row["label"].strip()
    require(bool(text), f"{where}: text", row["text"], "must not be empty")
    check_name(f"{where}: label", label)
    if known is not None and label not in known:
        remedy = f"is not a label of train.csv{did_you_mean(label, known)}"
        raise ConfigError(f"{where}: label", label, remedy)
    if "day" in row:
        day = _day(f"{where}: day", row["day"])
        if known is not None and label not in day_of:
            remedy = "train.csv has no column 'day': say the days there, or in days.json"
            raise ConfigError(f"{where}: day", day, remedy)
        first, said = day_of.setdefault(label, (day, where))
        remedy = f"{label!r} is of day {first} in {said}: a label has one day"
        require(day == first, f"{where}: day", day, remedy)
    return text, label


def _day(where: str, day: object) -> int:
    try:
        number = int(day) if isinstance(day, str) else day
    except ValueError:
        number = None
    whole = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    require(whole, where, day, "must be a whole number of at least 1")
    return int(number)  # type: ignore[arg-type, call-overload]


def _read_days(file: pathlib.Path, labels: list[str]) -> tuple[tuple[str, ...], ...]:
    """The days of ``days.json``, in either form."""
    content = read_json(file, "world")
    if isinstance(content, dict):
        pairs = [(label, _day(f"{file}: {label}", day)) for label, day in content.items()]
    elif isinstance(content, list) and all(isinstance(day, list) for day in content):
        pairs = [(label, n) for n, day in enumerate(content, start=1) for label in day]
        remedy = "a day needs at least one label"
        require(all(content), str(file), content, remedy)
    else:
        remedy = 'must be {"label": day, ...} or [["label", ...], ...]'
        raise ConfigError(str(file), type(content).__name__, remedy)
    day_of: dict[str, int] = {}
    for label, day in pairs:
        remedy = f"is not a label of train.csv{did_you_mean(str(label), labels)}"
        require(label in labels, f"{file}: label", label, remedy)
        remedy = f"{label!r} is of day {day_of.get(label)} too: a label has one day"
        require(label not in day_of, f"{file}: day", day, remedy)
        day_of[label] = day
    missing = [label for label in labels if label not in day_of]
    require(not missing, str(file), missing[:5], "labels of train.csv without a day: give them one")
    return _by_day(day_of)
