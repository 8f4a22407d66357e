"""SQuAD 1.1 through TFDS: the passages of its validation split, for ``--config.world=squad``.

The file ``dev-v1.1.json`` is looked for in ``MANUAL/squad`` and ``MANUAL`` (see
:mod:`sleeplm.data.tasks`) and downloaded if it is in neither. TFDS prepares it once into
``data_dir``, with the features of its own ``squad`` and without TensorFlow. The training split is
the file ``train-v1.1.json``, which ``passages:FILE`` reads as it is.

This module imports ``tensorflow_datasets``, so import it only when such a world is asked for.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.question_answering import qa_utils

from sleeplm.core.checks import require
from sleeplm.data.passages import Passage, PassageQuestion, read_passages
from sleeplm.data.tasks import places, prepare

WORLD, FILE, SPLIT = "squad", "dev-v1.1.json", "validation"
URL = f"https://rajpurkar.github.io/SQuAD-explorer/dataset/{FILE}"


class SquadInOrder(tfds.core.GeneratorBasedBuilder):
    """SQuAD 1.1 (validation) as TFDS's ``squad`` has it, but in the order of its file."""

    VERSION = tfds.core.Version("1.0.0")
    by_hand: pathlib.Path | None = None  # the file, where a person has put it down

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=qa_utils.squadlike_features(),
            homepage="https://rajpurkar.github.io/SQuAD-explorer/",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict:
        return {SPLIT: self._generate_examples(self.by_hand or dl_manager.download(URL))}

    def _generate_examples(self, file: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
        rows = qa_utils.generate_squadlike_examples(os.fspath(file))
        yield from ((number, row) for number, (_, row) in enumerate(rows))


def load_squad(data_dir: str = "", manual_dir: str = "") -> tuple[Passage, ...]:
    """The passages of the validation split, in the order of its file.

    Args:
      data_dir: where TFDS keeps data sets; empty for its own default.
      manual_dir: where files that people put down are; empty for ``data_dir/downloads/manual``.

    Raises:
      ConfigError: the file can neither be found nor downloaded, or is not what it should be.
    """
    root, manual = places(data_dir, manual_dir)
    tfds.disable_progress_bar()
    name = SquadInOrder.name
    builder = tfds.builder(name, data_dir=os.fspath(root), file_format="array_record")
    if not builder.is_prepared():
        found = [f for f in (manual / WORLD / FILE, manual / FILE) if f.is_file()]
        if found:
            read_passages(os.fspath(found[0]))  # whose complaints name the place in the file
            builder.by_hand = found[0]
        prepare(builder, WORLD, f"put {FILE} into {manual / WORLD}")
    return _by_passage(builder.as_data_source(split=SPLIT))


def _by_passage(rows: Iterable[Mapping[str, Any]]) -> tuple[Passage, ...]:
    """Questions with the same title and context belong to one passage."""
    found: dict[tuple[str, str], list[PassageQuestion]] = {}
    for row in rows:
        texts = [_line(text) for text in row["answers"]["text"]]
        question = PassageQuestion(_line(row["question"]), tuple(dict.fromkeys(texts)))
        place = (_line(row["title"]).replace("_", " "), row["context"].decode().strip())
        found.setdefault(place, []).append(question)
    require(bool(found), "world", WORLD, "has no passages: prepare it again")
    return tuple(Passage(*place, tuple(questions)) for place, questions in found.items())


def _line(text: bytes) -> str:
    return " ".join(text.decode().split())
