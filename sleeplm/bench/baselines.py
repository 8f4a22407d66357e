"""Settings of the control arms (:mod:`sleeplm.bench.arms`)."""

from __future__ import annotations

import dataclasses

from sleeplm.core import checks


@dataclasses.dataclass
class BaselineConfig:
    """Settings of the control arms.

    Attributes:
      sft_learning_rate: of AdamW over all parameters (``sft_all``, ``ewc``).
      ewc_strength: weight of the quadratic penalty. ewc_rows: texts of a day, and of pretraining,
        that its Fisher information is measured on.
      lora_rank, lora_learning_rate: of the adapter on every matrix (``lora_sequential``).
      slow_period, slow_learning_rate: pace of the slow level where it learns awake
        (``cms_without_seeding``).
      base_learning_rate: of nights that move the receiver's own MLP
        (``fixed_capacity_on_policy``).
      pool_learning_rate: of nights that move all experts (``equal_capacity_moe``).
    """

    sft_learning_rate: float = 1e-3
    ewc_strength: float = 10.0
    ewc_rows: int = 512
    lora_rank: int = 16
    lora_learning_rate: float = 1e-3
    slow_period: int = 30
    slow_learning_rate: float = 3e-4
    base_learning_rate: float = 1e-3
    pool_learning_rate: float = 1e-2

    def check(self, field: str) -> None:
        for name in ("sft", "lora", "slow", "base", "pool"):
            rate = f"{name}_learning_rate"
            checks.positive(f"{field}.{rate}", getattr(self, rate))
        for name in ("ewc_rows", "lora_rank", "slow_period"):
            checks.positive_integer(f"{field}.{name}", getattr(self, name))
        checks.at_least(f"{field}.ewc_strength", self.ewc_strength, 0)
