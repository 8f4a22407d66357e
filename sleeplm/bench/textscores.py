"""Answers scored as text, on the host after each exam: for worlds whose answers are free text.

Exact match and token F1 are SQuAD's (:mod:`sleeplm.data.answers`). ``judged`` is the share that a
frozen sentence encoder takes for an accepted answer: the two answers are compared without their
question, at the threshold of ``sleep.judge_threshold``, which was calibrated on whole sentences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sleeplm.bench.material import Material
from sleeplm.bench.worlds import has_passages
from sleeplm.data.answers import exact_match, first_line, token_f1
from sleeplm.models.encoder import SentenceEncoder, similarity
from sleeplm.pretrained.minilm import minilm

NAMES = ("em", "f1", "judged")


@dataclasses.dataclass(frozen=True)
class TextScores:
    """Scores what learners said in an exam.

    Attributes:
      materials: of each learner.
      encoder: of the judge, or None. threshold: least cosine that it accepts.
    """

    materials: Sequence[Material]
    encoder: SentenceEncoder | None
    threshold: float

    def __call__(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The grades of an exam with those of its answers as text.

        Args:
          found: of E learners, as :func:`~sleeplm.bench.exams.grade` with ``said=True`` gives it.

        Returns:
          The same with ``em``, ``f1`` and ``judged`` (with an encoder): [E, days], means over each
          day's questions; and ``said``: for each learner the texts of the days' questions.
        """
        rows = np.asarray(jax.device_get(found["said"]))
        said = [_texts_of(m, mine) for m, mine in zip(self.materials, rows, strict=True)]
        each = [self._scores(m, texts) for m, texts in zip(self.materials, said, strict=True)]
        means = {name: np.asarray([scores[name] for scores in each]) for name in each[0]}
        return {**found, **means, "said": said}

    def _scores(self, material: Material, said: Sequence[str]) -> dict[str, list[float]]:
        accepted = [answers for part in material.curriculum.accepted for answers in part]
        pairs = list(zip(said, accepted, strict=True))
        each = {
            "em": [exact_match(text, answers) for text, answers in pairs],
            "f1": [token_f1(text, answers) for text, answers in pairs],
        }
        if self.encoder is not None:
            each["judged"] = judged(self.encoder, self.threshold, pairs)
        ends = np.cumsum([len(part) for part in material.curriculum.accepted])[:-1]
        return {
            name: [float(part.mean()) for part in np.split(np.asarray(values), ends)]
            for name, values in each.items()
        }


def text_scores(config: Any, materials: Sequence[Material]) -> TextScores | None:
    """The scores of a run (a :class:`~sleeplm.bench.retention.RetentionConfig`), if it has any."""
    if not has_passages(config):
        return None
    encoder = minilm() if config.score_judge else None
    return TextScores(materials, encoder, config.sleep.accepts("minilm"))


def judged(
    encoder: SentenceEncoder, threshold: float, pairs: Iterable[tuple[str, Sequence[str]]]
) -> list[float]:
    """For each (text, accepted answers) 1 if one of them means the same, else 0.

    What matches exactly means the same; an empty text means nothing else.
    """
    pairs = list(pairs)
    verdicts = [exact_match(said, accepted) for said, accepted in pairs]
    asked = [
        (i, said, answer)
        for i, (said, accepted) in enumerate(pairs)
        if said and not verdicts[i]
        for answer in accepted
    ]
    cosines = similarity(encoder, [said for _, said, _ in asked], [answer for *_, answer in asked])
    for (i, *_), cosine in zip(asked, cosines, strict=True):
        if cosine >= threshold - 1e-6:
            verdicts[i] = 1.0
    return verdicts


def answer_text(tokenizer: Any, row: Sequence[int]) -> str:
    """What was answered: up to what ends a text or a turn, and of that the first line.

    Args:
      row: tokens that a model wrote, whatever stands behind the end included.
    """
    tokens = [int(token) for token in row]
    turn = list(tokenizer.turns.end)
    ends = [tokens.index(s) for s in tokenizer.stops if s in tokens]
    if turn:
        starts = range(len(tokens) - len(turn) + 1)
        ends += [i for i in starts if tokens[i : i + len(turn)] == turn][:1]
    return first_line(tokenizer.decode(tokens[: min(ends, default=len(tokens))]))


def _texts_of(material: Material, rows: np.ndarray) -> list[str]:
    """Answers to the days' questions, which stand in front of those about pretraining."""
    questions = sum(len(part) for part in material.curriculum.exams)
    return [answer_text(material.tokenizer, row) for row in rows[:questions]]
