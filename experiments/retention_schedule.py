"""When to sleep: after every day, by the clock, or when the stream surprises, at equal nights.

Days of very unequal size; no schedule has more nights than there are days.

    sleeplm run experiments/retention_schedule.py:surprise --workdir runs/surprise
    sleeplm run experiments/retention_schedule.py:clock --workdir runs/clock
    sleeplm report runs/surprise runs/clock --out runs/schedules

What to expect is in docs/results.md.
"""

from sleeplm.bench.presets import UNSEEN, bench
from sleeplm.bench.retention import DayConfig, RetentionConfig
from sleeplm.methods.schedule import ScheduleConfig

SIZES = [20, 120, 40, 140, 30, 90]


def get_config(when: str = "surprise") -> RetentionConfig:
    """Six days of 20 to 140 facts."""
    return bench(
        world="atlas",
        days=0,
        day_sizes=SIZES,
        facts_per_day=80,
        seed=UNSEEN,
        world_seed=UNSEEN,
        seeds=3,
        arms=["sleep"],
        # A short chunk: the next batch is looked at after each, and the shortest day has several.
        day=DayConfig(steps=90, epochs=5.0, batch=16, length=64, chunk=10),
        # Under steady reading the fast level is so far from dawn after about 150 steps, a sixth of
        # this life.
        schedule=ScheduleConfig(when=when, nights=len(SIZES), most=0.06),
    )
