"""Learners that differ in numbers share one compiled program, and each lives as if alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm import testing
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.phase import repeat
from sleeplm.core.side_by_side import for_each
from sleeplm.core.types import Phase
from sleeplm.memory.cues import BEFORE, EMPTY
from sleeplm.memory.levels import get_level
from sleeplm.methods.config import SleepConfig, TeacherConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.learner import learner
from sleeplm.methods.settings import (
    SETTINGS,
    replaced,
    tuned_learner,
    value_of,
    with_settings,
)
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model

SETTINGS_AT_ONCE = 32
KEY = jax.random.key(3)
#: What varies, and between which values.
RANGES = {
    "model.levels[0].learning_rate": (1e-3, 1e-1),
    "model.levels[0].weight_decay": (0.0, 0.5),
    "sleep.learning_rate": (1e-3, 1e-1),
    "sleep.weight_decay": (0.0, 0.5),
    "sleep.lam": (0.1, 0.9),
    "sleep.alpha": (0.1, 0.9),
    "sleep.gamma": (0.0, 1.0),
    "sleep.z0": (0.0, 8.0),
    "sleep.temperature": (0.5, 2.0),
    "sleep.teachers[0].weight": (0.5, 3.0),
    "sleep.teachers[0].uncued": (0.0, 1.0),
    "sleep.teachers[0].balance": (0.0, 1.0),
}
#: 1e-5 at 32 bits: what is read from memory is rounded otherwise than what is in the program.
CLOSE = testing.Tolerance(rtol=1e-5, atol=1e-5)


@dataclasses.dataclass
class Both:
    """A configuration with numbers of a model and of its nights."""

    model: ModelConfig
    sleep: SleepConfig


def build(config):
    return learner(Model(config.model), config.sleep, chunk=8)


@pytest.fixture(scope="module")
def base(tiny):
    # Plain gradient descent: Adam would blow rounding noise up to a full step.
    levels = [
        tiny.level("fast", kind="graft", period=1, night=4, optimizer="sgd", clip=1.0),
        tiny.level("slow", slots=3, top_k=2),
    ]
    # Two teachers, that it matters what one of them weighs, and one of all days, how it draws them.
    teachers = [TeacherConfig("dusk", "all"), TeacherConfig("dawn", "past", imitate=False)]
    sleep = tiny.config(teachers=teachers, lam=0.5, alpha=0.5, optimizer="sgd", length=7)
    return Both(tiny.model(levels).config, sleep)


@pytest.fixture(scope="module")
def many(base):
    """The settings of each learner, {name: [32]}."""
    random = np.random.default_rng(0)
    values = {n: random.uniform(*ends, SETTINGS_AT_ONCE) for n, ends in RANGES.items()}
    return {n: x.astype(np.float32) for n, x in values.items()}


@pytest.fixture(scope="module")
def one_changed():
    """A usual learner, one for every name whose number alone is another, and usual ones again."""
    usual = np.mean(list(RANGES.values()), axis=1)
    rows = np.stack([usual] * SETTINGS_AT_ONCE)
    for i, (least, _) in enumerate(RANGES.values()):
        rows[1 + i, i] = least
    return dict(zip(RANGES, rows.T.astype(np.float32), strict=True))


def settings_of(many, e):
    """The numbers of one learner, as a person writes them down."""
    return {name: float(values[e]) for name, values in many.items()}


@pytest.fixture(scope="module")
def alone(tiny, base):
    """One learner whose numbers are in its state, and that state: it knows today of more cues."""
    state = tiny.learner(Model(base.model), base.sleep)[1]
    made = tuned_learner(build, base, RANGES)
    born = jax.jit(made.init)(state.params, KEY)
    day = state.cues.day
    forgotten = (day == BEFORE) & (jnp.cumsum(day == BEFORE) > 2)
    cues = dataclasses.replace(state.cues, day=jnp.where(forgotten, EMPTY, day))
    return made, born.replace(cues=cues)


def together(state, many):
    """Learners that begin alike but for their settings."""
    return jax.vmap(lambda values: with_settings(state, values))(many)


def one_of(states, e):
    return jax.tree.map(lambda x: x[e], states)


def without_settings(state):
    return state.replace(private={k: v for k, v in state.private.items() if k != SETTINGS})


def day(tiny):
    return jax.tree.map(lambda *x: np.stack(x), *tiny.texts(3))


def lived(made, tiny, config):
    """A day of three steps and a night of one extraction, as one step of one learner."""

    def step(state, batch):
        awake = repeat(3, Phase(lambda params, key: (), made.wake))
        state, day = awake.step(state, batch, KEY)
        (rest,) = made.rests
        state, _ = rest.begin(state, tiny.rows(config.sleep), KEY)
        state, night = rest.seed(state, tiny.rows(config.sleep), KEY)
        return state, {"day": day, "night": night}

    return testing.counting(step)


@pytest.fixture(scope="module")
def fused(tiny, base, alone, many, one_changed):
    """A day and a night of all learners in one program: their states before and after, and what
    was measured; the states of other learners after it, of which each has one number changed; how
    often the step was traced and compiled."""
    made, state = alone
    step, text = lived(made, tiny, base), day(tiny)
    compiled = jax.jit(for_each(step))
    states = together(state, many)
    texts = jax.tree.map(lambda x: np.stack([x] * SETTINGS_AT_ONCE), text)
    outcome = compiled(states, texts)
    others, _ = compiled(together(state, one_changed), texts)
    return states, outcome, others, (step.traces, compiled._cache_size())


@pytest.mark.slow
def test_32_settings_in_one_compiled_program_equal_32_runs(tiny, base, alone, fused):
    states, outcome, _, (traces, programs) = fused
    assert (traces, programs) == (1, 1)
    run, text = jax.jit(lived(alone[0], tiny, base)), day(tiny)
    for e in range(SETTINGS_AT_ONCE):
        want = run(one_of(states, e), text)
        testing.same(f"(learner {e})", one_of(outcome, e), want, CLOSE)


@pytest.mark.slow
def test_numbers_in_the_state_do_what_constants_of_the_program_do(tiny, base, many, fused):
    states, outcome, *_ = fused
    e = SETTINGS_AT_ONCE - 1
    config = replaced(base, settings_of(many, e))
    run = jax.jit(lived(build(config), tiny, config))
    want = run(without_settings(one_of(states, e)), day(tiny))
    state, metrics = one_of(outcome, e)
    testing.same("(constants)", (without_settings(state), metrics), want, CLOSE)


@pytest.mark.slow
def test_every_setting_by_itself_leads_elsewhere(fused):
    """By more than rounding, which is all that a number does to a loss that is divided by it."""
    _, _, others, _ = fused
    experts = np.asarray(get_level(others.params, "slow")["experts"]["b"])
    usual, *rest = experts.reshape(SETTINGS_AT_ONCE, -1)  # where they began at 0
    away = np.asarray([np.abs(one - usual).max() for one in rest]) / np.abs(usual).max()
    assert [name for name, one in zip(RANGES, away, strict=False) if one < 1e-3] == []
    assert not away[len(RANGES) :].any()  # usual ones have gone where the first has


@pytest.mark.parametrize("name", ["model.levels[0].learning_rate", "model.levels[0].weight_decay"])
def test_awake_as_one_batch_each_learner_equals_its_constants(tiny, base, name):
    values = np.linspace(*RANGES[name], 3).astype(np.float32)
    state = tiny.learner(Model(base.model), base.sleep)[1]
    made = tuned_learner(build, base, [name])
    born = together(with_settings(state, {name: 0.0}), {name: values})
    run = jax.jit(jax.vmap(made.wake, in_axes=(0, None, None)))
    moved, _ = run(born, tiny.text(0), KEY)
    for e, value in enumerate(values):
        own = build(replaced(base, {name: float(value)}))
        want, _ = jax.jit(own.wake)(state, tiny.text(0), KEY)
        testing.same(f"({name} = {value})", without_settings(one_of(moved, e)), want, CLOSE)


@pytest.mark.slow
def test_a_learner_with_settings_of_its_own_keeps_the_laws(tiny, base, tmp_path):
    state = tiny.learner(Model(base.model), base.sleep)[1]
    names = ["model.levels[0].learning_rate"]

    def make(axis_name=None):
        made = tuned_learner(
            lambda c: learner(Model(c.model), c.sleep, chunk=8, axis_name=axis_name), base, names
        )
        return Phase(lambda params, key: made.init(params, key).private, made.wake)

    batches = tiny.texts(3)
    testing.traces_once(make, state, batches)
    testing.parallel_forms_agree(make, state, batches)
    testing.resumes_bit_identical(make, state, batches, directory=tmp_path)
    testing.frozen_stay_frozen(make, state, batches, ["private/settings", "params/embed", "key"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_numbers_in_the_state_change_no_type_of_what_is_learned(tiny, base, optimizer):
    levels = [dataclasses.replace(base.model.levels[0], optimizer=optimizer), base.model.levels[1]]
    model = dataclasses.replace(base.model, levels=levels, param_dtype="bfloat16")
    settings = {"optimizer": optimizer, "pool": "merge_balanced"}
    config = Both(model, dataclasses.replace(base.sleep, **settings))
    made = tuned_learner(build, config, RANGES)
    state = jax.eval_shape(lambda key: made.init(Model(model).init(key), key), KEY)
    (rest,) = made.rests
    night = tiny.rows(config.sleep)
    for step, batch in (
        *((made.wake, tiny.text(0)), (made.write_cues, {"today": np.int32(0)})),
        *((step, night) for step in (rest.begin, rest.seed, rest.end, *rest.merge)),
    ):
        assert jax.eval_shape(step, state, batch, KEY)[0] == state


# --- dreams ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Dreamer(Both):
    """With numbers of a night's dreaming too."""

    dream: DreamConfig


#: What varies of dreaming, and values that lead elsewhere than those of :func:`dreamer`.
DREAMT = {
    "dream.margin": -99.0,
    "dream.worse": 99.0,
    "dream.learning_rate": 0.03,
    "dream.absorb_learning_rate": 0.2,
    "dream.temperature": 0.7,
    "dream.hold": 0.4,
}
#: What else may, of the writer and of the gate.
ALSO = ("dream.writer_learning_rate", "dream.gate_margin", "dream.gate_cluster")


def dreaming_learner(config):
    return learner(Model(config.model), config.sleep, dream=config.dream, chunk=8)


@pytest.fixture(scope="module")
def dreamer(base):
    sizes = {"dreams": 4, "context_tokens": 6, "new_tokens": 4, "keep": 2, "extra": 0, "ngram": 2}
    trial = {"rank": 2, "steps": 2, "score": "random", "memories": 2, "margin": 99.0}
    night = {"rounds": 1, "updates": 1, "inner": 1, "rows": 2, "into": "new", "past": 0.0}
    brief = {"gate": 0, "reinforce": False}
    return Dreamer(base.model, base.sleep, DreamConfig(**sizes, **trial, **night, **brief))


def night_of_dreams(tiny):
    tokens = tiny.text(0, rows=3)["tokens"][:, :6]
    contexts = {"tokens": tokens, "length": np.asarray([6, 5, 6], np.int32)}
    rows = np.arange(2, dtype=np.int32).reshape(1, 2)
    return {"contexts": contexts, "today": np.int32(1), "round": np.int32(0), "rows": rows}


def all_dreamt(made, batch):
    """A night's dreaming from begin to end, as one step."""

    def step(state):
        metrics = {}
        for name in ("begin", "round", "absorb", "end"):
            state, metrics[name] = getattr(made.dreaming, name)(state, batch, KEY)
        return state, metrics

    return step


@pytest.mark.slow
def test_numbers_of_dreaming_in_the_state_do_what_constants_do(tiny, dreamer):
    config = replaced(dreamer, DREAMT)
    state = tiny.learner(Model(config.model), config.sleep, dream=config.dream)[1]
    batch = night_of_dreams(tiny)
    run = jax.jit(all_dreamt(tuned_learner(dreaming_learner, dreamer, DREAMT), batch))
    got, metrics = run(with_settings(state, DREAMT))
    want = jax.jit(all_dreamt(dreaming_learner(config), batch))(state)
    testing.same("(constants)", (without_settings(got), metrics), want, CLOSE)
    assert metrics["end"]["absorbed"][0] == 1

    other = {**DREAMT, "dream.margin": 99.0}  # in the same program nothing is gained by so much
    assert run(with_settings(state, other))[1]["round"]["accepted"][0] == 0
    assert run._cache_size() == 1


def test_numbers_of_dreaming_change_no_type_of_what_is_learned(tiny, dreamer):
    model = dataclasses.replace(dreamer.model, param_dtype="bfloat16")
    dream = dataclasses.replace(dreamer.dream, reinforce=True, gate=8, past=1.0)
    made = tuned_learner(dreaming_learner, Dreamer(model, dreamer.sleep, dream), [*DREAMT, *ALSO])
    state = jax.eval_shape(lambda key: made.init(Model(model).init(key), key), KEY)
    for step in (made.dreaming.begin, made.dreaming.round, made.dreaming.absorb, made.dreaming.end):
        assert jax.eval_shape(step, state, night_of_dreams(tiny), KEY)[0] == state


# --- names ----------------------------------------------------------------------------------------


def test_settings_are_read_and_replaced_by_dotted_name(base):
    other = replaced(base, {"sleep.teachers[0].weight": 3.0, "model.levels[1].rank": 2})
    assert value_of(other, "sleep.teachers[0].weight") == 3.0
    assert (other.model.levels[1].rank, base.model.levels[1].rank) == (2, 4)
    assert base.sleep.teachers[0].weight == 1.0  # the original is as it was
    assert replaced(base, {}) == base
    for name in ("sleep.lamb", "sleep.teachers[7].weight", "sleep.lam.x", "model[0]", "", "a..b"):
        with pytest.raises(ConfigError, match="no such setting"):
            replaced(base, {name: 1.0})


def test_without_settings_a_learner_is_as_it_was(tiny, base):
    made, state = tiny.learner(Model(base.model), base.sleep)
    assert with_settings(state, {}) is state
    plain = tuned_learner(build, base, []).init(state.params, KEY)
    assert tree.differing(plain, made.init(state.params, KEY)) == []
