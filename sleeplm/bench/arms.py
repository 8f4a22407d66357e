"""The arms of the bench: every one is the same phases, put together differently.

No arm has a training loop of its own. What differs is a model's levels, the settings of its night
and of its dreams, or a piece of one of its phases: an extraction, an objective, an update. Arms
without memory levels are in :mod:`sleeplm.bench.plain_arms`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from sleeplm.bench import dreamflops
from sleeplm.bench import plain_arms as plain
from sleeplm.bench.arm import Arm
from sleeplm.bench.costs import Reading, longer_updates, question_shape, replay_updates
from sleeplm.bench.dream_contexts import style_of
from sleeplm.bench.dreamflops import Shape
from sleeplm.bench.sweep import settings_of, varying, with_setting
from sleeplm.core import checks
from sleeplm.methods.config import SleepConfig, TeacherConfig, evening, paper_v2
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.extract import mix, raw_text
from sleeplm.methods.learner import learner
from sleeplm.methods.objectives import language_model
from sleeplm.methods.packing import packed
from sleeplm.methods.settings import tuned_learner
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model

__all__ = [
    "ARMS",
    "DREAMING",
    "WITHOUT_LEVELS_NIGHTS",
    "Arm",
    "add_arm",
    "asks_for_reading",
    "build_arm",
]


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
    sleep = dataclasses.replace(config.sleep, **_only_nights(config.sleep, updates), rollback=0.0)
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


def _dreaming(config: Any, *, night: dict[str, Any] | None = None, **changes: Any) -> Arm:
    """``sleep``, and dreams after every night's consolidation, with some other settings of them.

    Args:
      night: other settings of the night.
    """
    sleep = dataclasses.replace(config.sleep, **(night or {}))
    dream: DreamConfig = dataclasses.replace(config.dream, **changes)
    return dataclasses.replace(_seeded(config, sleep, dream=dream), dream=dream)


def _longer(config: Any, question: Shape = (0, 0)) -> Arm:
    """``sleep`` with as many more updates as dreaming would have cost: its control.

    Args:
      question: longest prompt and answer, in tokens, if questions reward dreams.
    """
    usual = config.sleep.updates
    remedy = "sleep_longer has more updates of the night's: give the night some"
    checks.require(usual > 0, "sleep.updates", usual, remedy)
    updates, instead = _night_with(config, _dreams_cost(config, config.dream, question))
    arm = _with(config, **_only_nights(config.sleep, updates))
    return dataclasses.replace(arm, instead=instead)


def _without(config: Any, question: Shape = (0, 0), **changes: Any) -> Arm:
    """``dream`` with one part left out; with ``equal_flops`` its night has what that saves.

    Args:
      question: longest prompt and answer, in tokens, if questions reward the dreams of ``dream``.
    """
    if not config.equal_flops or not config.sleep.updates:
        return _dreaming(config, **changes)
    cost = functools.partial(_dreams_cost, config, question=question)
    less = cost(config.dream) - cost(dataclasses.replace(config.dream, **changes))
    updates, instead = _night_with(config, less)
    arm = _dreaming(config, night=_only_nights(config.sleep, updates), **changes)
    return dataclasses.replace(arm, instead=instead)


def _dreams_cost(config: Any, dream: DreamConfig, question: Shape) -> float:
    return sum(dreamflops.night(config.model, config.sleep, dream, question).values())


def _night_with(config: Any, more: float) -> tuple[int, float]:
    """Updates of a night that costs that many FLOPs more, and which share of them is more."""
    usual, step = config.sleep.updates, config.sleep.inner * config.sleep.epochs
    wanted = longer_updates(config.model, config.sleep, more)
    updates = step * max(round(wanted / step), 1)
    return updates, max(1 - usual / updates, 0.0)


def _only_nights(sleep: SleepConfig, updates: int) -> dict[str, int]:
    """Settings of nights with other updates, whose merges of experts cost what they did."""
    return {"updates": updates, "merge_updates": sleep.merge_updates or sleep.updates}


_AWAKE = ("wake_only", "cms_without_seeding")
_PLAIN = ("sft_all", "joint", "lora_sequential", "ewc", "icl", "inca")
#: Arms in which no level has a night.
WITHOUT_LEVELS_NIGHTS = frozenset((*_AWAKE, *_PLAIN))


def build_arm(name: str, config: Any, classes: int, reading: Reading | None = None) -> Arm:
    """The arm of that name; what a sweep varies its learner reads from its state.

    Args:
      config: a :class:`~sleeplm.bench.retention.RetentionConfig`.
      classes: labels of a labelled world, 0 for others.
      reading: who reads what; only an arm that :func:`asks_for_reading` needs it.

    Raises:
      ConfigError: the arm is for labelled worlds only, or its night cannot work with these sizes.
    """
    first = with_setting(config, settings_of(config)[0])
    if name == "inca":
        checks.require(classes > 0, "arms", name, f"needs a labelled world, not {config.world!r}")
        return plain.inca(first, classes)  # learns nothing by any number
    if name in DREAMING:
        check_dreaming(config)
    make = ARMS[name]
    if reading is not None and asks_for_reading(name, config):
        make = functools.partial(make, question=question_shape(reading, config.dream))
    arm = make(first)
    arm.sleep.check(f"{name}: sleep")  # its own settings need not suit the run's sizes
    if arm.dream is not None:
        arm.dream.check(f"{name}: dream")
        _check_agreement(config, arm.dream)
    remedy = f"{name} has nights without updates, and experts are merged by some: use 'refuse'"
    nights = name not in WITHOUT_LEVELS_NIGHTS and arm.sleep.merges and not arm.sleep.updates
    checks.require(not nights, "sleep.pool", arm.sleep.pool, remedy)
    if names := varying(config):
        tuned = tuned_learner(lambda own: make(own).learner, first, names)
        arm = dataclasses.replace(arm, learner=tuned)
    sleeps = name not in WITHOUT_LEVELS_NIGHTS and len(arm.learner.rests) > 0
    return dataclasses.replace(arm, follows_schedule=sleeps)


def asks_for_reading(name: str, config: Any) -> bool:
    """Whether an arm depends on what is read: a control costs what questions cost its dreams."""
    controls = ("sleep_longer", *(PARTLY if config.equal_flops else ()))
    return name in controls and config.dream.reward == "questions"


def check_dreaming(config: Any) -> None:
    """Checks that nights can have dreams.

    Raises:
      ConfigError: they cannot.
    """
    dream, sleep, model = config.dream, config.sleep, config.model
    # What is dreamt of is the day's own text: it has to have been read, and only it.
    remedy = "dreaming is of whole days: use 'day_end'"
    checks.require(config.schedule.when == "day_end", "schedule.when", config.schedule.when, remedy)
    remedy = "dreams go into tonight's expert: use 'expert'"
    checks.require(sleep.into == "expert", "sleep.into", sleep.into, remedy)
    remedy = f"context and dream have dream.context_tokens + dream.new_tokens = {dream.width}"
    checks.require(dream.width <= model.max_len, "model.max_len", model.max_len, remedy)
    words, some = style_of(config).words, len(dream.formats) > 0
    checks.require(some, "dream.formats", dream.formats, f"name some of {', '.join(words)}")
    for kind in dream.formats:
        checks.one_of("dream.formats", kind, tuple(words))
        remedy = f"the backbone has to have seen {kind!r}: name it in formats too"
        shown = bool(config.backbone) or not words[kind] or kind in config.formats
        checks.require(shown, "dream.formats", dream.formats, remedy)
    remedy = "a pool that merges has room for one expert a night: use 'night'"
    checks.require(dream.into == "night" or not sleep.merges, "dream.into", dream.into, remedy)


def _check_agreement(config: Any, dream: DreamConfig) -> None:
    """A marked context is itself held back, for another of its fact: its copy would be rewarded."""
    words = style_of(config).words
    marked = [kind for kind in dream.formats if words[kind]]
    fair = dream.reward != "agreement" or dream.agree == "own" or not marked
    remedy = f"what is written from for {', '.join(marked)} is also held back: use 'own'"
    checks.require(fair, "dream.agree", dream.agree, remedy)


#: Arms whose dreams lack one part.
PARTLY = ("dream_random", "dream_no_explore", "dream_no_reinforcement", "dream_no_reward")
#: Arms whose nights dream.
DREAMING = ("dream", *PARTLY, "dream_questions", "dream_alone")
#: Every arm by name; build them with :func:`build_arm`.
ARMS: dict[str, Callable[..., Arm]] = {
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
    "sleep_longer": _longer,
    "dream": _dreaming,
    "dream_random": functools.partial(_without, score="random"),
    "dream_no_explore": functools.partial(_without, explore=False),
    "dream_no_reinforcement": functools.partial(_without, reinforce=False),
    "dream_no_reward": functools.partial(_without, reward="none"),
    "dream_questions": lambda c: _dreaming(c, reward="questions"),
    # Its night opens an expert and consolidates nothing; the fast level keeps what it has.
    "dream_alone": lambda c: _dreaming(c, night={"updates": 0, "becomes": "dusk"}),
    "reset_only": lambda c: _with(c, updates=0),
    "wake_only": _wake_only,
    "cms_without_seeding": _cms,
    "sft_all": plain.sft,
    "joint": lambda c: dataclasses.replace(plain.sft(c), joint=True),
    "lora_sequential": plain.lora,
    "ewc": plain.ewc,
    "icl": plain.icl,
    "inca": plain.inca,
}
#: Names that no arm of one's own may have.
OURS = frozenset(ARMS)


def add_arm(name: str, make: Callable[[Any], Arm]) -> None:
    """Adds an arm of one's own, which ``arms`` of a run can then name; for experiment files.

    It lives, is saved, asked and reported as all others are, on the same days. Its nights are
    charged for what its ``sleep`` describes, whatever else its method may do.

    Args:
      name: what it is called in settings, metrics and reports; another call of one's own replaces
        what that name stood for.
      make: ``config -> Arm``, of the run's configuration.

    Raises:
      ConfigError: the name is one of the bench's, or no Python name.
    """
    remedy = "an arm of your own needs a name of its own, of letters, digits and _"
    checks.require(name.isidentifier() and name not in OURS, "arms", name, remedy)
    ARMS[name] = make
