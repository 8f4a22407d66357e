"""Does it remember, many nights later?

Each day the learner reads a day's facts; each night it sleeps; at the end it is asked about every
day, in wordings it has never seen. Arms: ``sleep`` and ``wake_only`` (same days, no nights).

    sleeplm run experiments/retention.py
    sleeplm run experiments/retention.py --config.world=biographies --config.days=6

Cost and the figures to expect are in README.md; the whole bench is retention_bench.py. A sweep:

    python -m launch expand experiments/retention.py --sweep lr --sweep seeds --out sweeps/lr
"""

from sleeplm.bench.presets import bench, night
from sleeplm.bench.retention import RetentionConfig
from sleeplm.methods.pretrain import PretrainConfig


def get_config() -> RetentionConfig:
    """Four days of 60 facts; up to 6 fit the expert slots.

    Less is read before life and nights are shorter than in the bench: it is over sooner.
    """
    return bench(
        world="atlas",
        days=4,
        facts_per_day=60,
        slots=6,
        questions=5,
        epochs=3.5,
        pretrain=PretrainConfig(steps=1200, batch=16, length=64, chunk=20),
        night_facts=60,
        sleep=night(updates=240),
    )


def sweep_lr():
    """Learning rates of the night."""
    for rate in (5e-3, 1e-2, 2e-2, 4e-2):
        yield {"sleep.learning_rate": rate}


def sweep_seeds():
    """Three learners, each in a world of its own, in one compiled program."""
    from launch.axes import sweep, vmap  # not needed by `sleeplm run`

    return vmap(sweep("seed", range(3)))
