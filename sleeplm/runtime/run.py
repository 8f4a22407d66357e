"""A run directory: its configuration, metrics, checkpoints, and the stages it goes through."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from sleeplm.core import checks
from sleeplm.core.errors import BusyError, ConfigError
from sleeplm.core.types import PyTree
from sleeplm.runtime import config as configs
from sleeplm.runtime import hosts
from sleeplm.runtime.board import Board, require_tensorboard
from sleeplm.runtime.checkpoint import Checkpoints
from sleeplm.runtime.lifecycle import (
    Chronicle,
    Moment,
    Stopped,
    StopRequest,
    live,
    require_same,
)
from sleeplm.runtime.metrics import Log, MetricsLog, NoLog, Progress, read_metrics
from sleeplm.runtime.workdir import (
    BOARD,
    CHECKPOINTS,
    CONFIG,
    LOCK,
    METRICS,
    TIMINGS,
    check_workdir,
    digest_in,
    inputs_of,
    lasting,
)

#: Seconds that a process waits to see what the first has made: NFS keeps for up to a minute that a
#: file was not there. POLL: seconds between two looks.
SEEN_WITHIN, POLL = 90.0, 0.5


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a run with a state of its own.

    Attributes:
      name: names its checkpoints and its lines in the metrics.
      newborn: makes the state that the stage starts from (also the shape that is restored).
      agenda: its moments; none for a state that is only kept. stream: object with
        ``checkpointable`` and ``restore``.
      place: which of the run's parts it is, e.g. ``arm 2/19``: shown in front of its name.
    """

    name: str
    newborn: Callable[[], PyTree]
    agenda: list[Moment]
    stream: Any
    place: str = ""


class Run:
    """One run of a configuration in a directory.

    Nothing is written before the first stage (or :meth:`claim`), so that a configuration which
    turns out not to work leaves nothing behind.

    Several processes go through the stages together, in one directory that all of them see: each
    saves its pieces of the checkpoints, and the first writes all the rest.

    Args:
      directory: made if missing, when it is claimed.
      config: the configuration dataclass; its values are saved beside the results.
      resume: go on where an earlier process stopped (or start, if there was none).
      quiet: show nothing.
      tensorboard: write metrics for TensorBoard too (:mod:`sleeplm.runtime.board`).

    Attributes:
      leads: whether this is the process that writes.

    Raises:
      ConfigError, CheckpointError: see :func:`~sleeplm.runtime.workdir.check_workdir`.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        config: Any,
        *,
        resume: bool = False,
        quiet: bool = False,
        stop: StopRequest | None = None,
        tensorboard: bool = False,
    ):
        self.directory = directory.absolute()
        self.config = configs.to_dict(config)
        self.digest = configs.digest_of(lasting(self.config))
        self.keep, self.save_seconds = config.keep, config.save_seconds
        self._quiet, self._stop, self._resume = quiet, stop or StopRequest(), resume
        self._reached = (0, 0)  # bytes of both logs at the end of the last finished stage
        self._visited: set[str] = set()
        self._claimed, self.leads = False, hosts.leads()
        self._inputs: dict[str, str] = {}
        self._tensorboard, self._shown = tensorboard, False
        with hosts.fail_together():
            if tensorboard:
                require_tensorboard()
            check_workdir(self.directory, self.config, self.digest, resume)
        remedy = "is not the same in every process: give all of them the same settings"
        alike = hosts.same(configs.digest_of(self.config))
        checks.require(alike, "config", type(config).__name__, remedy)

    def reads(self, field: str, value: Any, content: bytes) -> None:
        """Remembers what a setting names, which is no part of the configuration.

        To be called before the first stage. A run that goes on has to find what it was begun with:
        half a life in another world would be nobody's.

        Args:
          field, value: of the configuration. content: of what it names.

        Raises:
          ConfigError: the run was begun with other content.
        """
        self._inputs[field] = digest = hashlib.sha256(content).hexdigest()
        with hosts.fail_together():
            before = inputs_of(self.directory).get(field, digest)
            remedy = "has other content than when the run began: put it back, or name another "
            checks.require(before == digest, field, value, remedy + "--workdir")

    def claim(self) -> None:
        """Makes the directory this run's: the configuration is saved in it. Later calls do nothing.

        Raises:
          BusyError: another run is about to begin in the directory.
          ConfigError: it cannot be made or written, or another run has begun in it since this one
            looked.
        """
        if self._claimed:
            return
        saved = self.directory / CONFIG
        with hosts.fail_together():
            if self.leads and not (self._resume and saved.exists()):
                self._begin(saved)
        with hosts.fail_together():
            remedy = "is not what the first process has made: name a directory that all of them see"
            checks.require(self._sees(saved), "workdir", str(self.directory), remedy)
            self._require_mine(digest_in(saved) == self.digest)
        self._claimed = True

    def _sees(self, saved: pathlib.Path) -> bool:
        """Whether the file is there; a process that does not lead may see it late."""
        limit = time.monotonic() + (0 if self.leads else SEEN_WITHIN)
        while not (there := saved.exists()) and time.monotonic() < limit:
            time.sleep(POLL)
        return there

    def _begin(self, saved: pathlib.Path) -> None:
        """Saves the configuration, if no other run is faster."""
        self._require_mine(self._resume or not saved.exists())
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / LOCK).open("w") as file:
                self._lock(file)
                there = saved.exists()
                if not there:
                    self._write_config(saved)
        except OSError as error:
            remedy = f"cannot be written ({error.strerror or error}); name another"
            raise ConfigError("workdir", str(self.directory), remedy) from error
        self._require_mine(self._resume or not there)

    def _require_mine(self, mine: bool) -> None:
        remedy = "another run has begun in it meanwhile; name another"
        checks.require(mine, "workdir", str(self.directory), remedy)

    def _write_config(self, saved: pathlib.Path) -> None:
        content = {"digest": self.digest, "config": self.config, "inputs": self._inputs}
        partial = saved.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(saved)

    def say(self, text: str) -> None:
        """A line for people, on standard error."""
        with Progress(1, quiet=self._quiet) as progress:
            progress.print(text)

    def has(self, stage: str = "") -> bool:
        """Whether something of the stage, or of any, was saved in this directory."""
        # Names of half-written checkpoints begin with a number too.
        found = (self.directory / CHECKPOINTS).glob(f"{stage or '*'}/[0-9]*")
        return bool(hosts.largest(int(any(path.name.isdigit() for path in found))))

    def seconds(self, stage: str = "") -> dict[str, float]:
        """Seconds that the moments of a stage, or of all, took: of all processes so far."""
        path = self.directory / TIMINGS
        records = read_metrics(path) if path.exists() else []
        spent = [r["seconds"] for r in records if stage in ("", r["stage"])]
        return {"total": float(sum(spent))}

    def stage(self, stage: Stage) -> PyTree:
        """Runs a stage, or what is left of it, and returns its last state.

        Raises:
          Stopped: after a signal, with everything saved.
          BusyError: another process is at work in the directory.
        """
        if signum := hosts.largest(self._stop.signum or 0):
            raise Stopped(signum)
        self.claim()
        self._visited.add(stage.name)
        state, start = stage.newborn(), 0
        with self._alone(), self._checkpoints(stage.name) as checkpoints:
            if checkpoints.steps():
                restored = checkpoints.restore(state)
                meta = restored.metadata
                require_same(meta, self.digest, stage.agenda, f"{checkpoints.directory}")
                state, start = restored.learner, meta["position"]
                self._reached = (meta["metrics_bytes"], meta["timings_bytes"])
                if stage.stream is not None and restored.stream is not None:
                    stage.stream.restore(restored.stream)
                if start == len(stage.agenda):
                    return state
                self.say(f"{stage.name}: going on from {start}/{len(stage.agenda)}")
            self._forget_later()
            total = sum(moment.cost for moment in stage.agenda)
            done = sum(moment.cost for moment in stage.agenda[:start])
            bar = Progress(total, done, quiet=self._quiet, place=stage.place)
            with self._logs() as (log, timings), bar as progress:
                chronicle = Chronicle(
                    log, timings, progress, self.digest, self.save_seconds, self._stop
                )
                state = live(
                    state,
                    stage.agenda,
                    chronicle,
                    checkpoints,
                    stage=stage.name,
                    start=start,
                    stream=stage.stream,
                )
                self._reached = (log.position, timings.position)
        return state

    def _checkpoints(self, stage: str) -> Checkpoints:
        return Checkpoints(self.directory / CHECKPOINTS / stage, keep=self.keep, warn=self.say)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the directory's lock, which the system releases however a process ends."""
        with contextlib.ExitStack() as held:
            with hosts.fail_together():
                if self.leads:
                    self._lock(held.enter_context((self.directory / LOCK).open("w")))
            yield

    def _lock(self, file: TextIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "another process is at work in it: wait for it, or name another"
            raise BusyError("workdir", str(self.directory), remedy) from error

    @contextlib.contextmanager
    def _logs(self) -> Iterator[tuple[Log, Log]]:
        """Metrics and timings, cut back to what the state that goes on has seen."""
        with contextlib.ExitStack() as opened:
            logs: list[Log] = [NoLog(), NoLog()]
            with hosts.fail_together():
                if self.leads:
                    places = zip((METRICS, TIMINGS), self._reached, strict=True)
                    logs = [
                        opened.enter_context(MetricsLog(self.directory / name, position))
                        for name, position in places
                    ]
                    if self._tensorboard:
                        logs[0] = opened.enter_context(self._board(logs[0]))
            yield logs[0], logs[1]

    def _board(self, log: Any) -> Board:
        """Events of all lines that are kept, once; those of later stages are added to them."""
        anew, self._shown = not self._shown, True
        return Board(log, self.directory / BOARD, anew)

    def _forget_later(self) -> None:
        """A stage that is (re)done makes checkpoints of later ones worthless."""
        root = self.directory / CHECKPOINTS
        for path in root.iterdir() if self.leads and root.exists() else ():
            if path.is_dir() and path.name not in self._visited:
                shutil.rmtree(path)
