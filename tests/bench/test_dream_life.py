"""Dreaming in a life: after consolidation, into tonight's expert, undone if it costs memories."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench.lives import life_of, newborns
from sleeplm.core import tree
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.schedule import ScheduleConfig

pytestmark = pytest.mark.slow

#: Rounds that are over soon, whose dreams are all accepted, and a gate that lets them pass.
DREAM = DreamConfig(
    dreams=6,
    context_tokens=24,
    new_tokens=8,
    contexts=6,
    questions=6,
    keep=2,
    extra=1,
    chunk=3,
    rank=2,
    steps=1,
    memories=4,
    margin=-99.0,
    worse=99.0,
    writer_rank=2,
    writer_epochs=1,
    rounds=2,
    updates=4,
    inner=2,
    rows=4,
    gate=8,
    gate_margin=99.0,
    gate_cluster=1.0,
)


def settings(brief, dream=None, **changes):
    dream = dataclasses.replace(DREAM, **(dream or {}))
    when = ScheduleConfig(when="day_end")
    return brief.config(dream=dream, schedule=when, arms=["dream"], **changes)


@pytest.fixture(scope="module")
def lived(brief, tmp_path_factory):
    """``name -> Lived``: two learners' lives in that arm, once for all tests."""

    @functools.cache
    def life(name: str):
        bench = brief.bench(settings(brief, seeds=2, falsehoods=0.5))
        return brief.live(bench, name, tmp_path_factory.mktemp(name) / "run")

    return life


def test_a(lived):
    life = lived("dream")
    for line in life.lines: print(line)
