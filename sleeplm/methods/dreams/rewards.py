"""Dreams are rewarded: 1 if theta' beats theta, else 0 (section 6, step 4, Eq. 5).

With tau, by held-back questions. Without, by whether the learner agrees with itself: what it did
not dream from becomes likelier, and what it remembers no less likely.

Dimension letters: Q questions, P longest prompt, A longest answer, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from sleeplm.core import checks
from sleeplm.core.types import Array, Memory, Metrics, PyTree, Variables
from sleeplm.methods.dreams.config import MEASURES
from sleeplm.methods.objectives import language_model
from sleeplm.models.transformer import Model

READ = 8  # questions whose logits stand in memory at once


class Reward(Protocol):
    """``(before, after, batch) -> (reward, metrics)``: Eq. 5, or a reward of one's own.

    ``before`` are the variables of the learner, ``after`` the same with a trial's adapters beside
    them: both run on the model as they are. ``batch`` is that of the round, with ``"held"`` and
    ``"memories"``, see :func:`~sleeplm.methods.dreams.rounds.whole_round`. The reward is a float32
    scalar, by which the dream's tokens are weighed; the function is mapped over ``after``.
    """

    def __call__(
        self, before: Variables, after: Variables, batch: Mapping[str, PyTree]
    ) -> tuple[Array, Metrics]: ...


class Questions(NamedTuple):
    """tau: questions whose answers are known.

    Attributes:
      prompts: int32 [Q, P], left-aligned; lengths: int32 [Q], 0 on rows that are padding.
      answers: int32 [Q, A], with the stop token, which ends them.
    """

    prompts: Array
    lengths: Array
    answers: Array


class Answers(NamedTuple):
    """How well questions are answered, each [Q].

    Attributes:
      logp: float32, log-probability of the whole right answer, in nats.
      right: float32, 1 where the greedy answer is the right one.
      asked: float32, 1 on questions that are no padding.
    """

    logp: Array
    right: Array
    asked: Array


def read_answers(model: Model, variables: Variables, questions: Questions) -> Answers:
    """Likelihood and greedy accuracy of right answers, without generating any.

    A greedy continuation equals the answer exactly if every token of the answer is the likeliest
    one behind those before it: one reading of question and answer says both.
    """
    prompts, lengths, answers = (jnp.asarray(x) for x in questions)
    width, room = answers.shape[1], prompts.shape[1] + answers.shape[1]
    stop = answers == model.config.eos
    end = jnp.where(stop.any(1), jnp.argmax(stop, 1) + 1, 0)
    asked = (lengths > 0) & (end > 0)
    inside = (jnp.arange(width) < end[:, None]) & asked[:, None]
    offset = jnp.arange(room) - lengths[:, None]
    behind = jnp.take_along_axis(answers, jnp.clip(offset, 0, width - 1), 1)
    tokens = jnp.where(offset < 0, jnp.pad(prompts, ((0, 0), (0, width))), behind)
    before = jnp.maximum(lengths[:, None] - 1, 0) + jnp.arange(width)
    hidden = model.hidden(variables, tokens)
    hidden = jnp.take_along_axis(hidden, before[..., None], 1)
    unembed = model.unembed(variables["params"]).astype(hidden.dtype)

    def one(row: tuple[Array, Array]) -> tuple[Array, Array]:
        states, answer = row
        # Of logits in bfloat16 many are the same: sums stay in float32, as where tokens are drawn.
        logits = jnp.matmul(states, unembed, preferred_element_type=jnp.float32)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, answer)
        return -loss, jnp.argmax(logits, -1) == answer

    logp, likeliest = jax.lax.map(one, (hidden, answers), batch_size=READ)
    return Answers(
        logp=jnp.where(inside, logp, 0.0).sum(1),
        right=((likeliest | ~inside).all(1) & asked).astype(jnp.float32),
        asked=asked.astype(jnp.float32),
    )


def question_reward(model: Model, *, measure: str = "logp", margin: float = 0.0) -> Reward:
    """1 if the questions are answered better by more than a margin, on average over all of them.

    The round's batch has ``"questions"``: :class:`Questions`, or a mapping with their fields.

    Args:
      measure: ``logp`` of the whole right answers, in nats an answer, or ``accuracy``.
      margin: what the mean has to rise by, in the measure's unit.

    Raises:
      ConfigError: another measure.
    """
    checks.one_of("measure", measure, MEASURES)

    def reward(
        before: Variables, after: Variables, batch: Mapping[str, PyTree]
    ) -> tuple[Array, Metrics]:
        given = batch["questions"]
        asked = Questions(**given) if isinstance(given, Mapping) else given
        old, new = (read_answers(model, variables, asked) for variables in (before, after))
        count = jnp.maximum(new.asked.sum(), 1.0)
        logp = jnp.sum((new.logp - old.logp) * new.asked) / count
        accuracy = jnp.sum(new.right - old.right) / count
        lift = logp if measure == "logp" else accuracy
        one = jnp.ones(())
        metrics = {
            "lift_logp": (logp, one),
            "lift_accuracy": (accuracy, one),
            "accuracy": (new.right.sum() / count, one),
        }
        return (lift > margin).astype(jnp.float32), metrics

    return reward


def agreement_reward(
    model: Model, *, margin: float = 0.0, worse: float = 0.05, chunk: int = 128
) -> Reward:
    """1 if held-back parts of the contexts became likelier and memories not less likely.

    For want of a tau, and not the paper's. Means over all weighted tokens, in nats a token. The
    round's batch has the memories ``"held"`` and, optionally, ``"memories"``.

    Args:
      margin: by which ``"held"`` has to become likelier. worse: by which ``"memories"`` may lose.
      chunk: positions whose logits stand in memory at once.
    """
    objective = language_model(model, chunk)

    def mean_logp(variables: Variables, memory: Memory) -> Array:
        loss, weight, _ = objective(variables, memory)
        return -loss / jnp.maximum(weight, 1e-8)

    def reward(
        before: Variables, after: Variables, batch: Mapping[str, PyTree]
    ) -> tuple[Array, Metrics]:
        def lift(memory: Memory) -> Array:
            return mean_logp(after, memory) - mean_logp(before, memory)

        held, one = lift(batch["held"]), jnp.ones(())
        good, metrics = held > margin, {"lift_held": (held, one)}
        if "memories" in batch:
            kept = lift(batch["memories"])
            good = good & (kept >= -worse)
            metrics["lift_memories"] = (kept, one)
        return good.astype(jnp.float32), metrics

    return reward
