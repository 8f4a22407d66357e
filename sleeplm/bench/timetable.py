"""After which wake steps levels sleep, where that is known beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sleeplm.core.checks import require
from sleeplm.methods.learner import AT_DAYS_END
from sleeplm.methods.schedule import ScheduleConfig


def nights_of(
    schedule: ScheduleConfig, steps: Sequence[int], chunk: int, every: int, fastest: int
) -> list[int]:
    """Wake steps of a life after which a level sleeps: by the clock, or after days.

    Args:
      steps: of each day. chunk: nights are after a multiple.
      every: wake steps between two nights of the level, or ``AT_DAYS_END``; fastest: those of the
        fastest level that has nights. Where these follow days, or are counted, the level has one
        for every ``every / fastest`` of them.

    Raises:
      ConfigError: more nights are asked for than the life has places for.
    """
    ends = list(itertools.accumulate(steps))
    if every == AT_DAYS_END:
        return ends
    count, chunks = schedule.nights, ends[-1] // chunk
    if schedule.when == "day_end":
        first = ends
    elif count:
        remedy = f"the life has {ends[-1]} wake steps in chunks of {chunk}: use at most {chunks}"
        require(count <= chunks, "schedule.nights", count, remedy)
        first = [chunk * round(i * chunks / count) for i in range(1, count + 1)]
    else:
        return list(range(every, ends[-1] + 1, every))
    pace = every // fastest
    return first[pace - 1 :: pace]
