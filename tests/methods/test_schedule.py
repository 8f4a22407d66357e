"""When to sleep: looking at the next batch, and letting only those sleep who want to."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.methods import schedule
from sleeplm.methods.extract import wake_batch
from sleeplm.methods.objectives import language_model
from sleeplm.methods.schedule import ScheduleConfig, look, masked

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def learned(tiny):
    model = tiny.model()
    return model, tiny.learner(model, tiny.config())[1]


def settings(**changes):
    config = ScheduleConfig(**{"when": "surprise", "shortest": 0, **changes})
    config.check("schedule")
    return config


@pytest.fixture
def follow(learned, monkeypatch):
    """Looks at batches whose losses are given, one wake step after each; what was decided."""
    model, state = learned

    def scripted(model, chunk):
        return lambda variables, memory: (2.0 * memory.reward[0], jnp.float32(2.0), {})

    class Reader:
        @staticmethod
        def extract(variables, s, batch, key):
            memory, _ = wake_batch().extract(variables, s, batch, key)
            memory = jax.tree.map(jnp.asarray, memory)
            return type(memory)(**{**vars(memory), "reward": batch["loss"][None]}), s

    def run(losses, *, last=False, **changes):
        monkeypatch.setattr(schedule, "language_model", scripted)
        monkeypatch.setattr(schedule, "wake_batch", lambda: Reader)
        phase = look(model, settings(**changes), "fast")
        step = jax.jit(phase.step)
        now = state.replace(private=phase.init(state.params, KEY))
        slept, seen = [], []
        for i, loss in enumerate(losses):
            batch = {
                "tokens": np.ones((1, 3), np.int32),
                "segments": np.ones((1, 3), np.int32),
                "loss": np.float32(loss),
                "last": np.bool_(last and i == len(losses) - 1),
            }
            now, metrics = step(now, batch, KEY)
            assert int(now.counters["asleep"]) == float(metrics["sleeps"][0])
            slept.append(int(now.counters["asleep"]))
            seen.append((now.private, metrics))
            now = now.replace(counters={**now.counters, "step": now.counters["step"] + 1})
        return slept, seen

    return run


# --- by surprise ---------------------------------------------------------------------------------


def test_a_learner_sleeps_when_the_loss_jumps_above_its_forecast(follow):
    slept, seen = follow([9.0, 1.0, 4.0, 1.0, 8.1, 8.0], ratio=2.0, decay=0.5)
    # forecasts before each look: none, 9, 5, 4.5, 2.75, 8.1 (anew after the night)
    assert slept == [0, 0, 0, 0, 1, 0]
    want = [9.0, 5.0, 4.5, 2.75, 8.1, 8.05]
    np.testing.assert_allclose([float(p["forecast"]) for p, _ in seen], want, rtol=1e-6)
    surprises = [1.0, 1 / 9, 4 / 5, 1 / 4.5, 8.1 / 2.75, 8.0 / 8.1]
    np.testing.assert_allclose([float(m["surprise"][0]) for _, m in seen], surprises, rtol=1e-5)


def test_the_forecast_forgets_at_the_rate_that_is_set(follow):
    _, seen = follow([2.0, 4.0, 1.0], ratio=9.0, decay=0.75)
    want = [2.0, 0.75 * 2 + 0.25 * 4, 0.75 * 2.5 + 0.25 * 1]
    np.testing.assert_allclose([float(p["forecast"]) for p, _ in seen], want, rtol=1e-6)


JUMPS = [1.0, 3.0, 9.0, 27.0, 81.0, 243.0, 729.0]  # every one above twice the last


def test_nobody_sleeps_before_anything_was_absorbed(follow):
    assert follow([1.0, 9.0])[0] == [0, 1]
    assert follow([1.0], longest=1)[0] == [0]


@pytest.mark.parametrize(
    ("shortest", "slept"),
    [
        (0, [0, 1, 1, 1, 1, 1, 1]),
        (2, [0, 0, 1, 0, 1, 0, 1]),
        (3, [0, 0, 0, 1, 0, 0, 1]),
    ],
)
def test_between_two_nights_lie_at_least_the_shortest_number_of_steps(follow, shortest, slept):
    assert follow(JUMPS, ratio=1.2, shortest=shortest)[0] == slept


def test_after_the_longest_number_of_steps_everybody_sleeps(follow):
    flat = [1.0] * 8
    assert follow(flat, longest=3)[0] == [0, 0, 0, 1, 0, 0, 1, 0]
    assert follow(flat, longest=0)[0] == [0] * 8
    # A jump in between starts the count anew.
    assert follow([1.0, 1.0, 9.0, 9.0, 9.0, 9.0], longest=3)[0] == [0, 0, 1, 0, 0, 1]


# --- a budget of nights --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nights", "slept"),
    [
        (1, [0, 0, 0, 0, 0, 0, 1]),
        (3, [0, 1, 1, 0, 0, 0, 1]),
        (0, [0, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_last_night_of_a_budget_is_kept_for_the_end_of_life(follow, nights, slept):
    got, seen = follow(JUMPS, ratio=2.0, nights=nights, last=True)
    assert got == slept
    assert int(seen[-1][0]["slept"]) == sum(slept)


def test_the_budget_holds_however_long_the_days_become(follow):
    slept, _ = follow([1.0] * 7, longest=2, nights=2, last=True)
    assert slept == [0, 0, 1, 0, 0, 0, 1]


def test_at_the_end_even_the_shortest_day_is_slept_on_but_not_an_empty_one(follow):
    assert follow([1.0, 1.0], shortest=5, last=True)[0] == [0, 1]
    assert follow([1.0], last=True)[0] == [0]


# --- by how full the level is --------------------------------------------------------------------


def moved(state, **parts):
    fast = get_level(state.params, "fast")
    changed = {p: jax.tree.map(lambda x, by=by: x + by, fast[p]) for p, by in parts.items()}
    return state.replace(params=with_levels(state.params, {"fast": {**fast, **changed}}))


def test_a_level_is_full_when_its_mlp_has_come_too_far_since_dawn(tiny, learned):
    model, state = learned
    phase = look(model, settings(when="fill", most=0.05), "fast")
    step = jax.jit(phase.step)
    state = state.replace(
        private=phase.init(state.params, KEY), counters={**state.counters, "step": jnp.int32(4)}
    )
    batch = {**tiny.text(0), "last": np.bool_(False)}
    fast = get_level(state.params, "fast")
    sizes = [tree.size(fast[part]) for part in ("base", "norm")]
    ways = {}
    for by in ({"base": 0.0}, {"base": 0.049, "norm": 0.049}, {"base": 0.051, "norm": -0.051}):
        after, metrics = step(moved(state, **by), batch, KEY)
        ways[by["base"]] = float(metrics["fill"][0])
        assert int(after.counters["asleep"]) == (by["base"] > 0.05)
    np.testing.assert_allclose([*ways.values()], [0.0, 0.049, 0.051], rtol=1e-4)
    _, metrics = step(moved(state, norm=1.0), batch, KEY)
    np.testing.assert_allclose(metrics["fill"][0], math.sqrt(sizes[1] / sum(sizes)), rtol=1e-4)


def test_the_forecast_is_of_the_task_loss_of_the_learner_as_it_is(tiny, learned):
    model, state = learned
    phase = look(model, settings(), "fast", chunk=8)
    state = state.replace(private=phase.init(state.params, KEY))
    batch = tiny.text(3)
    after, _ = jax.jit(phase.step)(state, {**batch, "last": np.bool_(False)}, KEY)
    memory, _ = wake_batch().extract(None, (), batch, KEY)
    total, weight, _ = jax.jit(language_model(model))(state.variables, memory)
    np.testing.assert_allclose(after.private["forecast"], total / weight, rtol=1e-5)
    back = after.replace(private=state.private)
    assert tree.differing(back, state) == []  # looking moves nothing


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"when": "noon"}, "when"),
        ({"ratio": 0}, "ratio"),
        ({"decay": 1.5}, "decay"),
        ({"most": -1.0}, "most"),
        ({"nights": -1}, "nights"),
        ({"shortest": 5, "longest": 4}, "longest"),
    ],
)
def test_schedules_that_cannot_work_are_refused(changes, field):
    with pytest.raises(ConfigError, match=rf"schedule\.{field}"):
        settings(**changes)


# --- many learners, one program ------------------------------------------------------------------


def test_learners_who_stay_awake_keep_every_bit_and_count_nothing(learned):
    _, state = learned
    state = state.replace(params={"embed": state.params["embed"]}, anchors={}, private={})

    def step(state, batch, key):
        """Moves everything that there is, and hands NaN to those who should not see it."""
        broken = jnp.where(state.counters["asleep"] > 0, 1.0, jnp.nan)
        new = jax.tree.map(
            lambda x: x + broken.astype(x.dtype) if x.dtype == jnp.float32 else x, state
        )
        counters = {**state.counters, "nights": state.counters["nights"] + 1}
        new = new.replace(counters=counters, key=jax.random.fold_in(state.key, 1))
        return new, {"loss": (batch * broken, jnp.ones(()))}

    def flagged(asleep):
        return state.replace(counters={**state.counters, "asleep": jnp.int32(asleep)})

    both = jax.tree.map(lambda *x: jnp.stack(x), flagged(0), flagged(1))
    run = jax.jit(jax.vmap(masked("asleep", step), in_axes=(0, None, None)))
    after, metrics = run(both, jnp.float32(5.0), KEY)
    first, second = (jax.tree.map(lambda x, i=i: x[i], after) for i in (0, 1))
    assert tree.differing(first, flagged(0)) == []
    want, _ = jax.jit(step)(flagged(1), jnp.float32(5.0), KEY)
    assert tree.differing(second, want) == []
    np.testing.assert_array_equal(metrics["loss"][0], [0.0, 5.0])
    np.testing.assert_array_equal(metrics["loss"][1], [0.0, 1.0])
