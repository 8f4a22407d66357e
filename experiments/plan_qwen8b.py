"""What Qwen3-8B with the paper's five grafted levels needs of a pod, without having one.

    sleeplm plan experiments/plan_qwen8b.py --topology v5e:4x4
    sleeplm plan experiments/plan_qwen8b.py --topology v5e:4x4 --fit --fast

Needs libtpu: pip install 'sleeplm[plan]'. What it costs and what came out is in docs/plan.md.
"""

from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.plan.config import PlanConfig
from sleeplm.plan.presets import plan_of
from sleeplm.pretrained.grafts import grafted


def get_config() -> PlanConfig:
    """Wake, seeding, decode and dream of Qwen3-8B."""
    backbone = ModelConfig(
        vocab_size=151_936,
        d_model=4096,
        n_layers=36,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        rope_theta=1_000_000.0,
        tie_embeddings=False,
        qk_norm=True,
        levels=[LevelConfig("mlp", width=12288)],
    )
    return plan_of(grafted(backbone), rows=1)
