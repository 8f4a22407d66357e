"""What few-shot ARC came to: ``results.json`` and ``report.md``."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from sleeplm.bench.arc.config import ArcConfig
from sleeplm.bench.results import FEW_SHOT_ARC, RESULTS
from sleeplm.bench.statistics import bootstrap
from sleeplm.runtime.config import to_dict
from sleeplm.runtime.metrics import plain, read_metrics
from sleeplm.runtime.run import METRICS

PAGE = "report.md"


def write_results(
    directory: pathlib.Path, config: ArcConfig, left_out: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """Reads the metrics of a finished run and writes both files, each whole or not at all."""
    results = summary(read_metrics(directory / METRICS), config, left_out)
    _write(directory / RESULTS, json.dumps(plain(results), indent=1) + "\n")
    _write(directory / PAGE, page(results))
    return results


def summary(
    records: Sequence[Mapping[str, Any]], config: ArcConfig, left_out: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """The figures of all arms, by list of tasks.

    ``dreams`` is the share of a list's dreams that solve their task, ``any`` the share of its tasks
    that at least one solves, ``logp`` the mean log-probability of right outputs, ``valid`` the
    share of dreams that are self-edits: means and 95% over seeds of dreaming. Tasks that are too
    long count as unsolved; ``logp`` and ``valid`` leave them out.
    """
    exams = [record for record in records if record.get("event") == "exam"]
    arms: dict[str, Any] = {}
    for arm in config.arms:
        arms[arm] = {}
        for name in ("evaluation", "held_out"):
            mine = [e for e in exams if e["arm"] == arm and e["list"] == name]
            if mine:
                arms[arm][name] = _figures(mine, len(left_out[name]))
    training = [
        {key: record[key] for key in record if key not in ("stage", "event")}
        for record in records
        if record.get("event") in ("dream", "reinforce")
    ]
    return {
        "experiment": FEW_SHOT_ARC,
        "config": to_dict(config),
        "left_out": {name: list(names) for name, names in left_out.items()},
        "arms": arms,
        "training": training,
    }


def _figures(exams: Sequence[Mapping[str, Any]], missing: int) -> dict[str, Any]:
    seeds = sorted({exam["seed"] for exam in exams})
    each: dict[str, list[float]] = {"dreams": [], "any": [], "logp": [], "valid": []}
    for seed in seeds:
        mine = [exam for exam in exams if exam["seed"] == seed]
        count = len(mine) + missing
        each["dreams"].append(sum(np.mean(exam["solved"]) for exam in mine) / count)
        each["any"].append(sum(max(exam["solved"]) for exam in mine) / count)
        each["logp"].append(float(np.mean([exam["logp"] for exam in mine])))
        each["valid"].append(float(np.mean([exam.get("valid", [1.0]) for exam in mine])))
    figures = {name: _interval(values) for name, values in each.items()}
    tasks = {
        name: float(np.mean([np.mean(e["solved"]) for e in exams if e["task"] == name]))
        for name in dict.fromkeys(exam["task"] for exam in exams)
    }
    return {**figures, "seeds": len(seeds), "tasks": len(tasks) + missing, "by_task": tasks}


def _interval(values: Sequence[float]) -> dict[str, Any]:
    if len(values) > 1:
        return {**bootstrap(np.array(values)), "values": list(values)}
    return {"mean": values[0], "low": None, "high": None, "values": list(values)}


def page(results: Mapping[str, Any]) -> str:
    """The figures as a page."""
    lines = ["# Few-shot ARC", ""]
    for name in ("evaluation", "held_out"):
        rows = {arm: lists[name] for arm, lists in results["arms"].items() if name in lists}
        if not rows:
            continue
        many = next(iter(rows.values()))["tasks"]
        lines += [f"## {name}: {many} tasks", ""]
        lines += ["| arm | dreams that solve | tasks solved by any | log p of right outputs |"]
        lines += ["|---|---|---|---|"]
        for arm, row in rows.items():
            cells = [
                _cell(row[key], unit) for key, unit in (("dreams", "%"), ("any", "%"), ("logp", ""))
            ]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
        left = results["left_out"][name]
        if left:
            lines += ["", f"Too long, counted as unsolved: {', '.join(left)}."]
        lines.append("")
    lines.append("Means and 95% intervals over seeds of dreaming, all on one backbone.")
    return "\n".join(lines) + "\n"


def _cell(figure: Mapping[str, Any], unit: str) -> str:
    def number(value: float) -> str:
        return f"{100 * value:.1f}%" if unit else f"{value:.2f}"

    if figure["low"] is None:
        return number(figure["mean"])
    return f"{number(figure['mean'])} ({number(figure['low'])} to {number(figure['high'])})"


def _write(path: pathlib.Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
