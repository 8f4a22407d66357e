"""Learners that live in one program: each as if it were alone, also where only some sleep."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench.lives import learners_of
from sleeplm.core import tree
from sleeplm.methods.schedule import ScheduleConfig

pytestmark = pytest.mark.slow


def one_of(value, e: int):
    """What learner ``e`` has of arrays that have the learners in front."""
    return jax.tree.map(lambda x: x[e], value)


# --- as each alone -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together_and_alone(brief, tmp_path_factory):
    """The arm ``sleep``, lived by two learners side by side, and by each of them alone."""
    config = brief.config(seeds=2)
    lives = [
        brief.live(brief.bench(one), "sleep", tmp_path_factory.mktemp("life") / "run")
        for one in (config, *learners_of(config))
    ]
    return lives[0], lives[1:]


def test_side_by_side_two_learners_report_what_each_reports_alone(together_and_alone):
    both, alone = together_and_alone
    for e, life in enumerate(alone):
        assert len(life.lines) == len(both.lines)
        for ours, mine in zip(both.lines, life.lines, strict=True):
            assert ours.keys() == mine.keys()
            for name, value in ours.items():
                if isinstance(value, list):
                    found, want = (np.asarray(v, float) for v in (value[e], mine[name][0]))
                    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5, err_msg=name)
                else:
                    assert value == mine[name]


def test_side_by_side_two_learners_become_what_each_becomes_alone(together_and_alone):
    both, alone = together_and_alone
    for e, life in enumerate(alone):
        ours, mine = one_of(both.state, e), one_of(life.state, 0)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
            ours.params,
            mine.params,
        )
        # Whatever was decided, drawn or counted is the same to the last bit.
        for part in ("slots", "cues", "counters", "key"):
            assert tree.differing(getattr(ours, part), getattr(mine, part)) == []
        assert int(ours.counters["nights"]) == 2


def test_learners_have_worlds_backbones_and_samples_of_their_own(together_and_alone):
    both, _ = together_and_alone
    first, second = (one_of(both.newborn.params, e) for e in (0, 1))
    moved = set(tree.differing(first, second))
    assert {"['embed']", "['blocks']['attn']['q']['kernel']"} <= moved
    assert len(both.of("wake")) == 4 and len(both.of("seed")) == 4
    for line in (*both.of("wake"), *both.of("seed")):
        assert line["loss"][0] != line["loss"][1]
    assert both.bench.materials[0].days != both.bench.materials[1].days


# --- one sleeps, the other does not --------------------------------------------------------------

ASLEEP = {1: (True, False), 2: (False, True), 3: (False, False)}  # after so many wake steps
NIGHT = "night of day"


class Watched:
    """An agenda in which it is known who sleeps when; keeps what every night began and ended with.

    The schedule is told what to expect: little, and everything is a surprise; much, and nothing is.
    """

    def __init__(self):
        self.nights: list[list] = []  # per look: [evening, morning, moments with their metrics]

    def change(self, agenda):
        return [dataclasses.replace(m, run=self._running(m)) for m in agenda]

    def _running(self, moment):
        def run(state):
            if moment.record.get("event") == "look":
                state = self._expecting(state)
            state, metrics = moment.run(state)
            if moment.record.get("event") == "look":
                self.nights.append([jax.tree.map(jnp.copy, state), None, []])
            elif NIGHT in moment.label:
                self.nights[-1][2].append((moment, metrics))
            if self.nights and (NIGHT in moment.label):
                self.nights[-1][1] = jax.tree.map(jnp.copy, state)
            return state, metrics

        return run

    def _expecting(self, state):
        surprised = ASLEEP.get(len(self.nights), (False, False))
        forecast = jnp.where(jnp.asarray(surprised), 1e-3, 1e9)
        schedule = {**state.private["schedule"], "forecast": forecast}
        return state.replace(private={**state.private, "schedule": schedule})


@pytest.fixture(scope="module")
def watched(brief, tmp_path_factory):
    schedule = ScheduleConfig(when="surprise", shortest=0)
    config = brief.config(seeds=2, schedule=schedule, sleep={"updates": 2, "inner": 1})
    config = dataclasses.replace(config, day=dataclasses.replace(config.day, chunk=1))
    watch = Watched()
    directory = tmp_path_factory.mktemp("watched") / "run"
    return brief.live(brief.bench(config), "sleep", directory, watch.change), watch.nights


@pytest.mark.parametrize("look", [1, 2])
def test_a_learner_that_stays_awake_keeps_every_bit_while_the_other_sleeps(watched, look):
    _, nights = watched
    evening, morning, _ = nights[look]
    sleeper, other = ASLEEP[look].index(True), ASLEEP[look].index(False)
    assert evening.counters["asleep"].tolist() == [int(x) for x in ASLEEP[look]]
    assert tree.differing(one_of(evening, other), one_of(morning, other)) == []
    before, after = one_of(evening, sleeper), one_of(morning, sleeper)
    assert int(after.counters["nights"]) == int(before.counters["nights"]) + 1
    assert after.slots["slow"].active.sum() == before.slots["slow"].active.sum() + 1
    assert tree.differing(before.params, after.params)


def test_moments_that_nobody_needs_are_passed_over_and_leave_no_line(watched):
    life, nights = watched
    looks = life.of("look")
    assert len(looks) == len(nights) == 9  # before each of eight steps, and at the end
    slept = [bool(np.any(line["sleeps"])) for line in looks]
    assert slept == [False, True, True, False, False, False, False, False, True]
    for anybody, (evening, morning, moments) in zip(slept, nights, strict=True):
        assert [m.record.get("event") for m, _ in moments] == [None, "seed", "seed", "seed_end"]
        assert all((metrics is not None) is anybody for _, metrics in moments)
        if not anybody:
            assert tree.differing(evening, morning) == []
    assert len(life.of("seed")) == 2 * sum(slept)
    assert len(life.of("seed_end")) == sum(slept)


def test_who_did_not_sleep_has_no_value_in_the_night_of_the_other(watched):
    life, _ = watched
    missing = [[x is None for x in line["loss"]] for line in life.of("seed")]
    alone = [[not asleep for asleep in ASLEEP[look]] for look in (1, 2)]
    assert missing == [alone[0], alone[0], alone[1], alone[1], [False] * 2, [False] * 2]
    assert life.state.counters["nights"].tolist() == [2, 2]
    assert life.state.counters["today"].tolist() == [2, 2]
