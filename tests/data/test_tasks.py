"""Public labelled data sets through TFDS, from files that people put down."""

from __future__ import annotations

import csv
import io
import os
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.text import clinc_oos

from sleeplm.bench.worlds import TASK_DAYS
from sleeplm.core.errors import ConfigError
from sleeplm.data import tasks
from sleeplm.data.intents import BANKING77, CLINC150_DOMAINS

#: Where the data sets' files are, if this machine has them; they are no part of the project.
DATA = Path(os.environ.get("SLEEPLM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def write(file: Path, rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(rows)


def put_down(folder: Path, files, columns, labels) -> None:
    """Two small files with a row of every label, and one more in the first."""
    for name in files:
        rows = [(f"{name[:-4]} of {label}", label) for label in labels]
        write(folder / name, [columns, *rows, *rows[:1]] if "train" in name else [columns, *rows])


@pytest.fixture
def bank(tmp_path):
    """A small Banking77 where TFDS looks for files that people put down."""
    folder = tmp_path / "downloads" / "manual" / "banking77"
    put_down(folder, ("train.csv", "test.csv"), ("text", "category"), BANKING77)
    return tmp_path


INTENTS = [intent for intents in CLINC150_DOMAINS.values() for intent in intents]


def table(columns, rows) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue()


@pytest.fixture
def clinc(tmp_path, monkeypatch):
    """A small CLINC150 as TFDS's builder reads it: a row of every intent, and one of none, a part.

    TFDS knows the checksum of the published archive, and has to take this one for it.
    """
    archive = tmp_path / "clinc150" / "clinc_oos.zip"
    archive.parent.mkdir()
    columns = ("text", "intent", "domain", "intent_name", "domain_name")
    named = [
        (intent, number, domain)
        for number, (domain, intents) in enumerate(CLINC150_DOMAINS.items())
        for intent in intents
    ]
    with zipfile.ZipFile(archive, "w") as files:
        for part in ("train", "val", "test"):
            rows = [
                (f"{part} of {intent}", i, number, intent, domain)
                for i, (intent, number, domain) in enumerate(named)
            ]
            files.writestr(f"{part}.csv", table(columns, rows))
            none = (f"{part} of none", 150, 10, "ood", "ood")
            files.writestr(f"{part}_ood.csv", table(columns, [none]))
    checksums = tfds.core.download.checksums
    this = checksums.compute_url_info(archive)
    monkeypatch.setitem(checksums.get_all_url_infos(), clinc_oos._DOWNLOAD_URL, this)
    return tmp_path


# --- label names ---------------------------------------------------------------------------------


def test_clinc150_has_ten_domains_of_fifteen_intents():
    assert [len(intents) for intents in CLINC150_DOMAINS.values()] == [15] * 10
    assert len({intent for intents in CLINC150_DOMAINS.values() for intent in intents}) == 150


def test_banking77_has_77_labels_in_alphabetical_order():
    assert len(set(BANKING77)) == 77
    assert list(BANKING77) == sorted(BANKING77, key=str.lower)


def test_settings_and_data_sets_agree_on_names_and_days():
    assert set(TASK_DAYS) == set(tasks.TASKS)
    for name, task in tasks.TASKS.items():
        labels = [f"label {i}" for i in range(task.labels)]
        assert len(task.days(labels, 0)) == TASK_DAYS[name]


@pytest.mark.parametrize("name", TASK_DAYS)
def test_seeds_differ_in_order_and_every_label_has_one_day(name):
    task = tasks.TASKS[name]
    labels = [f"label {i}" for i in range(task.labels)]
    orders = {task.days(labels, seed) for seed in range(4)}
    assert len(orders) == 4
    for days in orders:
        assert set(map(len, days)) == {task.labels // TASK_DAYS[name]}
        assert len({label for day in days for label in day}) == task.labels


def test_domains_stay_together_whatever_the_order():
    days = {frozenset(day) for day in tasks.domain_days([], seed=5)}
    assert days == {frozenset(intents) for intents in CLINC150_DOMAINS.values()}


# --- files of any machine ------------------------------------------------------------------------


def test_rows_come_from_the_files_that_were_put_down(bank):
    data = tasks.load_task("banking77", data_dir=str(bank))
    assert data.name == "banking77"
    assert Counter(data.train)["train of change_pin", "change_pin"] == 1
    assert (len(data.train), len(data.test)) == (78, 77)
    assert [len(day) for day in data.days] == [11] * 7


def test_rows_are_prepared_once(bank):
    first = tasks.load_task("banking77", data_dir=str(bank))
    for file in (bank / "downloads" / "manual" / "banking77").iterdir():
        file.unlink()
    assert tasks.load_task("banking77", data_dir=str(bank)) == first


def test_files_may_lie_in_a_directory_of_their_own(bank, tmp_path):
    data = tasks.load_task(
        "banking77", str(tmp_path / "elsewhere"), str(bank / "downloads" / "manual" / "banking77")
    )
    assert len(data.train) == 78


def test_numbers_of_banking77_become_names(tmp_path):
    files = tasks.TASKS["banking77_klda"].files
    put_down(tmp_path / "cil_klda", files, ("text", "label"), range(77))
    data = tasks.load_task("banking77_klda", str(tmp_path / "tfds"), str(tmp_path))
    assert dict(data.test)["banking_test of 21"] == "change_pin"


def test_the_parts_of_clinc150_are_the_official_ones_and_its_days_are_domains(clinc):
    data = tasks.load_task("clinc150", str(clinc / "tfds"), str(clinc), seed=3)
    assert sorted(data.train) == sorted((f"train of {intent}", intent) for intent in INTENTS)
    assert sorted(data.test) == sorted((f"test of {intent}", intent) for intent in INTENTS)
    assert data.name == "clinc150" and data.days == tasks.domain_days([], seed=3)


def test_rows_of_kldas_clinc150_come_from_its_two_files_and_days_are_domains(tmp_path):
    files = ("clinc_train.csv", "clinc_test.csv")
    put_down(tmp_path / "cil_klda", files, ("text", "label"), INTENTS)
    data = tasks.load_task("clinc150_klda", str(tmp_path / "tfds"), str(tmp_path), seed=3)
    read = [(f"clinc_train of {intent}", intent) for intent in [*INTENTS, INTENTS[0]]]
    assert sorted(data.train) == sorted(read)
    assert sorted(data.test) == sorted((f"clinc_test of {intent}", intent) for intent in INTENTS)
    assert data.name == "clinc150_klda" and data.days == tasks.domain_days([], seed=3)


def test_quotes_of_dbpedia_that_are_escaped_twice_are_mended(tmp_path):
    files = tasks.TASKS["dbpedia70"].files
    put_down(tmp_path, files, ("text", "label"), ['say \\"a\\"', *range(69)])
    data = tasks.load_task("dbpedia70", str(tmp_path / "tfds"), str(tmp_path))
    assert 'dbpedia_train of say "a"' in dict(data.train)


def test_tensorflow_is_not_needed(bank):
    tasks.load_task("banking77", data_dir=str(bank))
    assert "tensorflow" not in sys.modules


def test_missing_files_are_refused_with_what_to_put_where(tmp_path):
    with pytest.raises(ConfigError) as caught:
        tasks.load_task("banking77", data_dir=str(tmp_path))
    message = str(caught.value)
    assert message.startswith("world = 'banking77': its files are missing. Put train.csv and test")
    assert f"into {tmp_path}/downloads/manual/banking77." in message and "\n" not in message


def test_files_with_other_columns_are_refused(bank):
    write(bank / "downloads" / "manual" / "banking77" / "test.csv", [("text", "label"), ("x", "y")])
    with pytest.raises(ConfigError, match=r"banking77/test.csv:1 = .*needs the columns text, cat"):
        tasks.load_task("banking77", data_dir=str(bank))


def test_files_with_other_labels_are_refused_until_they_are_mended(tmp_path):
    files = ("train.csv", "test.csv")
    put_down(tmp_path, files, ("text", "category"), BANKING77[:5])
    with pytest.raises(ConfigError, match=r"banking77 has 77 labels, the files in \S+ have 5"):
        tasks.load_task("banking77", str(tmp_path / "tfds"), str(tmp_path))
    put_down(tmp_path, files, ("text", "category"), BANKING77)
    assert len(tasks.load_task("banking77", str(tmp_path / "tfds"), str(tmp_path)).test) == 77


def test_what_tfds_cannot_prepare_is_one_line_with_a_way_out(tmp_path):
    (tmp_path / "clinc150").mkdir()
    (tmp_path / "clinc150" / "clinc_oos.zip").write_text("no archive")
    with pytest.raises(ConfigError) as caught:
        tasks.load_task("clinc150", str(tmp_path / "tfds"), str(tmp_path))
    message = str(caught.value)
    assert message.startswith("world = 'clinc150': cannot be prepared (")
    assert message.endswith(f"put clinc_oos.zip into {tmp_path}/clinc150") and "\n" not in message


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'clinc150'"):
        tasks.load_task("clinc15")


# --- the data sets themselves --------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Loads a data set from the files of this machine."""
    place = tmp_path_factory.mktemp("tfds")

    def load(name, seed=0):
        task = tasks.TASKS[name]
        if not all((DATA / task.folder / file).is_file() for file in task.files):
            pytest.skip(f"needs {', '.join(task.files)} in $SLEEPLM_TEST_DATA/{task.folder}")
        return tasks.load_task(name, str(place), str(DATA), seed)

    return load


ROWS = {
    "clinc150": (15000, 4500),
    "clinc150_klda": (10500, 750),
    "banking77": (10003, 3080),
    "banking77_klda": (10003, 1000),
    "dbpedia70": (10000, 1000),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_data_set_has_the_rows_and_labels_of_its_paper(real, name):
    data = real(name)
    assert (len(data.train), len(data.test)) == ROWS[name]
    labels = {label for day in data.days for label in day}
    assert labels == {label for _, label in data.train} == {label for _, label in data.test}
    assert all(text and text == " ".join(text.split()) for text, _ in data.train + data.test)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_page_says_how_many_test_texts_are_training_texts_too(real, name):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    data = real(name)
    read = {text for text, _ in data.train}
    count = sum(text in read for text, _ in data.test)
    assert re.search(rf"\b{count} of\s`{name}`", page), f"{name} has {count}"


@pytest.mark.slow
def test_numbers_and_names_of_banking77_are_the_same_labels(real):
    named = {" ".join(text.split()): label for text, label in real("banking77").train}
    numbered = real("banking77_klda").train
    assert sum(named[text] == label for text, label in numbered) > 0.99 * len(numbered)


@pytest.mark.slow
def test_the_two_splits_of_clinc150_overlap_and_must_not_be_mixed(real):
    official, other = real("clinc150"), real("clinc150_klda")
    assert set(other.test) & set(official.train)
    assert set(other.train) & set(official.test)
    assert official.days == other.days
