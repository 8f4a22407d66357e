"""The only loop: takes a state through an agenda of moments, and can be killed at any of them.

An agenda is a fixed list of moments, each a deterministic function of the state. What has been
done is one number, the position in it, so that a run that was killed goes on from its last
checkpoint and ends with the same bits, in the metrics file as in the parameters. Of several
processes all go through the agenda, and save and stop at the same moments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sleeplm.core.errors import CheckpointError
from sleeplm.core.types import Metrics, PyTree
from sleeplm.runtime.checkpoint import Checkpoints
from sleeplm.runtime.hosts import Wishes
from sleeplm.runtime.metrics import Log, Progress, mean_metrics

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The run was asked to stop; everything is saved.

    Attributes:
      signum: the signal, e.g. ``signal.SIGTERM``.
    """

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


@dataclasses.dataclass(frozen=True)
class Moment:
    """One step of an agenda.

    Attributes:
      label: shown to people, e.g. ``"night 3/8 seeding"``.
      record: fields that name the moment in the metrics file, e.g. ``{"event": "seed"}``; empty
        for a moment that leaves no line there.
      run: ``state -> (state, metrics)``; metrics are (sum, weight) pairs or plain values, or
        None if there was nothing to do, which leaves no line either.
      cost: units of progress.
      show: which metric to show live.
    """

    label: str
    record: dict[str, Any]
    run: Callable[[PyTree], tuple[PyTree, Any]]
    cost: int = 1
    show: str = "loss"


class StopRequest:
    """Remembers SIGINT and SIGTERM, so that the loop leaves at the next moment's end."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handles the signals inside the block; a second one acts at once, as usual."""

        def note(signum: int, frame: Any) -> None:
            self.signum = signum
            for number in SIGNALS:
                signal.signal(number, before[number])

        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, note)
        try:
            yield self
        finally:
            for number in SIGNALS:
                signal.signal(number, before[number])


@dataclasses.dataclass
class Chronicle:
    """Where a run writes what happened.

    Attributes:
      log: metrics, bit-identical however often the run was interrupted.
      timings: seconds of every moment (these differ from run to run).
      progress: what people see.
      digest: of the configuration; a checkpoint of another configuration is refused.
      save_seconds: wall time between checkpoints.
      stop: signals.
    """

    log: Log
    timings: Log
    progress: Progress
    digest: str
    save_seconds: float
    stop: StopRequest


def live(
    state: PyTree,
    agenda: Sequence[Moment],
    chronicle: Chronicle,
    checkpoints: Checkpoints,
    *,
    stage: str,
    start: int = 0,
    stream: Any = None,
) -> PyTree:
    """Runs ``agenda[start:]`` and returns the last state.

    Metrics are read one moment late, so that the device never waits for the host. A checkpoint
    is made every ``chronicle.save_seconds``, at the end, and when a signal asks to stop. Of several
    processes any may ask for it, by its clock or its signal: all do it, one moment later.

    Args:
      stage: name of this agenda in the metrics file.
      stream: object with ``checkpointable()``, what to save beside the state, or None.

    Raises:
      Stopped: after a signal, when everything is saved.
    """
    pending: tuple[Moment, Any] | None = None
    saved, wishes = time.monotonic(), Wishes()

    def flush() -> None:
        nonlocal pending
        if pending is not None:
            _note(chronicle, stage, *pending)
            pending = None

    def save(position: int) -> None:
        flush()
        metadata = {
            "position": position,
            "moments": len(agenda),
            "stage": stage,
            "digest": chronicle.digest,
            "metrics_bytes": chronicle.log.position,
            "timings_bytes": chronicle.timings.position,
        }
        data = stream.checkpointable() if stream is not None else None
        checkpoints.save(position, state, data, metadata)

    for position in range(start, len(agenda)):
        moment, began = agenda[position], time.monotonic()
        state, metrics = moment.run(state)
        flush()
        pending = (moment, metrics)
        # Before a save, which remembers how far this file went.
        chronicle.timings.write(
            {"stage": stage, "position": position, "label": moment.label}
            | {"seconds": time.monotonic() - began}
        )
        late = time.monotonic() - saved >= chronicle.save_seconds
        due, signum = wishes.tell(int(late), chronicle.stop.signum or 0)
        if signum or (due and position + 1 < len(agenda)):
            save(position + 1)
            saved = time.monotonic()
        if signum:
            checkpoints.wait()
            raise Stopped(signum)
    save(len(agenda))
    checkpoints.wait()
    return jax.block_until_ready(state)


def _note(chronicle: Chronicle, stage: str, moment: Moment, metrics: Any) -> None:
    """Writes one line of metrics and moves the progress display."""
    done = metrics is not None
    metrics = metrics or {}
    values = mean_metrics(metrics) if _are_sums(metrics) else dict(metrics)
    if moment.record and done:
        chronicle.log.write({"stage": stage, **moment.record, **values})
    shown = values.get(moment.show)
    label = f"{stage}: {moment.label}"
    live_value = {} if shown is None else {moment.show: _mean_of(shown)}
    chronicle.progress.update(label, advance=moment.cost, **live_value)


def _mean_of(value: Any) -> float:
    """One number to look at, whether of one learner or of many."""
    found = np.asarray(jax.device_get(value), float)
    return float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else math.nan


def _are_sums(metrics: Metrics | dict[str, Any]) -> bool:
    return all(isinstance(value, tuple) for value in metrics.values())


def require_same(metadata: dict[str, Any], digest: str, agenda: Sequence[Moment], where: str):
    """Refuses to go on from a checkpoint that another configuration has made."""
    if metadata["digest"] != digest or metadata["moments"] != len(agenda):
        raise CheckpointError(
            f"{where}: was made by another configuration; use the one it was started with, "
            "or another --workdir"
        )
