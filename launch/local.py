"""The local backend: several workers at once, each on cores and memory of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from launch.lease import HELD
from launch.stores import is_remote
from launch.trials import LOGS, Trial, read_trials
from launch.worker import RESTART
from sleeplm.core.checks import positive_integer
from sleeplm.core.errors import ConfigError

POLL = 0.1


@dataclasses.dataclass
class Limits:
    """What the trials of a sweep may use.

    Attributes:
      jobs: trials at the same time.
      cores: of each, its own; 0 for all cores together.
      memory: of each, MiB of data; 0 for any.
      restarts: how often a trial that asks for it, or is killed, is started again.
    """

    jobs: int = 1
    cores: int = 0
    memory: int = 0
    restarts: int = 3

    def check(self) -> None:
        """Raises ConfigError for limits that this machine does not have."""
        positive_integer("jobs", self.jobs)
        for name in ("cores", "memory", "restarts"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "must be at least 0")
        there = len(os.sched_getaffinity(0))
        if self.jobs * self.cores > there:
            remedy = f"{self.jobs} jobs of {self.cores} cores each need more than the {there} here"
            raise ConfigError("cores", self.cores, remedy)


@dataclasses.dataclass
class _Running:
    trial: Trial
    process: subprocess.Popen[bytes]
    place: int
    began: float


class Local:
    """Runs the trials of a sweep; one that fails does not stop the others."""

    def __init__(self, sweep: str, limits: Limits, only: Sequence[str] = ()):
        limits.check()
        if is_remote(sweep):
            raise ConfigError("sweep", sweep, "must be on this machine to be run on it")
        trials = read_trials(sweep)
        unknown = set(only) - {trial.id for trial in trials}
        if unknown:
            raise ConfigError("only", sorted(unknown), "no such trials; see launch status")
        self._sweep, self._limits = sweep, limits
        self._waiting = [trial for trial in trials if not only or trial.id in only]
        self._count = len(self._waiting)
        self._running: list[_Running] = []
        self._places = list(range(limits.jobs))
        self._started: dict[str, int] = {}
        self._ended = {"finished": 0, "failed": 0, "elsewhere": 0}
        self._stopping = False

    def run(self) -> int:
        """Runs everything that is not finished.

        Returns:
          0; 1 if a trial has failed; 130 after a signal, when all workers have saved.
        """
        with self._listening():
            while self._running or (self._waiting and not self._stopping):
                self._start()
                time.sleep(POLL)
                for running in [one for one in self._running if one.process.poll() is not None]:
                    self._end(running)
        if self._stopping:
            return 128 + signal.SIGINT
        return 1 if self._ended["failed"] else 0

    def _start(self) -> None:
        while self._places and self._waiting and not self._stopping:
            trial, place = self._waiting.pop(0), self._places.pop(0)
            self._started[trial.id] = self._started.get(trial.id, 0) + 1
            with self._log(trial) as log:
                process = subprocess.Popen(
                    self._command(trial, place),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C is for this process, which passes it on once.
                    start_new_session=True,
                )
            self._running.append(_Running(trial, process, place, time.monotonic()))

    def _command(self, trial: Trial, place: int) -> list[str]:
        command = [sys.executable, "-m", "launch.worker", "--sweep", self._sweep]
        command += ["--trial", trial.id]
        size = self._limits.cores
        if size:
            cores = sorted(os.sched_getaffinity(0))[place * size : (place + 1) * size]
            command += ["--cores", ",".join(map(str, cores))]
        if self._limits.memory:
            command += ["--memory", str(self._limits.memory)]
        return command

    def _log(self, trial: Trial) -> IO[bytes]:
        path = log_of(self._sweep, trial)
        path.parent.mkdir(exist_ok=True)
        return path.open("ab")

    def _end(self, running: _Running) -> None:
        self._running.remove(running)
        self._places.append(running.place)
        status, trial = running.process.returncode, running.trial
        took = f"{time.monotonic() - running.began:.0f} s"
        again = status == RESTART or status == -signal.SIGKILL
        if status == 0:
            self._ended["finished"] += 1
            self._say(trial, f"finished in {took}")
        elif self._stopping:
            self._say(trial, "stopped")
        elif status == HELD:
            self._ended["elsewhere"] += 1
            self._say(trial, "is run by another worker")
        elif again and self._started[trial.id] <= self._limits.restarts:
            self._waiting.append(trial)
            self._say(trial, f"ended with status {status} after {took}; will go on")
        else:
            self._ended["failed"] += 1
            path = log_of(self._sweep, trial)
            self._say(trial, f"failed with status {status}: {_last_line(path)} (see {path})")

    def _say(self, trial: Trial, what: str) -> None:
        counts = ", ".join(f"{count} {name}" for name, count in self._ended.items() if count)
        still = f"{len(self._running)} running, {len(self._waiting)} waiting"
        line = f"{trial.id} {what}   [of {self._count}: {', '.join(filter(None, [counts, still]))}]"
        print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Passes the first signal on as SIGTERM, upon which workers save; a second one kills."""

        def stop(signum: int, frame: Any) -> None:
            kind = signal.SIGKILL if self._stopping else signal.SIGTERM
            self._stopping = True
            for running in self._running:
                with contextlib.suppress(ProcessLookupError):
                    running.process.send_signal(kind)

        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, stop) for number in signals}
        try:
            yield
        finally:
            for number in signals:
                signal.signal(number, before[number])


def log_of(sweep: str, trial: Trial) -> pathlib.Path:
    """What the workers of a trial have said on this machine."""
    return pathlib.Path(sweep) / LOGS / f"{trial.id}.log"


def _last_line(path: pathlib.Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "said nothing"
