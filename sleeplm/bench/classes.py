"""Answers by class: what an external classifier needs of a labelled world, and its grading."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from sleeplm.bench.exams import Exam, grade_answers
from sleeplm.bench.material import Material
from sleeplm.core.types import Array, State
from sleeplm.data.text import encode_documents
from sleeplm.methods.gaussians import GAUSSIANS, features, nearest
from sleeplm.models.transformer import Model

LABEL = "label"  # the relation of labelled texts


def labels_of(material: Material) -> tuple[str, ...]:
    """The labels of a labelled world, in alphabetical order; none for worlds of facts."""
    return tuple(sorted(material.curriculum.choices.get(LABEL, ())))


def class_answers(material: Material, width: int) -> np.ndarray:
    """Tokens of every label with the stop token, int32 [K, width], padded with 0."""
    out = np.zeros((len(labels_of(material)), width), np.int32)
    for row, tokens in zip(out, material.tokenizer.encode_batch(labels_of(material)), strict=True):
        tokenizer = material.tokenizer
        answer = [*tokens, *tokenizer.turns.end, tokenizer.eos][:width]
        row[: len(answer)] = answer
    return out


def labelled_of(material: Material) -> dict[str, np.ndarray]:
    """Questions of all days without their answers: {"tokens" [A, L], "length", "day", "label"}."""
    number = {label: i for i, label in enumerate(labels_of(material))}
    documents = [(d, day) for day, part in enumerate(material.curriculum.days) for d in part]
    longest = max(len(row) for part in material.days for row in part)
    encoded = encode_documents(material.tokenizer, [d for d, _ in documents], longest)
    length = encoded["answer_start"]
    index = np.arange(longest)
    return {
        "tokens": np.where(index < length[:, None], encoded["tokens"], 0).astype(np.int32),
        "length": length.astype(np.int32),
        "day": np.asarray([day for _, day in documents], np.int32),
        "label": np.asarray([number[d.answer] for d, _ in documents], np.int32),
    }


def grade_by_class(model: Model) -> Callable[[State, Exam, Array], dict[str, Array]]:
    """``(state, exam, answers [K, A]) -> grades``: the name of the nearest class is the answer.

    Grades are those of :func:`sleeplm.bench.exams.grade`; the log-probability of a right answer
    is not defined and 0.
    """

    def run(state: State, exam: Exam, answers: Array) -> dict[str, Array]:
        variables = {"params": state.params, "slots": state.slots}
        found = features(model, variables, exam.prompts, exam.lengths)
        said = answers[nearest(state.anchors[GAUSSIANS], found)]
        return grade_answers(said, jnp.zeros(len(said)), exam)

    return run


def count_labels(materials: Sequence[Material]) -> int:
    """K, the same for all learners of a run; 0 for worlds of facts."""
    return max(len(labels_of(material)) for material in materials)
