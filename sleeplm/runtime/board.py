"""The metrics of a run as events for TensorBoard: a copy, which can be made again at any time."""

from __future__ import annotations

import collections
import pathlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from sleeplm.core.errors import ConfigError
from sleeplm.runtime.metrics import MetricsLog, plain, read_metrics

EVENTS = "*/events.out.tfevents.*"


def require_tensorboard() -> Any:
    """The package that writes events.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import tensorboardX
    except ImportError as error:
        remedy = "needs tensorboardX: pip install 'sleeplm[tensorboard]', or leave it out"
        raise ConfigError("tensorboard", True, remedy) from error
    return tensorboardX


class Board:
    """A log whose lines go to TensorBoard too: a part for every stage, a chart for every number.

    A line stands at its ``step``, or where it has none, at its number among those of its stage.

    Args:
      log: that is written too.
      folder: of the events.
      anew: replace the events there by those of the lines that ``log`` has kept, so that none is
        missing and none there twice, whatever a process that was killed has left.
    """

    def __init__(self, log: MetricsLog, folder: pathlib.Path, anew: bool):
        self._log, self._folder, self._package = log, folder, require_tensorboard()
        self._stage, self._writer = "", typing.cast(Any, None)
        self._lines: collections.Counter[str] = collections.Counter()
        if anew:
            for path in folder.glob(EVENTS):
                path.unlink()
            for record in read_metrics(log.path):
                self._show(record)

    @property
    def position(self) -> int:
        """As of the log."""
        return self._log.position

    def write(self, record: Mapping[str, Any]) -> None:
        self._log.write(record)
        self._show(plain(record))

    def _show(self, record: Mapping[str, Any]) -> None:
        stage = record["stage"]
        if self._writer is None or stage != self._stage:  # stages follow each other
            self._end()
            self._stage = stage
            self._writer = self._package.SummaryWriter(str(self._folder / stage), flush_secs=10)
        self._lines[stage] += 1
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record.get("step", self._lines[stage]))

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """``(name, number)`` of a line: ``wake/loss``, ``exam/dusk/recall/0``.

    A list has a number for each of its entries, which are the learners: what is a list itself is
    averaged. Text, and what was not finite, is left out.
    """
    event = "/".join(str(record[key]) for key in ("event", "when") if key in record)
    for name, value in record.items():
        if isinstance(value, list):
            for e, entry in enumerate(value):
                if numbers := list(_numbers(entry)):
                    yield f"{event}/{name}/{e}", float(np.mean(numbers))
        elif name != "step":
            yield from ((f"{event}/{name}", number) for number in _numbers(value))


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
