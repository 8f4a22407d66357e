"""A sweep directory: ``trials.jsonl`` says what there is to run, ``trials/ID`` is where each runs.

Nothing else is kept about a sweep: which trials are done, running or failed is read from the trial
directories. The directory may be a path or an address that ``etils.epath`` knows (``gs://...``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from etils import epath

from launch.stores import write_whole
from sleeplm.core.checks import require
from sleeplm.core.errors import ConfigError

TRIALS, FOLDER, LOGS = "trials.jsonl", "trials", "logs"
#: Hexadecimal digits of an identifier: 40 bits, one clash in a million for a thousand trials.
DIGITS = 10


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
      id: a name made from the settings alone; begins with a letter and fits DNS.
      experiment: the experiment file as it was named, ``FILE`` or ``FILE:ARGUMENT``; a relative
        path is under the directory that the worker is started in.
      quick: the file's short version.
      settings: what differs from the file, ``{field: value}``.
      digest: of the configuration when the sweep was expanded.
    """

    id: str
    experiment: str
    quick: bool
    settings: dict[str, Any]
    digest: str

    def line(self) -> str:
        """The trial as a line of ``trials.jsonl``."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, allow_nan=False)


def trial_id(experiment: str, quick: bool, settings: dict[str, Any]) -> str:
    """The identifier of a trial: a hash of its settings, whatever their order.

    Of the experiment's path only what follows the colon counts: a file may be moved.
    """
    named = [experiment.partition(":")[2], quick, settings]
    text = json.dumps(named, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "t" + hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def check_sweep(sweep: str, trials: list[Trial]) -> None:
    """Checks that a sweep may be written to a directory: no trial that was begun there is lost.

    The same sweep may be expanded again, and one with more trials.

    Raises:
      ConfigError: other trials were begun there, or the same with other configurations.
    """
    if not (epath.Path(sweep) / TRIALS).exists():
        return
    now = {trial.id: trial for trial in trials}
    for before in read_trials(sweep):
        if not directory_of(sweep, before).exists():
            continue
        new = now.get(before.id)
        remedy = f"holds the trial {before.id}, which is none of these: name a new directory"
        require(new is not None, "out", sweep, remedy)
        remedy = f"holds the trial {before.id} of another configuration (the experiment file has "
        remedy += "changed, or is another): name a new directory"
        require(new is None or new.digest == before.digest, "out", sweep, remedy)


def write_trials(sweep: str, trials: list[Trial]) -> None:
    """Writes ``trials.jsonl``, whole or not at all."""
    text = "".join(trial.line() + "\n" for trial in trials)
    write_whole(epath.Path(sweep) / TRIALS, text)


def read_trials(sweep: str) -> list[Trial]:
    """The trials of a sweep directory, in the order of their expansion.

    Raises:
      ConfigError: there are none, or the file is garbled.
    """
    path = epath.Path(sweep) / TRIALS
    try:
        # Not splitlines(), which also splits at U+2028 and others that JSON leaves as they are.
        lines = path.read_text().split("\n")
    except (FileNotFoundError, NotADirectoryError) as error:
        remedy = f"has no {TRIALS}; make it with: python -m launch expand FILE --out {sweep}"
        raise ConfigError("sweep", str(sweep), remedy) from error
    except (OSError, ValueError) as error:
        raise ConfigError("sweep", str(path), f"cannot be read: {error}") from error
    if not lines[-1]:  # after the end of the last line
        lines.pop()
    return [_read(line, f"{path}:{number + 1}") for number, line in enumerate(lines)]


def _read(line: str, where: str) -> Trial:
    try:
        return Trial(**json.loads(line))
    except (TypeError, ValueError) as error:
        raise ConfigError(where, line[:80], "is not a trial: expand the sweep again") from error


def find_trial(sweep: str, name: str) -> Trial:
    """A trial by its identifier, or by its number in ``trials.jsonl`` from 0.

    Raises:
      ConfigError: there is none.
    """
    trials = read_trials(sweep)
    if name.isdecimal() and int(name) < len(trials):
        return trials[int(name)]
    found = [trial for trial in trials if trial.id == name]
    if not found:
        remedy = f"no such trial; {sweep} has {len(trials)}: an id of {TRIALS}, or a number from 0"
        raise ConfigError("trial", name, remedy)
    return found[0]


def directory_of(sweep: str, trial: Trial) -> epath.Path:
    """Where a trial runs."""
    return epath.Path(sweep) / FOLDER / trial.id
