"""The exam before the first day: asked once, and kept for a run that is resumed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sleeplm.bench.exams import Exam, grade
from sleeplm.bench.general import general_loss
from sleeplm.bench.textscores import NAMES, TextScores
from sleeplm.core.types import PyTree
from sleeplm.models.transformer import Model
from sleeplm.runtime import hosts
from sleeplm.runtime.learners import ask_each, put
from sleeplm.runtime.run import Run

FILE = "start.npz"
KEPT = ("recall", "logp", "general", *NAMES)
_DIGEST = "digest"


def first_exam(
    backbone: Model,
    newborn: PyTree,
    paper: Exam,
    general: Any,
    scores: TextScores | None,
    mesh: Mesh | None,
) -> Callable[[], dict[str, Any]]:
    """Asks newborn learners everything, and has them read general text, when it is called.

    Args:
      newborn: variables of E learners. paper: of each. general: text of each, or None.
      scores: of what is said, where answers are free text.
    """

    def ask() -> dict[str, Any]:
        examine = ask_each(grade(backbone, said=scores is not None), mesh)
        found = jax.device_get(examine(newborn, put(paper, mesh)))
        found = found if scores is None else scores(found)
        if general is not None:
            read = ask_each(general_loss(backbone), mesh)
            found["general"] = jax.device_get(read(newborn, put(general, mesh)))
        return found

    return ask


def tell(run: Run, start: Mapping[str, np.ndarray]) -> None:
    """Says what is known before the first day."""
    known, days = start["recall"][:, -1].mean(), start["recall"][:, :-1].mean()
    run.say(f"pretrained: knows {known:.2f} of what it read, {days:.2f} of the days")
    words = [f"{name} {start[name].mean():.2f}" for name in NAMES if name in start]
    if words:
        run.say(f"answers as text, before anything is read: {', '.join(words)}")


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
