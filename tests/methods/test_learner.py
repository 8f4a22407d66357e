"""A whole learner: days and nights of several levels, compiled once, with donated memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core import tree
from sleeplm.core.losses import forward_kl
from sleeplm.core.types import Extract, Phase
from sleeplm.memory.anchors import pool_of
from sleeplm.memory.cues import BEFORE
from sleeplm.memory.levels import due, get_level
from sleeplm.memory.slots import holds, require_room
from sleeplm.methods.config import evening, paper_v2
from sleeplm.methods.learner import learner
from sleeplm.methods.objectives import seeding
from sleeplm.runtime.parallel import jit_step
from sleeplm.testing import counting

pytestmark = pytest.mark.slow

KEY = jax.random.key(2)


def short(tiny, make=evening, **settings):
    return tiny.config(make, alpha=1.0, lam=0.0, updates=2, rollback=0.0, **settings)


class Life:
    """Runs a learner the way its schedule says; every step compiled once and for all."""

    def __init__(self, tiny, model, config):
        self.tiny, self.config, self.key = tiny, config, KEY
        self.learner, self.state = tiny.learner(model, config)
        steps = {"wake": self.learner.wake}
        for rest in self.learner.rests:
            for part in ("begin", "seed", "end"):
                steps[f"{rest.sender}/{part}"] = getattr(rest, part)
        self.counted = {name: counting(step) for name, step in steps.items()}
        self.compiled = {name: jit_step(step) for name, step in self.counted.items()}

    def do(self, name, batch):
        self.key = jax.random.fold_in(self.key, 1)
        self.state, metrics = self.compiled[name](self.state, batch, self.key)
        return metrics

    def wake(self):
        return self.do("wake", self.tiny.text(int(self.state.counters["step"])))

    def sleep(self, rest):
        require_room(self.state.slots[rest.receiver], rest.receiver)
        batch = self.tiny.rows(self.config)
        self.do(f"{rest.sender}/begin", batch)
        for _ in range(self.config.blocks):
            self.do(f"{rest.sender}/seed", batch)
        return self.do(f"{rest.sender}/end", batch)

    def day(self, steps):
        """Steps, and the nights that fall due; who slept."""
        slept = []
        for _ in range(steps):
            self.wake()
            for rest in self.learner.rests:
                if due(int(self.state.counters["step"]), rest.every):
                    self.sleep(rest)
                    slept.append((int(self.state.counters["step"]), rest.sender))
        return slept

    def open(self, level):
        return int(self.state.slots[level].active.sum())


@pytest.fixture(scope="module")
def cascade(tiny):
    life = Life(tiny, tiny.model(tiny.three_levels(offset=1)), short(tiny))
    seen = []
    for day in range(4):
        slept = life.day(4)
        seen.append(
            {
                "day": day,
                "slept": slept,
                "open": (life.open("middle"), life.open("slow")),
                "middle": jax.device_get(pool_of(life.state.params, "middle")),
                "slow": jax.device_get(get_level(life.state.params, "slow")),
            }
        )
    return life, seen


def test_each_level_sleeps_on_its_own_schedule_fastest_first(cascade):
    _, seen = cascade
    assert [night for day in seen for night in day["slept"]] == [
        (4, "fast"),
        (8, "fast"),
        (8, "middle"),
        (12, "fast"),
        (16, "fast"),
        (16, "middle"),
    ]


def test_experts_arrive_and_a_level_is_pruned_when_it_has_been_consolidated(cascade):
    life, seen = cascade
    assert [day["open"] for day in seen] == [(1, 0), (0, 1), (1, 1), (0, 2)]
    for day in seen:
        used = any(np.any(x) for x in jax.tree.leaves(day["middle"]))
        assert used is (day["open"][0] > 0)
    assert int(life.state.counters["nights"]) == 6


def test_experts_of_all_levels_are_filed_by_the_days_they_took_in_as_cues_are(cascade):
    """Not by how many nights, of whichever levels, there have been."""
    life, _ = cascade
    table = life.state.slots["slow"]
    assert table.since.tolist() == [0, 2, -1]
    days = jnp.arange(4)
    assert holds(table, jnp.int32(0), days).tolist() == [True, True, False, False]
    assert holds(table, jnp.int32(1), days).tolist() == [False, False, True, True]
    assert int(life.state.counters["today"]) == 4


def test_what_the_slowest_level_received_stays_bit_for_bit(cascade):
    _, seen = cascade
    first, last = seen[1]["slow"], seen[3]["slow"]
    for part, name, axis in (
        ("experts", "a", 1), ("experts", "b", 1), ("router", "w", 2), ("router", "bias", 1),
    ):  # fmt: skip
        before, after = (np.take(s[part][name], 0, axis) for s in (first, last))
        assert before.tobytes() == after.tobytes()
    assert tree.differing(first["base"], last["base"]) == []
    assert np.any(np.take(last["experts"]["b"], 1, 1)) and not np.any(first["experts"]["b"][:, 1])


def test_over_many_days_and_nights_every_step_is_traced_once(cascade):
    life, _ = cascade
    assert {name: step.traces for name, step in life.counted.items()} == dict.fromkeys(
        life.counted, 1
    )


# --- what becomes of the sender's optimiser ------------------------------------------------------


def one_night(tiny, config):
    life = Life(tiny, tiny.model(tiny.two_levels(period=2)), config)
    fresh = jax.device_get(optimiser(life, "fast"))
    life.day(3)
    life.wake()
    before = [jax.device_get(optimiser(life, name)) for name in ("fast", "slow")]
    life.sleep(life.learner.rests[0])
    return fresh, before, [optimiser(life, name) for name in ("fast", "slow")]


def optimiser(life, level):
    return life.state.private["wake"][0].update.inner_states[f"{level}/base"]


def test_a_sender_that_wakes_empty_also_forgets_its_moments(tiny):
    fresh, before, after = one_night(tiny, short(tiny))
    assert tree.differing(before[0], fresh)
    assert tree.differing(after[0], fresh) == []
    assert tree.differing(after[1], before[1]) == []


def test_a_sender_that_keeps_its_day_keeps_its_moments(tiny):
    _, before, after = one_night(tiny, short(tiny, paper_v2))
    assert tree.differing(after[0], before[0]) == []


def test_a_night_without_a_single_update_is_no_night_and_forgets_nothing(tiny):
    life = Life(tiny, tiny.model(), short(tiny))
    life.day(3)
    before = jax.device_get((life.state.params, life.state.slots, life.state.private["wake"]))
    life.do("fast/begin", tiny.rows(life.config))
    life.do("fast/end", tiny.rows(life.config))
    after = life.state.params, life.state.slots, life.state.private["wake"]
    assert tree.differing(after, before) == []
    assert int(life.state.counters["rolled_back"]) == 1


@pytest.mark.parametrize("pool", ["refuse", "merge_oldest"])
@pytest.mark.parametrize("wiring", ["sequential", "independent", "nested"])
def test_in_every_wiring_a_night_hands_back_a_state_of_the_same_kind(tiny, wiring, pool):
    levels = tiny.two_levels(period=2, kind="graft")
    made, state = tiny.learner(tiny.model(levels, wiring=wiring), short(tiny, pool=pool))
    (rest,) = made.rests
    batch, like = tiny.rows(short(tiny)), jax.eval_shape(lambda: state)
    for step in (rest.begin, rest.seed, rest.end, *(rest.merge or ())):
        assert jax.eval_shape(step, state, batch, KEY)[0] == like
    assert (rest.merge is None) is (pool == "refuse")


def test_levels_that_never_sleep_have_no_rest_and_no_anchor(tiny):
    made, state = tiny.learner(tiny.model(tiny.two_levels(night=0)), short(tiny))
    assert made.rests == () and state.anchors == {}


def test_cues_are_offered_day_by_day(tiny):
    made, state = tiny.learner(tiny.model(), short(tiny))
    state, metrics = jax.jit(made.remember)(state, tiny.cues(5, day=3, n=4), KEY)
    assert sorted(np.asarray(state.cues.day).tolist()).count(3) == 4
    assert float(metrics["cues"][0]) == int((state.cues.day >= BEFORE).sum()) == 16


def test_learners_of_many_seeds_are_one_vmapped_learner(tiny):
    model, config = tiny.model(), short(tiny)
    made, _ = tiny.learner(model, config)
    params = jax.vmap(model.init)(jax.random.split(KEY, 3))
    states = jax.vmap(made.init)(params, jax.random.split(KEY, 3))
    step = jax.jit(jax.vmap(made.wake, in_axes=(0, None, None)))
    states, metrics = step(states, tiny.text(0), KEY)
    assert metrics["loss"][0].shape == (3,)
    assert len(set(np.asarray(metrics["loss"][0]).tolist())) == 3
    np.testing.assert_array_equal(states.counters["step"], jnp.ones(3))


def test_whatever_is_born_with_numbers_of_its_own_draws_other_ones(tiny):
    """An awakening and the nights of two pairs, each with a key that is no other's."""
    levels = [
        tiny.level("fast", kind="graft", night=4),
        tiny.level("middle", kind="graft", night=8, slots=2),
        tiny.level("slow", slots=2),
    ]
    model, config = tiny.model(levels), short(tiny)

    def drawn(params, key):
        return {"drawn": jax.random.normal(key)}

    def unused(*_):
        raise AssertionError("nobody lives here")

    made = learner(
        model,
        config,
        awake=Phase(drawn, unused),
        method=lambda sender, receiver: {"extract": Extract(drawn, unused)},
    )
    state = jax.jit(made.init)(tiny.params(model), KEY)
    named = jax.tree_util.tree_leaves_with_path(state.private)
    numbers = [float(x) for path, x in named if getattr(path[-1], "key", None) == "drawn"]
    assert len(numbers) == len(set(numbers)) == 3


def test_a_method_of_ones_own_sleeps_in_a_whole_learner(tiny):
    asked, seen = [], []
    model, config = tiny.model(tiny.two_levels(slots=2)), short(tiny)

    def method(sender, receiver):
        asked.append((sender, receiver))
        usual = seeding(model, forward_kl, alpha=1.0, chunk=8)

        def objective(variables, memory):
            seen.append(memory.tokens.shape)
            loss, weight, aux = usual(variables, memory)
            return 2.0 * loss, weight, {**aux, "mine": (loss, weight)}

        return {"objective": objective}

    made, state = tiny.learner(model, config, method=method)
    (rest,) = made.rests
    state, _ = jax.jit(rest.begin)(state, tiny.rows(config), KEY)
    state, metrics = jax.jit(rest.seed)(state, tiny.rows(config), KEY)
    assert asked == [("fast", "slow")]
    assert seen
    np.testing.assert_allclose(metrics["loss"][0], 2.0 * metrics["mine"][0], rtol=1e-6)
