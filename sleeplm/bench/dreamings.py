"""Dreaming in an agenda: moments that follow a night's consolidation, for E learners at once.

Only those dream whose night ended well (``counters["dreaming"]``); what nobody does is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sleeplm.bench.nights import require_room_for_all
from sleeplm.core.types import Array, Metrics, PyTree, State
from sleeplm.methods.dreams.stage import TEXTS, Dreaming
from sleeplm.methods.schedule import masked
from sleeplm.methods.sleep import Step
from sleeplm.runtime.learners import side_by_side
from sleeplm.runtime.lifecycle import Moment

FLAG = "dreaming"
Texts = Mapping[str, tuple[Array, Array]]


class Dreamings:
    """The moments of all nights' dreaming, compiled once for all of them.

    Args:
      stage: the learner's steps.
      material: ``(day, round) -> batch`` of what a round dreams of, with E in front.
      tell: metrics of the texts of a round (:data:`~sleeplm.methods.dreams.stage.TEXTS`, with E in
        front), made on the host, or None.
      mesh: that the learners lie on, or None.
    """

    def __init__(
        self,
        stage: Dreaming,
        material: Callable[[int, int], PyTree],
        tell: Callable[[Texts], Metrics] | None,
        mesh: Mesh | None = None,
    ):
        self.stage, self.config = stage, stage.config
        self.material, self.tell = material, tell
        rows = np.arange(self.config.inner * self.config.rows, dtype=np.int32)
        self.rows = rows.reshape(self.config.inner, self.config.rows)
        self.begin, self.round, self.absorb, self.end = (
            side_by_side(masked(FLAG, of_last_night(step)), mesh)
            for step in (stage.begin, stage.round, stage.absorb, stage.end)
        )

    def moments(self, label: str, day: int, number: int) -> list[Moment]:
        """A night's dreaming as moments.

        Args:
          number: the place of its first one in the agenda.
        """
        out: list[Moment] = []

        def add(label: str, event: str, run: Callable, show: str = "", **more: Any) -> None:
            place = number + len(out)

            def when_anybody_dreams(state: State):
                if not bool(jnp.any(state.counters[FLAG])):
                    return state, None
                return run(state, place)

            fields = {"event": event, "day": day, **more} if event else {}
            cost = int(event in ("dream", "absorb"))
            out.append(Moment(label, fields, when_anybody_dreams, cost=cost, show=show))

        config = self.config
        add(f"{label} falls to dreaming", "", self._begin)
        for i in range(config.rounds):
            name = f"{label} dreaming {i + 1}/{config.rounds}"
            add(name, "dream", self._round(day, i), "accepted", round=i)
        for i in range(1, config.blocks + 1):
            name = f"{label} absorbing dreams {i * config.inner}/{config.updates}"
            add(name, "absorb", self._absorb, "dream_loss", block=i)
        add(f"{label} dreams end", "dream_end", self._end, "undone")
        return out

    def _begin(self, state: State, place: int):
        if self.config.into == "new":
            require_room_for_all(state, self.stage.receiver)
        return self.begin(state, {}, {}, place)

    def _round(self, day: int, number: int) -> Callable:
        def run(state: State, place: int):
            shared = {"round": np.int32(number)}
            state, metrics = self.round(state, self.material(day, number), shared, place)
            texts = {name: metrics.pop(name) for name in TEXTS}
            return state, metrics if self.tell is None else {**metrics, **self.tell(texts)}

        return run

    def _absorb(self, state: State, place: int):
        return self.absorb(state, {}, {"rows": self.rows}, place)

    def _end(self, state: State, place: int):
        return self.end(state, {}, {}, place)


def of_last_night(step: Step) -> Step:
    """The step with ``batch["today"]`` = the day that the last good night was about."""

    def run(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        return step(state, {**batch, "today": state.counters["today"] - 1}, key)

    return run


def undone_lines(records: list[dict[str, Any]]) -> list[str]:
    """A line for people about every night whose dreaming was undone: why, and by how much."""
    lines = []
    for record in (r for r in records if r["event"] == "dream_end"):
        for e, undone in enumerate(record["undone"]):
            if not undone:
                continue
            causes = []
            if record["undone_recall"][e]:
                fall = record["gate_recall"][e]
                told = "is not a number" if fall is None else f"changed by {fall:+.3f} nats a token"
                causes.append(f"recall of earlier days {told}")
            if record["undone_cluster"][e]:
                now, was = record["gate_cluster"][e], record["gate_cluster_before"][e]
                causes.append(f"{now:.0%} of what it tells is one text ({was:.0%} before)")
            lines.append(
                f"night {record['day'] + 1}, learner {e}: dreaming undone: {', '.join(causes)}"
            )
    return lines
