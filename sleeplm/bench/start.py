"""The exam before the first day: asked once, and kept for a run that is resumed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sleeplm.bench.textscores import NAMES
from sleeplm.runtime import hosts
from sleeplm.runtime.run import Run

FILE = "start.npz"
KEPT = ("recall", "logp", "general", *NAMES)
_DIGEST = "digest"


def asked_once(run: Run, ask: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """What learners knew before the first day, from the run's directory if it has been asked.

    The directory has to be the run's (:meth:`~sleeplm.runtime.run.Run.claim`). In a job of several
    processes all read what is there, or all ask and the first one writes.

    Args:
      ask: holds the exam. Of what it returns, ``KEPT`` are kept, where they are there.
    """
    found = _read(run)
    if not hosts.largest(int(found is None)):
        return found or {}
    asked = ask()
    found = {name: np.asarray(asked[name]) for name in KEPT if name in asked}
    with hosts.fail_together():
        if run.leads:
            _write(run, found)
    return found


def _read(run: Run) -> dict[str, np.ndarray] | None:
    """None where there is nothing, where it is another run's, or where it cannot be read."""
    try:
        with np.load(run.directory / FILE, allow_pickle=False) as kept:
            found = dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return found if str(found.pop(_DIGEST, "")) == run.digest else None


def _write(run: Run, found: dict[str, np.ndarray]) -> None:
    path = run.directory / FILE
    partial = path.with_suffix(".partial")
    with partial.open("wb") as out:
        np.savez(out, **found, **{_DIGEST: np.asarray(run.digest)})  # type: ignore[arg-type]
    os.replace(partial, path)
