"""A round of dreaming: write, select, try, reward (section 6).

``round_of`` is the round as one function, ``dream`` as a phase that keeps what was accepted, and
``dreams`` as an extraction, so that ``consolidate`` learns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sleeplm.core.errors import ConfigError
from sleeplm.core.layout import in_batches
from sleeplm.core.phase import add_metrics
from sleeplm.core.shares import Axis, everyone, own_share, shared, varying
from sleeplm.core.types import (
    WRITER,
    Array,
    Extract,
    Memory,
    Metrics,
    Objective,
    Params,
    Phase,
    PyTree,
    State,
    Variables,
)
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
from sleeplm.methods.extract import row_keys, stateless
from sleeplm.methods.objectives import language_model
from sleeplm.models.decode import Samples, generate
from sleeplm.models.transformer import Model

#: Metrics of rewards that say how much a dream has helped.
LIFTS = ("lift_held", "lift_logp")
Round = Callable[[Variables, Mapping[str, Any], Array], tuple[Dreams, Metrics]]
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


def round_of(model: Model, config: DreamConfig, **parts: Any) -> Round:
    """One round: ``(variables, batch, key) -> (k + b dreams, metrics)``.

    The tokens of each dream are weighed by its reward, so that those that were not accepted have
    no weight. It is :func:`whole_round`, of which only this is kept.
    """
    run = whole_round(model, config, **parts)

    def accepted(variables: Variables, batch: Mapping[str, Any], key: Array):
        outcome = run(variables, batch, key)
        return outcome.accepted, outcome.metrics

    return accepted


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
        tries = attempts(
            learn, update or optax.adam(config.learning_rate),
            rank=config.rank, steps=config.steps, at_once=config.at_once, batch=config.batch,
        )  # fmt: skip
        write_key, score_key, choose_key, try_key, recall_key = jax.random.split(key, 5)
        expand_key = jax.random.fold_in(key, 5)
        variables = varying(variables, axis_name)
        given, batch = _prepared(model, config, variables, batch, recall_key, axis_name)
        drawn, written = write(
            model, as_writer(variables), given, jnp.arange(config.dreams), write_key,
            new_tokens=config.new_tokens, temperature=config.temperature, top_k=config.top_k,
            explore=config.explore, alone=config.alone, ngram=config.ngram,
            stop=batch.get("stop"), axis_name=axis_name,
        )  # fmt: skip
        lessons = Lesson(jax.tree.map(lambda x: x[:, None], drawn.told))
        if expand is not None:
            keys = row_keys(expand_key, jnp.arange(config.dreams))
            lessons, fit = expand(drawn.told, batch, keys)
            drawn = drawn.only(fit)
            lessons = lessons._replace(rows=only(lessons.rows, drawn.mask))
            written["fit"] = (jnp.sum(fit * 1.0), jnp.float32(config.dreams))

        graded = jax.tree.map(lambda x: x[:, : config.score_rows or None], lessons.rows)

        def scored(kind: str) -> Array:
            return score(
                kind, learn, variables, graded, score_key, trainable=trainable,
                reference=batch["reference"], size=config.sketch, chunk=config.chunk,
                axis_name=axis_name,
            )  # fmt: skip

        scores = scored(config.score)
        index, kept = choose(scores, drawn.mask, config.keep, config.extra, choose_key)
        chosen = drawn.take(index)
        learned = jax.tree.map(lambda x: x[index], lessons)

        def earnings(trial: tuple[PyTree, Array]) -> tuple[Array, Metrics]:
            adapters, row = trial
            assert judge is not None
            asked = dict(batch)
            if config.reward == "agreement" and config.agree == "own":
                asked["held"] = jax.tree.map(lambda x: x[row][None], batch["held"])
            return judge(variables, beside(variables, adapters), asked)

        def tried_by_me(part: tuple[Lesson, Array, Array]) -> tuple[Array, Metrics, Array]:
            lessons, keys, rows = part
            trials, losses = tries(variables, lessons, keys)
            return *in_batches(earnings, (trials.adapters, rows), config.at_once), losses

        earned, told, losses = jnp.ones(index.shape), Metrics(), None
        if judge is not None:
            earned, told, losses = shared(
                tried_by_me, (learned, row_keys(try_key, index), in_turn(given, index)), axis_name
            )
        kept = kept.astype(jnp.float32)
        accepted = chosen.weighed(jnp.where(kept > 0, earned, 0.0))
        metrics = {
            "score": (_sum_where(kept, scores[index]), kept.sum()),
            "accepted": (_sum_where(kept, earned), kept.sum()),
            **{n: (_sum_where(kept, s), _sum_where(kept, w)) for n, (s, w) in told.items()},
        }
        if losses is not None:
            for name, column in (("trial_first", 0), ("trial_last", -1)):
                metrics[name] = (_sum_where(kept, losses[:, column]), kept.sum())
        there = jnp.zeros(drawn.mask.shape, bool).at[index].set(kept > 0)
        for kind in SCORES if config.compare else ():
            by = scores if kind == config.score else scored(kind)
            place = places(by, there, choose_key)[index]
            best = ((place < config.compare) & (kept > 0)).astype(jnp.float32)
            figures = {"earned": earned, **{n: s for n, (s, _) in told.items() if n in LIFTS}}
            metrics |= {
                f"{n}_by_{kind}": (_sum_where(best, x), best.sum()) for n, x in figures.items()
            }
        tried = chosen.weighed(kept)
        return jax.lax.stop_gradient(Outcome(accepted, drawn, tried, add_metrics(written, metrics)))

    return run


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


def dream(model: Model, config: DreamConfig, **parts: Any) -> Phase:
    """A round as a phase: what was accepted is its private state, :class:`Dreams`.

    ``state.private.told`` is the memory to learn. Nothing else of the learner moves.

    Args:
      parts: of :func:`whole_round`.
    """
    run = round_of(model, config, **parts)

    def init(params: Params, key: Array) -> Dreams:
        del params, key
        return no_dreams(config)

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        accepted, metrics = run(state.variables, batch, key)
        return state.replace(private=accepted), metrics

    return Phase(init, step)


def dreams(model: Model, config: DreamConfig, *, axis_name: Axis = None, **parts: Any) -> Extract:
    """A round as an extraction: the accepted dreams, of which the others have no weight.

    The memory has k + b rows, of which each device of an ``axis_name`` has its share. The batch is
    that of :func:`round_of`; a night's ``"rows"`` may be in it, and are not looked at.
    """
    run = round_of(model, config, axis_name=axis_name, **parts)

    def extract(variables: Variables, batch: Mapping[str, Any], key: Array) -> Memory:
        accepted, _ = run(variables, batch, key)
        return only(*own_share(accepted.told, axis_name))

    return stateless(extract)


def given() -> Extract:
    """The batch is the memory: for learning what a phase before has kept."""
    return stateless(lambda variables, batch, key: batch)


def no_dreams(config: DreamConfig, rounds: int = 1) -> Dreams:
    """k + b dreams of nothing for every round, of the shapes that one makes."""
    count = rounds * config.kept
    empty = Contexts(jnp.zeros((count, config.width), jnp.int32), jnp.zeros((count,), jnp.int32))
    width = 1 + config.new_tokens if config.alone else empty.tokens.shape[1]
    return Dreams(whole(empty), whole(empty._replace(tokens=empty.tokens[:, :width])))


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
