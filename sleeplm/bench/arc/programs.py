"""The compiled programs of few-shot ARC: a round about one task, the writer's lesson, an exam.

Dimension letters: T tasks, k + b dreams kept of each, D dreams in an exam, W tokens of an edit.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sleeplm.bench.arc.config import TRAINED, ArcConfig
from sleeplm.bench.arc.edits import expander, plain_rows
from sleeplm.bench.arc.material import Prepared
from sleeplm.core.types import Array, Metrics, Objective, PyTree, State, Variables
from sleeplm.data.grids import BOS
from sleeplm.methods.adapters import beside
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.dream import no_dreams
from sleeplm.methods.dreams.reinforce import tutor
from sleeplm.methods.dreams.rewards import read_answers
from sleeplm.methods.dreams.rounds import Expand, as_writer, whole_round
from sleeplm.methods.dreams.trials import attempts
from sleeplm.methods.dreams.write import Dreams, memory_of, write
from sleeplm.methods.extract import row_keys
from sleeplm.methods.objectives import language_model
from sleeplm.models.transformer import Model

#: A trial's update: its learning rate is in the self-edit's pace.
UPDATE = optax.adam(1.0)


class Exam(NamedTuple):
    """How one task was answered, by D copies.

    Attributes:
      solved: bool [D], all tests' whole outputs are what the copy would write greedily; copies of
        a text that is no self-edit have solved nothing.
      logp: float32 [D], mean log-probability of the right outputs, in nats an output.
      valid: bool [D], whether it is a self-edit.
    """

    solved: Array
    logp: Array
    valid: Array


@dataclasses.dataclass(frozen=True)
class Programs:
    """Programs for tasks of one width; ``arm`` says how rounds select dreams."""

    model: Model
    config: ArcConfig
    arm: str
    width: int

    @property
    def dreaming(self) -> DreamConfig:
        """Settings of a round about one task."""
        score = TRAINED.get(self.arm) or self.config.dream.score
        return dataclasses.replace(self.config.dream, context_tokens=self.width, score=score)

    def round(
        self, variables: Variables, task: dict[str, Any], key: Array
    ) -> tuple[Dreams, Metrics]:
        """A round about one task whose tests' outputs are known: k + b dreams by their reward.

        Rows are padded to the widest, so that rounds about all tasks can be learned together.
        """
        config, dreaming = self.config, self.dreaming
        run = whole_round(
            self.model, dreaming, objective=self._objective(), update=UPDATE, expand=self._expand()
        )
        batch = {**task, "reference": plain_rows(task["shown"], self.width)}
        outcome = run(variables, batch, key)
        more = config.widths[-1] - self.width
        written = jax.tree.map(
            lambda x: jnp.pad(x, ((0, 0), (0, more))) if x.ndim == 2 else x,
            outcome.accepted.written,
        )
        return Dreams(written, outcome.accepted.told), outcome.metrics

    def edits(self, variables: Variables, task: dict[str, Any], key: Array) -> Array:
        """D self-edits of a task, as its writer dreams them: int32 [D, W]."""
        dream = self.config.dream
        dreams, _ = write(
            self.model, as_writer(variables), task["contexts"], jnp.arange(self.config.tests), key,
            new_tokens=dream.new_tokens, temperature=dream.temperature, top_k=dream.top_k,
            explore=dream.explore, alone=True,
        )  # fmt: skip
        return dreams.told.tokens[:, 1:]

    def exam(self, variables: Variables, task: dict[str, Any], edits: Array, key: Array) -> Exam:
        """Every one of D self-edits, [D, W], is learned by a copy of its own, and the copy asked.

        Repeats count as often as they were dreamt: what is drawn for their rows differs.
        """
        config, numbers = self.config, jnp.arange(len(edits))
        expand_key, try_key = jax.random.split(key)
        rows = jnp.pad(edits, ((0, 0), (1, 0)), constant_values=BOS)
        told = memory_of(rows, rows > 0, (rows > 0).sum(1))
        lessons, valid = self._expand()(told, task, row_keys(expand_key, numbers))
        tries = attempts(
            self._objective(), UPDATE, rank=config.dream.rank, steps=config.dream.steps,
            at_once=config.dream.at_once, batch=config.dream.batch,
        )  # fmt: skip
        trials, _ = tries(variables, lessons, row_keys(try_key, numbers))

        def asked(adapters: PyTree) -> tuple[Array, Array]:
            return _answered(self.model, beside(variables, adapters), task)

        solved, logp = jax.lax.map(asked, trials.adapters)
        return Exam(solved & valid, logp, valid)

    def asked(self, variables: Variables, task: dict[str, Any]) -> tuple[Array, Array]:
        """Whether the model solves the task as it is, and the mean log-probability: scalars."""
        return _answered(self.model, variables, task)

    def _objective(self) -> Objective:
        return language_model(self.model, chunk=self.width)

    def _expand(self) -> Expand:
        config = self.config
        return expander(rows=config.rows, width=self.width, rates=config.rates, steps=config.paces)


def _answered(model: Model, variables: Variables, task: dict[str, Any]) -> tuple[Array, Array]:
    answers = read_answers(model, variables, task["questions"])
    solved = answers.right.sum() == answers.asked.sum()
    return solved, answers.logp.sum() / answers.asked.sum()


def arrays(task: Prepared) -> dict[str, Any]:
    """What programs are given of a task."""
    return {"contexts": task.context, "shown": task.shown, "questions": task.questions}


def widest(config: ArcConfig) -> DreamConfig:
    """Settings of dreams of the widest tasks: the shapes that all rounds' dreams are kept in."""
    return dataclasses.replace(config.dream, context_tokens=config.widths[-1])


def nothing_dreamt(config: ArcConfig, tasks: int) -> Dreams:
    """Room for what is accepted about T tasks."""
    return no_dreams(widest(config), tasks)


def kept(all_dreams: Dreams, dreams: Dreams, number: Array) -> Dreams:
    """``all_dreams`` with the k + b dreams about task ``number`` put in their place."""
    count = len(dreams.told.source)

    def put(whole: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part, number * count, 0)

    return jax.tree.map(put, all_dreams, dreams)


def learn_to_write(
    model: Model, config: ArcConfig, state: State, key: Array
) -> tuple[State, Metrics]:
    """The writer is fine-tuned on accepted dreams of all tasks; then none is kept.

    Of these, ``writer_rows`` are drawn, each with equal chance.
    """
    draw_key, learn_key = jax.random.split(key)
    dreams: Dreams = state.private
    chance = jax.random.uniform(draw_key, dreams.mask.shape) + ~dreams.mask
    some = dreams.take(jnp.argsort(chance)[: config.writer_rows])
    teach = tutor(model, widest(config))
    taught, metrics = teach.step(state.replace(private=()), some, learn_key)
    empty = jax.tree.map(jnp.zeros_like, dreams)
    metrics["writer_rows"] = (some.mask.sum() * 1.0, jnp.ones(()))
    return taught.replace(private=empty), metrics
