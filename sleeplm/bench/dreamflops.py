"""Floating-point operations of dreaming, counted from shapes as in :mod:`sleeplm.bench.flops`.

As if no text ended early, and every dream counted. What a round needs of the variables alone (how
well the unchanged learner does) is counted once, not for every trial.
"""

from __future__ import annotations

from sleeplm.bench import flops
from sleeplm.core import checks
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.dreams.absorb import told_again
from sleeplm.methods.dreams.config import SCORES, DreamConfig
from sleeplm.models.config import ModelConfig

Shape = tuple[int, int]
Costs = dict[str, float]


def night(
    model: ModelConfig, sleep: SleepConfig, dream: DreamConfig, question: Shape = (0, 0)
) -> Costs:
    """FLOPs of a whole night's dreaming: its rounds, what is absorbed, and the gate.

    Args:
      question: longest prompt and longest answer of questions that reward, in tokens.

    Raises:
      ConfigError: questions reward, and nothing is said of their length.
    """
    return total(
        (dream.rounds, a_round(model, sleep, dream, question)),
        (dream.blocks, absorbing(model, sleep, dream)),
        (1, gate(model, sleep, dream)),
    )


def total(*parts: tuple[float, Costs]) -> Costs:
    """The sum of costs, each taken so many times."""
    out: Costs = {}
    for times, costs in parts:
        for kind, amount in costs.items():
            out[kind] = out.get(kind, 0.0) + times * amount
    return out


def a_round(
    model: ModelConfig, sleep: SleepConfig, dream: DreamConfig, question: Shape = (0, 0)
) -> Costs:
    """FLOPs of one round, see :func:`sleeplm.methods.dreams.rounds.whole_round`.

    Returns:
      {"dreamt": writing, and telling of memories; "selected": gradients; "tried": trials;
      "rewarded": reading after each, and before; "reinforced": the writer's fine-tuning}.

    Raises:
      ConfigError: questions reward, and nothing is said of their length.
    """
    remedy = "dreams are rewarded by questions: needs their longest prompt and answer, in tokens"
    known = dream.reward != "questions" or min(question) > 0
    checks.require(known, "question", question, remedy)
    told = 1 + dream.new_tokens if dream.alone else dream.width
    remembers = dream.reward == "agreement" and dream.memories
    memory = (sleep.cue_tokens, dream.new_tokens)
    costs = {"dreamt": dream.dreams * flops.decode(model, dream.context_tokens, dream.new_tokens)}
    costs["dreamt"] += dream.memories * flops.decode(model, *memory) if remembers else 0.0
    # Scores that are compared are computed of all dreams too, once each.
    scores = {dream.score, *(SCORES if dream.compare else ())}
    if gradients := len(scores - {"random"}):
        costs["selected"] = gradients * _positions(model, dream.dreams, told, "mlps")
    if "alignment" in scores:
        costs["selected"] += _positions(model, dream.contexts, dream.context_tokens, "mlps")
    if dream.reward != "none":
        costs["tried"] = dream.kept * dream.steps * told * adapters(model, told, dream.rank)
    if dream.reward == "questions":
        width = sum(question)
        read = dream.questions * width * flops.forward(model, width, logits=False)
        read += dream.questions * question[1] * 2.0 * model.d_model * model.vocab_size
        costs["rewarded"] = (1 + dream.kept) * read
    elif dream.reward == "agreement":
        width = sum(memory)
        costs["rewarded"] = (1 + dream.kept) * dream.memories * width * flops.forward(model, width)
        # Of its own context each dream is asked twice: by the unchanged learner, and once tried.
        every = (1 + dream.kept) * dream.contexts
        held = (2 * dream.kept if dream.agree == "own" else every) * dream.context_tokens
        costs["rewarded"] += held * flops.forward(model, dream.context_tokens)
    if dream.reinforce:
        positions = dream.writer_epochs * dream.kept * dream.width
        costs["reinforced"] = positions * adapters(model, dream.width, dream.writer_rank)
        if 0 < dream.writer_rows < dream.kept:  # pieces are computed again on the way back
            costs["reinforced"] += positions * flops.forward(model, dream.width)
    return costs


def absorbing(model: ModelConfig, sleep: SleepConfig, dream: DreamConfig) -> Costs:
    """FLOPs of ``dream.inner`` updates, see :func:`sleeplm.methods.dreams.absorb.absorb`.

    Returns:
      {"dreamt": what teachers write; "absorbed": updates}.
    """
    teachers = sum(one.times for one in sleep.teachers) if dream.past else 0
    told = 1 + dream.new_tokens if dream.alone else dream.width
    width = max(told, sleep.length) if teachers else told
    students, mentors = (2, 1) if teachers else (1, 0)
    token = flops.train(model, width, "expert", student_logits=students, teacher_logits=mentors)
    written = flops.night(model, told_again(sleep, dream))["sampled"] / dream.blocks
    rows = dream.inner * dream.rows * (1 + teachers)
    return {"dreamt": written if teachers else 0.0, "absorbed": rows * width * token}


def gate(model: ModelConfig, sleep: SleepConfig, dream: DreamConfig) -> Costs:
    """FLOPs of the gate: telling before and after, and reading what was told before, twice."""
    width = sleep.cue_tokens + sleep.length - 1
    telling = 2 * flops.decode(model, sleep.cue_tokens, sleep.length - 1)
    return {"gated": dream.gate * (telling + 2 * width * flops.forward(model, width))}


def adapters(model: ModelConfig, context: float, rank: int) -> float:
    """FLOPs per token of one update of adapters that stand beside their matrices."""
    heads = (model.n_heads + model.n_kv_heads) * model.width_of_head
    ends = 4 * model.d_model + 2 * heads  # of q, k, v and o
    for i, level in enumerate(model.levels):
        if model.wiring != "nested" or i == 0:
            ends += 3 * (model.d_model + level.width)
    # Forward, and the gradients of A, B and what goes in: 2 R (in + out) each.
    return flops.train(model, context, "inputs") + model.n_layers * 6.0 * rank * ends


def _positions(model: ModelConfig, rows: int, width: int, trainable: str) -> float:
    return rows * width * flops.train(model, width, trainable)
