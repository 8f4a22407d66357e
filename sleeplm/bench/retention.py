"""The retention job: days of a stream, nights between them, and what is left of every day.

All seeds of an arm live side by side in one compiled program. Learner e has seed ``seed + e`` and
world ``world_seed + e``: a backbone, an order of days and samples of its own, the same in every
arm, so that arms are compared in pairs. With a ``sweep`` each of them lives with every setting.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sleeplm.bench.arms import ARMS, DREAMING, WITHOUT_LEVELS_NIGHTS, build_arm, check_dreaming
from sleeplm.bench.baselines import BaselineConfig
from sleeplm.bench.classes import count_labels
from sleeplm.bench.costs import Reading
from sleeplm.bench.dream_contexts import check_material, style_of
from sleeplm.bench.exams import stack_exams
from sleeplm.bench.general import general_of
from sleeplm.bench.lives import Bench, learners_of, live, steps_of
from sleeplm.bench.material import Material, check_world, cut_asleep, paper_of, prepare
from sleeplm.bench.outcome import outcomes
from sleeplm.bench.pretraining import check_backbone, pretrained
from sleeplm.bench.report import write_report
from sleeplm.bench.results import RESULTS, read_results
from sleeplm.bench.spreading import check_mesh, check_processes
from sleeplm.bench.start import asked_once, first_exam, tell
from sleeplm.bench.sweep import check_sweep
from sleeplm.bench.textscores import text_scores
from sleeplm.bench.timetable import nights_of
from sleeplm.bench.worlds import check_text, has_passages
from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.data.curriculum import digest
from sleeplm.data.formats import MARKS
from sleeplm.data.passage_days import ASK
from sleeplm.data.text import byte_tokenizer
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.pretrained.minilm import minilm_folder
from sleeplm.runtime import hosts
from sleeplm.runtime.learners import MeshConfig, put, put_params
from sleeplm.runtime.run import Run

LARGEST_SEED = 2**31 - 1


@dataclasses.dataclass
class DayConfig:
    """One day awake.

    Attributes:
      steps: wake steps of a day of average length; longer days have more in proportion.
      epochs: if not 0, how often a day's texts are read instead, to the nearest ``chunk``: days of
        any size are then known equally well.
      batch, length: rows B and positions L of a wake batch.
      chunk: steps per compiled call; divides ``steps`` and every level's ``night``.
    """

    steps: int = 90
    epochs: float = 0.0
    batch: int = 16
    length: int = 64
    chunk: int = 30

    def check(self, field: str) -> None:
        for name in ("steps", "batch", "length", "chunk"):
            checks.positive_integer(f"{field}.{name}", getattr(self, name))
        checks.at_least(f"{field}.epochs", self.epochs, 0)
        checks.divides(f"{field}.chunk", self.chunk, self.steps, f"{field}.steps")


@dataclasses.dataclass
class RetentionConfig:
    """Everything about a retention run.

    Attributes:
      world: ``atlas`` (real facts of countries and elements), ``biographies`` (generated),
        ``facts:FILE``, ``labels:DIRECTORY`` or ``passages:FILE`` (your own, see docs/data.md), a
        labelled data set (``clinc150``, ``banking77``, ``dbpedia70``, ...), or ``squad``.
      world_seed: which subjects fall into which day, and into pretraining; which passages are read.
      days: of the life; 0 for all that the data have. facts_per_day: in each, or passages.
      day_sizes: facts of each day, where days are unequal; empty: all ``facts_per_day``.
      night_facts: facts of a day whose night has ``sleep.updates``; after other days it has more
        or fewer in proportion. 0: all nights are alike, as they are by the clock or by surprise,
        and for labelled texts.
      pretrain_people: facts known before the first day, see the worlds.
      statements, questions: training wordings that pretraining tells each fact in (drawn per
        fact; every wording of a relation is used for some fact).
      day_statements, day_questions: wordings that a day tells each fact in, in worlds of facts; 0
        statements, or -1 questions, for all of them. 0 questions: nothing is asked by day.
      formats: that pretraining shows (:mod:`sleeplm.data.formats`), for dreams to be written in;
        format_examples: of each, for every fact that it tells.
      wear: share of questions whose wording is worn, see :mod:`sleeplm.data.worn`.
      falsehoods: share of a day's statements that name the value of another subject, in worlds of
        facts; exams ask for the truth. Arms that dream report how many of their dreams are false.
      exam_facts: facts that a question of an exam needs, 1 or 2, in worlds of facts: with 2 the
        subject is told by another of its facts (:mod:`sleeplm.data.two_facts`).
      exam_pretrain: pretraining facts asked in every exam. exam_per_day: questions about each
        day; 0 for all.
      ask: words around questions about passages, in which ``{q}`` is the question.
      answer_tokens: room for an answer about passages, what ends it included; 0: that of the
        longest expected one. score_judge: let all-MiniLM-L6-v2 judge these answers too, at
        ``sleep.judge_threshold`` (:mod:`sleeplm.bench.textscores`).
      backbone: a published model instead of one that is pretrained here: ``smollm2``, a GGUF file
        or a Hugging Face folder, see :func:`~sleeplm.pretrained.published.find_backbone`. ``model``
        has its sizes, and what is "known" before the first day is what it makes of those facts.
      chat: questions and answers are turns of a conversation, as the backbone's chat template has
        them; ``model.eos`` is then what ends a text, not what ends a turn. dream_chat: dreams alone
        are asked for in turns (with ``chat`` they are too).
      general: file of plain text (as ``text``) that every exam reads, to tell general ability from
        what the days were about; general_tokens: how much of its beginning.
      text: file of plain text to pretrain on beside the facts, for worlds of texts. text_lines:
        of it, at most. data_dir, manual_dir: where TFDS keeps data sets, and files that one has
        to fetch by hand.
      seed: of parameters, order and samples. seeds: learners that live side by side.
      sweep: numbers that also vary, ``{"sleep.learning_rate": [0.01, 0.02], ...}``: every seed
        lives with the first values of all lists, with the second, ..., all side by side
        (:data:`sleeplm.bench.sweep.MAY_VARY` has the names).
      arms: lives to compare, see :data:`sleeplm.bench.arms.ARMS`.
      equal_flops: arms whose dreams lack a part have as many more updates of the night as that part
        costs (``sleep_longer``, which has no dreams, always has).
      probes: ask for traffic and oracle routing after the last night, where every day has a
        night of its own.
      mesh: devices that the run is spread over, see docs/scale.md; a run can be resumed on others.
      cache: directory for pretrained backbones; relative paths are under the working directory.
      save_seconds, keep: how often a checkpoint is made, and how many are kept.
    """

    world: str = "atlas"
    world_seed: int = 0
    days: int = 4
    facts_per_day: int = 60
    day_sizes: list[int] = dataclasses.field(default_factory=list)
    night_facts: int = 0
    pretrain_people: int = 200
    statements: int = 2
    questions: int = 5
    day_statements: int = 0
    day_questions: int = -1
    formats: list[str] = dataclasses.field(default_factory=list)
    format_examples: int = 2
    wear: float = 0.5
    falsehoods: float = 0.0
    exam_facts: int = 1
    exam_pretrain: int = 196
    exam_per_day: int = 0
    ask: str = ASK
    answer_tokens: int = 0
    score_judge: bool = False
    backbone: str = ""
    chat: bool = False
    dream_chat: bool = False
    general: str = ""
    general_tokens: int = 4096
    text: str = ""
    text_lines: int = 20_000
    data_dir: str = ""
    manual_dir: str = ""
    seed: int = 0
    seeds: int = 1
    sweep: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    arms: list[str] = dataclasses.field(default_factory=lambda: ["sleep", "wake_only"])
    equal_flops: bool = False
    probes: bool = True
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    day: DayConfig = dataclasses.field(default_factory=DayConfig)
    sleep: SleepConfig = dataclasses.field(default_factory=SleepConfig)
    dream: DreamConfig = dataclasses.field(default_factory=DreamConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    baselines: BaselineConfig = dataclasses.field(default_factory=BaselineConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    cache: str = ".cache/pretrained"
    save_seconds: float = 20.0
    keep: int = 3

    def check(self, field: str) -> None:
        parts = ("model", "pretrain", "day", "sleep", "dream", "schedule", "baselines", "mesh")
        for name in parts:
            getattr(self, name).check(name)  # what follows may count on them
        self.check_learners()
        if self.sleep.judge == "minilm" or self.score_judge:
            minilm_folder()
        counts = ("statements", "questions", "keep", "exam_pretrain", "pretrain_people")
        for name in (*counts, "general_tokens"):
            checks.positive_integer(name, getattr(self, name))
        for name in ("wear", "falsehoods"):
            checks.fraction(name, getattr(self, name))
        checks.integer("exam_facts", self.exam_facts)
        checks.in_range("exam_facts", self.exam_facts, 1, 2)
        checks.integer("day_questions", self.day_questions)
        checks.at_least("day_questions", self.day_questions, -1)
        told = ("day_statements", "format_examples")
        for name in (*told, "exam_per_day", "text_lines", "days", "night_facts", "answer_tokens"):
            checks.integer(name, getattr(self, name))
            checks.at_least(name, getattr(self, name), 0)
        for kind in self.formats:
            checks.one_of("formats", kind, tuple(MARKS))
        checks.at_least("save_seconds", self.save_seconds, 0)
        longest = max(self.day.length, self.pretrain.length, self.sleep.length)
        checks.at_least("model.max_len", self.model.max_len, longest)
        checks.at_least("model.vocab_size", self.model.vocab_size, byte_tokenizer().vocab_size)
        backbone_config(self.model)
        remedy = "only a published model has a chat template: name one as backbone"
        for name in ("chat", "dream_chat"):
            chats = getattr(self, name)
            checks.require(not chats or bool(self.backbone), name, chats, remedy)
        check_backbone(self)
        check_text("general", self.general)
        days = check_world(self)
        for name, usual in {"ask": ASK, "answer_tokens": 0, "score_judge": False}.items():
            remedy = "only answers about passages are free text: leave it out"
            plain = getattr(self, name) == usual
            checks.require(plain or has_passages(self), name, getattr(self, name), remedy)
        for i, level in enumerate(self.model.levels):
            if level.night:
                checks.require(
                    level.night % self.day.chunk == 0,
                    f"model.levels[{i}].night",
                    level.night,
                    f"use a multiple of day.chunk ({self.day.chunk})",
                )
        known = self.schedule.when == "day_end" or not self.day.epochs  # else from what is read
        if known and not WITHOUT_LEVELS_NIGHTS.issuperset(self.arms):
            check_nights(self, [self.day.steps] * days)
        if not set(DREAMING).isdisjoint(self.arms):
            check_dreaming(self)
        check_mesh(self)

    def check_learners(self) -> None:
        """Checks which learners there are: their settings, seeds and arms. No file is needed."""
        check_sweep(self)
        checks.positive_integer("seeds", self.seeds)
        for name in ("seed", "world_seed"):
            checks.in_range(name, getattr(self, name), 0, LARGEST_SEED - self.seeds + 1)
        checks.require(len(self.arms) > 0, "arms", self.arms, f"name some of {', '.join(ARMS)}")
        for arm in self.arms:
            checks.one_of("arms", arm, tuple(ARMS))
        checks.require(len(set(self.arms)) == len(self.arms), "arms", self.arms, "name each once")

    def run(self, run: Run) -> dict[str, Any]:
        """Runs the job in a run directory and returns the report: that of the first process."""
        return _job(self, run)


def check_nights(config: RetentionConfig, steps: Sequence[int]) -> None:
    """Checks that there are nights, and slots for what they bring.

    Args:
      steps: wake steps of each day.

    Raises:
      ConfigError: there are none, or too few.
    """
    levels, schedule = config.model.levels, config.schedule
    pairs = [i for i, level in enumerate(levels) if level.night]
    checks.require(
        bool(pairs),
        "model.levels",
        [level.name for level in levels],
        "give one level a night, or leave out the arms that sleep",
    )
    asked = schedule.when in ("surprise", "fill")
    remedy = "give one level only a night: by surprise or fill, one pair sleeps"
    checks.require(not asked or len(pairs) == 1, "schedule.when", schedule.when, remedy)
    fastest = levels[pairs[0]].night
    for i in pairs:
        fast, slow = levels[i], levels[i + 1]
        nights = len(nights_of(schedule, steps, config.day.chunk, fast.night, fastest))
        if slow.night:  # which empties it
            nights = min(nights, slow.night // fast.night)
        dreams = not set(DREAMING).isdisjoint(config.arms)
        # One for the night and one for its dreams.
        doubled = i == pairs[0] and dreams and config.dream.into == "new"
        remedy = "use at least as many slots, or sleep.pool = 'merge_balanced'"
        checks.require(
            nights * (1 + doubled) <= slow.slots or config.sleep.pool != "refuse",
            f"model.levels[{i + 1}].slots",
            slow.slots,
            f"{nights} nights of {fast.name} come in, "
            + (f"with two experts each: use at least {2 * nights} slots" if doubled else remedy),
        )
        checks.require(
            slow.slots >= 2 or config.sleep.pool == "refuse",
            f"model.levels[{i + 1}].slots",
            slow.slots,
            f"use at least 2 with sleep.pool = {config.sleep.pool!r}: two experts become one",
        )


def _job(config: RetentionConfig, run: Run) -> dict[str, Any]:
    began, before = time.monotonic(), run.seconds()["total"]
    finished = _finished(run) if run.leads else None
    if hosts.largest(int(finished is not None)):
        return _reported(run, lambda: finished or {})
    mesh = config.mesh.make()
    check_processes(config)
    learners = learners_of(config)
    seeds = learners[: config.seeds]  # each setting has the same again
    times = len(learners) // len(seeds)
    with hosts.fail_together():
        materials = [prepare(one) for one in seeds] * times
        papers = [paper_of(c, m) for c, m in zip(learners, materials, strict=True)]
        paper = stack_exams(papers, config.mesh.rows)
        classes, reading = count_labels(materials), Reading(config, learners, materials)
        arms = {name: build_arm(name, config, classes, reading) for name in config.arms}
        if not WITHOUT_LEVELS_NIGHTS.issuperset(config.arms):
            check_nights(config, steps_of(config, materials))
        for arm in arms.values():
            if arm.dream is not None:
                check_material(materials, arm.dream, style_of(config))
        general, scores = general_of(config, materials), text_scores(config, materials)
    _remember(run, config, materials, general)
    if mesh is not None:
        run.say(f"spread over {mesh.size} devices: {dict(mesh.shape)}")
    world = materials[0].curriculum
    run.say(
        f"{world.name}: {len(world.pretrain)} texts before the first day, {len(world.days)} days "
        f"of {', '.join(str(len(day)) for day in world.days)} texts; "
        f"{max(one.shape[0] for one in papers)} questions an exam; {len(learners)} learners"
    )
    if not WITHOUT_LEVELS_NIGHTS.issuperset(config.arms):
        for line in cut_asleep(config, materials):
            run.say(f"warning: {line}")
    backbone = Model(backbone_config(config.model))
    params = pretrained(run, backbone, seeds, materials[: len(seeds)], mesh)
    run.claim()  # here at the latest: everything that is somebody's has been read
    if times > 1:
        params = put_params(jax.tree.map(lambda x: jnp.concatenate([x] * times), params), mesh)
    slots = jax.tree.map(lambda x: jnp.stack([x] * len(learners)), backbone.init_slots())
    newborn = {"params": params, "slots": put(slots, mesh)}
    exam = first_exam(backbone, newborn, paper, general, scores, mesh)
    start = asked_once(run, exam)
    tell(run, start)
    bench = Bench(config, learners, materials, paper, params, start, general, scores, mesh)
    for number, (name, arm) in enumerate(arms.items(), start=1):
        live(bench, run, name, arm, f"arm {number}/{len(arms)}" if len(arms) > 1 else "")

    def written() -> dict[str, Any]:
        results = outcomes(bench, run, arms)
        results["seconds"] = before + time.monotonic() - began
        path = run.directory / RESULTS
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1))
        os.replace(partial, path)
        return results

    return _reported(run, written)


def _remember(
    run: Run, config: RetentionConfig, materials: Sequence[Material], general: Any
) -> None:
    """Has a run that goes on refuse another world under the name of the one it was begun in."""
    if config.text:
        run.reads("text", config.text, pathlib.Path(config.text).expanduser().read_bytes())
    each = [digest(material.curriculum) for material in materials[: config.seeds]]
    run.reads("world", config.world, " ".join(each).encode())
    if general is not None:
        run.reads("general", config.general, general.tobytes())


def _reported(run: Run, results: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The report, which one process writes; the others wait for it, and have none."""
    with hosts.fail_together():
        return write_report(run.directory, results()) if run.leads else {}


def _finished(run: Run) -> dict[str, Any] | None:
    """The results of this very run, if it has come to its end before."""
    try:
        results = read_results(run.directory)
    except ConfigError:
        return None
    return results if results.get("digest") == run.digest else None
