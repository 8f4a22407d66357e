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
_TMP = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is still being written
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
    """Copies between a directory in a store and one on this machine.

    A checkpoint, ``checkpoints/STAGE/POSITION``, is copied whole or not at all: what is listed of
    one is all of it. The run may remove or replace one while it is being sent.
    """

    def __init__(self, remote: epath.Path, local: pathlib.Path):
        self.remote, self.local = remote, local
        self._sent: dict[str, tuple[int, int]] = {}
        self._whole: set[str] = set()  # checkpoints of which the store has every file

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
        self._whole = {_checkpoint_of(name) for name in names} - {""}

    def send(self) -> None:
        """Sends what is new since the last time, and forgets there what is gone here.

        Where a stage has checkpoints here, and none of them could be sent whole, those that are
        there stay.
        """
        # Checkpoints first: the metrics beside them must reach at least as far as they do.
        sent = {checkpoint: self._send_checkpoint(checkpoint) for checkpoint in self._checkpoints()}
        there = self._of_before(sent) + [name for files in sent.values() for name in files]
        there += [n for n in sorted(self._names()) if not _checkpoint_of(n) and self._send_file(n)]
        write_whole(self.remote / MANIFEST, json.dumps(there))
        self._whole &= {_checkpoint_of(name) for name in there}
        for name in set(self._sent) - set(there):
            (self.remote / name).unlink(missing_ok=True)
            del self._sent[name]

    def _send_file(self, name: str) -> bool:
        """Whether the file was there; it is sent if it is new."""
        try:
            version = _version(self.local / name)
            data = None if self._sent.get(name) == version else (self.local / name).read_bytes()
        except FileNotFoundError:
            return False
        if data is not None:
            (self.remote / name).write_bytes(data)
            self._sent[name] = version
        return True

    def _send_checkpoint(self, checkpoint: str) -> list[str]:
        """The files of a checkpoint, if it has stayed as it was while they were sent."""
        before = self._versions(checkpoint)
        known = {name: v for name, v in self._sent.items() if _checkpoint_of(name) == checkpoint}
        if checkpoint in self._whole and before.items() <= known.items():
            # As it was sent, or what is left of it while it is removed.
            return sorted(before) if before == known else []
        self._whole.discard(checkpoint)
        sent = [self._send_file(name) for name in sorted(before)]
        if not before or not all(sent) or self._versions(checkpoint) != before:
            return []
        self._whole.add(checkpoint)
        return sorted(before)

    def _of_before(self, sent: dict[str, list[str]]) -> list[str]:
        """Files of what was sent whole at another time, of stages of which nothing was now.

        Nothing of stages that have no checkpoint here: the run has forgotten those.
        """
        stages = {_stage_of(one) for one in sent if _is_position(one)}
        stages -= {_stage_of(one) for one, files in sent.items() if files and _is_position(one)}
        kept = {one for one in self._whole if _is_position(one) and _stage_of(one) in stages}
        return sorted(name for name in self._sent if _checkpoint_of(name) in kept)

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

    def _checkpoints(self) -> list[str]:
        """``checkpoints/STAGE/POSITION`` of those that are here, whole or being removed."""
        found = self.local.glob("checkpoints/*/*")
        return sorted(p.relative_to(self.local).as_posix() for p in found if _TMP not in p.name)

    def _names(self, under: str = "") -> list[str]:
        names = []
        for folder, folders, files in os.walk(self.local / under):
            folders[:] = [one for one in folders if _TMP not in one]
            for file in files:
                if file not in _OURS and not file.endswith(".partial"):
                    names.append((pathlib.Path(folder) / file).relative_to(self.local).as_posix())
        return names

    def _versions(self, checkpoint: str) -> dict[str, tuple[int, int]]:
        """Of its files, as far as they are there."""
        found = {}
        for name in self._names(checkpoint):
            with contextlib.suppress(FileNotFoundError):
                found[name] = _version(self.local / name)
        return found


def _version(path: pathlib.Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _checkpoint_of(name: str) -> str:
    """``checkpoints/STAGE/POSITION`` of a file in one, or nothing."""
    parts = name.split("/")
    return "/".join(parts[:3]) if parts[0] == "checkpoints" and len(parts) > 3 else ""


def _stage_of(checkpoint: str) -> str:
    return checkpoint.rpartition("/")[0]


def _is_position(checkpoint: str) -> bool:
    """Others are damaged ones, which the run has put aside."""
    return checkpoint.rpartition("/")[2].isdecimal()
