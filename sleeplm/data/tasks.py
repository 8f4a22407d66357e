"""Public labelled data sets through TFDS, as days of new labels.

================== ==== =============================================================== =====
world              days  rows (train/test)                                               needs
================== ==== =============================================================== =====
``clinc150``        10  15000/4500, the official split, 15 intents of one domain a day   zip
``clinc150_klda``   10  10500/750, the split that KLDA and InCA report on                csv
``banking77``        7  10003/3080, the official split, 11 intents a day                 csv
``banking77_klda``   7  10003/1000, the split that KLDA and InCA report on               csv
``dbpedia70``        7  10000/1000, DBpedia classes of level 2, 10 a day; of KLDA too    csv
================== ==== =============================================================== =====

The two splits of a data set overlap (test rows of one are training rows of the other): never mix
them. The seed shuffles the order of days where days are domains, and elsewhere the order of the
labels before they are cut into days.

Rows are prepared once into ``data_dir`` by TFDS, without TensorFlow (``array_record``). Files
are looked for in ``MANUAL/<folder>`` and ``MANUAL``, where MANUAL is ``manual_dir`` or
``<data_dir>/downloads/manual``. ``clinc_oos.zip`` is downloaded if it is in neither. This module
imports ``tensorflow_datasets``, so import it only when such a world is asked for.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.text.clinc_oos import ClincOOS

from sleeplm.core.checks import one_of, require
from sleeplm.core.errors import ConfigError
from sleeplm.data.intents import BANKING77, CLINC150_DOMAINS
from sleeplm.data.labels import Labelled, Row, split_evenly

_ARCHIVE = "clinc_oos.zip"


def load_task(name: str, data_dir: str = "", manual_dir: str = "", seed: int = 0) -> Labelled:
    """A data set of this module, with all its days.

    Args:
      data_dir: where TFDS keeps data sets; empty for its own default.
      manual_dir: where files that people put down are; empty for ``data_dir/downloads/manual``.
      seed: of the order of days and labels.

    Raises:
      ConfigError: no such data set, or its files are missing or not what they should be.
    """
    one_of("world", name, TASKS)
    task = TASKS[name]
    builder = _prepared(name, task, *places(data_dir, manual_dir))
    parts = [_rows(builder, split, task.label) for split in ("train", "test")]
    labels = list(dict.fromkeys(label for part in parts for _, label in part))
    return Labelled(name, task.days(labels, seed), *parts)


def places(data_dir: str, manual_dir: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Where TFDS keeps data sets, and where files that people put down are."""
    root = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    manual = pathlib.Path(manual_dir).expanduser() if manual_dir else root / "downloads" / "manual"
    return root, manual


def domain_days(labels: Sequence[str], seed: int) -> tuple[tuple[str, ...], ...]:
    """CLINC150's domains in the order of the paper, shuffled by ``seed``."""
    del labels
    days = [tuple(intents) for intents in CLINC150_DOMAINS.values()]
    random.Random(f"domains {seed}").shuffle(days)
    return tuple(days)


def _seven_days(labels: Sequence[str], seed: int) -> tuple[tuple[str, ...], ...]:
    return split_evenly(labels, 7, seed)


@dataclasses.dataclass(frozen=True)
class _Task:
    """How a data set becomes days.

    Attributes:
      folder, files: what has to be put down by hand; ``columns`` are those of the files.
      label: the feature with the label's name. labels: how many there are.
    """

    folder: str
    files: tuple[str, ...]
    columns: tuple[str, str]
    labels: int
    days: Callable[[Sequence[str], int], tuple[tuple[str, ...], ...]]
    label: str = "label"


TASKS = {
    "clinc150": _Task("clinc150", (_ARCHIVE,), ("", ""), 150, domain_days, "intent_name"),
    "clinc150_klda": _Task(
        "cil_klda", ("clinc_train.csv", "clinc_test.csv"), ("text", "label"), 150, domain_days
    ),
    "banking77": _Task(
        "banking77", ("train.csv", "test.csv"), ("text", "category"), 77, _seven_days
    ),
    "banking77_klda": _Task(
        "cil_klda", ("banking_train.csv", "banking_test.csv"), ("text", "label"), 77, _seven_days
    ),
    "dbpedia70": _Task(
        "cil_klda", ("dbpedia_train.csv", "dbpedia_test.csv"), ("text", "label"), 70, _seven_days
    ),
}


class Clinc150(ClincOOS):
    """TFDS's own ``clinc_oos``, unpacked without TensorFlow."""

    def _split_generators(self, dl_manager: Any) -> list:
        self._unpacked = tempfile.TemporaryDirectory()  # as long as the builder makes examples
        return super()._split_generators(_Unzipping(dl_manager, self._unpacked.name))


@dataclasses.dataclass
class _Unzipping:
    """A download manager whose archives are unpacked by ``zipfile``: TFDS's needs TensorFlow."""

    manager: Any
    folder: str

    def download_and_extract(self, url: str) -> str:
        with zipfile.ZipFile(self.manager.download(url)) as archive:
            archive.extractall(self.folder)
        return self.folder


class _CsvTask:
    """Texts and label names from two CSV files that a person has put down."""

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE = ""
    name: str  # given by TFDS

    def _info(self) -> Any:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict({"text": text, "label": text}),
            supervised_keys=("text", "label"),
            homepage=self.HOMEPAGE,
        )

    def _split_generators(self, dl_manager: Any) -> dict:
        files = [pathlib.Path(dl_manager.manual_dir) / file for file in TASKS[self.name].files]
        return {
            split: self._generate_examples(file)
            for split, file in zip(("train", "test"), files, strict=True)
        }

    def _generate_examples(self, file: pathlib.Path) -> Iterator[tuple[int, dict[str, str]]]:
        text, label = TASKS[self.name].columns
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines)):
                yield number, {"text": self.text(row[text]), "label": self.name_of(row[label])}

    def text(self, raw: str) -> str:
        return " ".join(raw.split())

    def name_of(self, label: str) -> str:
        return label.strip()


_KLDA = "Put {} of github.com/SalehMomeni/KLDA (folder data) into MANUAL/cil_klda."


class Clinc150Klda(_CsvTask, tfds.core.GeneratorBasedBuilder):
    """CLINC150 as split anew by the authors of KLDA; never to be mixed with the official split."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = _KLDA.format("clinc_train.csv and clinc_test.csv")
    HOMEPAGE = "https://github.com/SalehMomeni/KLDA"


class Banking77(_CsvTask, tfds.core.GeneratorBasedBuilder):
    """Banking77, the official split (PolyAI)."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put train.csv and test.csv of github.com/PolyAI-LDN/task-specific-datasets (folder "
        "banking_data) into MANUAL/banking77."
    )
    HOMEPAGE = "https://github.com/PolyAI-LDN/task-specific-datasets"


class Banking77Klda(_CsvTask, tfds.core.GeneratorBasedBuilder):
    """Banking77 with the test rows that KLDA reports on; its labels are numbers."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = _KLDA.format("banking_train.csv and banking_test.csv")
    HOMEPAGE = "https://github.com/SalehMomeni/KLDA"

    def name_of(self, label: str) -> str:
        return BANKING77[int(label)]


class Dbpedia70(_CsvTask, tfds.core.GeneratorBasedBuilder):
    """Beginnings of Wikipedia articles and their DBpedia classes, 70 of level 2."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = _KLDA.format("dbpedia_train.csv and dbpedia_test.csv")
    HOMEPAGE = "https://github.com/SalehMomeni/KLDA"

    def text(self, raw: str) -> str:
        return super().text(raw.replace('\\"', '"'))  # escaped twice in the files


def _prepared(name: str, task: _Task, root: pathlib.Path, manual: pathlib.Path) -> Any:
    """The builder of ``name``, after its rows have been prepared into ``root``."""
    tfds.disable_progress_bar()
    builder = tfds.builder(name, data_dir=os.fspath(root), file_format="array_record")
    if builder.is_prepared():
        return builder
    folder = _folder(task, manual)
    if task.files != (_ARCHIVE,):
        _check_files(name, task, folder, manual, builder.MANUAL_DOWNLOAD_INSTRUCTIONS)
    prepare(builder, name, f"put {', '.join(task.files)} into {manual / task.folder}", folder)
    return builder


def prepare(builder: Any, world: str, help_: str, folder: pathlib.Path | None = None) -> None:
    """Lets TFDS download and prepare what ``builder`` makes.

    Args:
      help_: what else can be done, for messages. folder: with files that people put down.

    Raises:
      ConfigError: ``world``, when that does not work, for whatever reason.
    """
    given = os.fspath(folder) if folder else None
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=given))
    except Exception as error:  # TFDS lets errors of any kind through
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError("world", world, f"cannot be prepared ({reason}): {help_}") from error


def _folder(task: _Task, manual: pathlib.Path) -> pathlib.Path | None:
    for folder in (manual / task.folder, manual):
        if all((folder / file).is_file() for file in task.files):
            return folder
    return None


def _check_files(
    name: str, task: _Task, folder: pathlib.Path | None, manual: pathlib.Path, instructions: str
) -> None:
    if folder is None:
        where = instructions.replace("MANUAL", os.fspath(manual))
        raise ConfigError("world", name, f"its files are missing. {where}")
    labels = set()
    for file in task.files:
        with open(folder / file, encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            remedy = f"needs the columns {', '.join(task.columns)}"
            columns = list(rows.fieldnames or [])
            require(set(task.columns) <= set(columns), f"{folder / file}:1", columns, remedy)
            labels |= {row[task.columns[1]] for row in rows}
    remedy = f"{name} has {task.labels} labels, the files in {folder} have {len(labels)}"
    require(len(labels) == task.labels, "world", name, remedy)


def _rows(builder: Any, split: str, label: str) -> tuple[Row, ...]:
    source = builder.as_data_source(split=split)
    return tuple((row["text"].decode(), row[label].decode()) for row in source)
