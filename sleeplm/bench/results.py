"""What an experiment leaves behind for its report: ``results.json``, read and checked.

An arm is one dict a seed, or a list of them. ``matrix``, ``awake``, ``pretrain`` and
``pretrain_start`` are required; every other entry may be absent, and a ``null`` inside it means
"not measured". Both leave the figures out that need it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sleeplm.core.errors import ConfigError

RESULTS = "results.json"
FEW_SHOT_ARC = "few-shot ARC"  # the experiment whose results are of another kind
REQUIRED = ("matrix", "awake", "pretrain", "pretrain_start")
#: Longest value that an error message shows in full, in characters.
LONGEST_VALUE = 80


@dataclasses.dataclass(frozen=True)
class Routing:
    """Where one seed's questions go in a pool of S experts.

    Attributes:
      traffic: mean gate weight of every expert over the questions of every day; [days, S].
      born: the day whose night opened the slot, -1 for none; int [S].
      learned, oracle: recall of every day's facts as the router sends them, and with only that
        day's own expert open; [days].
    """

    traffic: np.ndarray
    born: np.ndarray
    learned: np.ndarray
    oracle: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One seed of one arm. Recall is a share from 0 to 1; absent entries are None.

    Attributes:
      matrix: recall of day j's facts after night i; [nights, days], NaN for j > i.
      awake: recall of today's facts at dusk; [days].
      pretrain, pretrain_start: recall of pretraining facts after every night, [nights], and
        before the first day.
      forward, floor: recall of a day's facts at the dawn before it, and at the start of life;
        [days].
      logp, logp_start: mean log-probability of the right answers, nats an answer;
        [nights, days], and at the start of life [days].
      kl: divergence to the original model after every night, nats a token; [nights].
      general, general_start: loss on general text after every night, [nights], and before the
        first day, nats a token.
      em, f1, judged: answers as text (:mod:`sleeplm.bench.textscores`), each day's mean after
        every night; [nights, days]. em_start, f1_start, judged_start: before the first day; [days].
      cluster: share of the exam's answers that are the most frequent output; [nights].
      dusk: recall of all days at dusk; [nights, days].
      dreams: by metric of a round of dreaming, its mean over every night's rounds; [nights].
      tokens, flops, seconds: what the arm cost, by kind.
      settings: of its arm alone, in a run that sweeps.
      origin: which world the seed lived in, after putting runs together.
      run: name of the run that it comes from, after putting runs together.
    """

    matrix: np.ndarray
    awake: np.ndarray
    pretrain: np.ndarray
    pretrain_start: float
    forward: np.ndarray | None = None
    floor: np.ndarray | None = None
    logp: np.ndarray | None = None
    logp_start: np.ndarray | None = None
    kl: np.ndarray | None = None
    general: np.ndarray | None = None
    general_start: float | None = None
    em: np.ndarray | None = None
    em_start: np.ndarray | None = None
    f1: np.ndarray | None = None
    f1_start: np.ndarray | None = None
    judged: np.ndarray | None = None
    judged_start: np.ndarray | None = None
    cluster: np.ndarray | None = None
    dusk: np.ndarray | None = None
    dreams: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    routing: Routing | None = None
    bits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, float] = dataclasses.field(default_factory=dict)
    flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    cues: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    log: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    nights: list[str] | None = None
    raw_text: bool | None = None
    wording: Any = None
    seed: int | None = None
    world_seed: int | None = None
    origin: str | None = None
    run: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Seeds of two arms with the same key had the same days and the same randomness."""
        return self.origin, self.world_seed, self.seed


def read_results(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``results.json`` of a run directory.

    Raises:
      ConfigError: it is missing, is not JSON, or is not the result of an experiment with days.
    """
    path = pathlib.Path(run_dir) / RESULTS
    try:
        results = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError("results", str(path), "no such file; has the run finished?") from error
    except (OSError, ValueError) as error:
        raise ConfigError("results", str(path), f"cannot be read as JSON: {error}") from error
    if not isinstance(results, dict) or not isinstance(results.get("arms"), dict):
        raise ConfigError("results", str(path), "must be an object with the entry arms")
    if results.get("experiment") == FEW_SHOT_ARC:
        remedy = f"is of {FEW_SHOT_ARC}, which has no days: its report is report.md beside it"
        raise ConfigError("results", str(path), remedy)
    return results


def read_arms(results: Mapping[str, Any], path: str = RESULTS) -> dict[str, list[SeedRun]]:
    """Every arm's seeds, checked.

    Args:
      path: where the results come from, for error messages.

    Raises:
      ConfigError: an entry is missing or garbled.
    """
    arms = results["arms"]
    if not arms:
        raise ConfigError(path, arms, "must have at least one arm")
    return {name: _seeds(arm, f"{path}: arms.{name}") for name, arm in arms.items()}


def _seeds(arm: Any, field: str) -> list[SeedRun]:
    entries = list(arm) if isinstance(arm, list) else [arm]
    if not entries:
        raise ConfigError(field, arm, "must have at least one seed")
    fields = [f"{field}[{i}]" if isinstance(arm, list) else field for i in range(len(entries))]
    for where, entry in zip(fields, entries, strict=True):
        if not isinstance(entry, Mapping):
            raise ConfigError(where, entry, "must be an object with the entry matrix")
        for name in REQUIRED:
            if name not in entry:
                raise ConfigError(where, sorted(entry), f"lacks the entry {name}")
    sizes = {
        len(_read(where, entry, "matrix", _matrix))
        for where, entry in zip(fields, entries, strict=True)
    }
    if len(sizes) > 1:
        raise ConfigError(field, sorted(sizes), "must have as many days with every seed")
    seeds = [_seed_run(*pair) for pair in zip(fields, entries, strict=True)]
    keys = [seed.key for seed in seeds if seed.seed is not None]
    if len(set(keys)) < len(keys):
        raise ConfigError(field, [seed.seed for seed in seeds], "must have every seed once")
    return seeds


def _seed_run(where: str, entry: Mapping[str, Any]) -> SeedRun:
    """Reads one seed; shapes follow from the number of days in the matrix."""
    days = len(_matrix(entry["matrix"]))
    read: dict[str, Callable[[Any], Any]] = {
        "matrix": _matrix,
        "awake": lambda value: _vector(value, days),
        "pretrain": lambda value: _vector(value, days),
        "pretrain_start": _finite,
        "general_start": _finite,
        "routing": lambda value: _routing(value, days),
        "nights": lambda value: _labels(value, days),
        "seconds": lambda value: _amounts({"total": value} if _real(value) else value),
        "dreams": _dreams,
        "cues": _object,
        "log": _object,
        "raw_text": _flag,
        "wording": lambda value: value,
        "seed": _number,
        "world_seed": _number,
        "origin": str,
        "run": str,
    }
    for name in ("logp", "dusk", "em", "f1", "judged"):
        read[name] = lambda value: _array(value, (days, days))
    starts = ("logp_start", "em_start", "f1_start", "judged_start")
    for name in ("forward", "floor", "kl", "cluster", "general", *starts):
        read[name] = lambda value: _array(value, (days,))
    read |= dict.fromkeys(("bits", "tokens", "flops", "settings"), _amounts)
    given = [name for name in read if name in REQUIRED or entry.get(name) is not None]
    return SeedRun(**{name: _read(where, entry, name, read[name]) for name in given})


def _read(where: str, entry: Mapping[str, Any], name: str, read: Callable[[Any], Any]) -> Any:
    try:
        return read(entry[name])
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        value = entry[name]
        shown = repr(value)
        if len(shown) > LONGEST_VALUE:
            value = shown[: LONGEST_VALUE - 3] + "..."
        raise ConfigError(f"{where}.{name}", value, " ".join(str(error).split())) from error


def _matrix(value: Any) -> np.ndarray:
    """Recall [nights, days] with NaN above the diagonal."""
    matrix = _array(value, (None, None))
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError("must have one row a night and one column a day, as many of both")
    if not np.isfinite(matrix[np.tril_indices(len(matrix))]).all():
        raise ValueError("must have a number for every day that is not after the night")
    return np.where(np.tri(len(matrix), dtype=bool), matrix, np.nan)


def _vector(value: Any, size: int) -> np.ndarray:
    vector = _array(value, (None,))
    if not np.isfinite(vector).all():
        raise ValueError("must be a list of numbers")
    if len(vector) != size:
        raise ValueError(f"must be {size} numbers, one a day, as in the matrix")
    return vector


def _array(value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Numbers of a shape (None: any size but 0); null becomes NaN."""
    wanted = " x ".join("n" if size is None else str(size) for size in shape)
    remedy = "must be a list of numbers" + ("" if shape == (None,) else f", {wanted}")
    try:
        array = np.array(value, float)
    except (TypeError, ValueError) as error:
        raise ValueError(remedy) from error
    sizes = zip(array.shape, shape, strict=False)
    if array.ndim != len(shape) or any(a != b if b else not a for a, b in sizes):
        raise ValueError(remedy)
    return np.where(np.isfinite(array), array, np.nan)


def _routing(value: Any, days: int) -> Routing:
    for name in ("traffic", "born", "learned", "oracle"):
        if name not in _object(value):
            raise ValueError(f"lacks the entry {name}")
    traffic = _array(value["traffic"], (days, None))
    born = _array(value["born"], (traffic.shape[1],))
    if not np.isin(born, np.arange(-1, days)).all():
        raise ValueError(f"born must be days from 0 to {days - 1}, or -1")
    learned, oracle = (_array(value[name], (days,)) for name in ("learned", "oracle"))
    return Routing(traffic, born.astype(int), learned, oracle)


def _dreams(value: Any) -> dict[str, np.ndarray]:
    """Metrics of nights of rounds, by name; what no round of a night has is NaN there."""
    if not isinstance(value, list):
        raise ValueError("must be a list of nights")
    nights = [list(map(_amounts, _object(night).get("rounds", []))) for night in value]
    names = dict.fromkeys(name for rounds in nights for told in rounds for name in told)

    def mean(name: str, rounds: list[dict[str, float]]) -> float:
        found = [told[name] for told in rounds if name in told]
        return float(np.mean(found)) if found else math.nan

    return {name: np.array([mean(name, rounds) for rounds in nights]) for name in names}


def _labels(value: Any, size: int) -> list[str]:
    if not isinstance(value, list) or len(value) != size:
        raise ValueError(f"must be a list of {size} names of nights")
    return [str(label) for label in value]


def _amounts(value: Any) -> dict[str, float]:
    """Numbers by kind; null is left out."""
    kinds = {kind: amount for kind, amount in _object(value).items() if amount is not None}
    if not all(map(_real, kinds.values())):
        raise ValueError("must be an object of numbers")
    return kinds


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("must be an object")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def _finite(value: Any) -> float:
    if not _real(value):
        raise ValueError("must be a number")
    return float(value)


def _real(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
