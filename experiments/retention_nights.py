"""Many nights: 40 of them (the default), or 200 with a pool that merges experts.

    sleeplm run experiments/retention_nights.py
    sleeplm run experiments/retention_nights.py:200

What to expect is in docs/results.md.
"""

from sleeplm.bench.presets import UNSEEN, bench, night, teachers
from sleeplm.bench.retention import RetentionConfig
from sleeplm.core.checks import one_of


def get_config(nights: str = "40") -> RetentionConfig:
    """Days of three people each; or of one, for as long as it takes to fill a pool many times."""
    one_of("config", nights, ("40", "200"))
    if nights == "200":
        return bench(
            world="biographies",
            days=200,
            facts_per_day=8,
            steps=30,
            epochs=8.0,
            slots=8,
            rank=16,
            seed=UNSEEN,
            world_seed=UNSEEN,
            arms=["sleep"],
            exam_per_day=4,
            night_facts=8,
            sleep=night(updates=96, pool="merge_balanced", reservoir=1024),
        )
    return bench(
        world="biographies",
        days=40,
        facts_per_day=24,
        steps=60,
        epochs=6.0,
        slots=40,
        rank=16,
        seed=UNSEEN,
        world_seed=UNSEEN,
        seeds=3,
        arms=["sleep"],
        night_facts=24,
        sleep=night(updates=240, rows=4, teachers=teachers(old=3)),
    )
