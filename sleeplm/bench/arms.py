"""The arms of the bench: every one is the same phases, put together differently.

No arm has a training loop of its own. What differs is a model's levels, the settings of its night,
or a piece of one of its phases: an extraction, an objective, an update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sleeplm.bench.costs import replay_updates
from sleeplm.bench.sweep import settings_of, varying, with_setting
from sleeplm.core import checks
from sleeplm.core.phase import scope, tick
from sleeplm.core.types import Array, Params, Phase, PyTree, State, Variables
from sleeplm.memory.cues import empty_cues
from sleeplm.methods.adapters import adapted, in_adapters, merged, with_adapters
from sleeplm.methods.config import SleepConfig, TeacherConfig, evening, paper_v2
from sleeplm.methods.ewc import EWC, anchored, fisher, nothing_protected, protect
from sleeplm.methods.extract import mix, raw_text
from sleeplm.methods.gaussians import GAUSSIANS, gather, no_classes
from sleeplm.methods.learner import (
    AT_DAYS_END,
    COUNTERS,
    Learner,
    Rest,
    learner,
    remember_cues,
)
from sleeplm.methods.objectives import language_model
from sleeplm.methods.packing import packed
from sleeplm.methods.settings import tuned_learner
from sleeplm.methods.wake import wake
from sleeplm.models.config import ModelConfig
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to live.

    Attributes:
      model, sleep, learner: what lives.
      archive: what its nights are handed: ``none``, ``today`` (the day's raw texts; before the
        first day those of pretraining), ``texts`` (every raw text ever read) or ``labelled`` (the
        day's questions and classes).
      context: exams have the latest facts in front of every question.
      trains: what moves awake: ``bases``, ``everything``, ``adapters`` or ``nothing``.
      follows_schedule: its levels sleep when the schedule says.
      by_class: answers are names of the nearest class instead of what the model says.
      joint: every day it reads from the texts of all days, mixed.
    """

    model: Model
    sleep: SleepConfig
    learner: Learner
    archive: str = "none"
    context: bool = False
    trains: str = "bases"
    follows_schedule: bool = False
    by_class: bool = False
    joint: bool = False

    @property
    def raw_text(self) -> bool:
        """Whether it keeps raw text beyond the day (a day's own text is everybody's)."""
        return self.archive == "texts" or self.context or self.joint


def _seeded(config: Any, sleep: SleepConfig, **more: Any) -> Arm:
    """An arm of days and nights with other settings of the night."""
    model = Model(config.model)
    return Arm(model, sleep, learner(model, sleep, **more))


def _with(config: Any, **changes: Any) -> Arm:
    return _seeded(config, dataclasses.replace(config.sleep, **changes))


def _as_written(config: Any, make: Callable[..., SleepConfig]) -> Arm:
    """The paper's objective whole, at the bench's own sizes and learning rate."""
    theirs = make()
    names = ("teachers", "becomes", "lam", "alpha", "gamma", "group", "divergence")
    settings = {name: getattr(theirs, name) for name in names}
    return _with(config, **settings, pack=0)


def _full(config: Any, **changes: Any) -> Arm:
    """``sleep`` with everything that the paper's objective has: rollouts and imitation too."""
    whole = SleepConfig()
    settings = {"lam": whole.lam, "alpha": whole.alpha, "gamma": whole.gamma, "pack": 0}
    return _with(config, **{**settings, **changes})


def _one_teacher(uncued: float) -> list[TeacherConfig]:
    return [TeacherConfig("dusk", "today", uncued=uncued)]


def _expansion_matched(config: Any) -> Arm:
    teachers = _one_teacher(config.sleep.teachers[0].uncued)
    return _with(config, teachers=teachers, lam=0.0, alpha=1.0, becomes="start")


def _on_policy(config: Any) -> Arm:
    return _with(
        config,
        teachers=_one_teacher(config.sleep.teachers[0].uncued),
        into="base",
        lam=1.0,
        alpha=1.0,
        divergence="reverse_kl",
        learning_rate=config.baselines.base_learning_rate,
    )


def _wake_only(config: Any) -> Arm:
    return _awake(config, Model(without_nights(config.model)))


def _awake(config: Any, model: Model) -> Arm:
    return Arm(model, config.sleep, learner(model, config.sleep))


def without_nights(model: ModelConfig) -> ModelConfig:
    """The same model whose levels have no nights."""
    levels = [dataclasses.replace(level, night=0) for level in model.levels]
    return dataclasses.replace(model, levels=levels)


def _cms(config: Any) -> Arm:
    """The continuum memory alone: the slow level learns awake too, at its own pace."""
    plain = without_nights(config.model)
    *fast, slow = plain.levels
    settings = config.baselines
    slow = dataclasses.replace(
        slow, period=settings.slow_period, learning_rate=settings.slow_learning_rate
    )
    return _awake(config, Model(dataclasses.replace(plain, levels=[*fast, slow])))


def _static_replay(config: Any) -> Arm:
    """Nights on raw texts instead of what teachers tell, with as many FLOPs as ``sleep``."""
    step = config.sleep.inner * config.sleep.epochs
    updates = step * max(round(replay_updates(config.model, config.sleep) / step), 1)
    sleep = dataclasses.replace(config.sleep, updates=updates, rollback=0.0)
    model = Model(config.model)

    def method(sender: str, receiver: str) -> Mapping[str, Any]:
        texts = [
            raw_text(
                source=one.source,
                source_id=i,
                balance=one.balance,
                times=one.times,
                weight=one.weight,
                length=config.sleep.length,
            )
            for i, one in enumerate(config.sleep.teachers)
        ]
        extract = packed(mix(*texts), sleep.pack) if sleep.pack else mix(*texts)
        return {"extract": extract, "objective": language_model(model, sleep.chunk)}

    return Arm(model, sleep, learner(model, sleep, method=method), archive="texts")


def _sft(config: Any) -> Arm:
    model = Model(backbone_config(config.model))
    awake = wake(model, update=_adamw(config), trainable=lambda path: True)
    return Arm(model, config.sleep, _plain(config, model, awake), trains="everything")


def _lora(config: Any) -> Arm:
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


def _ewc(config: Any) -> Arm:
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


def _icl(config: Any) -> Arm:
    """Nothing is ever learned: the facts stand in the prompt, as far as the window goes."""
    model = Model(backbone_config(config.model))
    plain = _plain(config, model, tick("step"))
    return Arm(model, config.sleep, plain, context=True, trains="nothing")


def _inca(config: Any, classes: int = 0) -> Arm:
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
        remember_cues,
        view,
    )


_AWAKE = ("wake_only", "cms_without_seeding")
_PLAIN = ("sft_all", "joint", "lora_sequential", "ewc", "icl", "inca")
#: Arms in which no level has a night.
WITHOUT_LEVELS_NIGHTS = frozenset((*_AWAKE, *_PLAIN))


def build_arm(name: str, config: Any, classes: int) -> Arm:
    """The arm of that name; what a sweep varies its learner reads from its state.

    Args:
      config: a :class:`~sleeplm.bench.retention.RetentionConfig`.
      classes: labels of a labelled world, 0 for others.

    Raises:
      ConfigError: the arm is for labelled worlds only, or its night cannot work with these sizes.
    """
    first = with_setting(config, settings_of(config)[0])
    if name == "inca":
        checks.require(classes > 0, "arms", name, f"needs a labelled world, not {config.world!r}")
        return _inca(first, classes)  # learns nothing by any number
    arm = ARMS[name](first)
    arm.sleep.check(f"{name}: sleep")  # its own settings need not suit the run's sizes
    if names := varying(config):
        tuned = tuned_learner(lambda own: ARMS[name](own).learner, first, names)
        arm = dataclasses.replace(arm, learner=tuned)
    return dataclasses.replace(arm, follows_schedule=name not in WITHOUT_LEVELS_NIGHTS)


#: Every arm by name; build them with :func:`build_arm`.
ARMS: dict[str, Callable[[Any], Arm]] = {
    "sleep": lambda c: _seeded(c, c.sleep),
    "sleep_own_cues": lambda c: _with(c, cues="self"),
    "sleep_full": _full,
    "sleep_paper_v2": lambda c: _as_written(c, paper_v2),
    "sleep_paper_evening": lambda c: _as_written(c, evening),
    "no_imitation": lambda c: _full(c, alpha=1.0),
    "no_semantic": lambda c: _full(c, gamma=0.0),
    "expansion_matched_distillation": _expansion_matched,
    "equal_capacity_moe": lambda c: _with(
        c, into="pool", learning_rate=c.baselines.pool_learning_rate
    ),
    "fixed_capacity_on_policy": _on_policy,
    "static_replay": _static_replay,
    "reset_only": lambda c: _with(c, updates=0),
    "wake_only": _wake_only,
    "cms_without_seeding": _cms,
    "sft_all": _sft,
    "joint": lambda c: dataclasses.replace(_sft(c), joint=True),
    "lora_sequential": _lora,
    "ewc": _ewc,
    "icl": _icl,
    "inca": _inca,
}
