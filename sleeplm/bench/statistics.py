"""The figures of a retention experiment, and how sure they are. Plain numpy, no model.

``R[i, j]`` is the recall of the facts of day ``j`` after night ``i``, NaN for ``j > i``. A figure
is the mean of its *samples* in one seed, mostly one a day; its interval comes from resampling
seeds, or days where there is a single seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sleeplm.bench.results import Routing, SeedRun
from sleeplm.methods.dreams.config import SCORES

BOOTSTRAP_SAMPLES = 2000
#: Recall below this counts as this when a half-life is fitted: logarithms know no zero.
RECALL_FLOOR = 0.005

Interval = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number about one seed.

    Attributes:
      name: in ``report.json``.
      samples: what the number is the mean of, [n]; None where the seed lacks an entry.
      paired: whether arms are compared in it.
    """

    name: str
    samples: Callable[[SeedRun], np.ndarray | None]
    paired: bool = True

    def value(self, run: SeedRun) -> float:
        """The figure of one seed; NaN where it was not measured."""
        samples = self.samples(run)
        return math.nan if samples is None or not samples.size else float(samples.mean())


def bootstrap(samples: np.ndarray, seed: int = 0) -> Interval:
    """Mean over the first axis and its 95% bootstrap interval, drawn with a fixed seed.

    Args:
      samples: [n] or [n, ...]; resampled along the first axis.

    Returns:
      ``mean``, ``low``, ``high``: numbers, or nested lists of the other axes. NaN in a sample
      makes NaN of what it enters.
    """
    samples = np.asarray(samples, float)
    count = len(samples)
    draws = np.random.default_rng(seed).integers(count, size=(BOOTSTRAP_SAMPLES, count))
    rows = np.arange(BOOTSTRAP_SAMPLES)[:, None] * count
    drawn = np.bincount((draws + rows).ravel(), minlength=BOOTSTRAP_SAMPLES * count)
    means = np.tensordot(drawn.reshape(BOOTSTRAP_SAMPLES, count) / count, samples, axes=1)
    mean = samples.mean(axis=0)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    # Sums in another order differ in their last bits: an interval holds its own mean.
    parts = {"mean": mean, "low": np.minimum(low, mean), "high": np.maximum(high, mean)}
    return {name: part.tolist() for name, part in parts.items()}


def measure(figure: Figure, runs: Sequence[SeedRun]) -> Interval | None:
    """A figure of an arm with its interval, or None if no seed has it.

    Returns:
      ``mean``, ``low``, ``high``; ``interval``: ``over seeds``, ``over days`` (one seed) or
      ``none`` (one number: ``low`` and ``high`` are None); ``seeds``: how many have the figure;
      ``values``: every seed's, None where it was not measured.
    """
    values = np.array([figure.value(run) for run in runs])
    known = np.isfinite(values)
    if not known.any():
        return None
    if known.sum() > 1:
        spread = bootstrap(values[known]) | {"interval": "over seeds"}
    else:
        samples = figure.samples(runs[int(np.argmax(known))])
        spread = _single(np.asarray(samples, float))
    each = [float(value) if math.isfinite(value) else None for value in values]
    return spread | {"seeds": int(known.sum()), "values": each}


def compare(figure: Figure, pairs: Sequence[tuple[SeedRun, SeedRun]]) -> Interval | None:
    """First minus second of every pair, like :func:`measure`; None if no pair has the figure."""
    gains = np.array([figure.value(first) - figure.value(second) for first, second in pairs])
    known = np.isfinite(gains)
    if not known.any():
        return None
    if known.sum() > 1:
        spread = bootstrap(gains[known]) | {"interval": "over seeds"}
    else:
        pair = [figure.samples(run) for run in pairs[int(np.argmax(known))]]
        first, second = (np.asarray(samples, float) for samples in pair)
        spread = _single(first - second if first.shape == second.shape else gains[known])
    return spread | {"seeds": int(known.sum())}


def curve(values: Sequence[np.ndarray | None]) -> dict[str, Any] | None:
    """Mean and interval over seeds of a list of numbers a seed; None if no seed has it.

    Returns:
      ``mean``, ``low``, ``high``: lists; the last two are None with a single seed.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) == 1:
        return {"mean": known[0].tolist(), "low": None, "high": None}
    return bootstrap(np.stack(known))


def half_life(runs: Sequence[SeedRun]) -> dict[str, Any] | None:
    """Nights after which half of what was recalled is left: ``recall(age) = c 2^(-age / h)``.

    Fitted to each seed's recall against age (:func:`decay_rate`). What is averaged and resampled
    are the rates 1 / h, since ``h`` has no bound where nothing decays; the mean is the half-life
    of the mean rate.

    Returns:
      ``mean``, ``low``, ``high`` in nights, None for "no decay" (or for no interval, where
      ``interval`` is ``none``); ``seeds``: the half-life of every seed. None with a single night.
    """
    spread = measure(FIGURES_BY_NAME["decay_per_night"], runs)
    if spread is None:
        return None
    rates = [decay_rate(recall_by_age(run.matrix)) for run in runs]
    single = spread["low"] is None
    return {
        "mean": _inverse(spread["mean"]),
        "low": None if single else _inverse(spread["high"]),
        "high": None if single else _inverse(spread["low"]),
        "interval": spread["interval"],
        "seeds": [_inverse(rate) for rate in rates],
    }


def recall_by_age(matrix: np.ndarray) -> np.ndarray:
    """Mean over nights ``i`` of ``R[i, i - a]`` for every age ``a`` in nights; [nights]."""
    return np.array([np.diagonal(matrix, -age).mean() for age in range(len(matrix))])


def decay_rate(age: np.ndarray) -> float:
    """Halvings a night of recall against age: the slope of log2 recall, by least squares.

    Args:
      age: recall at ages 0, 1, ...; [nights]. Recall counts as at least ``RECALL_FLOOR``.

    Returns:
      At least 0: recall that grows does not decay. NaN with a single age.
    """
    if len(age) < 2:
        return math.nan
    slope = np.polyfit(np.arange(len(age)), np.log2(np.maximum(age, RECALL_FLOOR)), 1)[0]
    # A flat line comes out of the fit as a slope of rounding errors.
    return max(0.0, float(-slope)) if abs(slope) > 1e-9 else 0.0


def forgotten(matrix: np.ndarray) -> np.ndarray:
    """Best recall before the last night minus recall after it, of every day but the last."""
    drops = [matrix[day:-1, day].max() - matrix[-1, day] for day in range(len(matrix) - 1)]
    return np.array(drops or [0.0])


def transferred_back(matrix: np.ndarray) -> np.ndarray:
    """Recall after the last night minus after its own night, of every day but the last."""
    days = range(len(matrix) - 1)
    return np.array([matrix[-1, day] - matrix[day, day] for day in days] or [0.0])


def lift(run: SeedRun) -> np.ndarray | None:
    """Log-probability of right answers minus that at the start of life, nats; [nights, days]."""
    if run.logp is None or run.logp_start is None:
        return None
    return run.logp - run.logp_start


def traffic_by_birth(run: SeedRun) -> np.ndarray | None:
    """Gate weight given on day ``j``'s questions to the expert of every night; [days, nights].

    Slots of pools are sorted by the night that opened them, so that seeds can be averaged; slots
    that no night opened are left out. None where no night has an expert of its own.
    """
    if run.routing is None or not has_own_expert(run.routing).any():
        return None
    traffic = np.zeros_like(run.matrix)
    for slot, night in enumerate(run.routing.born):
        if night >= 0:
            traffic[:, night] += run.routing.traffic[:, slot]
    return traffic


def has_own_expert(routing: Routing) -> np.ndarray:
    """Whether the night of each day opened an expert that is still there; bool [days].

    Several slots that are all of one day were open from the start of life: no day's own.
    """
    opened = routing.born[routing.born >= 0]
    from_birth = len(opened) > 1 and len(np.unique(opened)) == 1
    return np.isin(np.arange(len(routing.traffic)), [] if from_birth else opened)


def total(amounts: Mapping[str, float]) -> float:
    """The entry ``total``, or the sum of all kinds; NaN without any."""
    return float(amounts.get("total", sum(amounts.values()))) if amounts else math.nan


def _single(samples: np.ndarray) -> Interval:
    if samples.size > 1:
        return bootstrap(samples) | {"interval": "over days"}
    return {"mean": float(samples.mean()), "low": None, "high": None, "interval": "none"}


def _inverse(rate: float) -> float | None:
    return 1 / rate if rate > 0 else None


def _forward(run: SeedRun) -> np.ndarray | None:
    if run.forward is None or run.floor is None:
        return None
    return (run.forward - run.floor)[1:]


def _row(values: np.ndarray | None, night: int = -1) -> np.ndarray | None:
    return None if values is None else values[night]


def _last(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values[-1:]


def _overnight(run: SeedRun) -> np.ndarray | None:
    """What a night does to the days before the one that it consolidates; one mean a day."""
    if run.dusk is None or len(run.matrix) < 2:
        return None
    change = run.matrix - run.dusk
    return np.array([change[day + 1 :, day].mean() for day in range(len(change) - 1)])


def _routed(run: SeedRun, which: str) -> np.ndarray | None:
    """Recall of the days that have an expert of their own; None without any."""
    values = _routed_by_day(run, which)
    return None if values is None else values[np.isfinite(values)]


def _routed_by_day(run: SeedRun, which: str) -> np.ndarray | None:
    """Recall of every day, [days]; NaN for a day without an expert of its own.

    A night may have been rolled back, or merged into another. With all experts closed a day's
    oracle is some number too, which is none of routing.
    """
    routing = run.routing
    if routing is None:
        return None
    own = has_own_expert(routing) & np.isfinite(routing.learned) & np.isfinite(routing.oracle)
    return np.where(own, getattr(routing, which), np.nan) if own.any() else None


def _own_share(run: SeedRun) -> np.ndarray | None:
    """Share of a day's gate weight that goes to the day's own expert, where there is any."""
    traffic = traffic_by_birth(run)
    if traffic is None or run.routing is None:
        return None
    every = run.routing.traffic.sum(axis=1)
    days = (every > 0) & has_own_expert(run.routing)
    return np.diagonal(traffic)[days] / every[days]


def _amount(amounts: Mapping[str, float], kind: str) -> np.ndarray | None:
    return np.array([amounts[kind]]) if kind in amounts else None


def _dreamt(name: str) -> Callable[[SeedRun], np.ndarray | None]:
    """A metric of dreaming, of the nights that have it."""

    def read(run: SeedRun) -> np.ndarray | None:
        values = run.dreams.get(name, np.empty(0))
        told = values[np.isfinite(values)]
        return told if told.size else None

    return read


def _total(amounts: Mapping[str, float]) -> np.ndarray | None:
    return np.array([total(amounts)]) if amounts else None


def _perplexity_rise(run: SeedRun) -> np.ndarray | None:
    """Of general text, after the last night, as a share of what it was before the first day."""
    if run.general is None or run.general_start is None:
        return None
    return np.exp(run.general[-1:] - run.general_start) - 1


#: Metrics of rounds of dreaming, see :func:`sleeplm.methods.dreams.rounds.whole_round` and
#: :func:`sleeplm.bench.dream_material.tell_falsehoods`.
DREAMS = (
    *("unique", "length", "copied", "accepted", "lift_held", "lift_memories", "lift_logp"),
    *("told_written", "false_written", "false_tried", "false_accepted"),
    *("planted_written", "planted_tried", "planted_accepted"),
    *(f"{name}_by_{score}" for name in ("earned", "lift_held", "lift_logp") for score in SCORES),
)
#: Every figure of an arm. The mean of all but costs and starts is compared between arms.
FIGURES = (
    Figure("mean_recall_last", lambda run: run.matrix[-1]),
    Figure("forgetting", lambda run: forgotten(run.matrix)),
    Figure("backward_transfer", lambda run: transferred_back(run.matrix)),
    Figure("forward_transfer", _forward),
    Figure("decay_per_night", lambda run: np.array([decay_rate(recall_by_age(run.matrix))])),
    Figure("recall_at_dusk", lambda run: run.awake),
    Figure("recall_at_dawn", lambda run: np.diagonal(run.matrix)),
    Figure("change_overnight", _overnight),
    Figure("pretrain_last", lambda run: run.pretrain[-1:]),
    Figure("pretrain_lost", lambda run: run.pretrain_start - run.pretrain[-1:]),
    Figure("kl_last", lambda run: _last(run.kl)),
    Figure("perplexity_rise", _perplexity_rise),
    Figure("cluster_largest", lambda run: None if run.cluster is None else run.cluster.max()[None]),
    Figure("em_last", lambda run: _row(run.em)),
    Figure("em_start", lambda run: run.em_start, paired=False),
    Figure("f1_last", lambda run: _row(run.f1)),
    Figure("f1_start", lambda run: run.f1_start, paired=False),
    Figure("judged_last", lambda run: _row(run.judged)),
    Figure("judged_start", lambda run: run.judged_start, paired=False),
    Figure("lift_last", lambda run: _row(lift(run))),
    Figure("routing_learned", lambda run: _routed(run, "learned")),
    Figure("routing_oracle", lambda run: _routed(run, "oracle")),
    Figure("routing_own_share", _own_share),
    Figure("bits_held", lambda run: _amount(run.bits, "held")),
    Figure("bits_per_parameter", lambda run: _amount(run.bits, "per_parameter")),
    *(Figure(f"dreams_{name}", _dreamt(name), paired=False) for name in DREAMS),
    Figure("tokens", lambda run: _total(run.tokens), paired=False),
    Figure("flops", lambda run: _total(run.flops), paired=False),
    Figure("seconds", lambda run: _total(run.seconds), paired=False),
)
FIGURES_BY_NAME = {figure.name: figure for figure in FIGURES}

#: Every list of numbers of an arm: by age, night or day.
CURVES: dict[str, Callable[[SeedRun], np.ndarray | None]] = {
    "age": lambda run: recall_by_age(run.matrix),
    "lift_age": lambda run: None if (rise := lift(run)) is None else recall_by_age(rise),
    "dusk": lambda run: run.awake,
    "dawn": lambda run: np.diagonal(run.matrix),
    "pretrain": lambda run: run.pretrain,
    "kl": lambda run: run.kl,
    "general": lambda run: run.general,
    "cluster": lambda run: run.cluster,
    "routing_learned": lambda run: _routed_by_day(run, "learned"),
    "routing_oracle": lambda run: _routed_by_day(run, "oracle"),
}
