"""One way to live."""

from __future__ import annotations

import dataclasses

from sleeplm.methods.config import SleepConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.learner import Learner
from sleeplm.models.transformer import Model


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to live.

    Attributes:
      model, sleep, learner: what lives.
      archive: what its nights are handed: ``none``, ``today`` (the day's raw texts; before the
        first day those of pretraining), ``texts`` (every raw text ever read) or ``labelled`` (the
        day's questions and classes).
      context: exams have the latest facts in front of every question.
      trains: what moves awake: ``bases``, ``everything``, ``adapters`` or ``nothing``.
      follows_schedule: its levels sleep when the schedule says.
      by_class: answers are names of the nearest class instead of what the model says.
      joint: every day it reads from the texts of all days, mixed.
      dream: of the dreaming that follows its nights, or None.
      instead: share of its usual night that stands for dreaming, which costs the same however much
        a day has brought.
    """

    model: Model
    sleep: SleepConfig
    learner: Learner
    archive: str = "none"
    context: bool = False
    trains: str = "bases"
    follows_schedule: bool = False
    by_class: bool = False
    joint: bool = False
    dream: DreamConfig | None = None
    instead: float = 0.0

    @property
    def raw_text(self) -> bool:
        """Whether it keeps raw text beyond the day (a day's own text is everybody's)."""
        return self.archive == "texts" or self.context or self.joint
