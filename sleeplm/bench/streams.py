"""The wake stream of a life, or of many side by side: a grain iterator a day, and its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sleeplm.data.streams import day_stream


class DayStreams:
    """Batches of one day after another: whole ones, the same in every process of a run.

    Args:
      days: documents of each day, as lists of tokens.
      batch: rows of a global batch. length: positions of a row. seed: order of the documents.
    """

    def __init__(self, days: Sequence[Sequence[Sequence[int]]], batch: int, length: int, seed: int):
        self._days, self._sizes, self._seed = days, (batch, length), seed
        self._day = -1
        self._iterator: Any = None

    def _open(self, day: int) -> None:
        batch, length = self._sizes
        stream = day_stream(
            self._days[day],
            batch,
            length,
            seed=self._seed + day,
        )
        self._day, self._iterator = day, iter(stream)

    def take(self, day: int, count: int) -> dict[str, np.ndarray]:
        """The next ``count`` batches of a day: {"tokens", "segments"} int32 [count, B, L]."""
        if day != self._day:
            self._open(day)
        batches = [next(self._iterator) for _ in range(count)]
        return {name: np.stack([b[name] for b in batches]) for name in ("tokens", "segments")}

    def peek(self, day: int) -> dict[str, np.ndarray]:
        """The batch that :meth:`take` would give next: {"tokens", "segments"} int32 [B, L]."""
        if day != self._day:
            self._open(day)
        state = self._iterator.get_state()
        batch = next(self._iterator)
        self._iterator.set_state(state)
        return {name: batch[name] for name in ("tokens", "segments")}

    def checkpointable(self) -> dict[str, Any]:
        """Where the stream stands, as JSON: the day and its grain iterator's state."""
        state = None if self._iterator is None else self._iterator.get_state()
        return {"day": self._day, "iterator": state}

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes back to where :meth:`checkpointable` was called."""
        if saved["day"] >= 0:
            self._open(saved["day"])
            self._iterator.set_state(saved["iterator"])


class JointStream(DayStreams):
    """All days' documents mixed, as if they were one long day: what one may not do in a life."""

    def __init__(self, days: Sequence[Sequence[Sequence[int]]], batch: int, length: int, seed: int):
        super().__init__([[text for day in days for text in day]], batch, length, seed)

    def take(self, day: int, count: int) -> dict[str, np.ndarray]:
        return super().take(0, count)

    def peek(self, day: int) -> dict[str, np.ndarray]:
        return super().peek(0)


class StackedStreams:
    """The streams of E learners that live side by side: every array has E in front."""

    def __init__(self, streams: Sequence[DayStreams]):
        self._streams = list(streams)

    def take(self, day: int, count: int) -> dict[str, np.ndarray]:
        """{"tokens", "segments"} int32 [E, count, B, L]."""
        return _stacked([stream.take(day, count) for stream in self._streams])

    def peek(self, day: int) -> dict[str, np.ndarray]:
        """{"tokens", "segments"} int32 [E, B, L], without taking them."""
        return _stacked([stream.peek(day) for stream in self._streams])

    def checkpointable(self) -> dict[str, Any]:
        return {"learners": [stream.checkpointable() for stream in self._streams]}

    def restore(self, saved: dict[str, Any]) -> None:
        for stream, state in zip(self._streams, saved["learners"], strict=True):
            stream.restore(state)


def _stacked(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
