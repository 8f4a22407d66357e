from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.core.tree import differing
from sleeplm.memory import levels as lv
from sleeplm.memory.levels import LevelConfig, check_levels
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model


def fast(**changes):
    return dataclasses.replace(
        LevelConfig(name="fast", kind="graft", width=8, period=2, night=4, slots=1), **changes
    )


def slow(**changes):
    return dataclasses.replace(LevelConfig(name="slow", width=8, period=4, slots=2), **changes)


def refused(levels, wiring="sequential", field="model.levels"):
    with pytest.raises(ConfigError) as error:
        check_levels(levels, wiring, field)
    assert "\n" not in str(error.value)
    assert error.value.remedy
    return error.value


def test_good_chains_pass():
    check_levels([LevelConfig()], "sequential", "model.levels")
    check_levels([fast(), slow()], "independent", "model.levels")
    check_levels([fast(), slow(period=0)], "sequential", "model.levels")
    check_levels([fast(), slow(kind="graft")], "nested", "model.levels")
    check_levels([fast(), fast(name="mid", night=8), slow()], "sequential", "model.levels")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "two words"),
        ("name", ""),
        ("name", 3),
        ("name", "mix"),
        ("kind", "grafted"),
        ("width", 0),
        ("width", 2.5),
        ("period", -1),
        ("period", 1.5),
        ("night", -2),
        ("night", 3),
        ("night", "four"),
        ("slots", -1),
        ("slots", True),
        ("offset", 2),
        ("offset", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("optimizer", "adam"),
        ("gate", "relu"),
        ("gate_bias", math.inf),
        ("b1", 1.5),
        ("b1", 1.0),
        ("b2", -0.1),
        ("weight_decay", -1e-3),
        ("weight_decay", math.nan),
        ("clip", -1.0),
        ("rank", 0),
        ("top_k", 2),
        ("top_k", 0),
    ],
)
def test_a_bad_setting_of_a_level_is_refused_with_its_field_and_value(field, value):
    error = refused([fast(**{field: value}), slow()])
    assert error.field == f"model.levels[0].{field}"
    assert error.value is value


def test_a_frozen_level_has_no_offset():
    assert refused([slow(period=0, offset=1)]).field == "model.levels[0].offset"


def test_close_misspellings_are_pointed_at_their_meaning():
    assert "did you mean 'graft'" in refused([fast(kind="grafft"), slow()]).remedy
    assert "did you mean 'adamw'" in refused([fast(optimizer="adam"), slow()]).remedy


@pytest.mark.parametrize(
    ("chain", "wiring", "field", "said"),
    [
        ([], "sequential", "model.levels", "at least one"),
        ([slow(), slow()], "sequential", "model.levels", "own name"),
        ([fast(), slow(period=3)], "sequential", "model.levels[1].period", "fast's period (2)"),
        ([fast(), slow(period=1)], "sequential", "model.levels[1].period", "fast's period (2)"),
        ([fast(period=0), slow()], "sequential", "model.levels[1].period", "faster"),
        (
            [fast(), slow(name="mid", night=8), slow(name="end", night=12)],
            "sequential",
            "model.levels[2].night",
            "mid's night (8)",
        ),
        ([fast(), slow(slots=0)], "sequential", "model.levels[1].slots", "fast is consolidated"),
        ([fast(), slow(night=4)], "sequential", "model.levels[1].night", "no receiver"),
        ([slow(night=4)], "sequential", "model.levels[0].night", "no receiver"),
        ([slow()], "serial", "model.wiring", "sequential"),
        ([fast(), slow(kind="graft", width=9)], "nested", "model.wiring", "same kind and width"),
        ([fast(), slow()], "nested", "model.wiring", "same kind and width"),
        ([slow(period=0)], "nested", "model.levels[0].period", "finite period"),
    ],
)
def test_a_chain_that_cannot_work_is_refused_where_it_breaks(chain, wiring, field, said):
    error = refused(chain, wiring)
    assert error.field == field
    assert said in error.remedy


def test_a_bare_field_name_has_a_bare_wiring_field():
    assert refused([slow()], "serial", field="levels").field == "wiring"


def params_of(wiring="independent"):
    levels = [fast(), slow()]
    config = ModelConfig(
        vocab_size=20,
        d_model=8,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        levels=levels,
        wiring=wiring,
    )
    return jax.jit(Model(config).init)(jax.random.key(0))


def test_every_parameter_is_labelled_by_level_and_part_or_as_backbone():
    tree = lv.labels(params_of())
    assert jax.tree.structure(tree) == jax.tree.structure(params_of())
    assert set(jax.tree.leaves(tree)) == {
        "backbone",
        *(f"{name}/{part}" for name in ("fast", "slow") for part in ("base", "experts", "router")),
    }
    blocks = tree["blocks"]
    assert set(jax.tree.leaves((tree["embed"], blocks["attn"], blocks["levels"]["mix"]))) == {
        "backbone"
    }
    assert set(jax.tree.leaves(blocks["levels"]["fast"]["norm"])) == {"fast/base"}
    assert set(jax.tree.leaves(blocks["levels"]["slow"]["router"])) == {"slow/router"}


def test_swapping_a_level_shares_everything_else_and_leaves_the_original():
    params = params_of()
    before = lv.get_level(params, "fast")
    new = jax.tree.map(jnp.zeros_like, before)
    swapped = lv.with_levels(params, {"fast": new})
    assert lv.get_level(swapped, "fast") is new
    assert lv.get_level(params, "fast") is before
    assert lv.get_level(swapped, "slow") is lv.get_level(params, "slow")
    assert swapped["embed"] is params["embed"]
    assert lv.with_levels(params, {}) is params


def test_stacking_copies_the_mlp_and_norm_of_a_level_and_keeps_the_targets_experts():
    params = params_of()
    stacked = lv.copy_base(params, "slow", "fast")
    got, source = lv.get_level(stacked, "fast"), lv.get_level(params, "slow")
    assert differing(got["base"], source["base"]) == []
    assert differing(got["norm"], source["norm"]) == []
    assert differing(got["experts"], lv.get_level(params, "fast")["experts"]) == []
    assert lv.get_level(stacked, "slow") is source
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(stacked)]
    assert len(set(pointers)) == len(pointers)  # the tree can be donated


def test_a_clock_strikes_at_multiples_of_its_period_behind_its_offset_and_never_for_zero():
    assert [i for i in range(13) if lv.due(i, 4)] == [4, 8, 12]
    assert [i for i in range(13) if lv.due(i, 4, 1)] == [1, 5, 9]
    assert [i for i in range(5) if lv.due(i, 1)] == [1, 2, 3, 4]
    assert lv.due(4, lv.NEVER) is False
    struck = jax.jit(jax.vmap(lambda i: lv.due(i, 4, 3)))(jnp.arange(16))
    np.testing.assert_array_equal(np.flatnonzero(struck), [3, 7, 11, 15])
