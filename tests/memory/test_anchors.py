from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.core.tree import differing, nbytes
from sleeplm.memory.anchors import POOL, TEACHERS, init_anchor, pool_of, teacher_variables
from sleeplm.memory.levels import LevelConfig, get_level
from sleeplm.memory.slots import open_slot
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model

LEVELS = [
    LevelConfig(name="fast", kind="graft", width=8, period=1, night=2, slots=2, rank=2),
    LevelConfig(name="mid", kind="graft", width=8, night=4, slots=3, rank=2),
    LevelConfig(name="slow", width=16, slots=3, rank=2),
]
MODEL = Model(
    ModelConfig(vocab_size=30, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, levels=LEVELS)
)


def distinct(tree, value):
    return jax.tree.map(lambda x: jnp.full_like(x, value), tree)


def learner(keep=()):
    """Variables whose anchor of ``fast`` has another number in every subtree."""
    params, slots = jax.jit(MODEL.init)(jax.random.key(0)), MODEL.init_slots()
    anchor = init_anchor(params, slots, "fast", "mid", keep)
    anchor = dataclasses.replace(
        anchor,
        start=distinct(anchor.start, 1.0),
        dawn=distinct(anchor.dawn, 2.0),
        dusk=distinct(anchor.dusk, 3.0),
        dawn_slots=open_slot(anchor.dawn_slots, 0, 4),
        dusk_slots=open_slot(anchor.dusk_slots, 1, 5),
        receiver_slots=open_slot(anchor.receiver_slots, 2, 6),
        receiver=distinct(anchor.receiver, 7.0),
    )
    slots = {name: open_slot(table, 0, 8) for name, table in slots.items()}
    return {"params": params, "slots": slots, "anchors": {"fast": anchor}, "cues": object()}


def teach(variables, state):
    return teacher_variables(variables, "fast", "mid", state)


def test_a_newborn_anchor_is_the_present_in_buffers_of_its_own():
    params, slots = jax.jit(MODEL.init)(jax.random.key(0)), MODEL.init_slots()
    anchor = init_anchor(params, slots, "fast", "mid", keep=POOL)
    for then in (anchor.start, anchor.dawn, anchor.dusk):
        assert differing(then, get_level(params, "fast")) == []
    assert differing(anchor.dusk_slots, slots["fast"]) == []
    assert differing(anchor.receiver_slots, slots["mid"]) == []
    assert differing(anchor.receiver, pool_of(params, "mid")) == []
    live = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, slots)) if x.size}
    held = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(anchor) if x.size]
    assert live.isdisjoint(held)  # so that a donated state frees no anchor
    assert len(set(held)) == len(held)


@pytest.mark.parametrize("state", TEACHERS)
def test_a_teacher_swaps_the_sender_and_two_ledgers_and_shares_everything_else(state):
    variables = learner()
    teacher = teach(variables, state)
    before, after = variables["params"], teacher["params"]
    assert after["embed"] is before["embed"]
    assert after["final_norm"] is before["final_norm"]
    assert after["blocks"]["attn"] is before["blocks"]["attn"]
    assert after["blocks"]["attn_norm"] is before["blocks"]["attn_norm"]
    for level in ("mid", "slow"):
        assert get_level(after, level) is get_level(before, level)
    if state != "origin":
        assert teacher["slots"]["slow"] is variables["slots"]["slow"]
        assert teacher["slots"]["mid"] is variables["anchors"]["fast"].receiver_slots
    assert teacher["anchors"] is variables["anchors"]
    assert teacher["cues"] is variables["cues"]


def test_each_state_is_the_sender_of_its_time():
    variables = learner()
    anchor = variables["anchors"]["fast"]
    dusk, dawn, before, origin = (
        teach(variables, s) for s in ("dusk", "dawn", "before_update", "origin")
    )
    assert get_level(dusk["params"], "fast") is anchor.dusk
    assert dusk["slots"]["fast"] is anchor.dusk_slots
    assert get_level(dawn["params"], "fast") is anchor.dawn
    assert dawn["slots"]["fast"] is anchor.dawn_slots
    v2 = get_level(before["params"], "fast")
    assert v2["base"] is anchor.dawn["base"]
    assert v2["norm"] is anchor.dawn["norm"]
    assert v2["experts"] is anchor.dusk["experts"]
    assert v2["router"] is anchor.dusk["router"]
    assert before["slots"]["fast"] is anchor.dusk_slots
    assert get_level(origin["params"], "fast") is anchor.start
    assert all(not np.any(table.active) for table in origin["slots"].values())


@pytest.mark.parametrize("state", TEACHERS)
def test_a_kept_pool_of_the_receiver_comes_back_with_its_base_shared(state):
    variables = learner(keep=POOL)
    level = get_level(teach(variables, state)["params"], "mid")
    anchor = variables["anchors"]["fast"]
    assert level["experts"] is anchor.receiver["experts"]
    assert level["router"] is anchor.receiver["router"]
    assert level["base"] is get_level(variables["params"], "mid")["base"]


@pytest.mark.parametrize("state", TEACHERS)
def test_a_teacher_costs_the_bytes_of_the_sender_alone(state):
    variables = learner()
    shared = {id(x) for x in jax.tree.leaves(variables["params"])}
    extra = [x for x in jax.tree.leaves(teach(variables, state)["params"]) if id(x) not in shared]
    assert nbytes(extra) == nbytes(get_level(variables["params"], "fast"))


def test_an_anchor_holds_three_senders_and_no_second_model():
    variables = learner()
    sender = nbytes(get_level(variables["params"], "fast"))
    anchor = variables["anchors"]["fast"]
    ledgers = nbytes((anchor.dawn_slots, anchor.dusk_slots, anchor.receiver_slots))
    assert nbytes(anchor) == 3 * sender + ledgers + 4 * 4


def test_teaching_leaves_the_learner_as_it_was():
    variables = learner()
    params, slots = variables["params"], dict(variables["slots"])
    teach(variables, "origin")
    assert variables["params"] is params
    assert variables["slots"] == slots


def test_an_unknown_state_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="dusk, dawn, before_update, origin"):
        teach(learner(), "noon")
