"""What has become of a sweep, read from its trial directories alone."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from launch.axes import FUSED, SWEEP
from launch.lease import EXPIRY, lease_age, process_lives, read_lease
from launch.stores import is_remote, write_whole
from launch.trials import Trial, directory_of, read_trials
from launch.worker import FAILED, SUCCESS
from sleeplm.bench.report import report_runs, summarize
from sleeplm.bench.results import RESULTS, read_results
from sleeplm.bench.retention import RetentionConfig
from sleeplm.core.errors import ConfigError
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import CONFIG, TIMINGS

TABLE = "table.csv"
#: Settings in which seeds of one arm differ, or that are named inside of a trial's results.
OF_SEEDS = (*FUSED, "seeds", SWEEP)


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a trial is.

    Attributes:
      state: ``finished``, ``running``, ``failed``, ``stopped`` (begun, and nobody at work) or
        ``waiting``.
      detail: why it failed, or its latest moment.
    """

    trial: Trial
    state: str
    detail: str


def standing(sweep: str, trial: Trial) -> Standing:
    """Where one trial is; a lease that has expired counts for nothing."""
    directory = directory_of(sweep, trial)
    if (directory / SUCCESS).exists():
        return Standing(trial, "finished", "")
    if _at_work(directory):
        return Standing(trial, "running", _latest(directory))
    if (directory / FAILED).exists():
        return Standing(trial, "failed", (directory / FAILED).read_text().strip())
    if (directory / CONFIG).exists():
        return Standing(trial, "stopped", _latest(directory))
    return Standing(trial, "waiting", "")


def status(sweep: str) -> list[Standing]:
    """Where every trial of a sweep is, in the order of the sweep."""
    return [standing(sweep, trial) for trial in read_trials(sweep)]


def show_status(found: Sequence[Standing]) -> str:
    """The states as text: one line a trial, and how many there are of each."""
    counts: dict[str, int] = {}
    for one in found:
        counts[one.state] = counts.get(one.state, 0) + 1
    rows = [["trial", "state", "settings", ""]]
    for one in found:
        settings = ", ".join(f"{field}={value}" for field, value in one.trial.settings.items())
        rows.append([one.trial.id, one.state, settings, one.detail])
    total = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{align(rows)}\n{len(found)} trials: {total}"


def collect(sweep: str, out: str | os.PathLike[str] = "") -> tuple[list[dict[str, Any]], int]:
    """Writes one table and one report over the finished trials of a sweep.

    Args:
      sweep: a sweep directory on this machine.
      out: where to; ``report`` in the sweep directory by default.

    Returns:
      The rows of ``table.csv``, one for every arm of every trial: its settings, and the mean of
      every figure of the report. And how many trials are not finished.

    Raises:
      ConfigError: no trial is finished, or results are garbled.
    """
    if is_remote(sweep):
        raise ConfigError("sweep", sweep, "copy it here first: reports are made from files")
    found = status(sweep)
    finished = [one.trial for one in found if one.state == "finished"]
    if not finished:
        raise ConfigError("sweep", sweep, "no trial is finished; see launch status")
    runs = [pathlib.Path(directory_of(sweep, trial)) for trial in finished]
    rows = [row for pair in zip(finished, runs, strict=True) for row in _rows(*pair)]
    directory = pathlib.Path(out or pathlib.Path(sweep) / "report")
    defaults = dataclasses.asdict(RetentionConfig())
    report_runs(runs, directory, defaults=defaults, labels=labels(finished))
    write_whole(directory / TABLE, as_csv(rows))
    return rows, len(found) - len(finished)


def labels(trials: Sequence[Trial]) -> list[str]:
    """The settings of each trial that others have otherwise, seeds left out."""
    values = [
        {f: _cell(x) for f, x in trial.settings.items() if f not in OF_SEEDS} for trial in trials
    ]
    fields = sorted({field for one in values for field in one})
    vary = [f for f in fields if len({str(one.get(f)) for one in values}) > 1]
    return [",".join(f"{f}={one[f]}" for f in vary if f in one) for one in values]


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as comma-separated values; what a row does not have is empty."""
    text = io.StringIO()
    fields = list(dict.fromkeys(field for row in rows for field in row))
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a table in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _at_work(directory: epath.Path) -> bool:
    lease = read_lease(directory)
    if lease is None or process_lives(lease.get("process")) is False:
        return False
    return lease_age(lease) < EXPIRY


def _rows(trial: Trial, run: pathlib.Path) -> list[dict[str, Any]]:
    report = summarize(read_results(run), str(run / RESULTS))
    common = {field: _cell(x) for field, x in trial.settings.items() if field != SWEEP}
    rows = []
    for name, arm in report["arms"].items():
        # Settings that were swept inside stand where those of trials one by one would.
        inside = arm.get("settings", {})
        plain_name = name.partition("@")[0] if inside else name
        row = {"trial": trial.id, **common, **inside, "arm": plain_name, "learners": arm["seeds"]}
        rows.append(row | {figure: s["mean"] for figure, s in arm["figures"].items()})
    return rows


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | bool) or value is None else value


def _latest(directory: epath.Path) -> str:
    """The label of the last moment that a trial has finished."""
    path = directory / TIMINGS
    if is_remote(directory) or not path.exists():
        return ""
    records = read_metrics(pathlib.Path(path))
    return f"{records[-1]['stage']}: {records[-1]['label']}" if records else ""
