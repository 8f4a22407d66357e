"""Few-shot ARC, from the backbone to its results: what is done when."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.bench.arc import programs
from sleeplm.bench.arc.config import TRAINED, ArcConfig
from sleeplm.bench.arc.edits import answered
from sleeplm.bench.arc.material import Prepared, TooLong, prepare, sizes_of
from sleeplm.bench.arc.results import write_results
from sleeplm.bench.pretraining import pretrained
from sleeplm.core.checks import require
from sleeplm.core.types import Array, Extract, Memory, Params, PyTree, State, Variables
from sleeplm.data.grid_tasks import HELD_OUT, make_task, pretraining_documents
from sleeplm.data.gridfiles import read_tasks
from sleeplm.data.grids import GridTask, GridTokenizer
from sleeplm.methods.dreams.reinforce import with_writer
from sleeplm.methods.extract import stateless, wake_batch
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.models.transformer import Model
from sleeplm.runtime import hosts
from sleeplm.runtime.lifecycle import Moment
from sleeplm.runtime.run import Run, Stage

HELD_OUT_SEED = 1_000_003  # of generated tasks in exams
EXAM = 1 << 20  # first key of an exam; rounds count from 0


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The tasks of a study by what they are for, and why others are left out, by list and name."""

    train: list[Prepared]
    exams: list[tuple[str, Prepared]]
    left_out: dict[str, dict[str, TooLong]]


@dataclasses.dataclass(frozen=True)
class _Learner:
    """What :func:`~sleeplm.bench.pretraining.pretrained` asks of a run."""

    pretrain: PretrainConfig
    seed: int
    cache: str
    backbone: str = ""


@dataclasses.dataclass(frozen=True)
class _Material:
    pretrain: list[list[int]]


def job(config: ArcConfig, run: Run) -> dict[str, Any]:
    """Runs the study; ``results.json`` and ``report.md`` are written after every seed.

    Every arm of every seed is a stage: it can be stopped at any of its moments and goes on from
    its last save.

    Raises:
      ConfigError: it is one of several processes; or see :func:`read`.
    """
    remedy = "few-shot ARC is one process: start it without --distributed and --coordinator"
    require(hosts.alone(), "processes", jax.process_count(), remedy)
    tasks = read(config)
    for name, reasons in tasks.left_out.items():
        if reasons:
            each = "; ".join(f"{task}: {reason}" for task, reason in reasons.items())
            run.say(f"too long for {config.widths[-1]} positions, {name}: {each}")
    run.reads("train", config.train, repr([one.task for one in tasks.train]).encode())
    exams = [one.task for name, one in tasks.exams if name == "evaluation"]
    run.reads("evaluation", config.evaluation, repr(exams).encode())
    model = Model(config.model)
    params = backbone(config, model, run)
    make = _Stages(config, model, params, tasks)
    results: dict[str, Any] = {}
    for seed in range(config.seeds):
        for arm in config.arms:
            if arm != "icl" or seed == 0:  # nothing in it is drawn
                run.stage(make.stage(arm, seed))
        results = write_results(run.directory, config, tasks.left_out)
    return results


def read(config: ArcConfig) -> Tasks:
    """The tasks that a configuration names.

    Raises:
      ConfigError: a file or a task that cannot be used, none that fits, or one to train on in an
        exam.
    """
    found: dict[str, list[GridTask]] = {
        "train": list(read_tasks(config.train, "train", config.train_tasks)),
        "evaluation": list(read_tasks(config.evaluation, "evaluation", config.evaluation_tasks)),
        "held_out": [
            make_task(HELD_OUT_SEED, number, (HELD_OUT[number % len(HELD_OUT)],))
            for number in range(config.held_out)
        ],
    }
    sizes = sizes_of((task for group in found.values() for task in group), config.widths)
    fit: dict[str, list[Prepared]] = {name: [] for name in found}
    left_out: dict[str, dict[str, TooLong]] = {name: {} for name in found}
    for name, group in found.items():
        for task in group:
            ready = prepare(task, sizes)
            if isinstance(ready, TooLong):
                left_out[name][task.name] = ready
            else:
                fit[name].append(ready)
    for name in ("train", "evaluation"):
        some = "".join(f" ({task}: {reason})" for task, reason in [*left_out[name].items()][:1])
        remedy = (
            f"has no task that fits into {config.widths[-1]} positions{some}: use larger widths"
        )
        require(bool(fit[name]), name, getattr(config, name), remedy)
    exams = [(name, task) for name in ("evaluation", "held_out") for task in fit[name]]
    check_apart([task.task for task in fit["train"]], [(name, one.task) for name, one in exams])
    return Tasks(fit["train"], exams, left_out)


def check_apart(train: Iterable[GridTask], exams: Iterable[tuple[str, GridTask]]) -> None:
    """Checks that no exam is about a task that writers are trained on, whatever it is called.

    Args:
      exams: tasks with the setting that each is of.

    Raises:
      ConfigError: a demonstration or a test of an exam's task is one of a training task too.
    """
    owners = {pair: task.name for task in train for pair in (*task.demonstrations, *task.tests)}
    for setting, task in exams:
        for pair in (*task.demonstrations, *task.tests):
            remedy = f"has a pair of grids of the training task {owners.get(pair)!r}, "
            remedy += "whose outputs reward the writer: leave one of the two out"
            require(pair not in owners, setting, task.name, remedy)


def outputs_only() -> Extract:
    """Batch {"tokens", "segments"}: the outputs of grid tasks, and self-edits, are to predict."""
    whole = wake_batch()

    def extract(variables: Variables, batch: PyTree, key: Array) -> Memory:
        memory, _ = whole.extract(variables, (), batch, key)
        weights = memory.weights * answered(memory.tokens)
        return Memory(**{**vars(memory), "weights": weights})

    return stateless(extract)


def backbone(config: ArcConfig, model: Model, run: Run) -> Params:
    """The backbone: pretrained on generated tasks, or from the cache."""
    learner = _Learner(config.pretrain, config.seed, config.cache)
    material = _Material(pretraining_documents(config.tasks))
    params = pretrained(run, model, [learner], [material], extract=outputs_only())
    return jax.tree.map(lambda x: x[0], params)


class _Stages:
    """Makes the stages of a study; programs are compiled once for all of them."""

    def __init__(self, config: ArcConfig, model: Model, params: Params, tasks: Tasks):
        self.config, self.model, self.params, self.tasks = config, model, params, tasks
        self._words = GridTokenizer()

    def stage(self, arm: str, seed: int) -> Stage:
        """One arm of one seed: rounds and lessons, if its writer is trained, and the exam."""
        root = jax.random.key(seed)
        agenda = self._training(arm, seed, root) if arm in TRAINED else []
        agenda += [
            self._exam(arm, seed, name, task, jax.random.fold_in(root, EXAM + number))
            for number, (name, task) in enumerate(self.tasks.exams)
        ]

        def newborn() -> State:
            params = self.params
            if arm in TRAINED:
                params = with_writer(params, self.config.dream.writer_rank, root)
            count = len(self.tasks.train) if arm in TRAINED else 1
            return State(
                params=params, slots=self.model.init_slots(), anchors={}, cues=(),
                private=programs.nothing_dreamt(self.config, count),
                counters={"step": jnp.int32(0), "skipped": jnp.int32(0)}, key=root,
            )  # fmt: skip

        return Stage(f"{arm}-{seed}", newborn, agenda, None)

    def _training(self, arm: str, seed: int, root: Array) -> list[Moment]:
        agenda, count = [], len(self.tasks.train)
        rounds = self.config.dream.rounds
        for r in range(rounds):
            for t, task in enumerate(self.tasks.train):
                key = jax.random.fold_in(root, r * (count + 1) + t)
                record = {"event": "dream", "arm": arm, "seed": seed, "round": r}
                agenda.append(
                    Moment(
                        f"round {r + 1}/{rounds} {task.task.name}",
                        {**record, "task": task.task.name},
                        functools.partial(self._dream, arm, task, t, key),
                        show="accepted",
                    )
                )
            key = jax.random.fold_in(root, r * (count + 1) + count)
            record = {"event": "reinforce", "arm": arm, "seed": seed, "round": r}
            run = functools.partial(self._reinforce, key)
            agenda.append(Moment(f"round {r + 1}/{rounds} writer", record, run, show="writer_loss"))
        return agenda

    def _dream(self, arm: str, task: Prepared, t: int, key: Array, state: State):
        dreams, metrics = self._program(arm, task.width, "round")(
            state.variables, programs.arrays(task), key
        )
        return state.replace(private=self._kept(state.private, dreams, jnp.int32(t))), metrics

    def _reinforce(self, key: Array, state: State):
        return self._lesson(state, key)

    def _exam(self, arm: str, seed: int, name: str, task: Prepared, key: Array) -> Moment:
        record = {"event": "exam", "arm": arm, "seed": seed, "list": name, "task": task.task.name}

        def ask(state: State) -> tuple[State, dict[str, Any]]:
            given, program = programs.arrays(task), functools.partial(self._program, "", task.width)
            # The same program for all arms: it is the plain learner that is tried.
            variables = {**state.variables, "params": self.params}
            if arm == "icl":
                solved, logp = program("asked")(variables, given)
                return state, {"solved": [float(solved)], "logp": [float(logp)]}
            write_key, try_key = jax.random.split(key)
            if arm == "ttt":
                edits = np.tile(self.config.edit_tokens, (self.config.tests, 1))
            else:
                edits = program("edits")(state.variables, given, write_key)
            exam = program("exam")(variables, given, edits, try_key)
            return state, {
                "solved": np.asarray(exam.solved, float),
                "logp": np.asarray(exam.logp),
                "valid": np.asarray(exam.valid, float),
                "edits": self._words.decode_batch(np.asarray(edits)),
            }

        return Moment(f"{name} {task.task.name}", record, ask, show="solved")

    @functools.cache  # noqa: B019 (a study lives as long as its programs)
    def _program(self, arm: str, width: int, name: str) -> Callable:
        return jax.jit(getattr(programs.Programs(self.model, self.config, arm, width), name))

    @functools.cached_property
    def _kept(self) -> Callable:
        return jax.jit(programs.kept, donate_argnums=0)

    @functools.cached_property
    def _lesson(self) -> Callable:
        return jax.jit(functools.partial(programs.learn_to_write, self.model, self.config))
