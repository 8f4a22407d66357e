"""Which backbones can get memory levels, and how others are refused."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.graft import backbone_config, graft
from sleeplm.models.transformer import Model

FAST, SLOW = LevelConfig("fast", kind="graft", width=4), LevelConfig("slow", width=12)
CONFIG = ModelConfig(
    vocab_size=20, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, levels=[FAST, SLOW]
)


def backbone(**changes):
    config = dataclasses.replace(backbone_config(CONFIG), **changes)
    return jax.jit(Model(config).init)(jax.random.key(0))


def test_a_backbone_of_another_size_is_refused_by_the_parameter_that_does_not_fit():
    wide = backbone(levels=[dataclasses.replace(SLOW, width=16)])
    message = r"backbone\['blocks'\].*\['down'\].* = \(1, 16, 8\): the model has \(1, 12, 8\)"
    with pytest.raises(ConfigError, match=message):
        graft(Model(CONFIG), wide, jax.random.key(1))


def test_a_tied_backbone_is_none_of_a_model_with_an_unembedding_of_its_own():
    untied = Model(dataclasses.replace(CONFIG, tie_embeddings=False))
    with pytest.raises(ConfigError, match=r"'unembed'.*: the model needs this parameter of it too"):
        graft(untied, backbone(tie_embeddings=True), jax.random.key(1))


def test_levels_side_by_side_are_no_backbone_in_a_chain():
    """The function would be another one."""
    other = LevelConfig("other", width=12)
    beside = dataclasses.replace(CONFIG, levels=[FAST, SLOW, other], wiring="independent")
    with pytest.raises(ConfigError, match=r"model.levels = \['slow', 'other'\]: the independent"):
        backbone_config(beside)
    assert backbone_config(dataclasses.replace(beside, wiring="sequential")).levels[1].name
    backbone_config(dataclasses.replace(CONFIG, wiring="independent"))
