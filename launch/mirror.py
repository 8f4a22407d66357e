"""A run directory in an object store: worked on in a local copy, which is sent there as it grows.

A run appends to files, renames and locks; an object store does none of that. ``mirror.json`` in
the store lists the files of the last copy that is whole, and is written after them: a worker that
is killed while it copies leaves the copy before. Metrics may be ahead of the checkpoints beside
them; a run cuts them back when it goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import tempfile
import threading
from collections.abc import Iterator

from etils import epath

from launch.lease import GUARD, LEASE
from launch.stores import is_remote, write_whole

MANIFEST = "mirror.json"
#: Seconds between two copies: what a worker that is killed may lose, beside a checkpoint.
INTERVAL = 60.0
_OURS = {LEASE, GUARD, MANIFEST, "lock", "_SUCCESS", "_FAILED"}


@contextlib.contextmanager
def local_copy(
    directory: str | os.PathLike[str], interval: float = INTERVAL
) -> Iterator[pathlib.Path]:
    """A directory on this machine with what ``directory`` holds.

    On a file system that is the directory itself. Of an address in an object store it is a copy,
    sent back every ``interval`` seconds and at the end, however the block ends.
    """
    if not is_remote(directory):
        yield pathlib.Path(os.fspath(directory))
        return
    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        mirror = Mirror(epath.Path(directory), pathlib.Path(folder))
        mirror.fetch()
        with mirror.sending(interval):
            yield mirror.local


class Mirror:
    """Copies between a directory in a store and one on this machine."""

    def __init__(self, remote: epath.Path, local: pathlib.Path):
        self.remote, self.local = remote, local
        self._sent: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Brings the last whole copy here, if there is one."""
        try:
            names = json.loads((self.remote / MANIFEST).read_text())
        except FileNotFoundError:
            return
        for name in names:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((self.remote / name).read_bytes())
            self._sent[name] = _version(target)

    def send(self) -> None:
        """Sends what is new since the last time, and forgets there what is gone here."""
        # Checkpoints first: the metrics beside them must reach at least as far as they do.
        names = sorted(self._names(), key=lambda name: (not name.startswith("checkpoints/"), name))
        there = []
        for name in names:
            try:
                version = _version(self.local / name)
                data = None if self._sent.get(name) == version else (self.local / name).read_bytes()
            except FileNotFoundError:
                continue  # a checkpoint that was removed meanwhile
            if data is not None:
                (self.remote / name).write_bytes(data)
                self._sent[name] = version
            there.append(name)
        write_whole(self.remote / MANIFEST, json.dumps(there))
        for name in set(self._sent) - set(there):
            (self.remote / name).unlink(missing_ok=True)
            del self._sent[name]

    @contextlib.contextmanager
    def sending(self, interval: float) -> Iterator[None]:
        """Sends every ``interval`` seconds while the block runs, and at its end."""
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(interval):
                try:
                    self.send()
                except Exception as error:
                    # A store may be away for a moment; the last copy, below, must succeed.
                    print(f"launch: not sent to {self.remote}: {error}", file=sys.stderr)

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.send()

    def _names(self) -> list[str]:
        names = []
        for folder, folders, files in os.walk(self.local):
            # Checkpoints that are still being written have names that are not numbers.
            folders[:] = [one for one in folders if ".orbax-checkpoint-tmp" not in one]
            for file in files:
                if file not in _OURS and not file.endswith(".partial"):
                    names.append((pathlib.Path(folder) / file).relative_to(self.local).as_posix())
        return names


def _version(path: pathlib.Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
