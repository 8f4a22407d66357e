"""What the plans of ``experiments/plan_*.py`` have in common."""

from __future__ import annotations

import dataclasses

from sleeplm.methods.config import paper_v2
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.models.config import ModelConfig
from sleeplm.plan.config import PlanConfig


def plan_of(model: ModelConfig, *, rows: int = 1, length: int = 2048) -> PlanConfig:
    """A plan of a published shape with memory levels, in bfloat16 and with scanned layers.

    The night is the paper's (one teacher, dawn): each minibatch is learned once, and has as many
    tokens as a wake step. Pools are small here, so that all of a pool is multiplied and masked
    (``dispatch="dense"``): sorting tokens by expert would send them across chips.

    Args:
      rows, length: of a wake step, see :class:`~sleeplm.plan.config.PlanConfig`.
    """
    model = dataclasses.replace(
        model, dtype="bfloat16", param_dtype="bfloat16", memory_dtype="bfloat16",
        scan_layers=True, remat=True, dispatch="dense", max_len=length,
    )  # fmt: skip
    night = paper_v2(updates=100, inner=1, epochs=1, lam=0.0, alpha=1.0, cue_tokens=8)
    dream = DreamConfig(
        dreams=60, context_tokens=64, new_tokens=64, sketch=4096, chunk=1, at_once=1
    )
    return PlanConfig(model, night, dream, rows=rows, length=length)
