"""From a run's metrics to its ``results.json``: what every learner of every arm kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from sleeplm.bench.arm import Arm
from sleeplm.bench.costs import flops_of, moved_parameters, tokens_of
from sleeplm.bench.lives import Bench
from sleeplm.bench.sweep import arm_name, settings_of
from sleeplm.bench.textscores import NAMES
from sleeplm.bench.worlds import has_passages
from sleeplm.core import tree
from sleeplm.data.curriculum import digest
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import METRICS, Run

WORDING = "held-out questions, greedy answers, exact match"


def outcomes(bench: Bench, run: Run, arms: dict[str, Arm]) -> dict[str, Any]:
    """The content of ``results.json``; an arm is a list of its learners.

    Of a sweep, every arm with every setting is an arm of its own: its learners are seeds.
    """
    records = read_metrics(run.directory / METRICS)
    config, curriculum = bench.config, bench.materials[0].curriculum
    if has_passages(config):  # learners read passages with more questions or fewer
        sizes = {"passages_per_day": config.day_sizes or [config.facts_per_day] * config.days}
    else:
        sizes = {"questions_per_day": [len(part) for part in curriculum.exams]}
    return {
        "experiment": "retention",
        "config": run.config,
        "digest": run.digest,
        "world": {
            "name": config.world,
            "days": len(bench.steps),
            "texts_per_day": [len(day) for day in curriculum.days],
            **sizes,
            "pretrain_texts": len(curriculum.pretrain),
            "digests": [digest(m.curriculum) for m in bench.materials[: config.seeds]],
            "backbone_parameters": tree.size(bench.params) // len(bench.learners),
        },
        "arms": {
            arm_name(name, settings): [
                _learner(bench, run, name, arm, [r for r in records if r["stage"] == name], e)
                | ({"settings": settings} if settings else {})
                for e in range(k * config.seeds, (k + 1) * config.seeds)
            ]
            for name, arm in arms.items()
            for k, settings in enumerate(settings_of(config))
        },
    }


def _learner(
    bench: Bench, run: Run, name: str, arm: Arm, records: list[dict], e: int
) -> dict[str, Any]:
    days = range(len(bench.steps))
    exams = [r for r in records if r["event"] == "exam"]
    dusk = {r["day"]: r for r in exams if r["when"] == "dusk"}
    dawn = {**dusk, **{r["day"]: r for r in exams if r["when"] == "dawn"}}
    recall = np.array([dawn[i]["recall"][e] for i in days])
    floor = bench.start["recall"][e]
    last = dawn[days[-1]]
    one = bench.learners[e]
    seeds = [r for r in records if r["event"] == "seed"]
    parameters = moved_parameters(bench, arm, int(last["nights"][e]))
    held = float(np.sum(last["bits"][e][:-1]))
    result = {
        "seed": one.seed,
        "world_seed": one.world_seed,
        "matrix": [[float(recall[i, j]) if j <= i else None for j in days] for i in days],
        "awake": [float(dusk[i]["recall"][e][i]) for i in days],
        "dusk": [[float(x) for x in dusk[i]["recall"][e]] for i in days],
        "pretrain": [float(dawn[i]["pretrain"][e]) for i in days],
        "pretrain_start": float(floor[-1]),
        "floor": [float(x) for x in floor[:-1]],
        "forward": [float(recall[j - 1, j] if j else floor[j]) for j in days],
        "kl": [float(dawn[i]["kl"][e]) for i in days],
        "cluster": [float(dawn[i]["cluster"][e]) for i in days],
        "bits": {
            "held": held,
            "parameters": parameters,
            "per_parameter": held / parameters if parameters else 0.0,
        },
        "tokens": tokens_of(bench, arm, records, e),
        "flops": flops_of(bench, arm, records, e),
        # Learners live side by side: each is charged its share of the time.
        "seconds": {kind: s / len(bench.learners) for kind, s in run.seconds(name).items()},
        "wording": WORDING,
        "raw_text": arm.raw_text,
        "log": {
            "nights": int(last["nights"][e]),
            "rolled_back": int(last["rolled_back"][e]),
            "skipped": int(last["skipped"][e]),
            "unique_samples": [_of(r, "unique", e) for r in seeds],
        },
    }
    if bench.general is not None:
        result["general"] = [float(dawn[i]["general"][e]) for i in days]
        result["general_start"] = float(bench.start["general"][e])
    for name in (name for name in NAMES if name in bench.start):
        result[name] = [[float(x) for x in dawn[i][name][e]] for i in days]
        result[f"{name}_start"] = [float(x) for x in bench.start[name][e]]
    if not arm.by_class:
        result["logp"] = [[float(x) for x in dawn[i]["logp"][e][:-1]] for i in days]
        result["logp_start"] = [float(x) for x in bench.start["logp"][e][:-1]]
    if arm.follows_schedule and arm.archive == "none":
        result["cues"] = _cues(bench, arm, records, e)
    if arm.dream is not None:
        result["dreams"] = _dreams(records, e)
        for name in ("absorbed", "undone"):
            result["log"][f"dreams_{name}"] = sum(n[name] or 0 for n in result["dreams"])
    probe = next((r for r in records if r["event"] == "probe"), None)
    # A night that was rolled back opened no slot: later slots then count fewer nights than days.
    if probe is not None and not last["rolled_back"][e]:
        born = probe["born"][e]
        result["routing"] = {
            "traffic": probe["traffic"][e],
            "born": born,
            "learned": [float(x) for x in recall[-1]],
            # Asked with no expert at all, a day whose own became part of another says nothing.
            "oracle": [x if day in born else None for day, x in enumerate(probe["oracle"][e])],
        }
    return result


def _dreams(records: list[dict], e: int) -> list[dict[str, Any]]:
    """What became of every night's dreams: the metrics of its rounds, and of its end."""
    nights = []
    for end in (r for r in records if r["event"] == "dream_end"):
        rounds = [r for r in records if r["event"] == "dream" and r["day"] == end["day"]]
        names = [name for name, value in end.items() if isinstance(value, list)]
        told = [
            {name: _of(r, name, e) for name, value in r.items() if isinstance(value, list)}
            for r in rounds
        ]
        nights.append(
            {"day": end["day"], "rounds": told, **{name: _of(end, name, e) for name in names}}
        )
    return nights


def _of(record: dict, name: str, e: int) -> float | None:
    values = record.get(name)
    return None if values is None else values[e]


def _cues(bench: Bench, arm: Arm, records: list[dict], e: int) -> dict[str, Any]:
    kept = [r["cues"][e] for r in records if r["event"] in ("cues", "own_cues") and "cues" in r]
    sleep = arm.sleep
    entries = int(kept[-1]) if kept and kept[-1] is not None else 0
    return {
        "entries": entries,
        "bytes": entries * (sleep.cue_tokens + 1) * 4,
        "longest": sleep.cue_tokens,
        "written_by": sleep.cues,
    }
