"""The processes of one trial on this machine: started together, ended together, one outcome."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

from launch.lease import HELD
from launch.worker import PROCESS, PROCESSES, RESTART

#: Seconds that processes may go on after another one of theirs has ended: longer than jax lets them
#: wait for one that does not answer (:data:`sleeplm.runtime.hosts.PATIENCE`).
LINGER = 120.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the processes of a trial have ended, taken together.

    Attributes:
      status: 0 if that of all is, else of the one that tells most: negative for a signal.
      log: what that one has said.
      again: whether the trial asks to be started again.
    """

    status: int
    log: pathlib.Path
    again: bool = False


@dataclasses.dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    log: pathlib.Path
    overdue: bool = False  # killed, because it went on for too long after another one

    @property
    def status(self) -> int:
        return self.popen.returncode


class Job:
    """The processes of one trial, which work as one.

    Of several each is told how many they are, which one it is, and where the first can be reached.

    Args:
      commands: of each process. logs: where each adds what it says.
    """

    def __init__(self, commands: Sequence[Sequence[str]], logs: Sequence[pathlib.Path]):
        told = _together(len(commands)) if len(commands) > 1 else {}
        self._processes: list[_Process] = []
        self._ended: list[_Process] = []  # the first to end first
        self._limit, self._asked = math.inf, False
        for number, (command, log) in enumerate(zip(commands, logs, strict=True)):
            with log.open("ab") as file:
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **told, PROCESS: str(number)} if told else None,
                    # Ctrl-C is for the process that starts them, which passes it on once.
                    start_new_session=True,
                )
            self._processes.append(_Process(popen, log))

    def is_over(self) -> bool:
        """Whether all processes have ended; they get a time limit when the first of them has."""
        for process in self._processes:
            if process not in self._ended and process.popen.poll() is not None:
                self._ended.append(process)
                self._limit = min(self._limit, time.monotonic() + LINGER)
        left = [process for process in self._processes if process not in self._ended]
        if time.monotonic() > self._limit:
            for process in left:
                process.overdue = True
                process.popen.kill()
        return not left

    def stop(self) -> None:
        """Asks all processes to save and leave, once."""
        if not self._asked:
            self._asked = True
            self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Ends all processes at once."""
        self._send(signal.SIGKILL)

    def outcome(self) -> Outcome:
        """The outcome, when all processes have ended.

        A process that was killed because it lingered says nothing of the trial: what the others
        ended with does.
        """
        first = self._processes[0]
        if not any(process.status for process in self._processes) or first.status == HELD:
            return Outcome(first.status, first.log)
        failed = [process for process in self._ended if process.status and not process.overdue]
        if not failed:  # the others hung when all was done
            failed = [process for process in self._ended if process.status]
        again = {RESTART, -signal.SIGKILL}
        if len(self._processes) > 1:
            # So jax ends a process that has lost the first, when that is noticed late.
            again.add(-signal.SIGABRT)
        # One that has lost another says less than that one; and what will not go away, most.
        telling = min(failed, key=lambda one: (one.status in again, one.status == RESTART))
        return Outcome(telling.status, telling.log, any(one.status in again for one in failed))

    def _send(self, signum: int) -> None:
        for process in self._processes:
            process.popen.send_signal(signum)  # nothing, to one that has ended


def _together(count: int) -> dict[str, str]:
    """What all processes of a job are told; the port is free now, and another one each time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {PROCESSES: str(count), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
