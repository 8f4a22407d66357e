"""One round of dreaming: write, select, try, reward (section 6, steps 1 to 4).

Dimension letters: m dreams, T = k + b of them that are tried, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sleeplm.core.errors import ConfigError
from sleeplm.core.layout import in_batches
from sleeplm.core.shares import Axis, everyone, shared, varying
from sleeplm.core.types import WRITER, Array, Memory, Metrics, Objective, PyTree, Variables
from sleeplm.memory.cues import Cues, draw
from sleeplm.memory.levels import label_of
from sleeplm.methods.adapters import beside
from sleeplm.methods.dreams.config import SCORES, DreamConfig
from sleeplm.methods.dreams.rewards import Reward, agreement_reward, question_reward
from sleeplm.methods.dreams.select import choose, places, score
from sleeplm.methods.dreams.trials import Lesson, attempts, sharing_experts
from sleeplm.methods.dreams.write import (
    Contexts,
    Dreams,
    as_contexts,
    hold_back,
    in_turn,
    memory_of,
    only,
    whole,
    write,
)
from sleeplm.methods.extract import row_keys
from sleeplm.methods.objectives import language_model
from sleeplm.models.decode import Samples, generate
from sleeplm.models.transformer import Model

#: Metrics of rewards that say how much a dream has helped.
LIFTS = ("lift_held", "lift_logp")
#: ``(dreams as they are told [m, L], batch, keys [m]) -> (lessons, bool [m])``: what the trials of
#: dreams learn, with m in front, and which dreams can be learned at all.
Expand = Callable[[Memory, Mapping[str, Any], Array], tuple[Lesson, Array]]


class Outcome(NamedTuple):
    """What became of a round's dreams.

    Attributes:
      accepted: the k + b that were tried, their tokens weighed by their rewards.
      written: all m. tried: the k + b before they were rewarded; both with weight where they count.
      metrics: of the round.
    """

    accepted: Dreams
    written: Dreams
    tried: Dreams
    metrics: Metrics


def in_bases(path: tuple) -> bool:
    """Predicate on key paths: the MLPs of all levels, of which a dream's gradient is taken."""
    return label_of(path).endswith("/base")


def whole_round(
    model: Model,
    config: DreamConfig,
    *,
    reward: Reward | None = None,
    objective: Objective | None = None,
    update: optax.GradientTransformation | None = None,
    trainable: Callable[[tuple], bool] = in_bases,
    expand: Expand | None = None,
    axis_name: Axis = None,
) -> Callable[[Variables, Mapping[str, Any], Array], Outcome]:
    """One round: ``(variables, batch, key) -> Outcome``.

    A writer in ``params["writer"]`` writes; it is the plain learner that is tried.

    The batch has

    * ``"contexts"``: :class:`~sleeplm.methods.dreams.write.Contexts`, or a mapping with its fields;
    * ``"held"``, a memory of a row for each context, if these texts shall be held back and nothing
      of the contexts;
    * ``"reference"``, if gradients shall be aligned with that memory's, and not with that of
      ``"held"``, or, where that is not given, of the contexts which dreams are written from;
    * for agreement ``"today"``, int32: memories are told from cues of the days before;
    * ``"stop"``, int32, if something else ends a dream than what ends a text;
    * for questions ``"questions"``, see :class:`~sleeplm.methods.dreams.rewards.Questions`.

    With ``config.reward="agreement"`` the reward is also given ``"held"``, what was held back of
    the contexts (with ``config.agree="own"`` of the dream's alone), and ``"memories"``.

    Args:
      reward: instead of the one that ``config`` describes.
      objective: L_SFT, of gradients and trials; None: the language-model loss.
      update: of a trial's adapters; None: Adam.
      trainable: predicate on key paths: what dreams' gradients are taken of.
      expand: what is learned of a dream, if that is not the dream itself, one row of it: gradients
        and trials are of these rows, those that cannot be learned are masked, and what a writer is
        reinforced on stays the dream.
      axis_name: mapped axis over contexts, inside ``shard_map`` or ``pmap``; the rest of the batch
        is the same on all devices, and so is what comes out. They share what is costly: writing,
        gradients, telling memories, and trials with their rewards.

    Raises:
      ConfigError: a setting that cannot work.
    """
    config.check("dream")

    def run(variables: Variables, batch: Mapping[str, Any], key: Array) -> Outcome:
        tried_model = sharing_experts(model)
        learn = objective or language_model(tried_model)
        judge = reward or reward_of(tried_model, config)
        write_key, score_key, choose_key, try_key, recall_key = jax.random.split(key, 5)
        expand_key = jax.random.fold_in(key, 5)
        variables = varying(variables, axis_name)
        given, batch = _prepared(model, config, variables, batch, recall_key, axis_name)
        drawn, metrics = write(
            model, as_writer(variables), given, jnp.arange(config.dreams), write_key,
            new_tokens=config.new_tokens, temperature=config.temperature, top_k=config.top_k,
            explore=config.explore, alone=config.alone, ngram=config.ngram,
            stop=batch.get("stop"), axis_name=axis_name,
        )  # fmt: skip
        drawn, lessons, fitting = _as_lessons(drawn, batch, expand_key, expand)
        graded = jax.tree.map(lambda x: x[:, : config.score_rows or None], lessons.rows)

        def scored(kind: str) -> Array:
            return score(
                kind, learn, variables, graded, score_key, trainable=trainable,
                reference=batch["reference"], size=config.sketch, chunk=config.chunk,
                axis_name=axis_name,
            )  # fmt: skip

        scores = {config.score: scored(config.score)}
        index, there = choose(
            scores[config.score], drawn.mask, config.keep, config.extra, choose_key
        )
        chosen, kept = drawn.take(index), there.astype(jnp.float32)
        earned, told = jnp.ones(index.shape), Metrics()
        if judge is not None:
            tries = _trying(config, learn, judge, update)
            learned = jax.tree.map(lambda x: x[index], lessons)
            part = (learned, row_keys(try_key, index), in_turn(given, index))
            earned, told = shared(lambda part: tries(variables, batch, *part), part, axis_name)
        metrics |= fitting | {
            "score": (_sum_where(kept, scores[config.score][index]), kept.sum()),
            "accepted": (_sum_where(kept, earned), kept.sum()),
            **{n: (_sum_where(kept, s), _sum_where(kept, w)) for n, (s, w) in told.items()},
        }
        if config.compare:
            scores |= {kind: scored(kind) for kind in SCORES if kind != config.score}
            figures = {"earned": earned, **{n: s for n, (s, _) in told.items() if n in LIFTS}}
            metrics |= _compared(config.compare, scores, index, kept, choose_key, figures)
        accepted = chosen.weighed(jnp.where(kept > 0, earned, 0.0))
        outcome = Outcome(accepted, written=drawn, tried=chosen.weighed(kept), metrics=metrics)
        return jax.lax.stop_gradient(outcome)

    return run


def _as_lessons(
    drawn: Dreams, batch: Mapping[str, Any], key: Array, expand: Expand | None
) -> tuple[Dreams, Lesson, Metrics]:
    """What the trials of all m dreams would learn, and the dreams that can be learned at all."""
    if expand is None:
        return drawn, Lesson(jax.tree.map(lambda x: x[:, None], drawn.told)), {}
    numbers = jnp.arange(len(drawn.mask))
    lessons, fit = expand(drawn.told, batch, row_keys(key, numbers))
    drawn = drawn.only(fit)
    lessons = lessons._replace(rows=only(lessons.rows, drawn.mask))
    return drawn, lessons, {"fit": (jnp.sum(fit * 1.0), jnp.float32(len(numbers)))}


def _trying(
    config: DreamConfig,
    learn: Objective,
    judge: Reward,
    update: optax.GradientTransformation | None,
) -> Callable[[Variables, Mapping[str, Any], Lesson, Array, Array], tuple[Array, Metrics]]:
    """Trials and what they earn: steps 3 and 4.

    Returns:
      ``(variables, batch, T lessons, keys [T], rows of their contexts [T]) -> (rewards [T],
      metrics)``, each metric with T in front.
    """
    tries = attempts(
        learn, update or optax.adam(config.learning_rate),
        rank=config.rank, steps=config.steps, at_once=config.at_once, batch=config.batch,
    )  # fmt: skip

    def run(
        variables: Variables, batch: Mapping[str, Any], lessons: Lesson, keys: Array, rows: Array
    ) -> tuple[Array, Metrics]:
        def earnings(trial: tuple[PyTree, Array]) -> tuple[Array, Metrics]:
            adapters, row = trial
            asked = dict(batch)
            if config.reward == "agreement" and config.agree == "own":
                asked["held"] = jax.tree.map(lambda x: x[row][None], batch["held"])
            return judge(variables, beside(variables, adapters), asked)

        trials, losses = tries(variables, lessons, keys)
        earned, metrics = in_batches(earnings, (trials.adapters, rows), config.at_once)
        one = jnp.ones(len(rows))
        return earned, {
            **metrics, "trial_first": (losses[:, 0], one), "trial_last": (losses[:, -1], one),
        }  # fmt: skip

    return run


def _compared(
    count: int,
    scores: Mapping[str, Array],
    index: Array,
    kept: Array,
    key: Array,
    figures: Mapping[str, Array],
) -> Metrics:
    """What the best ``count`` of the tried dreams by each score earned, ``{figure}_by_{score}``.

    Args:
      scores: of all m dreams. index, kept: the k + b that were tried, and which of them count.
      key: that they were chosen with. figures: of what was tried, each [k + b].
    """
    metrics = Metrics()
    for kind, own in scores.items():
        there = jnp.zeros(own.shape, bool).at[index].set(kept > 0)
        best = ((places(own, there, key)[index] < count) & (kept > 0)).astype(jnp.float32)
        for name, figure in figures.items():
            metrics[f"{name}_by_{kind}"] = (_sum_where(best, figure), best.sum())
    return metrics


def _sum_where(mask: Array, values: Array) -> Array:
    """The sum of those that count; the others may be no numbers."""
    return jnp.sum(jnp.where(mask > 0, values, 0.0))


def reward_of(model: Model, config: DreamConfig) -> Reward | None:
    """The reward that the configuration describes; None: nothing is tried."""
    if config.reward == "none":
        return None
    if config.reward == "questions":
        return question_reward(model, measure=config.measure, margin=config.margin)
    return agreement_reward(model, margin=config.margin, worse=config.worse)


def as_writer(variables: Variables) -> Variables:
    """The variables as they write dreams: with the writer's adapters, if there are any."""
    params = variables["params"]
    return beside(variables, params[WRITER]) if WRITER in params else variables


def recall(
    model: Model,
    variables: Variables,
    today: Array,
    count: int,
    key: Array,
    *,
    new_tokens: int,
    temperature: Array | float = 1.0,
    axis_name: Axis = None,
) -> Memory:
    """What the learner, as it is, tells from cues of days before ``today``: ``count`` rows.

    The devices of ``axis_name`` share the telling.

    Raises:
      ConfigError: a learner without cues.
    """
    cues = variables["cues"]
    if not isinstance(cues, Cues):
        raise ConfigError("dream.memories", count, "this learner keeps no cues: use 0")
    draw_key, tell_key = jax.random.split(key)
    rows = jnp.arange(count)
    prompts, lengths = draw(cues, "past", today, rows, draw_key)
    keys = row_keys(tell_key, rows)

    def told_by_me(part: tuple[Array, Array, Array]) -> Samples:
        return generate(model, variables, *part, max_new=new_tokens, temperature=temperature)

    samples = shared(told_by_me, (prompts, lengths, keys), axis_name)
    return memory_of(samples.tokens, samples.written, samples.length)


def _prepared(
    model: Model,
    config: DreamConfig,
    variables: Variables,
    batch: Mapping[str, Any],
    key: Array,
    axis_name: Axis,
) -> tuple[Contexts, dict[str, Any]]:
    """The contexts to write from, and the batch with what gradients and agreement ask for."""
    contexts, batch = as_contexts(batch["contexts"], config.context_tokens), dict(batch)
    contexts = everyone(contexts, axis_name)
    agreement = config.reward == "agreement"
    if "held" in batch:  # whatever rewards: rewards are compared on dreams selected alike
        batch.setdefault("reference", batch["held"])
    elif agreement:
        contexts, batch["held"] = hold_back(contexts, config.hold)
    batch.setdefault("reference", whole(contexts))
    if agreement and config.memories:
        batch["memories"] = recall(
            model, variables, batch["today"], config.memories, key,
            new_tokens=config.new_tokens, temperature=config.temperature, axis_name=axis_name,
        )  # fmt: skip
    return contexts, batch
