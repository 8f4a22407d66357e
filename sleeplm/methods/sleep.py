"""Asleep: what a fast level knows moves into a fresh expert of the next slower one (section 5).

One night of a sender and its receiver, in the order of the paper's section 7::

    begin   1 compute theta_new   2 freeze the teacher   3 build the student
    seed    4 sample              5 optimise L_KS over the new expert only
    end     6 apply the update, prune the sender, activate the expert (or roll back)

``begin``, every ``seed`` step and ``end`` are pure functions of the learner; :func:`sleep` is the
whole night as one phase.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sleeplm.core import tree
from sleeplm.core.checks import require
from sleeplm.core.errors import ConfigError
from sleeplm.core.losses import divergence
from sleeplm.core.phase import consolidate
from sleeplm.core.shares import Axis
from sleeplm.core.types import (
    Array,
    Extract,
    Metrics,
    Objective,
    Phase,
    PyTree,
    State,
)
from sleeplm.memory.anchors import BASE, POOL, Anchor, parts_of, teacher_variables
from sleeplm.memory.levels import get_level, label_of, with_levels
from sleeplm.memory.slots import (
    clear_slot,
    close_all,
    first_free,
    fresh_slot,
    open_all,
    open_slot,
    reset_experts,
)
from sleeplm.methods.config import SleepConfig, TeacherConfig
from sleeplm.methods.extract import imitation, mix, teacher_samples
from sleeplm.methods.held_days import of_all_its_days
from sleeplm.methods.objectives import seeding
from sleeplm.methods.packing import packed
from sleeplm.methods.rewards import Judge, cosine_judge, exact_match_judge, mean_pool
from sleeplm.methods.update import fading, only_slot, optimizer
from sleeplm.models.transformer import Model

Step = Callable[[State, PyTree, Array], tuple[State, Metrics]]


class Night(NamedTuple):
    """A night in three parts that share the private state of ``seed``.

    The batch of all three is ``{"rows": int32 [inner, B], "today": int32}``; ``begin`` also reads
    ``"updates"``, how many the night will have, if that is not ``config.updates``.
    """

    begin: Step
    seed: Phase
    end: Step


def night(
    model: Model,
    config: SleepConfig,
    sender: str,
    receiver: str,
    *,
    extract: Extract | None = None,
    objective: Objective | None = None,
    update: optax.GradientTransformation | None = None,
    judge: Judge | None = None,
    born: Callable[[State], Array] = lambda state: state.counters["nights"],
    axis_name: Axis = None,
) -> Night:
    """Consolidation of ``sender`` into a new expert of ``receiver``.

    ``begin`` writes into the lowest free slot, and into slot 0 if there is none: ask
    :func:`~sleeplm.memory.slots.require_room` first, on the host. With ``config.into`` of
    ``pool`` or ``base`` no slot is opened: that part of the receiver learns as a whole.

    Args:
      extract, objective, update: each replaces the one that ``config`` describes. An update that
        is not wrapped in :func:`~sleeplm.methods.update.only_slot` moves the whole pool, which a
        rollback then restores only if the anchor keeps it (``pool`` merges,
        ``into="pool"``).
      judge: of imitations, instead of the one that ``config.judge`` names.
      born: int32 of the state, what the new expert is filed under (``SlotTable.since``).
      axis_name: mapped axis over rows, inside ``shard_map`` or ``pmap``.
    """
    pair = (sender, receiver)
    nested, several = model.config.wiring == "nested", model.config.level(sender).slots > 0
    remedy = "its MLP does not run in the nested wiring: use 'expert' or 'pool'"
    require(not (nested and config.into == "base"), "sleep.into", config.into, remedy)
    extract = extract or teachings(model, config, pair, config.teachers, axis_name, judge)
    extract = of_all_its_days(extract, sender) if several else extract
    bias, expands = model.config.level(receiver).gate_bias, config.into == "expert"
    if update is None:
        update = usual_update(config)
        update = only_slot(update) if expands else update
    seed = seeding_step(model, config, pair, extract, objective, update, axis_name)

    def begin(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        table, subtree = state.slots[receiver], get_level(state.params, receiver)
        slot = first_free(table)
        state = fall_asleep(state, pair, slot, batch.get("updates", config.updates))
        if expands:
            subtree = fresh_slot(subtree, slot, key, bias)
            table = open_slot(table, slot, born(state))
        anchor: Anchor = state.anchors[sender]
        student = reset_experts(anchor.start if config.becomes == "start" else anchor.dusk)
        if nested and config.becomes == "start":  # whoever is faster starts from the next slower
            student = {**student, **parts_of(state.params, receiver, BASE)}
        ledger = close_all(state.slots[sender])
        if several and config.into == "pool":  # it receives again tomorrow, all of it open
            own_key = jax.random.fold_in(key, 1)
            student, ledger = open_all(student, own_key, model.config.level(sender).gate_bias)
        state = state.replace(
            params=with_levels(state.params, {sender: student, receiver: subtree}),
            slots={**state.slots, sender: ledger, receiver: table},
            private=forget_moments(state, update, pair, config.into),
        )
        return state, {}

    def end(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        learned = config.updates > 0  # a night that learns nothing has no loss to judge by
        good = went_well(state.anchors[sender], config.rollback) if learned else jnp.ones(())
        state = _settle(state, pair, good, evening_of(state, pair))
        return state, {"rolled_back": (1.0 - good, jnp.ones(()))}

    return Night(begin, seed, end)


def sleep(model: Model, config: SleepConfig, sender: str, receiver: str, **kwargs) -> Phase:
    """A whole night as one phase (one compiled program): begin, seed until done, end."""
    parts = night(model, config, sender, receiver, **kwargs)

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        state, _ = parts.begin(state, batch, jax.random.fold_in(key, 0))

        def block(state: State, i: Array):
            return parts.seed.step(state, batch, jax.random.fold_in(key, i))

        state, metrics = jax.lax.scan(block, state, jnp.arange(1, config.blocks + 1))
        state, outcome = parts.end(state, batch, jax.random.fold_in(key, config.blocks + 1))
        return state, {**jax.tree.map(lambda x: x.sum(0), metrics), **outcome}

    return Phase(parts.seed.init, step)


def teachings(
    model: Model,
    config: SleepConfig,
    pair: tuple[str, str],
    teachers: list[TeacherConfig],
    axis_name: Axis,
    judge: Judge | None = None,
) -> Extract:
    """The night's data: per teacher its samples, student rollouts (lambda), continuations."""
    common: dict[str, Any] = {
        "length": config.length,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "axis_name": axis_name,
    }
    parts: list[Extract] = []
    for i, teacher in enumerate(teachers):
        told: dict[str, Any] = {
            "teacher": teacher.state,
            "source": teacher.source,
            "source_id": i,
            "uncued": teacher.uncued,
            "balance": teacher.balance,
        }
        for writer, share in config.writers:
            parts.append(
                teacher_samples(
                    model,
                    pair,
                    **told,
                    writer=writer,
                    weight=share * teacher.weight,
                    framed=teacher.framed,
                    times=teacher.times,
                    **common,
                )
            )
        if teacher.imitate and config.imitates:
            parts.append(
                imitation(
                    model,
                    pair,
                    judge or judge_of(model, config, pair),
                    **told,
                    group=config.group,
                    gamma=config.gamma,
                    z0=config.z0,
                    length=config.length,
                    temperature=config.temperature,
                    weight=teacher.weight,
                )
            )
    return packed(mix(*parts), config.pack) if config.pack else mix(*parts)


def judge_of(model: Model, config: SleepConfig, pair: tuple[str, str]) -> Judge:
    """The semantic judge that the configuration names.

    One that reads text needs a tokenizer, which a night does not have: it comes with the batch.
    """
    if config.judge == "exact":
        return exact_match_judge(model.config.eos)
    if config.judge == "minilm":
        return _nobody

    def embed(variables, tokens: Array, mask: Array) -> Array:
        start = teacher_variables(variables, *pair, "origin")
        return mean_pool(model.hidden(start, tokens), mask)

    return cosine_judge(embed, config.accepts("cosine"))


def _nobody(variables, candidate, candidate_mask, reference, reference_mask):
    remedy = "reads text: bring it as batch['judge'] = semantic_judge(minilm(), decode)"
    raise ConfigError("sleep.judge", "minilm", remedy)


def fall_asleep(state: State, pair: tuple[str, str], slot: Array, updates: Array | int) -> State:
    """Freezes the evening: sender, ledgers (and pool) as they are, for teachers and rollback.

    Args:
      slot: of the receiver, which the night writes. updates: how many the night has.
    """
    sender, receiver = pair
    old: Anchor = state.anchors[sender]
    anchor = Anchor(
        start=old.start,
        dawn=old.dawn,
        dusk=get_level(state.params, sender),
        dawn_slots=old.dawn_slots,
        dusk_slots=state.slots[sender],
        receiver_slots=state.slots[receiver],
        receiver=old.receiver and parts_of(state.params, receiver, tuple(old.receiver)),
        slot=slot,
        updates=jnp.int32(updates),
        first_loss=jnp.float32(jnp.nan),
        last_loss=jnp.float32(jnp.nan),
    )
    return state.replace(anchors={**state.anchors, sender: anchor})


def evening_of(state: State, pair: tuple[str, str]) -> State:
    """The learner as the night found it: sender, ledgers and what learned in the receiver."""
    sender, receiver = pair
    anchor: Anchor = state.anchors[sender]
    if anchor.receiver is None:
        subtree = clear_slot(get_level(state.params, receiver), anchor.slot)
    else:
        subtree = {**get_level(state.params, receiver), **anchor.receiver}
    slots = {**state.slots, sender: anchor.dusk_slots, receiver: anchor.receiver_slots}
    changed = {sender: anchor.dusk, receiver: subtree}
    return state.replace(params=with_levels(state.params, changed), slots=slots)


def went_well(anchor: Anchor, factor: float) -> Array:
    """float32 1 unless the night's loss ended not finite, or ``factor`` times where it began.

    The loss is the divergence from the teachers, where the objective reports one; it is not finite
    where the last update was refused.
    """
    # A night that found nothing to learn has no first loss, and a last one of 0.
    limit = jnp.fmax(factor * anchor.first_loss, 1e-3) if factor else jnp.inf
    return (jnp.isfinite(anchor.last_loss) & (anchor.last_loss <= limit)).astype(jnp.float32)


def _settle(state: State, pair: tuple[str, str], good: Array, before: State) -> State:
    """Keeps a good night, and calls what the sender is now its dawn; else the evening is back."""
    sender, _ = pair
    anchor: Anchor = state.anchors[sender]
    state = tree.where(good, state, before)
    one = good.astype(jnp.int32)
    counters = {
        **state.counters,
        "nights": state.counters["nights"] + one,
        "rolled_back": state.counters["rolled_back"] + 1 - one,
    }
    dawn = tree.where(good, get_level(state.params, sender), anchor.dawn)
    dawn_slots = tree.where(good, state.slots[sender], anchor.dawn_slots)
    fields = {**vars(anchor), "dawn": dawn, "dawn_slots": dawn_slots}
    return state.replace(counters=counters, anchors={**state.anchors, sender: Anchor(**fields)})


def usual_update(config: SleepConfig) -> optax.GradientTransformation:
    """The optimiser of the night; its learning rate falls linearly to 0, or is constant."""
    return optax.chain(optimizer(config), fading()) if config.decay else optimizer(config)


def learns_at_night(receiver: str, into: str) -> Callable[[tuple], bool]:
    """Predicate on key paths: what of the receiver may move, see ``SleepConfig.into``."""
    parts = ("base",) if into == "base" else POOL
    mine = {f"{receiver}/{part}" for part in parts}
    return lambda path: label_of(path) in mine


def kept_in_anchor(config: SleepConfig) -> tuple[str, ...]:
    """Parts of the receiver that an anchor has to keep for teachers and rollback."""
    if config.into == "base":
        return BASE
    return POOL if config.into == "pool" or config.merges else ()


def forget_moments(state: State, update: optax.GradientTransformation, pair, into: str) -> PyTree:
    """The night's private state with the optimiser as it is before a first update."""
    chosen, _ = tree.split(state.params, learns_at_night(pair[1], into))
    return state.private._replace(update=update.init(chosen))


def seeding_step(
    model, config, pair, extract, objective, update, axis_name, steady: bool = False
) -> Phase:
    """``consolidate`` over one slot, with the night's divergence written into the anchor.

    Args:
      steady: what the end is held against is that of the whole first extraction, if that is more
        than its first minibatch's: a student that begins as good as its teacher can only get worse.
    """
    sender, receiver = pair
    objective = objective or seeding(
        model,
        divergence(config.divergence, config.beta),
        alpha=config.alpha,
        temperature=config.temperature,
        chunk=config.chunk,
    )
    learn = consolidate(
        extract,
        objective,
        update,
        trainable=learns_at_night(receiver, config.into),
        extra=lambda state: {
            "slot": state.anchors[sender].slot,
            "total": state.anchors[sender].updates,
        },
        inner=config.inner,
        epochs=config.epochs,
        axis_name=axis_name,
    )

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        state, metrics = learn.step(state, batch, key)
        # The loss may hold a score function, whose value means nothing.
        name = "divergence" if "divergence" in metrics else "loss"
        broken = metrics.get("last_skipped", metrics["skipped"])[0] > 0
        # Refused updates weigh nothing: a student that broke on the way would seem to end well.
        loss = jnp.where(broken, jnp.nan, _mean(metrics[name]))
        before = metrics.get(f"first_{name}", metrics[name])
        anchor: Anchor = state.anchors[sender]
        began = jnp.maximum(_mean(before), loss) if steady else _mean(before)
        first = jnp.where(jnp.isnan(anchor.first_loss), began, anchor.first_loss)
        # Where there was nothing to learn, and nothing was refused, the night is where it was.
        idle = (metrics[name][1] == 0) & (metrics["skipped"][0] == 0)
        begun = jnp.isfinite(anchor.first_loss)
        loss = jnp.where(idle, jnp.where(begun, anchor.last_loss, 0.0), loss)
        fields = {**vars(anchor), "first_loss": first, "last_loss": loss}
        return state.replace(anchors={**state.anchors, sender: Anchor(**fields)}), metrics

    return Phase(learn.init, step)


def _mean(pair: tuple[Array, Array]) -> Array:
    return (pair[0] / pair[1]).astype(jnp.float32)
