"""What learners dream of in a run: the day's own texts, and questions that these answer."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from sleeplm.bench.dream_contexts import check_material, in_formats, plain, rows_of, style_of
from sleeplm.bench.exams import Exam, make_exam
from sleeplm.bench.material import Material
from sleeplm.bench.worlds import has_facts
from sleeplm.core.types import Metrics, PyTree
from sleeplm.data.curriculum import Curriculum
from sleeplm.data.falsehoods import FALSE, PLANTED, SILENT, TRUE, Truth
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.stage import TEXTS
from sleeplm.methods.dreams.write import Contexts, hold_back

FIELDS = ("prompts", "lengths", "answers")


class DreamMaterial:
    """Contexts, and questions to be rewarded by, of every round of every night.

    Nothing of earlier days is in it, and no exam: contexts are rows of the day, questions are
    training texts of the day. Contexts that are gone on from as they are are cut to
    ``dream.context_tokens``; those of a marked format are statements that fit into them. No round
    writes from a question that it may be rewarded by. What a learner dreams of depends on its seed,
    the day and the round alone, so that arms dream of the same.

    Args:
      bench: a :class:`~sleeplm.bench.lives.Bench`.

    Raises:
      ConfigError: see :func:`~sleeplm.bench.dream_contexts.check_material`.
    """

    def __init__(self, bench: Any, config: DreamConfig):
        self.config, self.learners, self.materials = config, bench.learners, bench.materials
        self.max_len = bench.config.model.max_len
        self.style = style_of(bench.config)
        check_material(self.materials, config, self.style)

    def __call__(self, day: int, number: int) -> PyTree:
        """The batch of a round, with the learners in front.

        Returns:
          {"contexts": {"tokens" int32 [E, n, C], "length" int32 [E, n]}}; with marked formats
          "held", the memory that agreement is with, a row for each context, and where backbones
          chat "stop" int32 [E], the token that ends a turn and so a dream; where questions
          reward {"questions": {"prompts" int32 [E, Q, P], "lengths" [E, Q], "answers" [E, Q, A]}}.
        """
        each = [self._of(e, day, number) for e in range(len(self.materials))]
        return jax.tree.map(lambda *rows: np.stack(rows), *each)

    def _of(self, e: int, day: int, number: int) -> PyTree:
        one, material, config = self.learners[e], self.materials[e], self.config
        documents = material.curriculum.days[day]
        order = np.random.default_rng([one.seed, one.world_seed, day, number]).permutation(
            len(documents)
        )
        most = min(config.questions, len(documents) // 2)  # something to write from is left
        asked = [i for i in order if documents[i].prompt][:most]
        held_back = set(asked)
        left = [int(i) for i in order if i not in held_back]
        if config.formats == ["free"]:
            whole = rows_of([material.days[day][i] for i in left[: config.contexts]], config)
            batch: PyTree = {"contexts": whole}
            if config.reward == "questions":
                # Agreement holds ends back; questions do too, so that both write from the same.
                batch["contexts"] = plain(hold_back(Contexts(**whole), config.hold)[0])
        else:
            batch = in_formats(material, day, left, config, self.style)
            if end := material.asker.turns.end:
                batch["stop"] = np.int32(end[-1])
        if config.reward == "questions":
            batch["questions"] = self._questions(e, day, asked)
        return batch

    def _questions(self, e: int, day: int, asked: list[int]) -> dict[str, np.ndarray]:
        documents = self.materials[e].curriculum.days[day]
        places = {i: n for n, i in enumerate(_questions_among(documents))}
        taken = [places[i] for i in asked]
        shape = (self.config.questions, *self.shape[1:])
        exam, out = self.exams[e][day], {}
        for name, room in zip(FIELDS, (shape[:2], shape[:1], shape[::2]), strict=True):
            rows = np.asarray(getattr(exam, name))[taken]
            out[name] = np.pad(rows, [(0, a - b) for a, b in zip(room, rows.shape, strict=True)])
        return out

    @functools.cached_property
    def exams(self) -> list[list[Exam]]:
        """The training questions of every day of every learner."""
        return [
            [
                make_exam(
                    material.tokenizer, [[docs[i] for i in _questions_among(docs)]], self.max_len
                )
                for docs in material.curriculum.days
            ]
            for material in self.materials
        ]

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """(Q, P, A) of the questions of a round: the same on all days."""
        shapes = [exam.shape for exams in self.exams for exam in exams]
        _, prompt, answer = (max(sizes) for sizes in zip(*shapes, strict=True))
        return self.config.questions, prompt, answer


def _questions_among(documents: Any) -> list[int]:
    return [i for i, document in enumerate(documents) if document.prompt]


def truths_of(bench: Any) -> list[Truth] | None:
    """What each learner's texts say of its facts; None where there are no facts."""
    if not has_facts(bench.config):
        return None
    return [truth_of(material.curriculum) for material in bench.materials]


def truth_of(life: Curriculum) -> Truth:
    """What texts say of a life's facts; the invented ones of formats' examples are nobody's."""
    known = set(life.known_cues)
    before = [document for document in life.pretrain if document.fact.subject in known]
    return Truth([*before, *(document for day in life.days for document in day)], life.choices)


def tell_falsehoods(bench: Any) -> Any:
    """``texts of a round -> metrics``: the share that is false, at each step of its selection.

    For dreams that were ``written``, ``tried`` and ``accepted``: ``told_*``, the share that says
    something of a known subject; of these ``planted_*``, what repeats a planted falsehood, and
    ``false_*``, what is false, these included. None where there are no facts.
    """
    truths = truths_of(bench)
    if truths is None:
        return None
    names = [name.removesuffix("_texts") for name in TEXTS]

    def tell(texts: Any) -> Metrics:
        out: Metrics = {}
        for name, key in zip(names, TEXTS, strict=True):
            tokens, weights = (np.asarray(x) for x in jax.device_get(texts[key]))
            counts = np.asarray(
                [
                    counted(truth, material, t[w.sum(1) > 0])
                    for truth, material, t, w in zip(
                        truths, bench.materials, tokens, weights, strict=True
                    )
                ],
                np.float32,
            )
            true, planted, false, silent = counts.T
            told = true + planted + false
            out |= {
                f"told_{name}": (told, told + silent),
                f"planted_{name}": (planted, told),
                f"false_{name}": (planted + false, told),
            }
        return out

    return tell


def counted(truth: Truth, material: Material, rows: np.ndarray) -> list[int]:
    """How many of the texts are true, planted, false and silent; rows are padded with 0."""
    tokenizer = material.tokenizer
    special = (0, tokenizer.bos, tokenizer.eos)
    texts = tokenizer.decode_batch([[int(t) for t in row if t not in special] for row in rows])
    said = [truth(text) for text in texts]
    return [said.count(what) for what in (TRUE, PLANTED, FALSE, SILENT)]
