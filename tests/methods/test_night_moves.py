"""What a night moves of a learner of three levels: the table of docs/memory.md, and no more."""

from __future__ import annotations

import re

import jax
import pytest

from sleeplm.core import tree
from sleeplm.methods.config import evening

KEY = jax.random.key(4)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evenings(tiny):
    """A learner before and after each of its nights: of ``fast``, then of ``middle``."""
    config = tiny.config(evening, alpha=1.0, lam=0.0, rollback=0.0)
    model = tiny.model(tiny.three_levels(slots=2))
    made, state = tiny.learner(model, config)
    awake = jax.jit(made.wake)
    for i in range(4):
        state, _ = awake(state, tiny.text(i), jax.random.fold_in(KEY, i))
    nights = {}
    for rest in made.rests:
        before = state
        for step in (rest.begin, rest.seed, rest.seed, rest.end):
            state, _ = jax.jit(step)(state, tiny.rows(config), KEY)
        nights[rest.sender] = before, state
    return nights


def owners(before, after) -> set[str]:
    """Whose leaves differ: ``params/middle/experts``, ``anchors/fast``, ``counters/nights``, ..."""
    found = set()
    for path in tree.differing(before, after):
        words = re.findall(r"\w+", path)
        if words[0] == "params" and "levels" in words:
            level = words.index("levels") + 1
            words = ["params", *words[level : level + 2]]
        found.add("/".join(words[: 3 if words[0] == "params" or "night" in words else 2]))
    return found


def test_the_fastest_level_hands_on_to_the_next_and_no_other_is_touched(evenings):
    assert owners(*evenings["fast"]) == {
        *("params/fast/base", "params/fast/norm"),
        *("params/middle/experts", "params/middle/router", "slots/middle"),
        *("anchors/fast", "private/night/fast", "private/wake"),
        *("counters/nights", "counters/today"),
    }


def test_a_slower_level_hands_on_and_the_faster_one_sleeps_through_it(evenings):
    moved = owners(*evenings["middle"])
    assert moved >= {
        *("params/middle/experts", "params/middle/router", "slots/middle"),
        *("params/slow/experts", "params/slow/router", "slots/slow"),
        *("anchors/middle", "private/night/middle", "counters/nights"),
    }
    # What it had learned awake is gone with its experts; of nobody else anything is.
    assert moved <= {
        *("params/middle/base", "params/middle/norm"),
        *("params/middle/experts", "params/middle/router", "slots/middle"),
        *("params/slow/experts", "params/slow/router", "slots/slow"),
        *("anchors/middle", "private/night/middle", "private/wake", "counters/nights"),
    }


def test_awake_steps_cues_and_the_key_are_as_they_were_behind_both(evenings):
    before, after = evenings["fast"][0], evenings["middle"][1]
    assert tree.differing((before.cues, before.key), (after.cues, after.key)) == []
    assert int(before.counters["step"]) == int(after.counters["step"]) == 4
