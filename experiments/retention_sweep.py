"""Rollouts and imitation, how much of each? 24 small learners, in one program or apart.

``lam`` is the share of what a night learns from that students write, ``alpha`` the weight of
distillation against the reward for imitating. Three by two values, four seeds each in a world of
its own: once as 24 trials, once fused into one.

    python -m launch expand experiments/retention_sweep.py --sweep fused --out sweeps/fused
    python -m launch expand experiments/retention_sweep.py --sweep apart --out sweeps/apart
    python -m launch local sweeps/fused
    python -m launch local sweeps/apart --jobs 2 --cores 1
    python -m launch collect sweeps/fused

What both took, and what came out, is in docs/scale.md.
"""

from sleeplm.bench.presets import UNSEEN, bench, levels, night
from sleeplm.bench.retention import RetentionConfig
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.models.config import ModelConfig

LAMBDAS, ALPHAS, SEEDS = (0.2, 0.5, 0.8), (0.5, 0.9), range(UNSEEN, UNSEEN + 4)
STEPS = 90


def get_config() -> RetentionConfig:
    """Three days of 20 facts, learned by a quarter of a million parameters."""
    fast, slow = levels(STEPS, slots=3, rank=32)
    fast.width, slow.width = 48, 256
    return bench(
        world="atlas",
        days=3,
        facts_per_day=20,
        exam_pretrain=60,
        steps=STEPS,
        epochs=5.0,
        seed=UNSEEN,
        world_seed=UNSEEN,
        arms=["sleep"],
        model=ModelConfig(
            vocab_size=1024,
            d_model=80,
            n_layers=3,
            n_heads=4,
            n_kv_heads=2,
            max_len=64,
            levels=[fast, slow],
        ),
        pretrain=PretrainConfig(steps=1200, batch=16, length=64, chunk=20),
        night_facts=20,
        sleep=night(updates=48, lam=0.5, alpha=0.9, group=4, pack=0),
    )


def sweep_fused():
    """All 24 learners side by side in one compiled program."""
    from launch.axes import product, sweep, vmap  # not needed by `sleeplm run`

    numbers = product(sweep("sleep.lam", LAMBDAS), sweep("sleep.alpha", ALPHAS))
    return product(vmap(numbers), vmap(sweep("seed", SEEDS)))


def sweep_apart():
    """The same as 24 trials."""
    from launch.axes import product, sweep, zipit

    seeds = zipit(sweep("seed", SEEDS), sweep("world_seed", SEEDS))
    return product(sweep("sleep.lam", LAMBDAS), sweep("sleep.alpha", ALPHAS), seeds)
