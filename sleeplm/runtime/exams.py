"""Asking a model what it knows: greedy answers to held-out questions, exact match."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core.types import Array, Variables
from sleeplm.data.facts import Document
from sleeplm.data.text import Tokenizer, encode_documents
from sleeplm.models.decode import generate
from sleeplm.models.transformer import Model

BLOCK = 256  # questions answered at once


@dataclasses.dataclass(frozen=True)
class Exam:
    """Questions in groups (one a day, and one for pretraining), ready for the device.

    Attributes:
      prompts: int32 [Q, P]; lengths: int32 [Q].
      answers: int32 [Q, A], the expected tokens with the stop token, padded with 0.
      group: int32 [Q]; groups: how many there are.
    """

    prompts: np.ndarray
    lengths: np.ndarray
    answers: np.ndarray
    group: np.ndarray
    groups: int


def make_exam(tokenizer: Tokenizer, groups: Sequence[Sequence[Document]], max_len: int) -> Exam:
    """Encodes question documents, a list for every group. Rows are padded to whole blocks."""
    documents = [document for group in groups for document in group]
    encoded = encode_documents(tokenizer, documents, max_len)
    start, end = encoded["answer_start"], encoded["length"]
    index = np.arange(max_len)
    prompts = np.where(index < start[:, None], encoded["tokens"], 0)[:, : start.max()]
    width = int((end - start).max())
    take = np.minimum(start[:, None] + np.arange(width), max_len - 1)
    answers = np.take_along_axis(encoded["tokens"], take, axis=1)
    answers = np.where(np.arange(width) < (end - start)[:, None], answers, 0)
    group = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    extra = -len(documents) % min(BLOCK, len(documents))
    pad = ((0, extra), (0, 0))
    return Exam(
        prompts=np.pad(prompts, pad).astype(np.int32),
        lengths=np.pad(start, (0, extra), constant_values=1).astype(np.int32),
        answers=np.pad(answers, pad).astype(np.int32),
        group=np.pad(group, (0, extra), constant_values=len(groups)).astype(np.int32),
        groups=len(groups),
    )


def grade(model: Model, exam: Exam) -> Callable[[Variables], Array]:
    """``variables -> recall float32 [groups]``: share of answers that are exactly right.

    An answer is right if the greedy continuation equals the expected tokens and then stops.
    """
    block = min(BLOCK, len(exam.lengths))
    width = exam.answers.shape[1]
    blocks = jax.tree.map(
        lambda x: jnp.asarray(x.reshape(-1, block, *x.shape[1:])),
        (exam.prompts, exam.lengths, exam.answers),
    )

    def run(variables: Variables) -> Array:
        keys = jax.random.split(jax.random.key(0), block)  # greedy: not used

        def one(part: tuple[Array, Array, Array]) -> Array:
            prompts, lengths, answers = part
            samples = generate(
                model, variables, prompts, lengths, keys, max_new=width, temperature=0.0
            )
            index = lengths[:, None] + jnp.arange(width)
            return (jnp.take_along_axis(samples.tokens, index, 1) == answers).all(1)

        right = jax.lax.map(one, blocks).reshape(-1).astype(jnp.float32)
        group = jnp.asarray(exam.group)
        total = jax.ops.segment_sum(right, group, exam.groups + 1)
        count = jax.ops.segment_sum(jnp.ones_like(right), group, exam.groups + 1)
        return (total / jnp.maximum(count, 1))[: exam.groups]

    return run
