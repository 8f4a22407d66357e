"""Floating-point operations, counted from shapes; a multiply-add is two.

Counted are the matrix products that are computed, for padding too: projections, attention scores
over the whole context, the MLPs that run, routers, the experts that a token uses (however they
are dispatched), logits. What is elementwise, and sorting, is left out; a compiled program has a
few percent more. Logits of chunked losses are counted once: as long as a row is one chunk, the
compiler does not make them again.
"""

from __future__ import annotations

from typing import NamedTuple

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import NEVER
from sleeplm.methods.config import SleepConfig, merging
from sleeplm.methods.frames import TEXTS, WIDTH
from sleeplm.models.config import ModelConfig

#: What may learn: every parameter; the MLPs of levels with a period; those of all levels; one
#: level's experts (one or all: the gradient is that of the pool); one level's MLP; adapters on
#: every matrix of the blocks; nothing, while gradients run through all of it.
TRAINABLE = ("all", "bases", "mlps", "expert", "base", "adapters", "inputs")
#: All-MiniLM-L6-v2, for each word piece: six layers 384 wide, with MLPs of 1536.
MINILM = 2.0 * 6 * (4 * 384**2 + 2 * 384 * 1536)


class _Part(NamedTuple):
    """Costs of one part of a block, per token.

    Attributes:
      inputs, weights: of the gradients of its inputs and of its weights.
      lowest: of the gradients inside it, where nothing below it has one.
    """

    name: str
    forward: float
    inputs: float
    weights: float
    lowest: float


def forward(
    config: ModelConfig, context: float, *, logits: bool = True, open_experts: int | None = None
) -> float:
    """FLOPs of one token's way through the model.

    Args:
      context: positions that its query is held against: L in a whole row of L tokens (masked ones
        are computed too), the whole cache in generation.
      open_experts: how many are open in each pool, so that a token uses no more; None: all.
    """
    block = sum(part.forward for part in _parts(config, context, open_experts))
    return config.n_layers * block + (_logits(config) if logits else 0.0)


def train(
    config: ModelConfig,
    context: float,
    trainable: str,
    *,
    level: str | None = None,
    rank: int = 0,
    positions: int = 0,
    student_logits: int = 1,
    teacher_logits: int = 0,
    open_experts: int | None = None,
) -> float:
    """FLOPs per token of one update: forward, and backward as far down as something learns.

    Args:
      trainable: one of :data:`TRAINABLE`.
      level: the level of ``expert`` and ``base``; None: the first that has experts.
      rank, positions: of ``adapters``, which are added to their matrices once an update of so
        many tokens (W + A B, and its gradient); with 0 positions this is left out.
      student_logits, teacher_logits: logits made with and without a gradient. A language-model
        loss has (1, 0), a divergence (1, 1), with imitation (2, 1).

    Raises:
      ConfigError: nothing of that kind is there to learn.
    """
    parts = _parts(config, context, open_experts)
    moving = _moving(config, trainable, level)
    first = next((i for i, part in enumerate(parts) if part.name in moving), None)
    if first is None:
        raise ConfigError("trainable", trainable, "no part of this model learns then")
    block = sum(part.forward for part in parts)
    through = sum(part.inputs for part in parts)
    # Below what learns first in the lowest block nothing asks for a gradient.
    lowest = parts[first].lowest + sum(part.inputs for part in parts[first + 1 :])
    learns = trainable != "inputs"
    weights = sum(part.weights for part in parts if part.name in moving) if learns else 0.0
    again = _recomputed(config, parts, context)
    total = config.n_layers * (block + again + weights + through) - through + lowest
    total += (2 * student_logits + teacher_logits) * _logits(config)
    if trainable == "all":
        total += student_logits * _logits(config)
    if trainable == "adapters" and positions:
        # One product forward, and one each for the gradients of A and B.
        matrices = sum(part.weights for part in parts if part.name in moving)
        total += config.n_layers * 3 * rank * matrices / positions
    return total


def decode(config: ModelConfig, prompt: int, new: int, *, open_experts: int | None = None) -> float:
    """FLOPs of one sequence of :func:`~sleeplm.models.decode.generate`, if no row stops early.

    An upper bound: rows stop early, and on a CPU the last quarter goes on without the others.

    Args:
      prompt: columns of the prompts, padding included. new: most tokens written.
    """
    inside = forward(config, prompt + new, logits=False, open_experts=open_experts)
    return (prompt + new - 1) * inside + new * _logits(config)


def day(
    config: ModelConfig,
    steps: int,
    batch: int,
    length: int,
    *,
    open_experts: int | None = None,
) -> dict[str, float]:
    """FLOPs of the wake steps of a day, in which the levels' MLPs learn: {"wake"}."""
    token = train(config, length, "bases", open_experts=open_experts)
    return {"wake": steps * batch * length * token}


def night(
    config: ModelConfig,
    sleep: SleepConfig,
    *,
    receiver: str | None = None,
    open_experts: int | None = None,
) -> dict[str, float]:
    """FLOPs of a whole night, see :func:`sleeplm.methods.sleep.teachings`.

    Args:
      receiver: the level that learns; None: the first that has experts.

    Returns:
      {"sampled": writing texts, frames and own cues; "graded": teachers (and the student itself,
      and a judge's model) reading what students wrote; "seeded": updates}.
    """
    length, rows = sleep.length, sleep.inner * sleep.rows
    read = length * forward(config, length, logits=False, open_experts=open_experts)
    sampled = graded = 0.0
    sequences = 0  # that a row of a minibatch stands for

    def write(prompt: int, new: int) -> float:
        return decode(config, prompt, new, open_experts=open_experts)

    for teacher in sleep.teachers:
        cue = sleep.cue_tokens + (WIDTH - 1 if teacher.framed else 0)
        for writer, _ in sleep.writers:
            sampled += rows * teacher.times * write(cue, length - 1)
            sampled += TEXTS * write(1, WIDTH + 1) if teacher.framed else 0.0
            graded += rows * teacher.times * (read if writer == "student" else 0.0)
            sequences += teacher.times
        if teacher.imitate and sleep.imitates:
            told = rows // sleep.group * write(sleep.cue_tokens, length - 1)
            sampled += told + rows * write(length, length - 1)
            texts = (1 + 1 / sleep.group) * length  # as if all differed, a piece for each token
            judged = {"exact": 0.0, "cosine": 2 * read, "minilm": texts * MINILM}[sleep.judge]
            graded += rows * (2 * read + length * _logits(config) + judged)
            sequences += 1
    own = sleep.own_cues * write(1, sleep.own_cue_tokens - 1) if sleep.cues == "self" else 0.0
    sequences *= sleep.rows
    width, packed = (sleep.pack, -(-sequences // 2)) if sleep.pack else (length, sequences)
    token = train(
        config,
        width,
        "base" if sleep.into == "base" else "expert",
        level=receiver,
        student_logits=2 if sleep.imitates else 1,
        teacher_logits=1,
        open_experts=open_experts,
    )
    return {
        "sampled": sleep.blocks * sampled + own,
        "graded": sleep.blocks * graded,
        "seeded": sleep.updates * packed * width * token,
    }


def merge(
    config: ModelConfig,
    sleep: SleepConfig,
    *,
    receiver: str | None = None,
    open_experts: int | None = None,
) -> dict[str, float]:
    """FLOPs of making two experts one, see :func:`sleeplm.methods.merge.merge_night`."""
    return night(config, merging(sleep), receiver=receiver, open_experts=open_experts)


def _logits(config: ModelConfig) -> float:
    return 2.0 * config.d_model * config.vocab_size


def _parts(config: ModelConfig, context: float, open_experts: int | None) -> list[_Part]:
    """The parts of one block in the order in which a token meets them."""
    d_model, width = config.d_model, config.width_of_head
    matrices = 4.0 * d_model * width * (config.n_heads + config.n_kv_heads)
    scores = 4.0 * context * config.n_heads * width
    back = matrices + 2 * scores
    parts = [_Part("attention", matrices + scores, back, matrices, back)]
    for i, lv in enumerate(config.levels):
        runs = config.wiring != "nested" or i == 0
        mlp = 6.0 * d_model * lv.width if runs else 0.0
        # In front of an MLP that learns there is a norm that does: its input has a gradient.
        parts.append(_Part(f"{lv.name}/base", mlp, mlp, mlp, mlp))
        if lv.slots:
            there = lv.slots if open_experts is None else min(open_experts, lv.slots)
            expert = 4.0 * d_model * lv.rank * min(lv.top_k, there)
            pool = expert + 2.0 * d_model * lv.slots
            parts.append(_Part(f"{lv.name}/experts", pool, pool, pool, expert / 2))
    return parts


def _recomputed(config: ModelConfig, parts: list[_Part], context: float) -> float:
    """What the backward pass does again in a block: nothing, all of it, or only the scores."""
    if not config.remat:
        return 0.0
    if config.remat_policy == "dots":
        return 4.0 * context * config.n_heads * config.width_of_head
    return sum(part.forward for part in parts)


def _moving(config: ModelConfig, trainable: str, level: str | None) -> set[str]:
    """Names of the parts that have weight gradients."""
    checks.one_of("trainable", trainable, TRAINABLE)
    bases = {f"{lv.name}/base" for lv in config.levels}
    if trainable == "all":
        return {"attention", *bases, *(f"{lv.name}/experts" for lv in config.levels)}
    if trainable in ("adapters", "inputs"):
        return {"attention", *bases}
    if trainable == "mlps":
        return bases
    if trainable == "bases":
        return {f"{lv.name}/base" for lv in config.levels if lv.period != NEVER}
    names = [lv.name for lv in config.levels]
    receivers = [lv.name for lv in config.levels if lv.slots]
    level = level or next(iter(receivers), None)
    checks.one_of("level", level, receivers if trainable == "expert" else names)
    return {f"{level}/{'base' if trainable == 'base' else 'experts'}"}
