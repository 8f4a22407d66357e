"""The folder of a run: what its files are called, and whether a folder may be a run's."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from sleeplm.core.checks import require
from sleeplm.core.errors import CheckpointError, ConfigError
from sleeplm.runtime.config import differing_fields

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
METRICS, TIMINGS, LOCK = "metrics.jsonl", "timings.jsonl", "lock"
BOARD = "tensorboard"
#: What a run writes beside its configuration, which it writes first, and replaces without asking:
#: the last of these are of jobs, and of their reports.
WRITTEN = (
    *(CHECKPOINTS, METRICS, TIMINGS, LOCK, BOARD),
    *("start.npz", "results.json", "report.json", "report.md", "report.html", "retention.png"),
)
#: Settings that change how a run is kept, not what it computes: they may differ on --resume.
HOUSEKEEPING = ("cache", "save_seconds", "keep", "mesh")
SHOWN = 3  # fields of another configuration that a message names


def lasting(config: dict[str, Any]) -> dict[str, Any]:
    """The settings by which a run is known: all but :data:`HOUSEKEEPING`."""
    return {name: value for name, value in config.items() if name not in HOUSEKEEPING}


def check_folder(field: str, directory: pathlib.Path) -> None:
    """Checks that a folder can be written, or made: no part of its path is a file.

    Raises:
      ConfigError: it names the part.
    """
    whole = directory.absolute()
    there = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
    require(there.is_dir(), field, str(directory), f"{there} is not a directory")
    writable = os.access(there, os.W_OK | os.X_OK)
    require(writable, field, str(directory), f"may not write in {there}")


def check_workdir(
    directory: pathlib.Path, config: dict[str, Any], digest: str, resume: bool
) -> None:
    """Checks that a run may begin in a folder, or go on there; nothing is written.

    Files of other names may be there. So may what is left of a run that was killed before it had
    written its configuration whole.

    Args:
      config, digest: plain values of the configuration, and the digest of those that last.
      resume: whether a run in the folder is to go on.

    Raises:
      ConfigError: it holds a run and ``resume`` is off, or what a run would replace, or it cannot
        be written.
      CheckpointError: it holds a run of another configuration.
    """
    saved = directory / CONFIG
    if saved.exists():
        if not resume:
            raise ConfigError(
                "workdir", str(directory), "holds a run: add --resume or name another"
            )
        _check_same(saved, config, digest)
        return
    if foreign := [name for name in WRITTEN if _is_theirs(directory / name)]:
        remedy = f"has no {CONFIG} of a run, which would replace its {', '.join(foreign)}"
        raise ConfigError("workdir", str(directory), f"{remedy}: name another")
    check_folder("workdir", directory)


def _is_theirs(path: pathlib.Path) -> bool:
    """Whether there is something that no run has left which was about to write its configuration:
    such a run has a lock, in which there is nothing."""
    lock = path.name == LOCK and path.is_file() and not path.stat().st_size
    return os.path.lexists(path) and not lock


def digest_in(saved: pathlib.Path) -> str:
    """The digest of the configuration that a run has saved."""
    return str(json.loads(saved.read_text())["digest"])


def inputs_of(directory: pathlib.Path) -> dict[str, str]:
    """Digests of what a run in the folder has read, by setting; none of a run of before."""
    saved = directory / CONFIG
    return dict(json.loads(saved.read_text()).get("inputs", {})) if saved.exists() else {}


def _check_same(saved: pathlib.Path, config: dict[str, Any], digest: str) -> None:
    try:
        content = json.loads(saved.read_text())
        before, theirs = content["digest"], dict(content["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{saved}: cannot be read; name another --workdir") from error
    if before == digest:
        return
    fields = differing_fields(lasting(theirs), lasting(config))
    words = [f"{name} is {then} there and {now} here" for name, then, now in fields[:SHOWN]]
    if len(fields) > SHOWN:
        words.append(f"and {len(fields) - SHOWN} more differ")
    raise CheckpointError(
        f"{saved.parent}: holds a run of another configuration ({', '.join(words) or CONFIG}); "
        "resume it with its own, or name another --workdir"
    )
