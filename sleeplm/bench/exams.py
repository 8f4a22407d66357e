"""Asking a model what it knows: greedy answers, their likelihood, and who inside gives them.

Every probe is a pure function of variables and an :class:`Exam`: it can be jitted, and vmapped
over learners that each have an exam of their own (:func:`stack_exams`). Dimension letters: Q
questions, P longest prompt, A longest answer, G groups, S slots.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core import checks
from sleeplm.core.clusters import largest_cluster
from sleeplm.core.errors import ConfigError
from sleeplm.core.losses import chunked_divergence, chunked_token_logp, forward_kl
from sleeplm.core.types import Array, PyTree, Variables
from sleeplm.data.facts import Document
from sleeplm.data.text import Tokenizer, encode_documents
from sleeplm.models.decode import generate
from sleeplm.models.layers import gates
from sleeplm.models.rope import rotary
from sleeplm.models.transformer import Model

BLOCK = 256  # most questions answered at once
CHUNK = 8  # positions of a block whose logits stand in memory at once

View = Callable[[Variables], Variables]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exam:
    """Questions in groups (one a day, and the last one for pretraining).

    The arrays are NumPy's until they are on a device; stacked exams have the learners in front.

    Attributes:
      prompts: int32 [Q, P]; lengths: int32 [Q].
      answers: int32 [Q, A], the expected tokens with the stop token, padded with 0 behind it.
      group: int32 [Q]; ``groups`` on rows that are padding.
      choices: float32 [Q], log2 of how many answers were possible: the bits of a right one.
      groups: G, how many there are (static).
    """

    prompts: Array
    lengths: Array
    answers: Array
    group: Array
    choices: Array
    groups: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Q, P, A)."""
        questions, prompt = self.prompts.shape[-2:]
        return questions, prompt, self.answers.shape[-1]


def make_exam(
    tokenizer: Tokenizer,
    groups: Sequence[Sequence[Document]],
    max_len: int,
    choices: Mapping[str, Sequence[str]] | None = None,
    pad_to: tuple[int, int, int] | None = None,
) -> Exam:
    """Encodes question documents, a list for every group.

    Args:
      max_len: most tokens of a question with its answer.
      choices: relation -> the different values that an answer may have. A relation that is not
        named counts no bits.
      pad_to: at least these (Q, P, A), so that several exams have one shape.

    Raises:
      ConfigError: no question at all, or one longer than ``max_len``.
    """
    documents = [document for group in groups for document in group]
    checks.require(len(documents) > 0, "exam.groups", [], "an exam needs at least one question")
    encoded = encode_documents(tokenizer, documents, max_len)
    start, end = encoded["answer_start"], encoded["length"]
    index = np.arange(max_len)
    prompts = np.where(index < start[:, None], encoded["tokens"], 0)[:, : start.max()]
    width = int((end - start).max())
    take = np.minimum(start[:, None] + np.arange(width), max_len - 1)
    answers = np.take_along_axis(encoded["tokens"], take, axis=1)
    answers = np.where(np.arange(width) < (end - start)[:, None], answers, 0)
    bits = [math.log2(max(len((choices or {}).get(d.fact.relation, ())), 1)) for d in documents]
    arrays: dict[str, Any] = {
        "prompts": prompts.astype(np.int32),
        "lengths": start.astype(np.int32),
        "answers": answers.astype(np.int32),
        "group": np.repeat(np.arange(len(groups)), [len(g) for g in groups]).astype(np.int32),
        "choices": np.asarray(bits, np.float32),
    }
    exam = Exam(**arrays, groups=len(groups))
    return _padded(exam, _common([exam.shape, pad_to or exam.shape]), np.pad)


def stack_exams(exams: Sequence[Exam], devices: int = 1) -> Exam:
    """Exams of several learners as one with the learners in front, padded to common shapes.

    Args:
      devices: that questions are spread over: what is answered at once is a multiple of it.

    Raises:
      ConfigError: none, or exams of different numbers of groups.
    """
    counts = sorted({exam.groups for exam in exams})
    checks.require(len(counts) == 1, "exams", counts, "all need the same number of groups")
    questions, *widths = _common([exam.shape for exam in exams])
    shape = (_evenly(questions, devices), *widths)
    padded = [_padded(exam, shape, np.pad) for exam in exams]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded)


def last_group(exam: Exam) -> Exam:
    """The questions of the last group only, of one exam or of stacked ones, on the host.

    Where learners have unequally many, rows of other groups fill the shorter ones.
    """
    chosen = np.asarray(exam.group) == exam.groups - 1
    rows = np.argsort(~chosen, axis=-1, kind="stable")[..., : int(chosen.sum(-1).max())]

    def take(x: Array) -> np.ndarray:
        where = rows.reshape(*rows.shape, *[1] * (np.ndim(x) - rows.ndim))
        return np.take_along_axis(np.asarray(x), where, axis=rows.ndim - 1)

    return jax.tree.map(take, exam)


def grade(
    model: Model, view: View = lambda variables: variables, said: bool = False
) -> Callable[[Variables, Exam], dict[str, Array]]:
    """How much of an exam is known, and how well.

    An answer is right if the greedy continuation equals the expected tokens and then stops.

    Args:
      view: applied to the variables first, for adapters that live beside the parameters.
      said: also return what was answered, ``"said"`` int32 [Q, A], padded with 0.

    Returns:
      ``(variables, exam) -> {"recall", "logp", "bits", "cluster"}``: recall float32 [G], the
      share of right answers; logp [G], the mean log-probability, in nats, of the whole right
      answer with its stop token; bits [G], ``choices`` summed over right answers; cluster, a
      scalar, the share of all questions that get the most frequent output.
    """

    def run(variables: Variables, exam: Exam) -> dict[str, Array]:
        variables = view(variables)

        def one(part: Exam) -> tuple[Array, Array]:
            return _say(model, variables, part), _answer_logp(model, variables, part)

        words, logp = _by_blocks(one, exam)
        found = grade_answers(words, logp, exam)
        return {**found, "said": words} if said else found

    return run


def grade_answers(said: Array, logp: Array, exam: Exam) -> dict[str, Array]:
    """The grades of :func:`grade` for outputs int32 [Q, A] and log-probabilities [Q]."""
    right = (said == exam.answers).all(1).astype(jnp.float32)
    return {
        "recall": _group_mean(right, exam),
        "logp": _group_mean(logp, exam),
        "bits": _group_sum(right * exam.choices, exam),
        "cluster": largest_cluster(said, jnp.asarray(exam.group < exam.groups, jnp.float32)),
    }


def divergence_from(
    model: Model, view: View = lambda variables: variables
) -> Callable[[Variables, Variables, Exam], Array]:
    """How far a model has moved on what it knew before its first day.

    Returns:
      ``(now, origin, exam) -> KL(origin || now)``, a float32 scalar in nats per token: the mean
      over every token, after the first, of the last group's questions and right answers
      (:func:`last_group` spares the others).
      ``origin`` are the variables of the start of life; ``view`` is applied to both.
    """

    def run(now: Variables, origin: Variables, exam: Exam) -> Array:
        now, origin = view(now), view(origin)
        unembed, unembed_origin = (model.unembed(v["params"]) for v in (now, origin))

        def one(part: Exam) -> tuple[Array, Array]:
            tokens, real = _texts(part, model.config.eos)
            hidden, hidden_origin = (model.hidden(v, tokens)[:, :-1] for v in (now, origin))
            weights = real[:, 1:] & (part.group == part.groups - 1)[:, None]
            return chunked_divergence(
                hidden, hidden_origin, unembed, unembed_origin, weights, forward_kl, CHUNK
            )

        loss, weight = jax.lax.map(one, _blocks(exam))
        return loss.sum() / jnp.maximum(weight.sum(), 1.0)

    return run


def traffic(model: Model, level: str) -> Callable[[Variables, Exam], Array]:
    """Who is used for what: mean gate weights while reading questions and right answers.

    Returns:
      ``(variables, exam) -> float32 [G, S]``: the weight of each expert of ``level``, averaged
      over layers and over the tokens of a group's questions; exactly 0 for closed slots.

    Raises:
      ConfigError: ``level`` has no experts.
    """
    _require_experts(model, level)
    c = model.config

    def run(variables: Variables, exam: Exam) -> Array:
        params = variables["params"]
        active = {name: table.active for name, table in variables["slots"].items()}

        def one(part: Exam) -> tuple[Array, Array]:
            tokens, real = _texts(part, model.config.eos)
            length = tokens.shape[1]
            rope = rotary(jnp.arange(length)[None], c.rope_frequencies)
            mask = jnp.tril(jnp.ones((length, length), bool))[None, None]
            x = params["embed"][tokens].astype(jnp.dtype(c.dtype))
            weights = real.astype(jnp.float32)
            return gates(c, params["blocks"], x, active, rope, mask, level, weights), real.sum(1)

        weight, count = _by_blocks(one, exam)
        tokens = _group_sum(count.astype(jnp.float32), exam)
        return _group_sum(weight, exam) / jnp.maximum(tokens, 1.0)[:, None]

    return run


def oracle(model: Model, level: str) -> Callable[[Variables, Exam, Array], Array]:
    """Recall under oracle routing: each group is asked with its own experts only.

    Returns:
      ``(variables, exam, day_of_slot int32 [S]) -> recall float32 [G]``: for group g, of the open
      experts of ``level`` only those with ``day_of_slot == g`` stay open; other levels are as
      they are.

    Raises:
      ConfigError: ``level`` has no experts.
    """
    _require_experts(model, level)

    def run(variables: Variables, exam: Exam, day_of_slot: Array) -> Array:
        table = variables["slots"][level]

        def one(part: Exam) -> Array:
            own = table.active & (day_of_slot == part.group[:, None])
            # A mask for each row, [B, 1, S]: questions of all groups are answered together.
            mine = dataclasses.replace(table, active=own[:, None])
            slots = {**variables["slots"], level: mine}
            said = _say(model, {**variables, "slots": slots}, part, alike=False)
            return (said == part.answers).all(1).astype(jnp.float32)

        return _group_mean(_by_blocks(one, exam), exam)

    return run


def _say(model: Model, variables: Variables, part: Exam, alike: bool = True) -> Array:
    """int32 [Q, A]: the greedy continuations, the stop token included, padded with 0.

    Args:
      alike: see :func:`~sleeplm.models.decode.generate`.
    """
    questions, _, width = part.shape
    keys = jax.random.split(jax.random.key(0), questions)  # greedy: not used
    samples = generate(
        model,
        variables,
        part.prompts,
        part.lengths,
        keys,
        max_new=width,
        temperature=0.0,
        alike=alike,
    )
    index = part.lengths[:, None] + jnp.arange(width)
    return jnp.take_along_axis(samples.tokens, index, 1)


def _answer_logp(model: Model, variables: Variables, part: Exam) -> Array:
    """float32 [Q]: log-probability of the whole right answer, in nats."""
    tokens, _ = _texts(part, model.config.eos)
    before = part.lengths[:, None] - 1 + jnp.arange(part.shape[2])
    hidden = jnp.take_along_axis(model.hidden(variables, tokens), before[..., None], 1)
    unembed = model.unembed(variables["params"])
    logp = chunked_token_logp(hidden, unembed, part.answers, CHUNK)
    inside = jnp.arange(part.shape[2]) < answer_lengths(part.answers, model.config.eos)[:, None]
    return jnp.where(inside, logp, 0.0).sum(1)


def answer_lengths(answers: Array, eos: int) -> Array:
    """int32 [Q]: tokens of each answer [Q, A] up to its stop token; 0 where there is none."""
    stop = answers == eos
    return jnp.where(stop.any(1), jnp.argmax(stop, 1) + 1, 0).astype(jnp.int32)


def _texts(part: Exam, eos: int) -> tuple[Array, Array]:
    """Questions with their right answers, int32 [Q, P + A], and bool, where there are tokens."""
    _, prompt, width = part.shape
    offset = jnp.arange(prompt + width) - part.lengths[:, None]
    end = answer_lengths(part.answers, eos)[:, None]
    answer = jnp.take_along_axis(part.answers, jnp.clip(offset, 0, width - 1), 1)
    question = jnp.pad(part.prompts, ((0, 0), (0, width)))
    tokens = jnp.where(offset < 0, question, jnp.where(offset < end, answer, 0))
    return tokens, offset < end


def _blocks(exam: Exam) -> Exam:
    """The exam in equal pieces of at most BLOCK questions: every array [pieces, questions, ...]."""
    questions, *widths = exam.shape
    pieces, size = _pieces(questions)
    padded = _padded(exam, (pieces * size, *widths), jnp.pad)
    return jax.tree.map(lambda x: jnp.reshape(x, (pieces, size, *x.shape[1:])), padded)


def _pieces(questions: int) -> tuple[int, int]:
    """How many blocks, and how many questions in each."""
    pieces = -(-questions // BLOCK)
    return pieces, -(-questions // pieces)


def _evenly(questions: int, devices: int) -> int:
    """So many questions, or a few more, that ``devices`` divides every block.

    Unchanged where it does not divide BLOCK: a block could become larger than that.
    """
    if devices == 1 or BLOCK % devices:
        return questions
    pieces, size = _pieces(questions)
    return pieces * (size + -size % devices)


def _by_blocks(fn: Callable[[Exam], Any], exam: Exam) -> Any:
    """What ``fn`` says of every question; its values have the questions in front."""

    def join(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])[: exam.shape[0]]

    return jax.tree.map(join, jax.lax.map(fn, _blocks(exam)))


def _padded(exam: Exam, shape: tuple[int, ...], pad: Callable[..., PyTree]) -> Exam:
    """The exam with padding, as ``pad`` (NumPy's or JAX's) makes it, up to (Q, P, A)."""
    rows, *columns = (to - now for to, now in zip(shape, exam.shape, strict=True))

    def more(x: PyTree, value: int = 0, columns: int = 0) -> PyTree:
        return pad(x, [(0, rows), (0, columns)][: x.ndim], constant_values=value)

    return Exam(
        prompts=more(exam.prompts, columns=columns[0]),
        lengths=more(exam.lengths, value=1),
        answers=more(exam.answers, columns=columns[1]),
        group=more(exam.group, value=exam.groups),
        choices=more(exam.choices),
        groups=exam.groups,
    )


def _common(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(max, zip(*shapes, strict=True)))


def _group_sum(values: Array, exam: Exam) -> Array:
    """Sums [G, ...] of values [Q, ...] over each group's questions."""
    return jax.ops.segment_sum(values, exam.group, exam.groups + 1)[: exam.groups]


def _group_mean(values: Array, exam: Exam) -> Array:
    count = _group_sum(jnp.ones_like(values), exam)
    return _group_sum(values, exam) / jnp.maximum(count, 1.0)


def _require_experts(model: Model, level: str) -> None:
    names = [lv.name for lv in model.config.levels if lv.slots]
    if level not in names:
        raise ConfigError("level", level, f"has no experts; these have: {', '.join(names)}")
