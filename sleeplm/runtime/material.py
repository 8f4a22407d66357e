"""What a life is about: a world of facts, its texts and cues in tokens, and the exam."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.data.atlas import atlas
from sleeplm.data.biographies import biographies
from sleeplm.data.facts import Fact, World, exam, questions, statements, subjects
from sleeplm.data.text import Tokenizer, encode_cues, token_lists, train_bpe
from sleeplm.runtime.exams import Exam, make_exam

LONGEST_SUBJECT = 64  # tokens; only a bound for the encoder


@dataclasses.dataclass
class Material:
    """A world, encoded."""

    world: World
    tokenizer: Tokenizer
    pretrain: list[list[int]]
    days: list[list[list[int]]]


def prepare(config: Any) -> Material:
    """Builds the world and its texts; the tokenizer sees the pretraining texts only.

    Raises:
      ConfigError: a text is longer than a row of the stream that it belongs to.
    """
    world = world_of(config)
    rng = np.random.default_rng(config.world_seed)
    texts = _some(statements(world, world.pretrain), config.statements, rng)
    texts += _some(questions(world, world.pretrain), config.questions, rng)
    tokenizer = train_bpe([d.text for d in texts], config.model.vocab_size)
    days = [statements(world, facts) + questions(world, facts) for facts in world.days]
    material = Material(
        world=world,
        tokenizer=tokenizer,
        pretrain=token_lists(tokenizer, texts),
        days=[token_lists(tokenizer, documents) for documents in days],
    )
    _check_fits("pretrain.length", config.pretrain.length, material.pretrain)
    for rows in material.days:
        _check_fits("day.length", config.day.length, rows)
    return material


def world_of(config: Any) -> World:
    """The facts that the configuration asks for.

    Raises:
      ConfigError: the world has not as many.
    """
    size = (config.world_seed, config.days, config.facts_per_day)
    if config.world == "biographies":
        return biographies(*size, config.pretrain_people)
    try:
        return atlas(*size)
    except ConfigError as error:
        raise ConfigError(error.field.removeprefix("atlas."), error.value, error.remedy) from error


def _check_fits(field: str, length: int, rows: list[list[int]]) -> None:
    longest = max(map(len, rows))
    checks.require(longest <= length, field, length, f"the longest text has {longest} tokens")


def paper_of(config: Any, material: Material) -> Exam:
    """The exam: every day's questions, and those about some of the pretraining facts."""
    world = material.world
    known = [world.pretrain[i] for i in _spread(len(world.pretrain), config.exam_pretrain)]
    groups = [exam(world, facts) for facts in (*world.days, tuple(known))]
    try:
        return make_exam(material.tokenizer, groups, max_len=config.model.max_len)
    except ConfigError as error:
        field = {"max_len": "model.max_len"}.get(error.field, error.field)
        raise ConfigError(field, error.value, error.remedy) from error


def _some(documents: list, count: int, rng: np.random.Generator) -> list:
    """``count`` of the wordings of every fact (documents come fact by fact)."""
    by_fact: dict[Fact, list] = {}
    for document in documents:
        by_fact.setdefault(document.fact, []).append(document)
    out = []
    for group in by_fact.values():
        chosen = rng.permutation(len(group))[: min(count, len(group))]
        out += [group[i] for i in chosen]
    return out


def cues_of(config: Any, tokenizer: Tokenizer, facts: tuple[Fact, ...], limit: int):
    """Cues of the facts' subjects, cut to C tokens, as the batch of ``learner.remember``.

    Returns:
      {"tokens" int32 [limit, C], "length" int32 [limit]}, length 0 on unused rows.
    """
    width, names = config.sleep.cue_tokens, list(subjects(facts))[:limit]
    tokens, length = encode_cues(tokenizer, names, max_len=LONGEST_SUBJECT)
    empty = ((0, limit - len(names)), (0, 0))
    return {
        "tokens": np.pad(tokens[:, :width], empty),
        "length": np.pad(np.minimum(length, width), empty[:1]),
    }


def _spread(count: int, wanted: int) -> np.ndarray:
    """``wanted`` indices spread evenly over ``range(count)``."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int))
