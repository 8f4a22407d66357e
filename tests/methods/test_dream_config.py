"""Settings of dreaming: what cannot work is one line."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.methods.dreams.config import DreamConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 60}, r"dream\.keep = 60: keep \+ extra \(63\) must be between 1 and dreams"),
        ({"keep": 0, "extra": 0}, r"dream\.keep = 0"),
        ({"score": "norms"}, r"dream\.score = 'norms'.*did you mean 'norm'"),
        ({"reward": "tau"}, r"dream\.reward = 'tau': must be one of agreement, questions"),
        ({"hold": 0.0}, r"dream\.hold = 0\.0: agreement needs"),
        ({"ngram": 33}, r"dream\.ngram = 33: use at most new_tokens"),
        ({"steps": 0}, r"dream\.steps = 0"),
        ({"margin": float("nan")}, r"dream\.margin = nan"),
        ({"temperature": -1}, r"dream\.temperature = -1"),
    ],
)
def test_settings_that_cannot_work_are_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        DreamConfig(**changes).check("dream")
    assert "\n" not in str(caught.value)


def test_a_number_may_be_an_array_but_not_what_decides_about_the_program():
    numbers = (
        *("margin", "worse", "learning_rate", "writer_learning_rate", "absorb_learning_rate"),
        *("temperature", "hold", "gate_margin", "gate_cluster"),
    )
    for name in numbers:  # out of range, were it known
        DreamConfig(**{name: jnp.float32(-2)}).check("dream")
    for name in ("past", "steps", "memories"):
        with pytest.raises(ConfigError, match=rf"dream\.{name} = "):
            DreamConfig(**{name: jnp.float32(2)}).check("dream")


def test_the_defaults_are_the_papers_counts():
    config = DreamConfig()
    config.check("dream")
    assert (config.dreams, config.kept) == (60, 15)
    DreamConfig(reward="questions", hold=0.0).check("dream")
