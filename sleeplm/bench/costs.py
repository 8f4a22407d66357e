"""What an arm cost: positions processed, and floating-point operations, by kind."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sleeplm.bench import dreamflops, flops
from sleeplm.bench.dream_material import DreamMaterial
from sleeplm.bench.material import Material
from sleeplm.core import tree
from sleeplm.memory.levels import NEVER
from sleeplm.methods.adapters import ADAPTERS, with_adapters
from sleeplm.methods.config import SleepConfig, merging
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.models.config import ModelConfig


def tokens_of(bench: Any, arm: Any, records: list[dict], e: int) -> dict[str, int]:
    """Positions that one learner processed, padding included.

    ``read`` awake; ``sampled`` written by teachers and students, and as cues of one's own;
    ``seeded`` learned from at night, merges of experts included, in rows as they are packed;
    ``replayed`` raw text learned from again; ``fisher`` raw text measured for what to protect;
    ``dreamt`` contexts and dreams, and what is told of the past for rewards and the gate;
    ``tried`` in trials, ``absorbed`` from dreams at last.
    """
    day, sleep = bench.config.day, arm.sleep
    out = {"read": sum(bench.steps) * day.batch * day.length if arm.trains != "nothing" else 0}
    nights, merges, evenings = (_blocks(records, kind, e) for kind in ("seed", "merge", "own_cues"))
    if arm.archive == "today":
        out["fisher"] = nights * sleep.inner * sleep.rows * sleep.length
    if not arm.follows_schedule:
        return out
    sampled, seeded = _told_tokens(merging(sleep), merges)
    sampled += evenings * sleep.own_cues * min(sleep.own_cue_tokens, sleep.cue_tokens)
    if arm.archive == "texts":
        updates = nights * sleep.inner * sleep.epochs
        out["replayed"] = updates * math.prod(_rows_and_width(sleep, _texts(sleep)))
    else:
        tonight = _told_tokens(sleep, nights)
        sampled, seeded = sampled + tonight[0], seeded + tonight[1]
    if arm.archive == "none" or sampled:
        out |= {"sampled": sampled, "seeded": seeded}
    if arm.dream is not None:
        out |= _dream_tokens(sleep, arm.dream, *_dreamt(records, e))
    return out


def _told_tokens(sleep: SleepConfig, blocks: int) -> tuple[int, int]:
    """Positions written in so many extractions, and learned from."""
    sequences = sum(rows_of(sleep)) * sleep.rows
    minibatch = math.prod(_rows_and_width(sleep, sequences))
    extractions = blocks * sleep.inner
    return extractions * sequences * sleep.length, extractions * sleep.epochs * minibatch


def _rows_and_width(sleep: SleepConfig, sequences: int) -> tuple[int, int]:
    """Rows and positions of a minibatch of so many sequences; packed, two share a row."""
    return (-(-sequences // 2), sleep.pack) if sleep.pack else (sequences, sleep.length)


def _texts(sleep: SleepConfig) -> int:
    """Raw texts of a minibatch of nights that replay them: one for each that a teacher tells."""
    return sum(one.times for one in sleep.teachers) * sleep.rows


def _dreamt(records: list[dict], e: int) -> tuple[int, int, int]:
    """Rounds, extractions of what is absorbed, and endings that one learner took part in."""
    rounds, absorbed, ends = (
        _blocks(records, kind, e) for kind in ("dream", "absorb", "dream_end")
    )
    return rounds, absorbed, ends


def _dream_tokens(
    sleep: SleepConfig, dream: DreamConfig, rounds: int, blocks: int, ends: int
) -> dict[str, int]:
    told = 1 + dream.new_tokens if dream.alone else dream.width
    memories = dream.memories if dream.reward == "agreement" else 0
    teachers = sum(one.times for one in sleep.teachers) if dream.past else 0
    rows = dream.inner * dream.rows
    written = dream.dreams * dream.width + memories * (sleep.cue_tokens + dream.new_tokens)
    gate = 2 * dream.gate * (sleep.cue_tokens + sleep.length - 1)
    width = max(told, sleep.length) if teachers else told
    return {
        "dreamt": rounds * written + blocks * rows * teachers * sleep.length + ends * gate,
        "tried": (dream.reward != "none") * rounds * dream.kept * dream.steps * told,
        "absorbed": blocks * rows * (1 + teachers) * width,
    }


def rows_of(sleep: SleepConfig) -> list[int]:
    """Rows that each teacher's data sets have for every row of a minibatch."""
    writers = len(sleep.writers)
    return [writers * one.times + (one.imitate and sleep.imitates) for one in sleep.teachers]


def flops_of(bench: Any, arm: Any, records: list[dict], e: int) -> dict[str, float]:
    """Floating-point operations of one learner, by kind (see :mod:`sleeplm.bench.flops`)."""
    config, model, sleep = bench.config, arm.model.config, arm.sleep
    day = config.day
    out = {}
    if arm.trains != "nothing":
        read = sum(bench.steps) * day.batch * day.length
        trainable = {"bases": "bases", "everything": "all", "adapters": "adapters"}[arm.trains]
        rank = config.baselines.lora_rank if arm.trains == "adapters" else 0
        positions = day.batch * day.length if rank else 0
        out["wake"] = read * flops.train(
            model, day.length, trainable, rank=rank, positions=positions
        )
    nights, merges = _blocks(records, "seed", e), _blocks(records, "merge", e)
    if arm.archive == "texts":
        out["replay"] = nights * sleep.inner * sleep.epochs * replay_step(model, sleep)
    elif arm.archive == "today":
        positions = nights * sleep.inner * sleep.rows * sleep.length
        out["fisher"] = positions * flops.train(model, sleep.length, "all")
    elif arm.archive == "labelled":
        texts = np.mean([len(d) for m in bench.materials for d in m.days]) * len(bench.steps)
        out["features"] = texts * day.length * flops.forward(model, day.length, logits=False)
    elif nights:
        whole = flops.night(model, sleep)
        share = nights / max(sleep.blocks, 1)
        out |= {kind: share * amount for kind, amount in whole.items()}
    if merges:
        share = merges / max(merging(sleep).blocks, 1)
        out["merged"] = share * sum(flops.merge(model, sleep).values())
    if arm.dream is not None:
        rounds, blocks, ends = _dreamt(records, e)
        out |= dreamflops.total(
            (rounds, dreamflops.a_round(model, sleep, arm.dream, question_shape(bench, arm.dream))),
            (blocks, dreamflops.absorbing(model, sleep, arm.dream)),
            (ends, dreamflops.gate(model, sleep, arm.dream)),
        )
    return out


@dataclasses.dataclass(frozen=True)
class Reading:
    """What there is of a :class:`~sleeplm.bench.lives.Bench` before its arms: who reads what."""

    config: Any
    learners: Sequence[Any]
    materials: Sequence[Material]


def question_shape(bench: Any, dream: DreamConfig) -> dreamflops.Shape:
    """Longest prompt and longest answer that dreams are rewarded by, in tokens.

    Args:
      bench: a bench, or a :class:`Reading`.
    """
    if dream.reward != "questions":
        return 0, 0
    _, prompt, answer = DreamMaterial(bench, dream).shape
    return prompt, answer


def replay_step(model: ModelConfig, sleep: SleepConfig) -> float:
    """FLOPs of one update on raw text, with the rows and lengths of the night."""
    rows, width = _rows_and_width(sleep, _texts(sleep))
    return rows * width * flops.train(model, width, "expert")


def replay_updates(model: ModelConfig, sleep: SleepConfig) -> float:
    """Updates on raw text that cost as much as a night of ``sleep``."""
    return sum(flops.night(model, sleep).values()) / replay_step(model, sleep)


def longer_updates(model: ModelConfig, sleep: SleepConfig, more: float) -> float:
    """Updates of a night that costs as many FLOPs as ``sleep`` and ``more``."""
    return sleep.updates * (1 + more / sum(flops.night(model, sleep).values()))


def moved_parameters(bench: Any, arm: Any, nights: int) -> int:
    """Parameters that may hold what one learner learned by the end of its life."""
    model = arm.model.config
    if arm.trains == "everything":
        return tree.size(bench.params) // len(bench.learners)
    if arm.trains == "adapters":
        return adapter_parameters(bench, bench.config.baselines.lora_rank)
    if arm.trains == "nothing":
        return 0
    moving = [level for level in model.levels if level.period != NEVER]
    base = sum(model.n_layers * 3 * model.d_model * level.width for level in moving)
    if not arm.follows_schedule:
        return base
    receiver = model.level(arm.learner.rests[0].receiver)
    one = model.n_layers * (2 * model.d_model * receiver.rank + model.d_model + 1)
    if arm.sleep.into == "base":
        return model.n_layers * 3 * model.d_model * receiver.width
    if not arm.sleep.updates and arm.dream is None:
        return base
    opened = nights * (2 if arm.dream is not None and arm.dream.into == "new" else 1)
    used = receiver.slots if arm.sleep.into == "pool" else min(opened, receiver.slots)
    # What the fast level held was cleared, unless it keeps the day.
    return one * used + (base if arm.sleep.becomes == "dusk" else 0)


def adapter_parameters(bench: Any, rank: int) -> int:
    """Parameters of adapters of that rank on every matrix of the blocks."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), bench.params)
    grown = jax.eval_shape(lambda p, k: with_adapters(p, rank, k)[ADAPTERS], one, jax.random.key(0))
    return tree.size(grown)


def _blocks(records: list[dict], event: str, e: int) -> int:
    """How many extractions of that kind one learner took part in.

    A learner that slept on while others did not has no value in any of the record's metrics.
    """
    mine = [[v[e] for v in r.values() if isinstance(v, list)] for r in records
            if r["event"] == event]  # fmt: skip
    return sum(any(value is not None for value in values) for values in mine)
