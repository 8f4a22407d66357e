"""The report of retention experiments: figures for programs, pages and a picture for people.

``R[i][j]`` is the recall of the facts of day ``j`` after night ``i``; it is null for ``j > i``.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sleeplm.bench.blocks import render_page
from sleeplm.bench.combine import combine, run_names
from sleeplm.bench.html import render_html
from sleeplm.bench.page import blocks
from sleeplm.bench.results import RESULTS, SeedRun, read_arms, read_results
from sleeplm.bench.statistics import (
    CURVES,
    FIGURES,
    bootstrap,
    compare,
    curve,
    half_life,
    lift,
    measure,
    total,
    traffic_by_birth,
)
from sleeplm.core.errors import ConfigError
from sleeplm.runtime.metrics import plain

REPORT, PAGE, WEB_PAGE, PICTURE = "report.json", "report.md", "report.html", "retention.png"
#: An awake model must know this share of the day's facts before it can teach them.
AWAKE_KNOWS = 0.9
#: A model that never sleeps must have lost this share of what it knew on the first days.
LOST = 0.5


def write_report(
    run_dir: str | os.PathLike[str],
    results: Mapping[str, Any],
    source: str = "",
    against: str = "",
) -> dict[str, Any]:
    """Writes ``report.json``, ``report.md``, ``report.html`` and ``retention.png``.

    Args:
      run_dir: where to; made if missing.
      results: what an experiment saved as ``results.json``, or :func:`combine` of several; an arm
        may be a list, one entry a seed.
      source: where the results come from, for error messages; ``run_dir`` by default.
      against: the arm that all others are compared with; ``sleep`` or the first by default.

    Returns:
      The content of ``report.json``.

    Raises:
      ConfigError: ``results`` lacks something that the report needs, or the arm ``against``.
    """
    # Imported here: a run should not wait for the drawing library before it begins.
    from sleeplm.bench.figure import draw_retention

    directory = pathlib.Path(run_dir)
    source = source or str(directory / RESULTS)
    report = summarize(results, source, against)
    try:
        content = blocks(report, PICTURE)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        remedy = f"has an entry that cannot be shown ({error})"
        raise ConfigError("results", source, remedy) from error
    directory.mkdir(parents=True, exist_ok=True)
    (directory / REPORT).write_text(json.dumps(plain(report), indent=2) + "\n")
    (directory / PAGE).write_text(render_page(content))
    draw_retention(report["arms"], directory / PICTURE)
    picture = (directory / PICTURE).read_bytes()
    (directory / WEB_PAGE).write_text(render_html(content, {PICTURE: picture}))
    return report


def report_runs(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    defaults: Mapping[str, Any] | None = None,
    against: str = "",
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Writes the report of one or several finished runs into the directory ``out``.

    Args:
      defaults: of the settings, for runs from before some of them existed: see :func:`combine`.
      labels: of the runs, see there.
      against: see :func:`write_report`.

    Raises:
      ConfigError: a run is named twice, or its results are missing or garbled.
    """
    names = run_names(runs)
    results = [read_results(run) for run in runs]
    paths = [str(pathlib.Path(run) / RESULTS) for run in runs]
    for one, path in zip(results, paths, strict=True):
        read_arms(one, path)
    return write_report(out, combine(results, names, defaults, labels), ", ".join(paths), against)


def summarize(results: Mapping[str, Any], path: str = RESULTS, against: str = "") -> dict[str, Any]:
    """The figures of ``report.json``.

    Args:
      results: see :func:`write_report`.
      path: where the results come from, for error messages. against: see :func:`write_report`.

    Returns:
      ``arms.<arm>`` (:func:`summarize_arm`); ``difference.<one>_minus_<other>.<figure>``
      (:func:`differences`); ``bar``, if there is an arm ``sleep``; ``certified``; and what the
      runs were.

    Raises:
      ConfigError: an entry is missing or garbled.
    """
    seeds = read_arms(results, path)
    keys = ("experiment", "digest", "world", "config", "seconds")
    report = {key: results.get(key) for key in keys}
    if results.get("runs"):
        report["runs"] = list(results["runs"])
    arms = {name: summarize_arm(runs) for name, runs in seeds.items()}
    report |= {"arms": arms, "certified": certify(arms)}
    if against and against not in seeds:
        raise ConfigError("against", against, f"must be one of {', '.join(seeds)}")
    if gains := differences(seeds, against):
        report["difference"] = gains
    if "sleep" in seeds:
        report["bar"] = bar(arms, differences(seeds) if against else gains)
    return report


def summarize_arm(runs: Sequence[SeedRun]) -> dict[str, Any]:
    """The figures of one arm.

    Returns:
      ``figures.<name>`` of :data:`sleeplm.bench.statistics.FIGURES`, ``half_life`` and
      ``curves.<name>``, each with its interval; ``matrix`` and ``matrix_interval``; means over
      seeds of the rest. Figures of entries that no seed has are left out.
    """
    measured = {figure.name: measure(figure, runs) for figure in FIGURES}
    figures = {name: spread for name, spread in measured.items() if spread is not None}
    drawn = {name: curve([read(run) for run in runs]) for name, read in CURVES.items()}
    curves = {name: spread for name, spread in drawn.items() if spread is not None}
    spread = bootstrap(np.stack([run.matrix for run in runs]))
    arm = {
        "seeds": len(runs),
        "mean_recall_last": figures["mean_recall_last"],
        "matrix": spread["mean"],
        "age": curves["age"]["mean"],
        "forgetting": figures["forgetting"]["mean"],
        "backward_transfer": figures["backward_transfer"]["mean"],
        "awake": curves["dusk"]["mean"],
        "pretrain": curves["pretrain"]["mean"],
        "pretrain_start": float(np.mean([run.pretrain_start for run in runs])),
        "pretrain_lost": figures["pretrain_lost"]["mean"],
        "half_life": half_life(runs),
        "figures": figures,
        "curves": curves,
        "compute": {kind: _by_kind(runs, kind) for kind in ("tokens", "flops", "seconds")},
        "cost": [{kind: getattr(run, kind) or None for kind in _COSTS} for run in runs],
        "wording": [run.wording for run in runs],
    }
    if len(runs) > 1:
        arm["matrix_interval"] = {"low": spread["low"], "high": spread["high"]}
    optional = {
        "seed": [run.seed for run in runs],
        "world_seed": [run.world_seed for run in runs],
        "runs": sorted({run.run for run in runs if run.run}),
        "nights": runs[0].nights,
        "lift": _mean([lift(run) for run in runs]),
        "traffic": _mean([traffic_by_birth(run) for run in runs]),
        "bits": _averages([run.bits for run in runs]),
        "cues": _averages([run.cues for run in runs]),
        "raw_text": _same([run.raw_text for run in runs]),
        "log": _averages([run.log for run in runs]),
        "settings": _same([dict(run.settings) for run in runs]),
    }
    return plain(arm | {name: value for name, value in optional.items() if _told(value)})


def certify(arms: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the experiment can show anything: its floor and its ceiling.

    Returns:
      ``awake``: the lowest awake recall of any day, by ``sleep`` and ``wake_only`` where they are
      there (a control may be unable to learn by day), which arm's it is, and whether it is at
      least ``AWAKE_KNOWS``; the lowest of every arm. ``wake_only_loses``: the recall by
      ``wake_only`` of all days but the last after the last night, and whether at most ``LOST`` is
      left (of several runs, where most is left); None without that arm.
    """
    by_arm = {name: float(np.min(arm["awake"])) for name, arm in arms.items()}
    judged = [name for name in by_arm if name.partition("@")[0] in ("sleep", "wake_only")]
    worst = min(judged or by_arm, key=lambda name: by_arm[name])
    awake = {
        "lowest": by_arm[worst],
        "needed": AWAKE_KNOWS,
        "ok": by_arm[worst] >= AWAKE_KNOWS,
        "arm": worst,
        "by_arm": by_arm,
    }
    certified: dict[str, Any] = {"awake": awake, "wake_only_loses": None}
    matrices = [
        arm["matrix"]
        for name, arm in arms.items()
        if name.partition("@")[0] == "wake_only" and len(arm["matrix"]) > 1
    ]
    if matrices:
        left = max(float(np.mean(matrix[-1][:-1])) for matrix in matrices)
        certified["wake_only_loses"] = {"left": left, "allowed": LOST, "ok": left <= LOST}
    return certified


def differences(
    seeds: Mapping[str, Sequence[SeedRun]], against: str = ""
) -> dict[str, dict[str, Any]]:
    """Paired differences of figures: one arm minus every other arm.

    It is ``against``; by default ``sleep``, or else the first arm.

    Of runs that were put together, every ``sleep@RUNS`` is also compared with ``ARM@RUNS``.

    Returns:
      ``<one>_minus_<other>.<figure>``; nothing for arms that have no seed in common.
    """
    main = against or ("sleep" if "sleep" in seeds else next(iter(seeds)))
    sleepers = [name for name in seeds if name.startswith("sleep@") and not against]
    found = {}
    for other in seeds:
        own = sleepers if "@" in other and not other.startswith("sleep@") else []
        for one in dict.fromkeys((main, *own)):
            pairs = _pairs(seeds, one, other) if one != other else []
            compared = {f.name: compare(f, pairs) for f in FIGURES if f.paired and pairs}
            if gains := {name: gain for name, gain in compared.items() if gain is not None}:
                found[f"{one}_minus_{other}"] = gains
    return found


def bar(arms: Mapping[str, Any], gains: Mapping[str, Any]) -> dict[str, Any]:
    """What ``sleep`` is judged by.

    Returns:
      ``mean_recall_last`` and ``pretrain_lost`` of the arm ``sleep``; its paired gain in
      ``mean_recall_last`` over the best arm that keeps no raw text (``raw_text`` false, not itself
      a kind of ``sleep``), ``minus_best_without_raw_text``, and over ``static_replay``,
      ``minus_static_replay``, where these arms exist.
    """
    figures = arms["sleep"]["figures"]
    judged = {name: figures[name] for name in ("mean_recall_last", "pretrain_lost")}
    recall = {
        name: arm["mean_recall_last"]["mean"]
        for name, arm in arms.items()
        if arm.get("raw_text") is False
        and not name.startswith("sleep")
        and f"sleep_minus_{name}" in gains
    }
    if recall:
        best = max(recall, key=lambda name: recall[name])
        gain = gains[f"sleep_minus_{best}"]["mean_recall_last"]
        judged["minus_best_without_raw_text"] = {"arm": best} | gain
    if "sleep_minus_static_replay" in gains:
        judged["minus_static_replay"] = gains["sleep_minus_static_replay"]["mean_recall_last"]
    return judged


_COSTS = ("tokens", "flops", "seconds")


def _pairs(
    seeds: Mapping[str, Sequence[SeedRun]], one: str, other: str
) -> list[tuple[SeedRun, SeedRun]]:
    """Seeds of two arms that had the same days and randomness."""
    first, second = seeds[one], seeds[other]
    if all(run.seed is not None for run in (*first, *second)):
        others = {run.key: run for run in second}
        pairs = [(run, others[run.key]) for run in first if run.key in others]
        same = True
    elif {run.origin for run in first} != {run.origin for run in second}:
        return []
    else:
        pairs = list(zip(first, second, strict=False))
        same = len(first) == len(second)
    if not same or any(a.matrix.shape != b.matrix.shape for a, b in pairs):
        remedy = (
            "must have the same seeds and days to be compared, not "
            f"{len(first)} and {len(second)} seeds, {len(first[0].matrix)} and "
            f"{len(second[0].matrix)} days"
        )
        raise ConfigError("arms", [one, other], remedy)
    return pairs


def _by_kind(runs: Sequence[SeedRun], cost: str) -> dict[str, float]:
    """Mean over seeds of a cost, by kind, and of its total."""
    amounts = [dict(getattr(run, cost)) for run in runs if getattr(run, cost)]
    return _averages([each | {"total": total(each)} for each in amounts])


def _averages(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds of what is a number; of the rest, what all seeds agree on."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for entry in entries for name in entry):
        values = [entry[name] for entry in entries if entry.get(name) is not None]
        if values and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            found[name] = float(np.mean(values))
        elif values and all(value == values[0] for value in values):
            found[name] = values[0]
    return found


def _same(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def _mean(values: Sequence[np.ndarray | None]) -> list[Any] | None:
    known = [value for value in values if value is not None]
    return np.mean(known, axis=0).tolist() if known else None


def _told(value: Any) -> bool:
    empty = value is None or (isinstance(value, list | dict) and not value)
    return not empty and not (isinstance(value, list) and all(entry is None for entry in value))
