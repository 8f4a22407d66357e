"""Memory levels for a published backbone, which its function survives bit for bit.

Two sets: the paper's five small MLPs in front of the block's own, and one, which is cheaper. Both
end with the model's own MLP, which is frozen and receives experts. Schedules and sizes are set
here; learning rates are what the bench's small backbone got, to be tuned for others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from sleeplm.core import checks
from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig

#: Wake steps between two moves, fastest first: the paper's 1 : 5 : 10, continued.
PERIODS = (1, 5, 10, 50, 100)
WIDTH = 64  # of a grafted MLP, as in the paper
LEARNING_RATE = 3e-3


def grafted(
    backbone: ModelConfig,
    *,
    periods: Sequence[int] = PERIODS,
    width: int = WIDTH,
    day: int = 100,
    slots: int = 8,
    rank: int = 16,
    learning_rate: float = LEARNING_RATE,
) -> ModelConfig:
    """The backbone with a chain of grafted levels in front of its MLP (Eq. 1, section 8).

    The fastest level is consolidated every ``day`` wake steps, every other one as many times more
    rarely as it moves more rarely. A level has a slot for each night that it receives before its
    own, in which its experts are reset; the MLP, which has none, has ``slots``.

    Args:
      backbone: of :func:`~sleeplm.pretrained.published.find_backbone`; one level, of kind
        ``replace``.
      periods: wake steps between two moves of each grafted level, fastest first, each a multiple
        of the one before. ``PERIODS`` are the paper's five levels; :func:`cheap` has one.
      width: F of each grafted MLP. rank: of every expert.
      day: wake steps between two nights of the fastest level, a multiple of its period.
      slots: nights that the model's own MLP can receive.

    Raises:
      ConfigError: the backbone has levels already, or the periods are no chain.
    """
    checks.require(len(periods) > 0, "periods", [], "name one for each grafted level")
    for period in periods:
        checks.positive_integer("periods", period)
    checks.positive_integer("day", day)
    names = [level.name for level in backbone.levels]
    remedy = "start from a plain backbone: its one level is its own MLP"
    checks.require(len(names) == 1, "backbone.levels", names, remedy)
    (mlp,) = backbone.levels
    nights = [day * period // periods[0] for period in periods]
    received = [0, *(slow // fast for fast, slow in itertools.pairwise(nights))]
    levels = [
        LevelConfig(
            name=f"level{i}",
            kind="graft",
            width=width,
            period=period,
            night=night,
            learning_rate=learning_rate,
            clip=1.0,
            slots=experts,
            rank=rank,
            top_k=max(experts, 1),
            activation="silu",
        )
        for i, (period, night, experts) in enumerate(zip(periods, nights, received, strict=True), 1)
    ]
    last = dataclasses.replace(mlp, slots=slots, rank=rank, top_k=slots, activation="silu")
    config = dataclasses.replace(backbone, levels=[*levels, last])
    config.check("model")
    return config


def cheap(backbone: ModelConfig, **settings) -> ModelConfig:
    """One grafted level instead of five: what the bench's own learners have.

    Args:
      settings: of :func:`grafted`.
    """
    return grafted(backbone, **{"periods": PERIODS[:1], **settings})
