"""From the setting ``world`` to a curriculum.

===================  =============================================================================
``atlas``            real facts of countries and elements
``biographies``      generated people
``facts:FILE``       your own facts (:mod:`sleeplm.data.factfile`); ``facts:FILE,WORDINGS``
``labels:DIR``       your own labelled texts (:mod:`sleeplm.data.labelfiles`)
``clinc150``, ...    labelled data sets (:mod:`sleeplm.data.tasks`)
``passages:FILE``    passages to read, with questions (:mod:`sleeplm.data.passages`)
``squad``            passages of SQuAD's validation split (:mod:`sleeplm.data.squad`)
===================  =============================================================================

Modules of worlds that are not asked for are not imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
from typing import Any

import numpy as np

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.data.atlas import atlas
from sleeplm.data.biographies import biographies
from sleeplm.data.curriculum import Curriculum, choices_of, from_world, spread, told
from sleeplm.data.facts import Document, World, exam, subjects

BUILT_IN = ("atlas", "biographies")
#: Days of the labelled data sets; here, so that a setting can be checked without TFDS.
TASK_DAYS = {
    "clinc150": 10,
    "clinc150_klda": 10,
    "banking77": 7,
    "banking77_klda": 7,
    "dbpedia70": 7,
}
PASSAGES = ("passages", "squad")  # worlds of texts to read
SQUAD_PASSAGES = 2067  # of its validation split; here for the same reason
#: Settings of worlds of facts alone: their usual value, and what such a world can do with them.
FACTS_ONLY: tuple[tuple[str, Any, str], ...] = (
    ("falsehoods", 0, "can be false"),
    ("day_statements", 0, "have so many wordings"),
    ("day_questions", -1, "have so many wordings"),
    ("formats", [], "have examples of formats"),
    ("exam_facts", 1, "can be asked for two facts at once"),
)
POSSIBLE = (
    *(*BUILT_IN, "facts:FILE.jsonl", "labels:DIRECTORY"),
    *("passages:FILE.json", "squad", *TASK_DAYS),
)


def check_world(config: Any) -> int:
    """Checks the setting ``world`` and what it names; files of your own are read for it.

    Returns:
      How many days the life has.

    Raises:
      ConfigError: no such world, a file that cannot be used, or more days than there are.
    """
    kind, place = _kind(config.world)
    for name, usual, only in FACTS_ONLY:
        value = getattr(config, name)
        remedy = f"only worlds of facts {only}: use {usual}"
        checks.require(has_facts(config) or value == usual, name, value, remedy)
    if has_facts(config):
        remedy = "only worlds of labelled texts read it: leave it empty"
        checks.require(not config.text, "text", config.text, remedy)
        return len(world_of(config).days)
    check_text("text", config.text)
    if kind in PASSAGES:
        return _check_passages(config)
    if kind == "labels":
        return len(_labelled(config).days)
    return _first_days(config, range(TASK_DAYS[kind]), place).stop


def check_text(field: str, path: str) -> None:
    """Checks that a file of plain text is there, if one is named; it is not read for it.

    Raises:
      ConfigError: it is not.
    """
    there = not path or pathlib.Path(path).expanduser().is_file()
    checks.require(there, field, path, "cannot be read: name a text file")


def curriculum_of(config: Any) -> Curriculum:
    """What the configuration's ``world`` is about; the same seed gives the same.

    Raises:
      ConfigError: the world is unknown, too small, or made of files that cannot be used.
    """
    kind, _ = _kind(config.world)
    if has_facts(config):
        return from_world(
            world_of(config),
            statements=config.statements,
            questions=config.questions,
            exam_pretrain=config.exam_pretrain,
            exam_per_day=config.exam_per_day,
            wear=config.wear,
            falsehoods=config.falsehoods,
            day_statements=config.day_statements,
            day_questions=config.day_questions,
            formats=config.formats,
            format_examples=config.format_examples,
            exam_facts=config.exam_facts,
            rng=np.random.default_rng(config.world_seed),
        )
    return _passage_curriculum(config) if kind in PASSAGES else _label_curriculum(config)


def world_of(config: Any) -> World:
    """The facts that the configuration asks for.

    Raises:
      ConfigError: the world has not as many, or is not one of facts.
    """
    kind, place = _kind(config.world)
    if kind == "facts":
        from sleeplm.data.factfile import read_facts

        world = read_facts(place, seed=config.world_seed, pretrain_facts=config.pretrain_people)
        return dataclasses.replace(world, days=_first_days(config, world.days, place))
    checks.one_of("world", kind, BUILT_IN)
    sizes = _sizes(config)
    if kind == "biographies":
        return biographies(config.world_seed, sizes, pretrain_people=config.pretrain_people)
    try:
        return atlas(config.world_seed, sizes)
    except ConfigError as error:
        raise ConfigError(error.field.removeprefix("atlas."), error.value, error.remedy) from error


def has_facts(config: Any) -> bool:
    """Whether the world's days are facts, told in many wordings."""
    kind, _ = _kind(config.world)
    return kind in BUILT_IN or kind == "facts"


def is_labelled(config: Any) -> bool:
    """Whether the world's days are labelled texts."""
    return _kind(config.world)[0] in ("labels", *TASK_DAYS)


def has_passages(config: Any) -> bool:
    """Whether the world's days are passages, whose questions are answered in free text."""
    return _kind(config.world)[0] in PASSAGES


def _kind(world: str) -> tuple[str, str]:
    """``"facts:a.jsonl"`` as ``("facts", "a.jsonl")``; other worlds name their own place."""
    kind, colon, place = world.partition(":")
    what = {
        "facts": "a file: facts:FILE.jsonl",
        "labels": "a directory: labels:DIRECTORY",
        "passages": "a file: passages:FILE.json",
    }
    if kind in what:
        checks.require(bool(colon and place), "world", world, f"name {what[kind]}")
        return kind, place
    if world not in (*BUILT_IN, "squad", *TASK_DAYS):
        known = (*BUILT_IN, *what, "squad", *TASK_DAYS)
        close = difflib.get_close_matches(kind, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError("world", world, f"must be one of {', '.join(POSSIBLE)}{hint}")
    return world, world


def _sizes(config: Any) -> list[int]:
    """Facts of each day of a built-in world, or passages of each day."""
    if not config.day_sizes:
        checks.positive_integer("days", config.days)
        checks.positive_integer("facts_per_day", config.facts_per_day)
        return [config.facts_per_day] * config.days
    for i, size in enumerate(config.day_sizes):
        checks.positive_integer(f"day_sizes[{i}]", size)
    remedy = f"day_sizes names {len(config.day_sizes)} days: use that number, or 0"
    checks.require(config.days in (0, len(config.day_sizes)), "days", config.days, remedy)
    return list(config.day_sizes)


def _first_days(config: Any, days: Any, place: str) -> Any:
    """The first ``config.days`` of ``days``, or all of them if that is 0."""
    remedy = f"{place} has {len(days)}: use 1 to {len(days)}, or 0 for all of them"
    checks.require(0 <= config.days <= len(days), "days", config.days, remedy)
    checks.require(not config.day_sizes, "day_sizes", config.day_sizes, "the data say how many")
    return days[: config.days] if config.days else days


def _labelled(config: Any) -> Any:
    """The labelled rows (:class:`~sleeplm.data.labels.Labelled`) of the days asked for."""
    kind, place = _kind(config.world)
    if kind == "labels":
        from sleeplm.data.labelfiles import read_labels

        data = read_labels(place, days=config.days, seed=config.world_seed)
    else:
        from sleeplm.data.tasks import load_task

        data = load_task(kind, config.data_dir, config.manual_dir, config.world_seed)
    return dataclasses.replace(data, days=_first_days(config, data.days, place))


def _label_curriculum(config: Any) -> Curriculum:
    from sleeplm.data.labels import label_curriculum

    before = _before_texts(config)
    return label_curriculum(_labelled(config), **before, exam_per_day=config.exam_per_day)


def _before_texts(config: Any) -> dict[str, Any]:
    """What goes before days of texts: a pretraining on the whole atlas and on ``config.text``."""
    from sleeplm.data.labels import beginnings

    world = atlas(config.world_seed, [])
    rng = np.random.default_rng(config.world_seed)
    texts = _pieces(config)
    return {
        "pretrain": [
            *told(world, world.pretrain, config.statements, config.questions, rng, config.wear),
            *texts,
        ],
        "known": exam(world, spread(world.pretrain, config.exam_pretrain)),
        "known_cues": [*subjects(world.pretrain), *beginnings(piece.text for piece in texts)],
        "choices": choices_of(world.facts),
    }


def _check_passages(config: Any) -> int:
    """How many days there are; SQuAD itself is not read for it."""
    from sleeplm.data.passage_days import check_ask, check_enough

    check_ask("ask", config.ask)
    sizes = _sizes(config)
    count = SQUAD_PASSAGES if config.world == "squad" else len(_all_passages(config))
    check_enough(sizes, count)
    return len(sizes)


def _all_passages(config: Any) -> Any:
    """The passages (:class:`~sleeplm.data.passages.Passage`) of the file or data set."""
    kind, place = _kind(config.world)
    if kind == "squad":
        from sleeplm.data.squad import load_squad

        return load_squad(config.data_dir, config.manual_dir)
    from sleeplm.data.passages import read_passages

    return read_passages(place)


def _passage_curriculum(config: Any) -> Curriculum:
    from sleeplm.data.passage_days import deal, passage_curriculum

    _, place = _kind(config.world)
    return passage_curriculum(
        pathlib.Path(place).name.partition(".")[0],
        deal(_all_passages(config), _sizes(config), config.world_seed),
        **_before_texts(config),
        exam_per_day=config.exam_per_day,
        ask=config.ask,
    )


def _pieces(config: Any) -> list[Document]:
    """Plain text to read before the first day, in pieces that fit into a row or nearly so."""
    if not config.text:
        return []
    from sleeplm.data.plain import read_pieces

    words = max(config.pretrain.length // 2, 1)
    return read_pieces(config.text, config.text_lines, words, config.world_seed)
