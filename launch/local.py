"""The local backend: several trials at once, each process on cores and memory of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from launch.job import Job
from launch.lease import HELD
from launch.stores import is_remote
from launch.trials import LOGS, Trial, read_trials
from sleeplm.core.checks import positive_integer
from sleeplm.core.errors import ConfigError

POLL = 0.1


@dataclasses.dataclass
class Limits:
    """What the trials of a sweep may use.

    Attributes:
      jobs: trials at the same time.
      cores: of each of their processes, its own; 0 for all cores together.
      memory: of each process, MiB of data; 0 for any.
      restarts: how often a trial that asks for it, or is killed, is started again.
      processes: of each trial, which work on it as one job.
    """

    jobs: int = 1
    cores: int = 0
    memory: int = 0
    restarts: int = 3
    processes: int = 1

    def check(self) -> None:
        """Raises ConfigError for limits that this machine does not have."""
        for name in ("jobs", "processes"):
            positive_integer(name, getattr(self, name))
        for name in ("cores", "memory", "restarts"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "must be at least 0")
        there = len(os.sched_getaffinity(0))
        if self.jobs * self.processes * self.cores > there:
            of = f"of {self.processes} processes of" if self.processes > 1 else "of"
            remedy = (
                f"{self.jobs} jobs {of} {self.cores} cores each need more than the {there} here"
            )
            raise ConfigError("cores", self.cores, remedy)


@dataclasses.dataclass
class _Running:
    trial: Trial
    job: Job
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
                for running in [one for one in self._running if one.job.is_over()]:
                    self._end(running)
        if self._stopping:
            return 128 + signal.SIGINT
        return 1 if self._ended["failed"] else 0

    def _start(self) -> None:
        while self._places and self._waiting and not self._stopping:
            trial, place = self._waiting.pop(0), self._places.pop(0)
            self._started[trial.id] = self._started.get(trial.id, 0) + 1
            numbers = range(self._limits.processes)
            logs = [log_of(self._sweep, trial, number) for number in numbers]
            logs[0].parent.mkdir(exist_ok=True)
            job = Job([self._command(trial, place, number) for number in numbers], logs)
            self._running.append(_Running(trial, job, place, time.monotonic()))
            if self._stopping:  # asked while the processes were being started
                job.stop()

    def _command(self, trial: Trial, place: int, number: int) -> list[str]:
        command = [sys.executable, "-m", "launch.worker", "--sweep", self._sweep]
        command += ["--trial", trial.id]
        size = self._limits.cores
        if size:
            begin = (place * self._limits.processes + number) * size
            cores = sorted(os.sched_getaffinity(0))[begin : begin + size]
            command += ["--cores", ",".join(map(str, cores))]
        if self._limits.memory:
            command += ["--memory", str(self._limits.memory)]
        return command

    def _end(self, running: _Running) -> None:
        self._running.remove(running)
        self._places.append(running.place)
        trial, outcome = running.trial, running.job.outcome()
        status, took = outcome.status, f"{time.monotonic() - running.began:.0f} s"
        if status == 0:
            self._ended["finished"] += 1
            self._say(trial, f"finished in {took}")
        elif self._stopping:
            self._say(trial, "stopped")
        elif status == HELD:
            self._ended["elsewhere"] += 1
            self._say(trial, "is run by another worker")
        elif outcome.again and self._started[trial.id] <= self._limits.restarts:
            self._waiting.append(trial)
            self._say(trial, f"ended with status {status} after {took}; will go on")
        else:
            self._ended["failed"] += 1
            last = _last_line(outcome.log)
            self._say(trial, f"failed with status {status}: {last} (see {outcome.log})")

    def _say(self, trial: Trial, what: str) -> None:
        counts = ", ".join(f"{count} {name}" for name, count in self._ended.items() if count)
        still = f"{len(self._running)} running, {len(self._waiting)} waiting"
        line = f"{trial.id} {what}   [of {self._count}: {', '.join(filter(None, [counts, still]))}]"
        print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Passes the first signal on as SIGTERM, upon which workers save; a second one kills."""

        def stop(signum: int, frame: Any) -> None:
            again, self._stopping = self._stopping, True
            for running in self._running:
                if again:
                    running.job.kill()
                else:
                    running.job.stop()

        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, stop) for number in signals}
        try:
            yield
        finally:
            for number in signals:
                signal.signal(number, before[number])


def log_of(sweep: str, trial: Trial, process: int = 0) -> pathlib.Path:
    """What a worker of a trial has said on this machine: the first, or another process of it."""
    name = f"{trial.id}.{process}.log" if process else f"{trial.id}.log"
    return pathlib.Path(sweep) / LOGS / name


def _last_line(path: pathlib.Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "said nothing"
