"""A list of every file of a directory with size and digest, to notice later damage.

The array format of the checkpoints does not check its data on reading: one flipped bit would
silently become another weight.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from etils import epath

FILE = "checksums.json"


def seal(directory: epath.Path, ignore: tuple[str, ...] = ()) -> None:
    """Writes ``FILE`` into ``directory``, which names every file beneath it but ``ignore``."""
    names = sorted(str(path.relative_to(directory)) for path in _files(directory))
    entries = {n: _entry(directory / n) for n in names if n not in (FILE, *ignore)}
    (directory / FILE).write_text(json.dumps(entries, indent=1))


def fault(directory: epath.Path) -> str | None:
    """What is wrong with a sealed directory, in a few words; None when nothing is."""
    try:
        entries: dict[str, list[Any]] = json.loads((directory / FILE).read_text())
        wanted = {name: tuple(entry) for name, entry in entries.items()}
    except OSError:
        return f"{FILE} is missing"
    except (ValueError, AttributeError, TypeError):
        return f"{FILE} cannot be read"
    for name, (size, digest) in wanted.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        found_size, found_digest = _entry(path)
        if found_size != size:
            return f"{name} has {found_size} bytes, {size} were written"
        if found_digest != digest:
            return f"{name} has changed since it was written"
    return None


def _files(directory: epath.Path) -> list[epath.Path]:
    return [folder / name for folder, _, names in directory.walk() for name in names]


def _entry(path: epath.Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        size = 0
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
