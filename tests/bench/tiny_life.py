"""A life of seconds: few people, three days, teachers and students who both write, many moments."""

import dataclasses
import gc

from sleeplm.bench.retention import DayConfig, RetentionConfig
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.config import SleepConfig, TeacherConfig
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.models.config import ModelConfig

# Tracing makes many objects and little garbage: looking for it would take a seventh of this life.
gc.set_threshold(100_000)


def get_config(size: str = "whole") -> RetentionConfig:
    """Two learners, two arms, three days with a night after each; or a ``brief`` one.

    The brief life has one learner, two days, and nights that compile quickly: one teacher, who
    only tells.
    """
    whole = RetentionConfig(
        world="biographies",
        days=3,
        facts_per_day=3,
        pretrain_people=2,
        statements=1,
        questions=1,
        exam_pretrain=4,
        seeds=2,
        model=ModelConfig(
            vocab_size=320,
            d_model=16,
            n_layers=1,
            n_heads=2,
            n_kv_heads=1,
            max_len=96,
            levels=[
                LevelConfig(
                    name="fast", kind="graft", width=8, period=1, night=4, learning_rate=1e-2
                ),
                LevelConfig(name="slow", kind="replace", width=16, slots=4, rank=2, top_k=2),
            ],
        ),
        pretrain=PretrainConfig(steps=12, batch=4, length=96, chunk=2, warmup=2),
        day=DayConfig(steps=4, batch=4, length=96, chunk=1),
        sleep=SleepConfig(
            teachers=[
                TeacherConfig("dusk", "today", 1.0, True, 0.3),
                TeacherConfig("dawn", "past", 1.0, False),
            ],
            updates=4,
            rows=4,
            inner=2,
            epochs=1,
            lam=0.5,
            alpha=1.0,
            group=2,
            length=20,
            cue_tokens=12,
            reservoir=8,
            chunk=16,
            learning_rate=1e-3,
        ),
        save_seconds=0.0,
    )
    if size == "whole":
        return whole
    sleep = dataclasses.replace(
        whole.sleep,
        teachers=[TeacherConfig("dusk", "today")],
        lam=0.0,
        rows=8,
    )
    return dataclasses.replace(
        whole,
        days=2,
        seeds=1,
        day=dataclasses.replace(whole.day, chunk=2),
        sleep=sleep,
        probes=False,
        save_seconds=1e9,
    )
