"""The lives of a run's learners, side by side: what they are born with, read, and are asked."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sleeplm.bench.arm import Arm
from sleeplm.bench.classes import class_answers, grade_by_class, labelled_of
from sleeplm.bench.dream_material import DreamMaterial, tell_falsehoods
from sleeplm.bench.dreamings import Dreamings, undone_lines
from sleeplm.bench.exams import (
    Exam,
    divergence_from,
    grade,
    last_group,
    oracle,
    stack_exams,
    traffic,
)
from sleeplm.bench.general import general_loss
from sleeplm.bench.life import Life
from sleeplm.bench.material import Material, archive_of, context_papers, cues_of
from sleeplm.bench.streams import DayStreams, JointStream, StackedStreams
from sleeplm.bench.sweep import settings_of, varying, with_setting
from sleeplm.bench.textscores import TextScores
from sleeplm.bench.timetable import nights_of
from sleeplm.bench.worlds import is_labelled
from sleeplm.core.phase import scope
from sleeplm.core.types import Array, Params, Phase, PyTree, State
from sleeplm.data.streams import batches_per_epoch
from sleeplm.methods.judges import SemanticJudge, names_agree, semantic_judge
from sleeplm.methods.schedule import look
from sleeplm.methods.settings import value_of, with_settings
from sleeplm.models.graft import graft
from sleeplm.pretrained.minilm import minilm
from sleeplm.runtime.learners import born, put, whole_lines
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import METRICS, Run, Stage


@dataclasses.dataclass
class Bench:
    """What all arms of a run share. Arrays have the E learners in front.

    Attributes:
      config: of the run (a :class:`~sleeplm.bench.retention.RetentionConfig`).
      learners: the configuration of each learner alone. materials: what each reads.
      paper: their exams. params: their backbones.
      start: what :func:`~sleeplm.bench.exams.grade` finds before the first day, and the loss on
        general text, if there is one.
      general: rows of general text that every exam reads, or None.
      scores: of answers as text, or None.
      mesh: that the learners lie on, or None: one device.
    """

    config: Any
    learners: list[Any]
    materials: list[Material]
    paper: Exam
    params: Params
    start: dict[str, np.ndarray]
    general: np.ndarray | None = None
    scores: TextScores | None = None
    mesh: Mesh | None = None

    @property
    def keys(self) -> Array:
        return jnp.stack([jax.random.key(one.seed) for one in self.learners])

    @functools.cached_property
    def judge(self) -> SemanticJudge:
        """Judge of what the learners write, each read with its own tokenizer."""
        decoders = [material.tokenizer.decode_batch for material in self.materials]
        sleep = self.config.sleep
        return semantic_judge(
            minilm(),
            decoders,
            sleep.accepts("minilm"),
            length=max(64, 2 * sleep.length),  # a token is seldom more than two word pieces
            eos=self.config.model.eos,
            rule=names_agree if sleep.judge_names else None,
        )

    @functools.cached_property
    def steps(self) -> list[int]:
        """Wake steps of each day, the same for all learners."""
        return steps_of(self.config, self.materials)

    @functools.cached_property
    def shares(self) -> list[float]:
        """How long the night after each day is, of the usual one: by how many facts it brought.

        Pieces of passages count as facts. Empty where all nights are alike: they follow no day, or
        their days are labelled texts.
        """
        usual, when = self.config.night_facts, self.config.schedule.when
        if not usual or when != "day_end" or is_labelled(self.config):
            return []
        days = [[len({d.fact for d in day}) for day in m.curriculum.days] for m in self.materials]
        return [float(facts) / usual for facts in np.mean(days, axis=0)]


def steps_of(config: Any, materials: Sequence[Material]) -> list[int]:
    """Wake steps of each day, the same for all learners: by how much there is to read."""
    day = config.day
    if day.epochs:
        batches = [
            [batches_per_epoch(texts, day.batch, day.length) for texts in material.days]
            for material in materials
        ]
        steps = day.epochs * np.mean(batches, axis=0)
    else:
        texts = np.array([[len(texts) for texts in m.days] for m in materials]).mean(0)
        steps = day.steps * texts / texts.mean()
    return [day.chunk * max(round(float(n) / day.chunk), 1) for n in steps]


def learners_of(config: Any) -> list[Any]:
    """The configuration of every learner alone: with a seed, a world and a setting of its own."""
    seeds = [
        dataclasses.replace(config, seed=config.seed + s, world_seed=config.world_seed + s, seeds=1)
        for s in range(config.seeds)
    ]
    return [with_setting(one, settings) for settings in settings_of(config) for one in seeds]


def live(bench: Bench, run: Run, name: str, arm: Arm, place: str = "") -> None:
    """Lets the learners of one arm live, or what is left of their lives in the run.

    Args:
      place: which of the run's arms it is, for people.
    """
    if bench.mesh is not None:
        for line in whole_lines(jax.eval_shape(lambda: newborns(bench, arm)), bench.mesh):
            run.say(f"{name}: {line}")
    life = life_of(bench, arm)
    run.stage(Stage(name, lambda: newborns(bench, arm), life.agenda(), life.streams, place))
    if arm.dream is not None and run.leads:
        lines = read_metrics(run.directory / METRICS)
        for line in undone_lines([line for line in lines if line["stage"] == name]):
            run.say(f"{name}: {line}")


def newborns(bench: Bench, arm: Arm) -> State:
    """The learners of an arm at the start of their lives."""
    watch = _watch(bench, arm)
    settings = {
        name: jnp.float32([value_of(one, name) for one in bench.learners])
        for name in varying(bench.config)
    }

    def make(params: Params, key: Array, settings: dict[str, Array]) -> State:
        grafted = graft(arm.model, params, jax.random.fold_in(key, 1))
        state = arm.learner.init(grafted, jax.random.fold_in(key, 2))
        state = with_settings(state, settings)
        if watch is None:
            return state
        private = {**state.private, "schedule": watch.init(state.params, key)}
        return state.replace(private=private)

    return born(make, bench.mesh, bench.params, bench.keys, settings)


def _watch(bench: Bench, arm: Arm) -> Phase | None:
    """The phase that decides when to sleep, where that is not known beforehand."""
    asked = bench.config.schedule.when in ("surprise", "fill")
    if not asked or not arm.follows_schedule:
        return None
    return look(arm.model, bench.config.schedule, arm.learner.rests[0].sender)


def life_of(bench: Bench, arm: Arm) -> Life:
    """The life of an arm's learners."""
    config, day = bench.config, bench.config.day
    watch = _watch(bench, arm)
    stream = JointStream if arm.joint else DayStreams
    streams = [
        stream(material.days, day.batch, day.length, one.seed)
        for one, material in zip(bench.learners, bench.materials, strict=True)
    ]
    curricula = [material.curriculum for material in bench.materials]
    days = range(len(bench.steps))
    return Life(
        learner=arm.learner,
        sleep=arm.sleep,
        streams=StackedStreams(streams),
        steps=bench.steps,
        chunk=day.chunk,
        cues=[_cues(bench, [c.cues[i] for c in curricula]) for i in days],
        before=_cues(bench, [c.known_cues for c in curricula]),
        examine=_examine(arm, said=bench.scores is not None),
        score=bench.scores,
        paper=_papers(bench, arm),
        night_batch=_night_batch(bench, arm),
        judge=bench.judge if _is_judged(arm) else None,
        schedule=config.schedule,
        shares=_shares(bench, arm),
        look=watch and scope(watch.step, "schedule"),
        probe=_probe(arm) if config.probes and _expert_a_day(bench, arm) else None,
        dreams=_dreams(bench, arm),
        mesh=bench.mesh,
    )


def _shares(bench: Bench, arm: Arm) -> list[float]:
    """How long the arm's nights are, of its usual ones."""
    if not arm.follows_schedule:
        return []
    return [share * (1 - arm.instead) + arm.instead for share in bench.shares]


def _dreams(bench: Bench, arm: Arm) -> Dreamings | None:
    """The dreaming of its nights, or None."""
    stage = arm.learner.dreaming
    if stage is None:
        return None
    material = DreamMaterial(bench, stage.config)
    return Dreamings(stage, material, tell_falsehoods(bench), bench.mesh)


def _cues(bench: Bench, cues: list[tuple[str, ...]]) -> dict[str, np.ndarray]:
    """One batch of cues a learner, padded to as many as the one with most has."""
    most = max(map(len, cues))
    batches = [
        cues_of(one, material.tokenizer, mine, most)
        for one, material, mine in zip(bench.learners, bench.materials, cues, strict=True)
    ]
    return jax.tree.map(lambda *rows: np.stack(rows), *batches)


def _papers(bench: Bench, arm: Arm) -> Any:
    """``day -> {"exam", "known", "origin", ...}``: that day's exam, and the model at birth."""
    state = newborns(bench, arm)
    shared: dict[str, PyTree] = {"origin": {"params": state.params, "slots": state.slots}}
    if arm.by_class:
        width = bench.paper.shape[2]
        answers = [class_answers(material, width) for material in bench.materials]
        shared["answers"] = put(np.stack(answers), bench.mesh)
    if bench.general is not None:
        shared["general"] = put(bench.general, bench.mesh)
    if not arm.context:
        paper = {**shared, **_questions(bench.paper, bench.mesh)}
        return lambda day: paper
    window = bench.config.model.max_len
    each = [
        context_papers(one, material, window)
        for one, material in zip(bench.learners, bench.materials, strict=True)
    ]
    by_day = [
        _questions(stack_exams(list(papers), bench.config.mesh.rows), bench.mesh)
        for papers in zip(*each, strict=True)
    ]
    return lambda day: {**shared, **by_day[day]}


def _questions(exam: Exam, mesh: Mesh | None) -> dict[str, Exam]:
    """All questions, and those about what was known before the first day, on the device."""
    return put({"exam": exam, "known": last_group(exam)}, mesh)


def _examine(arm: Arm, said: bool) -> Any:
    view = arm.learner.view
    ask = grade(arm.model, view, said)
    moved = divergence_from(arm.model, view)
    read = general_loss(arm.model, view)
    by_class = grade_by_class(arm.model)

    def examine(state: State, paper: PyTree) -> dict[str, Array]:
        variables = {"params": state.params, "slots": state.slots}
        if arm.by_class:
            found = by_class(state, paper["exam"], paper["answers"])
        else:
            found = ask(variables, paper["exam"])
        recall = found["recall"]
        found |= {"recall": recall[:-1], "pretrain": recall[-1]}
        if "general" in paper:
            found["general"] = read(variables, paper["general"])
        return {**found, "kl": moved(variables, paper["origin"], paper["known"])}

    return examine


def _expert_a_day(bench: Bench, arm: Arm) -> bool:
    """Whether every day has a night of its own that opens an expert: else none is a day's own."""
    schedule, steps = bench.config.schedule, bench.steps
    by_look = schedule.when in ("surprise", "fill")
    if not arm.follows_schedule or by_look or arm.sleep.into != "expert":
        return False
    every = arm.learner.rests[0].every
    nights = nights_of(schedule, steps, bench.config.day.chunk, every, every)
    return nights == list(itertools.accumulate(steps))


def _probe(arm: Arm) -> Any:
    level = arm.learner.rests[0].receiver

    def probe(state: State, paper: PyTree) -> dict[str, Array]:
        variables = {"params": state.params, "slots": state.slots}
        exam, table = paper["exam"], state.slots[level]
        born = jnp.where(table.active, table.since, -1)
        return {
            "traffic": traffic(arm.model, level)(variables, exam)[:-1],
            "oracle": oracle(arm.model, level)(variables, exam, born)[:-1],
            "born": born,
        }

    return probe


def _is_judged(arm: Arm) -> bool:
    """Whether its nights ask a judge that reads text."""
    imitates = arm.sleep.imitates and any(teacher.imitate for teacher in arm.sleep.teachers)
    tells = arm.follows_schedule and arm.archive == "none"
    return arm.sleep.judge == "minilm" and tells and imitates


def _night_batch(bench: Bench, arm: Arm) -> PyTree:
    """What nights are handed beside rows: raw texts, or labelled ones; padded alike."""
    if _is_judged(arm):
        return put({"reader": np.arange(len(bench.learners), dtype=np.int32)}, bench.mesh)
    if arm.archive == "none":
        return {}
    make = labelled_of if arm.archive == "labelled" else archive_of
    parts = [make(material) for material in bench.materials]
    shape = [max(sizes) for sizes in zip(*(p["tokens"].shape for p in parts), strict=True)]
    shape[0] += -shape[0] % ROWS
    padded = [{name: _pad(name, x, shape) for name, x in part.items()} for part in parts]
    return put({"archive": jax.tree.map(lambda *rows: np.stack(rows), *padded)}, bench.mesh)


ROWS = 64  # archives are padded to a multiple
NO_DAY = -2  # of rows that are padding


def _pad(name: str, x: np.ndarray, shape: list[int]) -> np.ndarray:
    missing = [(0, to - now) for to, now in zip(shape, x.shape, strict=False)]
    fill = {"day": NO_DAY, "length": 1}.get(name, 0)
    return np.pad(x, missing, constant_values=fill)
