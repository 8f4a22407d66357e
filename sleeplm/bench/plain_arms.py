"""Arms without memory levels: a plain model that learns awake, or does not learn at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sleeplm.bench.arm import Arm
from sleeplm.core.phase import scope, tick
from sleeplm.core.types import Array, Params, Phase, PyTree, State, Variables
from sleeplm.memory.cues import empty_cues
from sleeplm.methods.adapters import adapted, in_adapters, merged, with_adapters
from sleeplm.methods.ewc import EWC, anchored, fisher, nothing_protected, protect
from sleeplm.methods.extract import raw_text
from sleeplm.methods.gaussians import GAUSSIANS, gather, no_classes
from sleeplm.methods.learner import AT_DAYS_END, COUNTERS, Learner, Rest, remember_cues
from sleeplm.methods.objectives import language_model
from sleeplm.methods.wake import wake
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model


def sft(config: Any) -> Arm:
    """All parameters learn awake."""
    model = Model(backbone_config(config.model))
    awake = wake(model, update=_adamw(config), trainable=lambda path: True)
    return Arm(model, config.sleep, _plain(config, model, awake), trains="everything")


def lora(config: Any) -> Arm:
    """One LoRA on every matrix, day after day."""
    settings = config.baselines
    model = Model(backbone_config(config.model))
    awake = wake(
        model,
        objective=adapted(language_model(model)),
        update=optax.adamw(settings.lora_learning_rate, b2=0.95, weight_decay=0.0),
        trainable=in_adapters(),
    )
    plain = _plain(
        config,
        model,
        awake,
        grow=lambda params, key: with_adapters(params, settings.lora_rank, key),
        view=merged,
    )
    return Arm(model, config.sleep, plain, trains="adapters")


def ewc(config: Any) -> Arm:
    """All parameters learn awake; each night measures what to protect of today.

    Before the first day it measures what to protect of pretraining.
    """
    settings = config.baselines
    model = Model(backbone_config(config.model))
    objective = language_model(model)
    awake = wake(
        model,
        objective=anchored(objective, settings.ewc_strength),
        update=_adamw(config),
        trainable=lambda path: True,
    )
    per_step = config.sleep.inner * config.sleep.rows
    measure = fisher(raw_text(source="today", source_id=0, length=config.sleep.length), objective)

    def rests(night: Callable[[Callable], Callable]) -> tuple[Rest, ...]:
        return (
            Rest(
                sender="all",
                receiver="all",
                every=AT_DAYS_END,
                begin=_nothing,
                seed=night(measure.step),
                end=night(protect()),
                merge=None,
                blocks=-(-settings.ewc_rows // per_step),
                expands=False,
                before_life=True,
            ),
        )

    plain = _plain(
        config,
        model,
        awake,
        anchors=lambda params: {EWC: nothing_protected(params)},
        night=measure,
        rests=rests,
    )
    return Arm(model, config.sleep, plain, archive="today", trains="everything")


def icl(config: Any) -> Arm:
    """Nothing is ever learned: the facts stand in the prompt, as far as the window goes."""
    model = Model(backbone_config(config.model))
    plain = _plain(config, model, tick("step"))
    return Arm(model, config.sleep, plain, context=True, trains="nothing")


def inca(config: Any, classes: int = 0) -> Arm:
    """An external learner over class Gaussians; the language model stays as it is."""
    model = Model(backbone_config(config.model))

    def rests(night: Callable[[Callable], Callable]) -> tuple[Rest, ...]:
        step = gather(model)
        return (Rest("all", "all", AT_DAYS_END, _nothing, step, _nothing, None, 1, False),)

    plain = _plain(
        config,
        model,
        tick("step"),
        anchors=lambda params: {GAUSSIANS: no_classes(classes, model.config.d_model)},
        rests=rests,
    )
    return Arm(model, config.sleep, plain, archive="labelled", trains="nothing", by_class=True)


def _adamw(config: Any) -> optax.GradientTransformation:
    rate = config.baselines.sft_learning_rate
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.95))


def _nothing(state: State, batch: PyTree, key: Array) -> tuple[State, dict]:
    return state, {}


def _plain(
    config: Any,
    model: Model,
    awake: Phase,
    *,
    grow: Callable[[Params, Array], Params] = lambda params, key: params,
    anchors: Callable[[Params], dict[str, PyTree]] = lambda params: {},
    night: Phase | None = None,
    rests: Callable[[Callable], tuple[Rest, ...]] = lambda night: (),
    view: Callable[[Variables], Variables] = lambda variables: variables,
) -> Learner:
    """A learner without memory levels: one wake phase, and nights of one's own, if any."""

    def init(params: Params, key: Array) -> State:
        grow_key, private_key, root = jax.random.split(key, 3)
        params = grow(params, grow_key)
        private = {"wake": awake.init(params, private_key)}
        if night is not None:
            private["night"] = night.init(params, private_key)
        return State(
            params=params,
            slots=model.init_slots(),
            anchors=anchors(params),
            cues=empty_cues(config.sleep.reservoir, config.sleep.cue_tokens, model.config.bos),
            private=private,
            counters={name: jnp.int32(0) for name in COUNTERS},
            key=root,
        )

    return Learner(
        init,
        scope(awake.step, "wake"),
        rests(lambda step: scope(step, "night")),
        remember_cues,
        write_cues=None,
        view=view,
    )
