from __future__ import annotations

import math

import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.rope import RopeScaling


def test_the_default_model_passes_its_own_check():
    ModelConfig().check("model")


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"vocab_size": 0}, "vocab_size", 0),
        ({"d_model": -8}, "d_model", -8),
        ({"d_model": 64.5}, "d_model", 64.5),
        ({"n_layers": 0}, "n_layers", 0),
        ({"n_layers": True}, "n_layers", True),
        ({"n_heads": 0}, "n_heads", 0),
        ({"n_heads": 6, "n_kv_heads": 2}, "n_heads", 6),
        ({"n_kv_heads": 3}, "n_kv_heads", 3),
        ({"n_kv_heads": 0}, "n_kv_heads", 0),
        ({"max_len": "long"}, "max_len", "long"),
        ({"head_dim": 7}, "head_dim", 7),
        ({"head_dim": -4}, "head_dim", -4),
        ({"d_model": 12, "n_heads": 4}, "head_dim", 3),
        ({"rope_theta": 0.0}, "rope_theta", 0.0),
        ({"rope_scaling": RopeScaling("linear", 0.0)}, "rope_scaling.factor", 0.0),
        ({"norm_eps": math.inf}, "norm_eps", math.inf),
        ({"dtype": "float16"}, "dtype", "float16"),
        ({"param_dtype": "double"}, "param_dtype", "double"),
        ({"dispatch": "sorted"}, "dispatch", "sorted"),
        ({"wiring": "parallel"}, "wiring", "parallel"),
        ({"levels": []}, "levels", []),
        ({"levels": [LevelConfig(kind="copy")]}, "levels[0].kind", "copy"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line_with_field_value_and_remedy(changes, field, value):
    with pytest.raises(ConfigError) as error:
        ModelConfig(**changes).check("model")
    assert error.value.field == f"model.{field}"
    assert error.value.value == value
    assert error.value.remedy
    assert "\n" not in str(error.value)


def test_heads_are_the_width_divided_by_their_number_unless_it_is_given():
    assert ModelConfig(d_model=96, n_heads=4).width_of_head == 24
    assert ModelConfig(d_model=96, n_heads=4, head_dim=10).width_of_head == 10
    ModelConfig(d_model=100, n_heads=8, head_dim=16).check("model")


def test_a_level_is_found_by_its_name():
    levels = [LevelConfig(name="a", period=1), LevelConfig(name="b")]
    assert ModelConfig(levels=levels).level("b") is levels[1]
