"""What SmolLM2-135M with the paper's five grafted levels needs of a pod, without having one.

    sleeplm plan experiments/plan_smollm2.py --topology v5e:4x4
    sleeplm plan experiments/plan_smollm2.py --topology v5e:4x4 --fit --fast

Needs libtpu: pip install 'sleeplm[plan]'. What it costs and what came out is in docs/plan.md.
"""

from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.plan.config import PlanConfig
from sleeplm.plan.presets import plan_of
from sleeplm.pretrained.grafts import grafted


def get_config() -> PlanConfig:
    """Wake, seeding, decode and dream of SmolLM2-135M."""
    backbone = ModelConfig(
        vocab_size=49_152,
        d_model=576,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        head_dim=0,
        rope_theta=100_000.0,
        tie_embeddings=True,
        qk_norm=False,
        levels=[LevelConfig("mlp", width=1536)],
    )
    return plan_of(grafted(backbone), rows=8)
