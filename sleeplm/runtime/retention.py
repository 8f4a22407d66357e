"""The retention job: days of facts, nights between them, and what is left of every day."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from typing import Any

import jax
import numpy as np

from sleeplm.core import checks, tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import Params
from sleeplm.data.facts import subjects
from sleeplm.data.text import byte_tokenizer
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.learner import learner
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.graft import backbone_config, graft
from sleeplm.models.transformer import Model
from sleeplm.runtime.exams import grade
from sleeplm.runtime.life import Life
from sleeplm.runtime.material import Material, cues_of, paper_of, prepare, world_of
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.pretraining import pretrained
from sleeplm.runtime.report import RESULTS, read_results, write_report
from sleeplm.runtime.run import Run, Stage
from sleeplm.runtime.streams import DayStreams

WORLDS = ("atlas", "biographies")
ARMS = ("sleep", "wake_only")
METRICS = "metrics.jsonl"
LARGEST_SEED = 2**31 - 1


@dataclasses.dataclass
class DayConfig:
    """One day awake.

    Attributes:
      steps: wake steps a day. batch, length: rows B and positions L of a wake batch.
      chunk: steps per compiled call; divides ``steps`` and every level's ``night``.
    """

    steps: int = 90
    batch: int = 16
    length: int = 64
    chunk: int = 30

    def check(self, field: str) -> None:
        for name in ("steps", "batch", "length", "chunk"):
            checks.positive_integer(f"{field}.{name}", getattr(self, name))
        checks.divides(f"{field}.chunk", self.chunk, self.steps, f"{field}.steps")


@dataclasses.dataclass
class RetentionConfig:
    """Everything about a retention run.

    Attributes:
      world: ``atlas`` (real facts of countries and elements) or ``biographies`` (generated).
      world_seed: which subjects fall into which day, and into pretraining.
      days, facts_per_day: size of the life.
      pretrain_people: biographies only, people known before the first day.
      statements, questions: training wordings that pretraining tells each fact in (drawn per
        fact; every wording of a relation is used for some fact). Days use all of them.
      exam_pretrain: pretraining facts asked in every exam.
      seed: of parameters, order and samples.
      arms: lives to compare: ``sleep``, and ``wake_only`` (the same days, no nights).
      cache: directory for pretrained backbones; relative paths are under the working directory.
      save_seconds, keep: how often a checkpoint is made, and how many are kept.
    """

    world: str = "atlas"
    world_seed: int = 0
    days: int = 4
    facts_per_day: int = 60
    pretrain_people: int = 200
    statements: int = 2
    questions: int = 5
    exam_pretrain: int = 196
    seed: int = 0
    arms: list[str] = dataclasses.field(default_factory=lambda: list(ARMS))
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    day: DayConfig = dataclasses.field(default_factory=DayConfig)
    sleep: SleepConfig = dataclasses.field(default_factory=SleepConfig)
    cache: str = ".cache/pretrained"
    save_seconds: float = 20.0
    keep: int = 3

    def check(self, field: str) -> None:
        for name in ("model", "pretrain", "day", "sleep"):  # what follows may count on them
            getattr(self, name).check(name)
        checks.one_of("world", self.world, WORLDS)
        for name in ("seed", "world_seed"):
            checks.in_range(name, getattr(self, name), 0, LARGEST_SEED)
        for name in ("days", "facts_per_day", "statements", "questions", "keep", "exam_pretrain"):
            checks.positive_integer(name, getattr(self, name))
        checks.positive_integer("pretrain_people", self.pretrain_people)
        checks.require(len(self.arms) > 0, "arms", self.arms, f"name some of {', '.join(ARMS)}")
        for arm in self.arms:
            checks.one_of("arms", arm, ARMS)
        checks.require(len(set(self.arms)) == len(self.arms), "arms", self.arms, "name each once")
        checks.at_least("save_seconds", self.save_seconds, 0)
        longest = max(self.day.length, self.pretrain.length, self.sleep.length)
        checks.at_least("model.max_len", self.model.max_len, longest)
        checks.at_least("model.vocab_size", self.model.vocab_size, byte_tokenizer().vocab_size)
        backbone_config(self.model)
        world_of(self)
        for i, level in enumerate(self.model.levels):
            if level.night:
                checks.require(
                    level.night % self.day.chunk == 0,
                    f"model.levels[{i}].night",
                    level.night,
                    f"use a multiple of day.chunk ({self.day.chunk})",
                )
        if "sleep" in self.arms:
            self._check_nights()

    def _check_nights(self) -> None:
        levels, steps = self.model.levels, self.days * self.day.steps
        checks.require(
            any(level.night for level in levels),
            "model.levels",
            [level.name for level in levels],
            "give one level a night, or leave the arm 'sleep' out",
        )
        for i, (fast, slow) in enumerate(itertools.pairwise(levels)):
            if not fast.night:
                continue
            nights = (min(slow.night, steps) if slow.night else steps) // fast.night
            checks.require(
                nights <= slow.slots or self.sleep.pool == "merge_oldest",
                f"model.levels[{i + 1}].slots",
                slow.slots,
                f"{nights} nights of {fast.name} come in; use at least as many slots, or "
                "sleep.pool = 'merge_oldest'",
            )
            checks.require(
                slow.slots >= 2 or self.sleep.pool != "merge_oldest",
                f"model.levels[{i + 1}].slots",
                slow.slots,
                "use at least 2 with sleep.pool = 'merge_oldest': two experts become one",
            )

    def run(self, run: Run) -> dict[str, Any]:
        """Runs the job in a run directory and returns the report."""
        return _job(self, run)


def arm_model(config: RetentionConfig, arm: str) -> ModelConfig:
    """The model of an arm: ``wake_only`` is the same model whose levels have no nights."""
    if arm == "sleep":
        return config.model
    levels = [dataclasses.replace(level, night=0) for level in config.model.levels]
    return dataclasses.replace(config.model, levels=levels)


def _job(config: RetentionConfig, run: Run) -> dict[str, Any]:
    began = time.monotonic()
    if (finished := _finished(run)) is not None:
        return write_report(run.directory, finished)
    material = prepare(config)
    world, paper = material.world, paper_of(config, material)
    run.claim()
    run.say(
        f"{world.name}: {len(world.pretrain)} facts before the first day, "
        f"{config.days} days of {config.facts_per_day}; {len(paper.lengths)} questions an exam"
    )
    key = jax.random.key(config.seed)
    backbone = Model(backbone_config(config.model))
    params = pretrained(run, backbone, config, material, key)
    examine = grade(backbone, paper)
    start = np.asarray(jax.jit(examine)({"params": params, "slots": backbone.init_slots()}))
    run.say(
        f"pretrained: knows {start[-1]:.2f} of what it read, {start[:-1].mean():.2f} of the days"
    )
    for arm in config.arms:
        _live_arm(config, run, arm, material, params, paper)
    results = _results(config, run, material, start, params)
    results["seconds"] = time.monotonic() - began
    path = run.directory / RESULTS
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1))
    os.replace(partial, path)
    return write_report(run.directory, results)


def _finished(run: Run) -> dict[str, Any] | None:
    """The results of this very run, if it has come to its end before."""
    try:
        results = read_results(run.directory)
    except ConfigError:
        return None
    return results if results.get("digest") == run.digest else None


def _live_arm(
    config: RetentionConfig, run: Run, arm: str, material: Material, params: Params, paper: Any
) -> None:
    model = Model(arm_model(config, arm))
    functions = learner(model, config.sleep)
    key = jax.random.key(config.seed)

    @jax.jit
    def make(params, key):
        grafted = graft(model, params, jax.random.fold_in(key, 1))
        return functions.init(grafted, jax.random.fold_in(key, 2))

    world, tokenizer = material.world, material.tokenizer
    most = max(len(subjects(facts)) for facts in world.days)
    life = Life(
        learner=functions,
        sleep=config.sleep,
        streams=DayStreams(material.days, config.day.batch, config.day.length, config.seed),
        days=config.days,
        steps=config.day.steps,
        chunk=config.day.chunk,
        cues=[cues_of(config, tokenizer, facts, most) for facts in world.days],
        before=cues_of(config, tokenizer, world.pretrain, len(subjects(world.pretrain))),
        examine=grade(model, paper),
    )
    run.stage(Stage(arm, lambda: make(params, key), life.agenda(), life.streams))


def _results(
    config: RetentionConfig, run: Run, material: Material, start: np.ndarray, params: Params
) -> dict[str, Any]:
    records = read_metrics(run.directory / METRICS)
    arms = {arm: _arm_result(config, run, arm, records, start) for arm in config.arms}
    return {
        "experiment": "retention",
        "config": run.config,
        "digest": run.digest,
        "world": {
            "name": material.world.name,
            "facts_per_day": config.facts_per_day,
            "days": config.days,
            "pretrain_facts": len(material.world.pretrain),
            "backbone_parameters": tree.size(params),
        },
        "arms": arms,
    }


def _arm_result(
    config: RetentionConfig, run: Run, arm: str, records: list[dict], start: np.ndarray
) -> dict[str, Any]:
    mine = [r for r in records if r["stage"] == arm]
    exams = [r for r in mine if r["event"] == "exam"]
    dusk = {r["day"]: r for r in exams if r["when"] == "dusk"}
    dawn = {**dusk, **{r["day"]: r for r in exams if r["when"] == "dawn"}}
    days = range(config.days)
    matrix = [[dawn[i]["recall"][j] if j <= i else None for j in days] for i in days]
    nights = [r for r in mine if r["event"] == "seed"]
    level = config.model.levels
    return {
        "matrix": matrix,
        "awake": [dusk[i]["recall"][i] for i in days],
        "pretrain": [dawn[i]["pretrain"] for i in days],
        "pretrain_start": float(start[-1]),
        "floor": [float(x) for x in start[:-1]],
        "tokens": _tokens(config, len(nights), sum(r["event"] == "merge" for r in mine)),
        "seconds": run.seconds(arm),
        "wording": "held-out questions, greedy answers, exact match",
        "log": {
            "nights": dawn[config.days - 1]["nights"],
            "rolled_back": dawn[config.days - 1]["rolled_back"],
            "unique_samples": [r.get("unique") for r in nights],
            "levels": [lv.name for lv in level],
        },
    }


def _tokens(config: RetentionConfig, blocks: int, merges: int) -> dict[str, int]:
    """Positions processed by one arm (padding included): read awake, sampled and seeded asleep.

    Args:
      blocks: extractions of all nights. merges: extractions for merging experts.
    """
    sleep = config.sleep
    writers = (sleep.lam < 1) + (sleep.lam > 0)
    told = sum(writers + (one.imitate and sleep.alpha < 1) for one in sleep.teachers)
    sets = blocks * told + merges * writers  # merging has one teacher, who is not imitated
    sampled = sets * sleep.rows * sleep.inner * sleep.length
    return {
        "wake": config.days * config.day.steps * config.day.batch * config.day.length,
        "sampled": sampled,
        "seeded": sampled * sleep.epochs,
    }


def default_levels(steps: int, slots: int) -> list[LevelConfig]:
    """The two levels of the bench: a grafted fast one, and the block's MLP with experts."""
    return [
        LevelConfig(
            name="fast",
            kind="graft",
            width=64,
            period=1,
            night=steps,
            learning_rate=3e-3,
            weight_decay=0.5,
            clip=1.0,
        ),
        LevelConfig(
            name="slow", kind="replace", width=384, slots=slots, rank=16, top_k=min(slots, 8)
        ),
    ]
