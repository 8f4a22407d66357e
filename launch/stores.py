"""Where a sweep directory may be: a file system, or an object store such as ``gs://``."""

from __future__ import annotations

import os

import fsspec
from etils import epath

# A store is asked each time: what other workers wrote must not be hidden by a list of files that
# this process has kept.
fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address in an object store rather than on a file system."""
    return "://" in os.fspath(path)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file whole or not at all, and the directory that it is in."""
    target = epath.Path(path)
    if is_remote(path):
        target.write_text(text)  # an object appears when it is whole; there are no directories
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f"{target.name}.{os.getpid()}.partial"
    partial.write_text(text)
    partial.replace(target)
