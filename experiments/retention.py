"""Does it remember, many nights later?

Each day the learner reads a day's facts; each night it sleeps; at the end it is asked about every
day, in wordings it has never seen. Arms: ``sleep`` and ``wake_only`` (same days, no nights).

    sleeplm run experiments/retention.py
    sleeplm run experiments/retention.py --config.world=biographies --config.days=6

Cost and the figures to expect are in README.md.
"""

from sleeplm.bench.retention import DayConfig, RetentionConfig, default_levels
from sleeplm.methods.config import SleepConfig, TeacherConfig
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.models.config import ModelConfig


def get_config() -> RetentionConfig:
    """Four days of 60 facts; up to 8 days fit the expert slots."""
    day = DayConfig(steps=90, batch=16, length=64, chunk=30)
    return RetentionConfig(
        world="atlas",
        days=4,
        facts_per_day=60,
        model=ModelConfig(
            vocab_size=1024,
            d_model=128,
            n_layers=4,
            n_heads=4,
            n_kv_heads=2,
            max_len=64,
            levels=default_levels(day.steps, slots=8),
        ),
        pretrain=PretrainConfig(steps=1200, batch=16, length=64, chunk=20),
        day=day,
        # Two teachers: tonight's self tells of today, this morning's self of all before. Each tells
        # from cues alone, and from cues behind beginnings of wordings of its own (framed), so that
        # wordings that name their subject late are told of old days too.
        sleep=SleepConfig(
            teachers=[
                TeacherConfig("dusk", "today", weight=1.0, uncued=0.4),
                TeacherConfig("dusk", "today", weight=1.0, imitate=False, framed=True),
                TeacherConfig("dawn", "past", weight=3.0, imitate=False, uncued=0.4, balance=0.5),
                TeacherConfig("dawn", "past", weight=3.0, imitate=False, framed=True, balance=0.5),
            ],
            updates=432,
            rows=8,
            inner=24,
            epochs=1,
            # On-policy rollouts and imitation cost as much as they take from teacher samples
            # here, and at equal cost recalled less: see docs/results.md.
            lam=0.0,
            alpha=1.0,
            learning_rate=2e-2,
            length=32,
            pack=36,
            cue_tokens=8,
            reservoir=512,
        ),
        schedule=ScheduleConfig(when="day_end"),
    )
