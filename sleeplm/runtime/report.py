"""The report of a retention experiment: figures for programs, a page and a picture for people.

``R[i][j]`` is the recall of the facts of day ``j`` after night ``i``; it is null for ``j > i``.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sleeplm.core.errors import ConfigError
from sleeplm.runtime.metrics import plain
from sleeplm.runtime.page import render_page

RESULTS, REPORT, PAGE, PICTURE = "results.json", "report.json", "report.md", "retention.png"
BOOTSTRAP_SAMPLES = 2000
#: An awake model must know this share of the day's facts before it can teach them.
AWAKE_KNOWS = 0.9
#: A model that never sleeps must have lost this share of what it knew on the first days.
LOST = 0.5

Arm = Mapping[str, Any]
Interval = dict[str, float]


def write_report(run_dir: str | os.PathLike[str], results: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``report.json``, ``report.md`` and ``retention.png`` into ``run_dir``.

    Args:
      run_dir: made if missing.
      results: what the experiment saved as ``results.json``; an arm may be a list, one entry a
        seed.

    Returns:
      The content of ``report.json``.

    Raises:
      ConfigError: ``results`` lacks something that the report needs.
    """
    # Imported here: a run should not wait for the drawing library before it begins.
    from sleeplm.runtime.figure import draw_retention

    directory = pathlib.Path(run_dir)
    report = summarize(results, str(directory / RESULTS))
    try:
        page = render_page(report, PICTURE)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        remedy = f"has an entry that cannot be shown ({error})"
        raise ConfigError("results", str(directory / RESULTS), remedy) from error
    directory.mkdir(parents=True, exist_ok=True)
    (directory / REPORT).write_text(json.dumps(plain(report), indent=2) + "\n")
    (directory / PAGE).write_text(page)
    draw_retention(report["arms"], directory / PICTURE)
    return report


def read_results(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``results.json`` of a run directory.

    Raises:
      ConfigError: it is missing, is not JSON, or is not the result of an experiment.
    """
    path = pathlib.Path(run_dir) / RESULTS
    try:
        results = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError("results", str(path), "no such file; has the run finished?") from error
    except (OSError, ValueError) as error:
        raise ConfigError("results", str(path), f"cannot be read as JSON: {error}") from error
    if not isinstance(results, dict) or not isinstance(results.get("arms"), dict):
        raise ConfigError("results", str(path), "must be an object with the entry arms")
    return results


def summarize(results: Mapping[str, Any], path: str = RESULTS) -> dict[str, Any]:
    """The figures of ``report.json``.

    Args:
      results: see :func:`write_report`.
      path: where the results come from, for error messages.

    Returns:
      ``arms.<arm>`` with ``mean_recall_last``, ``matrix``, ``age``, ``forgetting``,
      ``backward_transfer``, ``pretrain_lost``, ``awake``; ``difference`` where both arms ``sleep``
      and ``wake_only`` are there; ``certified``; and what the run was.

    Raises:
      ConfigError: an entry is missing or garbled.
    """
    seeds = {name: _seeds(arm, f"{path}: arms.{name}") for name, arm in results["arms"].items()}
    if not seeds:
        raise ConfigError(path, results["arms"], "must have at least one arm")
    report = {
        key: results.get(key) for key in ("experiment", "digest", "world", "config", "seconds")
    }
    arms = {name: summarize_arm(runs) for name, runs in seeds.items()}
    report |= {"arms": arms, "certified": certify(arms)}
    if "sleep" in seeds and "wake_only" in seeds:
        report["difference"] = {
            "sleep_minus_wake_only": {
                "mean_recall_last": _difference(seeds["sleep"], seeds["wake_only"])
            }
        }
    return report


def summarize_arm(runs: Sequence[Arm]) -> dict[str, Any]:
    """The figures of one arm, from one dict a seed."""
    matrices = np.stack([_matrix(run) for run in runs])
    last = matrices[:, -1]
    over_days = len(runs) == 1
    samples = last[0] if over_days else last.mean(axis=1)
    return {
        "seeds": len(runs),
        "mean_recall_last": bootstrap(samples) | {"interval": _interval(over_days)},
        "matrix": _null_above(matrices.mean(axis=0)),
        "age": _mean(runs, lambda run: recall_by_age(_matrix(run))),
        "forgetting": _mean(runs, lambda run: forgetting(_matrix(run))),
        "backward_transfer": _mean(runs, lambda run: backward_transfer(_matrix(run))),
        "awake": _mean(runs, lambda run: np.asarray(run["awake"], float)),
        "pretrain": _mean(runs, lambda run: np.asarray(run["pretrain"], float)),
        "pretrain_start": _mean(runs, lambda run: float(run["pretrain_start"])),
        "pretrain_lost": _mean(runs, _pretrain_lost),
        "cost": [{key: run.get(key) for key in ("tokens", "seconds")} for run in runs],
        "wording": [run.get("wording") for run in runs],
    }


def recall_by_age(matrix: np.ndarray) -> np.ndarray:
    """Mean over nights ``i`` of ``R[i, i - a]`` for every age ``a`` in nights; [nights]."""
    return np.array([np.diagonal(matrix, -age).mean() for age in range(len(matrix))])


def forgetting(matrix: np.ndarray) -> float:
    """Mean over days but the last of (best recall before the last night - recall after it).

    0 with a single night.
    """
    drops = [matrix[day:-1, day].max() - matrix[-1, day] for day in range(len(matrix) - 1)]
    return float(np.mean(drops)) if drops else 0.0


def backward_transfer(matrix: np.ndarray) -> float:
    """Mean over days but the last of (recall after the last night - recall after its own night).

    0 with a single night.
    """
    days = range(len(matrix) - 1)
    return float(np.mean([matrix[-1, day] - matrix[day, day] for day in days] or [0.0]))


def bootstrap(samples: np.ndarray, seed: int = 0) -> Interval:
    """Mean and 95% bootstrap interval of ``samples`` [n], drawn with a fixed seed."""
    samples = np.asarray(samples, float)
    draws = np.random.default_rng(seed).integers(
        len(samples), size=(BOOTSTRAP_SAMPLES, len(samples))
    )
    low, high = np.percentile(samples[draws].mean(axis=1), [2.5, 97.5])
    return {"mean": float(samples.mean()), "low": float(low), "high": float(high)}


def certify(arms: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the experiment can show anything: its floor and its ceiling.

    Returns:
      ``awake``: the lowest awake recall of any arm and day, and whether it is at least
      ``AWAKE_KNOWS``. ``wake_only_loses``: the recall by ``wake_only`` of all days but the last
      after the last night, and whether at most ``LOST`` is left; None without that arm.
    """
    lowest = min(float(np.min(arm["awake"])) for arm in arms.values())
    awake = {"lowest": lowest, "needed": AWAKE_KNOWS, "ok": lowest >= AWAKE_KNOWS}
    certified: dict[str, Any] = {"awake": awake}
    certified["wake_only_loses"] = None
    if "wake_only" in arms and len(arms["wake_only"]["matrix"]) > 1:
        left = float(np.mean(arms["wake_only"]["matrix"][-1][:-1]))
        certified["wake_only_loses"] = {"left": left, "allowed": LOST, "ok": left <= LOST}
    return certified


def _seeds(arm: Any, field: str) -> list[Arm]:
    runs = list(arm) if isinstance(arm, list) else [arm]
    if not runs:
        raise ConfigError(field, arm, "must have at least one seed")
    for index, run in enumerate(runs):
        where = f"{field}[{index}]" if isinstance(arm, list) else field
        if not isinstance(run, Mapping):
            raise ConfigError(where, run, "must be an object with the entry matrix")
        for name, read in _ENTRIES.items():
            if name not in run:
                raise ConfigError(where, sorted(run), f"lacks the entry {name}")
            try:
                read(run)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{where}.{name}", run[name], str(error)) from error
    shapes = {_matrix(run).shape for run in runs}
    if len(shapes) > 1:
        raise ConfigError(field, sorted(shapes), "must have as many days with every seed")
    return runs


def _matrix(run: Arm) -> np.ndarray:
    """Recall [nights, days] with NaN above the diagonal."""
    matrix = np.array([[np.nan if r is None else r for r in row] for row in run["matrix"]], float)
    if matrix.ndim != 2 or not matrix.size or matrix.shape[0] != matrix.shape[1]:
        raise ValueError("must have one row a night and one column a day, as many of both")
    if np.isnan(matrix[np.tril_indices(len(matrix))]).any():
        raise ValueError("must have a number for every day that is not after the night")
    return matrix


def _vector(name: str) -> Callable[[Arm], np.ndarray]:
    def read(run: Arm) -> np.ndarray:
        vector = np.asarray(run[name], float)
        if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
            raise ValueError("must be a list of numbers")
        return vector

    return read


_ENTRIES: dict[str, Callable[[Arm], Any]] = {
    "matrix": _matrix,
    "awake": _vector("awake"),
    "pretrain": _vector("pretrain"),
    "pretrain_start": lambda run: float(run["pretrain_start"]),
}


def _mean(runs: Sequence[Arm], figure: Callable[[Arm], Any]) -> Any:
    """The mean over seeds, as a float or a list of floats."""
    return np.mean([figure(run) for run in runs], axis=0).tolist()


def _pretrain_lost(run: Arm) -> float:
    return float(run["pretrain_start"]) - float(run["pretrain"][-1])


def _null_above(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(recall) else float(recall) for recall in row] for row in matrix]


def _interval(over_days: bool) -> str:
    return "over days" if over_days else "over seeds"


def _difference(sleep: Sequence[Arm], wake_only: Sequence[Arm]) -> dict[str, Any]:
    """Paired difference of the last rows: by seed, or by day when there is one seed."""
    pair = (len(sleep), len(wake_only))
    rows = [np.stack([_matrix(run)[-1] for run in runs]) for runs in (sleep, wake_only)]
    if rows[0].shape != rows[1].shape:
        remedy = f"must have the same seeds and days to be compared, not {pair} seeds"
        raise ConfigError("arms", ["sleep", "wake_only"], remedy)
    gain = rows[0] - rows[1]
    over_days = pair == (1, 1)
    samples = gain[0] if over_days else gain.mean(axis=1)
    return bootstrap(samples) | {"interval": _interval(over_days)}
