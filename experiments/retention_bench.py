"""The retention bench: 8 days of 80 facts, five learners side by side, every arm without dreams.

    sleeplm run experiments/retention_bench.py --config.arms="['sleep']"
    sleeplm run experiments/retention_bench.py:biographies --config.arms="['sleep','static_replay']"
    sleeplm run experiments/retention_bench.py --config.arms="['dream','sleep_longer']"
    sleeplm report runs/A runs/B --out runs/all

Worlds and seeds start at 300: the settings were chosen on others. Runs of different arms join in
one report. Figures, and what each arm costs, are in docs/results.md.
"""

from sleeplm.bench.arms import ARMS, DREAMING
from sleeplm.bench.presets import UNSEEN, bench
from sleeplm.bench.retention import RetentionConfig


def get_config(world: str = "atlas") -> RetentionConfig:
    """The bench on a world of facts."""
    # One is for labelled worlds; those that dream, and their control, are asked for by name.
    others = {"inca", "sleep_longer", *DREAMING}
    arms = [name for name in ARMS if name not in others]
    return bench(
        world=world, days=8, facts_per_day=80, seed=UNSEEN, world_seed=UNSEEN, seeds=5, arms=arms
    )
