"""Settings that the experiments share: the bench's small backbone, its levels, and its night.

They were chosen on worlds and seeds that no report shows, see docs/history.md.
"""

from __future__ import annotations

from typing import Any

from sleeplm.bench.retention import DayConfig, RetentionConfig
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.config import SleepConfig, TeacherConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.models.config import ModelConfig

UNSEEN = 300  # first seed and world of runs that are reported: settings were chosen on others


def levels(steps: int, slots: int, rank: int) -> list[LevelConfig]:
    """The two levels of the bench: a grafted fast one, and the block's MLP with experts.

    Args:
      steps: wake steps of a day, after which the fast level is consolidated.
    """
    fast = LevelConfig(
        name="fast",
        kind="graft",
        width=64,
        period=1,
        night=steps,
        learning_rate=3e-3,
        weight_decay=0.5,
        clip=1.0,
    )
    slow = LevelConfig(
        name="slow",
        kind="replace",
        width=384,
        slots=slots,
        rank=rank,
        top_k=slots,
        activation="silu",
    )
    return [fast, slow]


def teachers(old: int = 1) -> list[TeacherConfig]:
    """Three selves that tell from cues alone, and from cues behind frames.

    Tonight's self tells of today, this morning's of everything before, and the original of what
    was known before the first day: what it tells does not change from night to night. Frames let
    wordings that name their subject late be told of old days too.

    Args:
      old: samples about old days, and about what came before, for each about today.
    """
    past: dict[str, Any] = {"weight": 3.0, "imitate": False, "balance": 0.5, "times": old}
    return [
        TeacherConfig("dusk", "today", uncued=0.4),
        TeacherConfig("dusk", "today", imitate=False, framed=True),
        TeacherConfig("dawn", "past", uncued=0.4, **past),
        TeacherConfig("dawn", "lived", framed=True, **past),
        TeacherConfig("origin", "before", framed=True, **past),
    ]


def night(**changes: Any) -> SleepConfig:
    """The night of the arm ``sleep``.

    On-policy rollouts (``lam``) and imitation (``alpha`` below 1) are off: at equal cost they
    recalled less, see docs/history.md.
    """
    settings: dict[str, Any] = {
        "teachers": teachers(),
        "updates": 384,
        "rows": 8,
        "inner": 24,
        "epochs": 1,
        "lam": 0.0,
        "alpha": 1.0,
        "learning_rate": 2e-2,
        "length": 32,
        "pack": 36,
        "cue_tokens": 8,
        "reservoir": 512,
    }
    return SleepConfig(**{**settings, **changes})


def dreams(**changes: Any) -> DreamConfig:
    """The dreaming of the arms that dream, at about a quarter of the night's cost.

    A guess: nothing of it was searched for. What was measured is another one, see
    ``experiments/retention_dreams.py``.
    """
    settings: dict[str, Any] = {
        "dreams": 32,
        "context_tokens": 20,
        "new_tokens": 16,
        "keep": 8,
        "extra": 2,
        "memories": 32,
        "updates": 48,
        "inner": 24,
    }
    return DreamConfig(**{**settings, **changes})


def bench(
    *,
    steps: int = 90,
    epochs: float = 5.0,
    slots: int = 8,
    rank: int = 64,
    length: int = 64,
    **changes: Any,
) -> RetentionConfig:
    """A retention run of a 0.9M-parameter backbone.

    Args:
      steps: wake steps between two nights by the clock. epochs: readings of a day's texts.
      slots, rank: of the experts. length: positions of a row.
      changes: of :class:`~sleeplm.bench.retention.RetentionConfig`.
    """
    settings: dict[str, Any] = {
        "model": ModelConfig(
            vocab_size=1024,
            d_model=128,
            n_layers=4,
            n_heads=4,
            n_kv_heads=2,
            max_len=length,
            levels=levels(steps, slots, rank),
        ),
        "pretrain": PretrainConfig(steps=1500, batch=16, length=length, chunk=20),
        "questions": 9,
        "day": DayConfig(steps=steps, epochs=epochs, batch=16, length=length, chunk=30),
        "sleep": night(),
        "dream": dreams(),
        "night_facts": 80,
        "schedule": ScheduleConfig(when="day_end"),
    }
    return RetentionConfig(**{**settings, **changes})
