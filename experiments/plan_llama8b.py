"""What Llama-3.1-8B with the paper's five grafted levels needs of a pod, without having one.

    sleeplm plan experiments/plan_llama8b.py --topology v5e:4x4
    sleeplm plan experiments/plan_llama8b.py --topology v5e:4x4 --fit --fast

Needs libtpu: pip install 'sleeplm[plan]'. What it costs and what came out is in docs/plan.md.
"""

from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.plan.config import PlanConfig
from sleeplm.plan.presets import plan_of
from sleeplm.pretrained.grafts import grafted


def get_config() -> PlanConfig:
    """Wake, seeding, decode and dream of Llama-3.1-8B."""
    backbone = ModelConfig(
        vocab_size=128_256,
        d_model=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        head_dim=0,
        rope_theta=500_000.0,
        tie_embeddings=False,
        qk_norm=False,
        levels=[LevelConfig("mlp", width=14336)],
    )
    return plan_of(grafted(backbone), rows=1)
