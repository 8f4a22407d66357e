"""What a run writes while it goes: a metrics file that can be resumed, and live progress.

``metrics.jsonl`` holds only what the computation determines, never a clock: a run that is killed
and resumed writes the same bytes as one that was not. Clock times go to ``timings.jsonl``.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

import jax
import numpy as np
import rich.console
import rich.progress

from sleeplm.core.errors import CheckpointError, ConfigError
from sleeplm.core.types import Metrics


def mean_metrics(metrics: Metrics) -> dict[str, Any]:
    """The one last division: ``sum / weight`` of every metric; a weight of 0 leaves it out.

    Args:
      metrics: ``{name: (sum, weight)}``, on any device: scalars, or arrays [E] of E learners.

    Returns:
      ``{name: mean}`` in the order given: Python floats, or arrays [E] with NaN for learners
      whose weight is 0.
    """
    fetched = jax.device_get(dict(metrics))
    return {
        name: _divided(np.asarray(total, float), np.asarray(weight, float))
        for name, (total, weight) in fetched.items()
        if np.any(weight)
    }


def _divided(total: np.ndarray, weight: np.ndarray) -> Any:
    mean = np.where(weight != 0, total, np.nan) / np.where(weight != 0, weight, 1.0)
    return mean if mean.ndim else float(mean)


def plain(value: Any) -> Any:
    """``value`` as what JSON can hold: arrays to (lists of) numbers, NaN and infinities to None.

    Raises:
      ConfigError: there is something in it that JSON cannot hold.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError("metrics", value, "must be numbers, strings, lists or dicts of them")


class Log(Protocol):
    """Where records go."""

    @property
    def position(self) -> int: ...

    def write(self, record: Mapping[str, Any]) -> None: ...


class NoLog:
    """Of a process that leaves writing to another: nothing is kept."""

    position = 0

    def write(self, record: Mapping[str, Any]) -> None:
        del record


class MetricsLog:
    """JSON lines appended to a file, each flushed when it is written.

    Args:
      path: the file; its directory is made if missing.
      position: how many bytes of an existing file are kept (:attr:`position` at the time of the
        checkpoint that is resumed). 0 starts afresh, None appends to whatever is there.

    Raises:
      CheckpointError: the file is shorter than ``position``.
    """

    def __init__(self, path: str | os.PathLike[str], position: int | None = 0):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size = self.path.stat().st_size if self.path.exists() else 0
        keep = size if position is None else position
        if keep > size:
            raise CheckpointError(
                f"{self.path}: has {size} bytes, but the checkpoint was made after {keep}"
            )
        self._file = self.path.open("ab")
        self._file.truncate(keep)

    @property
    def position(self) -> int:
        """Bytes written so far: what a checkpoint has to remember."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line; see :func:`plain` for what a record may hold."""
        self._file.write(json.dumps(plain(record), allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line that was cut short by a kill is left out."""
    lines = pathlib.Path(path).read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


class Progress:
    """Live progress of one stage of a run, e.g. ``night 3/8 seeding 120/300 loss 0.41``.

    With it comes the time that the stage still takes; other stages may follow.

    On a terminal one line is redrawn in place; elsewhere plain lines come at most every
    ``interval`` seconds. Only process 0 shows anything.

    Args:
      total: how many units of work the stage has.
      done: how many are behind already, for a resumed run.
      quiet: show nothing.
      stream: where to write; standard error if None.
      interval: seconds between plain lines.
      clock: seconds, for tests.
      place: which of the run's parts the stage is, e.g. ``arm 2/19``: shown before descriptions.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        interval: float = 5.0,
        clock: Any = time.monotonic,
        place: str = "",
    ):
        self._place = [place] if place else []
        self._total, self._done, self._first = total, done, done
        self._clock, self._interval = clock, interval
        self._start, self._last = clock(), -math.inf
        self._shown = ""
        self._quiet = quiet or jax.process_index() != 0
        self._console = rich.console.Console(file=stream, stderr=stream is None, highlight=False)
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=20),
                rich.progress.TextColumn("{task.percentage:>3.0f}%"),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TextColumn("to go"),
                rich.progress.TimeRemainingColumn(elapsed_when_finished=False),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._done)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, description: str, advance: int = 0, **values: float | None) -> None:
        """Shows where the stage is.

        Args:
          description: e.g. ``"night 3/8 seeding 120/300"``.
          advance: units of work finished since the last call.
          values: shown after the description with three digits, e.g. ``loss=0.41``; None is left
            out.
        """
        self._done += advance
        if self._quiet:
            return
        shown = [f"{name} {float(v):.3g}" for name, v in values.items() if v is not None]
        text = " ".join([*self._place, description, *shown])
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=text)
        elif self._clock() - self._last >= self._interval:
            self._line(text)

    def print(self, text: str) -> None:
        """A line that stays, above the moving one; also shown between the plain lines."""
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    def _line(self, text: str) -> None:
        self._last = self._clock()
        share = self._done / self._total if self._total else 1.0
        self.print(f"[{share:4.0%}] {text}{self._to_go()}")

    def _to_go(self) -> str:
        """Time left at the speed since the start of this process."""
        done = self._done - self._first
        if done <= 0 or self._done >= self._total:
            return ""
        seconds = (self._clock() - self._start) / done * (self._total - self._done)
        minutes, seconds = divmod(round(seconds), 60)
        return f", {minutes}:{seconds:02d} to go"
