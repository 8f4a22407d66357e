"""What a life is about, in tokens: its texts, its cues and its exams."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sleeplm.bench.exams import Exam, answer_lengths, make_exam
from sleeplm.bench.worlds import (
    check_world,
    curriculum_of,
    has_passages,
    is_labelled,
    world_of,
)
from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.data.curriculum import Curriculum, digest
from sleeplm.data.facts import Document
from sleeplm.data.text import PAD, encode_cues, token_lists, train_tokenizer
from sleeplm.pretrained.published import find_backbone

__all__ = [
    "Material",
    "archive_of",
    "check_world",
    "context_papers",
    "cues_of",
    "curriculum_of",
    "cut_asleep",
    "digest",
    "paper_of",
    "prepare",
    "world_of",
]

BEFORE = -1  # the archive's day of pretraining texts


@dataclasses.dataclass
class Material:
    """A curriculum, encoded: rows are ``<bos> text <eos>``, as lists of tokens."""

    curriculum: Curriculum
    tokenizer: Any  # ours, or that of a published backbone
    asker: Any  # the same, or with turns where dreams alone are asked for in a chat
    pretrain: list[list[int]]
    days: list[list[list[int]]]


def prepare(config: Any) -> Material:
    """Builds the texts of a life; a tokenizer of our own sees the pretraining texts only.

    Long texts of labelled worlds are cut to the words that fit into a row, passages into pieces;
    facts never are.

    Raises:
      ConfigError: a text is longer than a row of the stream that it belongs to.
    """
    curriculum = curriculum_of(config)
    tokenizer = _tokenizer(config, curriculum)
    rooms = config.pretrain.length, min(config.day.length, config.model.max_len)
    if is_labelled(config) or has_passages(config):
        from sleeplm.data.labels import cut_to_rows

        turns = len(tokenizer.turns)
        curriculum = cut_to_rows(curriculum, tokenizer.encode_batch, *(n - turns for n in rooms))
    if has_passages(config):
        from sleeplm.data.passage_days import in_pieces

        curriculum = in_pieces(curriculum, tokenizer.encode_batch, rooms[1])
    alone = config.dream_chat and not config.chat
    material = Material(
        curriculum=curriculum,
        tokenizer=tokenizer,
        asker=tokenizer.in_turns(config.model.eos) if alone else tokenizer,
        pretrain=token_lists(tokenizer, curriculum.pretrain),
        days=[token_lists(tokenizer, documents) for documents in curriculum.days],
    )
    _check_fits("pretrain.length", config.pretrain.length, material.pretrain)
    for rows in material.days:
        _check_fits("day.length", config.day.length, rows)
    read = [*material.pretrain, *(row for rows in material.days for row in rows)]
    _check_known(config, tokenizer, max(max(row) for row in read))
    return material


def _tokenizer(config: Any, curriculum: Curriculum) -> Any:
    """The published backbone's own, or one that is trained."""
    if not config.backbone:
        return train_tokenizer(curriculum.pretrain, config.model.vocab_size)
    found = find_backbone(config.backbone, max_len=config.model.max_len)
    tokenizer = found.read_tokenizer().alike_anywhere()  # names are found in texts by their tokens
    if config.chat:
        return tokenizer.in_turns(config.model.eos)
    # Instruct models' tokenizers name what ends a turn; rows end as the model expects of texts.
    return dataclasses.replace(tokenizer, bos=config.model.bos, eos=config.model.eos)


def _check_fits(field: str, length: int, rows: list[list[int]]) -> None:
    longest = max(map(len, rows))
    checks.require(longest <= length, field, length, f"the longest text has {longest} tokens")


def _check_known(config: Any, tokenizer: Any, largest: int) -> None:
    """A model has a row for every token that it reads: others would be read as its last one."""
    size = config.model.vocab_size
    if largest >= size:
        text = tokenizer.decode([largest])
        remedy = f"the tokenizer writes {text!r} as token {largest}: the model has no such row"
        raise ConfigError("model.vocab_size", size, remedy)


def cut_asleep(config: Any, materials: Sequence[Material]) -> list[str]:
    """What a night cannot tell of the days' texts, a line each; answers stand at their ends."""
    sizes = np.asarray([len(row) for one in materials for day in one.days for row in day])
    longer, pair = (sizes > config.sleep.length).mean(), math.ceil(2 * sizes.mean())
    lines = []
    if longer:
        lines.append(
            f"sleep.length = {config.sleep.length}: {longer:.0%} of the days' texts are longer (up "
            f"to {sizes.max()} tokens), nights do not tell their ends"
        )
    if 0 < config.sleep.pack < pair:
        lines.append(
            f"sleep.pack = {config.sleep.pack}: two texts of the days have {pair} tokens on "
            "average, what does not fit into a row is not learned"
        )
    return lines


def paper_of(config: Any, material: Material) -> Exam:
    """The exam: every day's questions, and those about some of what pretraining told.

    Answers have room for ``answer_tokens`` where they are free text.
    """
    curriculum, most = material.curriculum, config.model.max_len
    groups = [*curriculum.exams, curriculum.known]
    room = (0, 0, config.answer_tokens if has_passages(config) else 0)
    try:
        exam = make_exam(material.tokenizer, groups, most, curriculum.choices, pad_to=room)
        largest = max(np.max(exam.prompts), np.max(exam.answers))
        _check_known(config, material.tokenizer, int(largest))
        return exam
    except ConfigError as error:
        field = {"max_len": "model.max_len"}.get(error.field, error.field)
        raise ConfigError(field, error.value, error.remedy) from error


def cues_of(config: Any, tokenizer: Any, cues: Sequence[str], limit: int) -> dict[str, np.ndarray]:
    """The first ``limit`` cues, cut to C tokens, as the batch of ``learner.remember``.

    Returns:
      {"tokens" int32 [limit, C], "length" int32 [limit]}, length 0 on unused rows.
    """
    width, cues = config.sleep.cue_tokens, list(cues)[:limit]
    longest = 1 + max((len(tokens) for tokens in tokenizer.encode_batch(cues)), default=0)
    tokens, length = encode_cues(tokenizer, cues, max_len=max(longest, width))
    empty = ((0, limit - len(cues)), (0, 0))
    return {
        "tokens": np.pad(tokens[:, :width], empty),
        "length": np.pad(np.minimum(length, width), empty[:1]),
    }


def archive_of(material: Material) -> dict[str, np.ndarray]:
    """Every raw training text, padded to the longest: what replay of raw text draws from.

    Returns:
      {"tokens" int32 [A, L], "length" int32 [A], "day" int32 [A]}; day -1 is pretraining.
    """
    rows = [row for part in (material.pretrain, *material.days) for row in part]
    sizes = [len(material.pretrain), *map(len, material.days)]
    length = np.asarray([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), length.max()), PAD, np.int32)
    tokens[np.arange(length.max()) < length[:, None]] = np.concatenate(rows)
    day = np.repeat(np.arange(BEFORE, len(material.days)), sizes).astype(np.int32)
    return {"tokens": tokens, "length": length, "day": day}


def context_papers(config: Any, material: Material, window: int) -> list[Exam]:
    """One exam a day with the latest texts in front of every question: learning in context.

    Paper i has the questions of :func:`paper_of`, in its order. Each prompt is
    ``<bos> text ... text question``: one text for each of the latest facts of days 0 to i (a
    statement where there is one), whole, newest last, as many as ``window`` tokens hold together
    with the question and its answer. All papers have the same shapes.

    Raises:
      ConfigError: ``window`` cannot hold the longest question with its answer.
    """
    paper = paper_of(config, material)
    answers = np.asarray(answer_lengths(paper.answers, material.tokenizer.eos))
    room = window - np.asarray(paper.lengths) - answers
    longest = window - int(room.min())
    remedy = f"the longest question and its answer have {longest} tokens"
    checks.require(longest <= window, "window", window, remedy)
    room = np.where(answers > 0, room, 0)  # rows that only fill a block stay short
    told: list[list[int]] = []
    papers = []
    for documents in material.curriculum.days:
        texts = [document.text for document in _one_text_a_fact(documents)]
        told += material.tokenizer.encode_batch(texts)
        papers.append(_behind_context(paper, told, room, material.tokenizer.bos))
    width = max(int(one.lengths.max()) for one in papers)
    return [_widened(one, width) for one in papers]


def _one_text_a_fact(documents: Sequence[Document]) -> list[Document]:
    """A statement of each fact, in one wording after the other; a question where it has none."""
    by_fact: dict[Any, list[Document]] = {}
    for document in documents:
        by_fact.setdefault(document.fact, []).append(document)
    chosen = []
    for i, group in enumerate(by_fact.values()):
        statements = [document for document in group if not document.prompt] or group
        chosen.append(statements[i % len(statements)])
    return chosen


def _behind_context(paper: Exam, told: Sequence[Sequence[int]], room: np.ndarray, bos: int) -> Exam:
    """The paper with the last of ``told`` that ``room`` [Q] tokens hold after each ``<bos>``."""
    text = np.concatenate(told)
    starts = np.cumsum([0, *map(len, told)])
    taken = starts[np.searchsorted(starts, starts[-1] - room)]
    lengths = (paper.lengths + starts[-1] - taken).astype(np.int32)
    tokens = np.full((len(lengths), lengths.max()), PAD, np.int32)
    for row, prompt in enumerate(tokens):
        question = paper.prompts[row, 1 : paper.lengths[row]]
        prompt[: lengths[row]] = np.concatenate([[bos], text[taken[row] :], question])
    changes: dict[str, Any] = {"prompts": tokens, "lengths": lengths}
    return dataclasses.replace(paper, **changes)


def _widened(paper: Exam, width: int) -> Exam:
    pad = ((0, 0), (0, width - paper.prompts.shape[1]))
    changes: dict[str, Any] = {"prompts": np.pad(paper.prompts, pad, constant_values=PAD)}
    return dataclasses.replace(paper, **changes)
