"""A plan small enough to compile in seconds."""

from __future__ import annotations

import pytest

from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.config import paper_v2
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.models.config import ModelConfig
from sleeplm.plan.config import PlanConfig


@pytest.fixture
def small():
    """``small(**settings)``: a plan of two layers and two levels, in bfloat16."""

    def make(**settings) -> PlanConfig:
        fast = LevelConfig("fast", kind="graft", width=16, period=1, night=4)
        slow = LevelConfig("slow", width=128, slots=4, rank=4, top_k=4)
        model = ModelConfig(
            vocab_size=256, d_model=64, n_layers=2, n_heads=2, n_kv_heads=2, max_len=64,
            levels=[fast, slow], dtype="bfloat16", param_dtype="bfloat16",
            memory_dtype="bfloat16", scan_layers=True, remat=True, dispatch="dense",
        )  # fmt: skip
        night = paper_v2(updates=1, inner=1, epochs=1, lam=0.0, alpha=1.0, cue_tokens=4)
        dream = DreamConfig(dreams=4, context_tokens=8, new_tokens=8, keep=1, extra=1, steps=2)
        usual = {"dream": dream, "rows": 2, "length": 32, "prompt": 8, "new": 8}
        return PlanConfig(model, night, **{**usual, **settings})

    return make
