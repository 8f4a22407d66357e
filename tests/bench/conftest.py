"""Lives of seconds in this process: a bench around a brief configuration, and arms' lives in it."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench.arms import Arm, build_arm
from sleeplm.bench.classes import count_labels
from sleeplm.bench.exams import stack_exams
from sleeplm.bench.lives import Bench, learners_of, life_of, newborns
from sleeplm.bench.material import paper_of, prepare
from sleeplm.bench.retention import RetentionConfig
from sleeplm.core.types import State
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.runtime import config as configs
from sleeplm.runtime.lifecycle import Moment
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import METRICS, Run, Stage

BRIEF = f"{pathlib.Path(__file__).with_name('tiny_life.py')}:brief"


class Lived(NamedTuple):
    """An arm's life: its first state and its last, and the lines that it left in the metrics."""

    bench: Bench
    arm: Arm
    run: Run
    newborn: State
    state: State
    lines: list[dict]

    def of(self, event: str, **fields: Any) -> list[dict]:
        wanted = {"event": event, **fields}
        return [line for line in self.lines if wanted.items() <= line.items()]


class Brief:
    """Makers of brief lives."""

    @staticmethod
    def config(*, sleep: dict[str, Any] | None = None, **changes: Any) -> RetentionConfig:
        """The brief configuration with other settings; ``sleep``: with others of its night."""
        config = configs.load_config(BRIEF, [])
        night = dataclasses.replace(config.sleep, **(sleep or {}))
        config = dataclasses.replace(config, sleep=night, **changes)
        configs.check(config)
        return config

    @staticmethod
    def bench(config: RetentionConfig) -> Bench:
        """A bench whose backbones are as they were born: nothing was pretrained."""
        learners = learners_of(config)
        materials = [prepare(one) for one in learners]
        paper = stack_exams([paper_of(c, m) for c, m in zip(learners, materials, strict=True)])
        keys = jnp.stack([jax.random.key(one.seed) for one in learners])
        params = jax.jit(jax.vmap(Model(backbone_config(config.model)).init))(keys)
        nothing = np.zeros((config.seeds, paper.groups))
        start = {"recall": nothing, "logp": nothing}
        return Bench(config, learners, materials, paper, params, start)

    @staticmethod
    def arm(bench: Bench, name: str) -> Arm:
        return build_arm(name, bench.config, count_labels(bench.materials), bench)

    @classmethod
    def live(
        cls,
        bench: Bench,
        name: str,
        directory: pathlib.Path,
        change: Any = lambda agenda: agenda,
    ) -> Lived:
        """The life of one arm, as a run in ``directory``.

        Args:
          change: applied to the agenda first.
        """
        arm, run = cls.arm(bench, name), Run(directory, bench.config, quiet=True)
        life, newborn = life_of(bench, arm), newborns(bench, arm)
        agenda: list[Moment] = change(life.agenda())
        # The first step takes its state's memory. On a mesh a copy need not lie where it should.
        spread = bench.mesh is not None
        again = (newborns, bench, arm) if spread else (jax.tree.map, jnp.copy, newborn)
        stage = Stage(name, lambda: again[0](*again[1:]), agenda, life.streams)
        state = run.stage(stage)
        return Lived(bench, arm, run, newborn, state, read_metrics(directory / METRICS))


@pytest.fixture(scope="session")
def brief() -> type[Brief]:
    return Brief
