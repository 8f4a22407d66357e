"""A lease on a trial directory: of all workers that want a trial, one runs it.

The holder writes ``lease.json`` again every quarter of ``expiry`` seconds. Others wait until they
have seen it change (the holder lives: they leave) or stand still for ``expiry`` seconds of their
own clock (it is dead: the lease is theirs), so that clocks of machines need not agree. On the
machine of the holder a look at the process decides at once.

On a file system, taking a lease is exact: it is read and written under ``flock``. An object store
has no such lock here: a worker writes the lease, waits, and has it if it still reads its own name.
Should two workers believe the same for a moment, the one that was overwritten ends at its next
beat, before it writes a result; a run may be killed at any moment, so nothing is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from launch.stores import is_remote, write_whole
from sleeplm.core.errors import SleepError

LEASE, GUARD = "lease.json", "lease.lock"
#: Exit status of a worker whose trial another worker has; EX_TEMPFAIL of sysexits.h.
HELD = 75
EXPIRY, SETTLE, POLL = 60.0, 5.0, 0.5


class LeaseHeld(SleepError):
    """Another worker runs the trial."""


class Lease:
    """The lease of one directory, held by this process between :meth:`take` and :meth:`release`.

    Args:
      directory: of the trial; made if missing. A path, or an address that epath knows.
      expiry: seconds without a sign of life after which a holder counts as dead.
      settle: seconds between writing and reading back, on an object store.
      lost: called, in a thread, when another worker has taken the lease or it cannot be renewed;
        by default the process ends at once with status ``HELD``.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        expiry: float = EXPIRY,
        settle: float = SETTLE,
        lost: Callable[[], None] = lambda: os._exit(HELD),
    ):
        self._directory = epath.Path(directory)
        self._path = self._directory / LEASE
        self._expiry, self._settle, self._lost = expiry, settle, lost
        self._me: dict[str, Any] = {
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "process": process_name(os.getpid()),
            "beat": 0,
        }
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def take(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Waits for the lease and begins to renew it.

        Args:
          stopped: asked again and again; True ends the waiting.

        Returns:
          Whether the lease is held; False only after ``stopped``.

        Raises:
          LeaseHeld: another worker lives and has it.
        """
        if not is_remote(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        first, since = self._read(), time.monotonic()
        while not stopped():
            now = self._read()
            life = None if now is None else process_lives(now.get("process"))
            if now is not None and (now != first or life):
                host = now.get("host", "another host")
                raise LeaseHeld(f"{self._directory}: a worker on {host} is running this trial")
            free = now is None or life is False or time.monotonic() - since >= self._expiry
            if free and self._claim(now):
                self._beating = threading.Thread(target=self._beat, daemon=True)
                self._beating.start()
                return True
            if free:  # lost the race: look at who has won
                first, since = self._read(), time.monotonic()
            time.sleep(POLL)
        return False

    def release(self) -> None:
        """Gives the lease back, if it is still held. Later calls do nothing."""
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
            self._beating = None
            with self._guard():
                if self._is_mine(self._read()):
                    self._path.unlink(missing_ok=True)

    def _claim(self, expected: dict[str, Any] | None) -> bool:
        with self._guard():
            if self._read() != expected:
                return False
            self._write()
        if not is_remote(self._directory):
            return True
        time.sleep(self._settle)
        return self._is_mine(self._read())

    def _beat(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(self._expiry / 4):
            try:
                with self._guard():
                    if not self._is_mine(self._read()):
                        return self._lost()
                    self._me["beat"] += 1
                    self._write()
                renewed = time.monotonic()
            except Exception:
                # A store may be away for a moment, and says so in ways of its own; after the
                # expiry others take the trial over.
                if time.monotonic() - renewed >= self._expiry / 2:
                    return self._lost()

    def _is_mine(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found.get("owner") == self._me["owner"]

    def _read(self) -> dict[str, Any] | None:
        return read_lease(self._directory)

    def _write(self) -> None:
        write_whole(self._path, json.dumps(self._me | {"time": time.time()}))

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Others on this file system neither read nor write the lease meanwhile."""
        if is_remote(self._directory):
            yield
            return
        with open(self._directory / GUARD, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_lease(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What the holder of a directory's lease wrote last; None if nobody has it."""
    try:
        found = json.loads((epath.Path(directory) / LEASE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def lease_age(lease: dict[str, Any]) -> float:
    """Seconds since a lease was renewed, by the clocks of its holder and of this machine."""
    return time.time() - lease.get("time", 0.0)


def process_name(pid: int) -> list[str] | None:
    """What tells a process from all others, here and elsewhere; None where that cannot be known."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Containers on one machine count their processes from 1 each.
        space = os.readlink("/proc/self/ns/pid")
        started = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
    return [boot, space, str(pid), started]


def process_lives(name: Any) -> bool | None:
    """Whether a process of this machine still runs; None for one that cannot be seen from here."""
    here = process_name(os.getpid())
    if here is None or not isinstance(name, list) or name[:2] != here[:2] or len(name) != 4:
        return None
    return process_name(int(name[2])) == name and not _is_zombie(int(name[2]))


def _is_zombie(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"
