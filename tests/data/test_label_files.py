"""Labelled texts of one's own, and what a labelled day is."""

from __future__ import annotations

import csv
import json

import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.data.facts import Document, Fact
from sleeplm.data.labelfiles import read_labels
from sleeplm.data.labels import (
    LABEL,
    MOST_CUES,
    QUESTION,
    Labelled,
    cut_to_rows,
    label_curriculum,
    split_evenly,
)
from sleeplm.data.plain import TEXT
from sleeplm.data.text import byte_tokenizer

TRAIN = [("send my pay", "direct_deposit"), ("what time is it", "time"), ("hi there", "greeting")]
TEST = [("where is my pay", "direct_deposit"), ("the hour please", "time"), ("hello", "greeting")]
DAYS = {"direct_deposit": 1, "time": 2, "greeting": 1}
KNOWN = Document("Austria: which capital? Vienna", "Austria: which capital?", "Vienna",
                 Fact("Austria", "capital", "Vienna"))  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Writes rows (or raw text) as train.csv and test.csv of ``mine``, and reads them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()

    def write(name, rows, columns=("text", "label")):
        with open(tmp_path / "mine" / name, "w", newline="", encoding="utf-8") as file:
            if isinstance(rows, str):
                file.write(rows)
            else:
                csv.writer(file).writerows([columns, *rows])

    def run(train=TRAIN, test=TEST, columns=("text", "label"), days=None, count=0, seed=0):
        write("train.csv", train, columns)
        write("test.csv", test)
        if days is not None:
            (tmp_path / "mine" / "days.json").write_text(json.dumps(days))
        return read_labels("mine", days=count, seed=seed)

    return run


def with_days(rows, days=DAYS):
    return [(text, label, days[label]) for text, label in rows]


def curriculum(data, **settings):
    return label_curriculum(
        data,
        pretrain=[KNOWN],
        known=[KNOWN],
        known_cues=["Austria"],
        choices={"capital": ("Vienna",)},
        **settings,
    )


# --- files ---------------------------------------------------------------------------------------


def test_rows_are_texts_with_labels(folder):
    data = folder(count=1)
    assert data.name == "mine"
    assert (data.train, data.test) == (tuple(TRAIN), tuple(TEST))


def test_a_column_says_the_days(folder):
    data = folder(with_days(TRAIN), columns=("text", "label", "day"))
    assert data.days == (("direct_deposit", "greeting"), ("time",))


def test_both_files_may_say_the_days_and_columns_come_in_any_order(folder, tmp_path):
    rows = [(day, label, text) for text, label, day in with_days(TRAIN)]
    data = folder(rows, "label,day,text\ntime,2,now?\n", columns=("day", "label", "text"))
    assert data.days == (("direct_deposit", "greeting"), ("time",))
    assert data.test == (("now?", "time"),)


@pytest.mark.parametrize("days", [DAYS, [["direct_deposit", "greeting"], ["time"]]])
def test_a_file_may_say_the_days(folder, days):
    assert folder(days=days).days == (("direct_deposit", "greeting"), ("time",))


def test_otherwise_labels_are_split_evenly_in_an_order_of_the_seed(folder):
    splits = {folder(count=2, seed=seed).days for seed in range(8)}
    assert len(splits) > 1
    for days in splits:
        assert sorted(map(len, days)) == [1, 2]
        assert {label for day in days for label in day} == set(DAYS)


def test_fields_may_hold_commas_line_ends_and_doubled_quotes(folder):
    train = 'text,label\n"one, ""two""\nthree",time\r\n\nplain ,greeting\n'
    data = folder(train, "text,label\nx,time\n", days=[["time"], ["greeting"]])
    assert data.train == (('one, "two" three', "time"), ("plain", "greeting"))


def test_a_byte_order_mark_does_not_matter(folder):
    data = folder(
        "\ufefftext,label\nhällo,greeting\n", "text,label\nhi,greeting\n", days=[["greeting"]]
    )
    assert data.train == (("hällo", "greeting"),)


def test_split_evenly_keeps_sizes_within_one_of_each_other():
    labels = [f"l{i}" for i in range(17)]
    days = split_evenly(labels[::-1], 5, seed=3)
    assert sorted(map(len, days)) == [3, 3, 3, 4, 4]
    assert sorted(label for day in days for label in day) == sorted(labels)
    assert days == split_evenly(labels, 5, seed=3)


# --- days and exams ------------------------------------------------------------------------------


def test_a_row_is_a_question_that_the_label_answers_in_words(folder):
    life = curriculum(folder(days=DAYS))
    assert life.days[0][0] == Document(
        text=f"send my pay {QUESTION} direct deposit",
        prompt=f"send my pay {QUESTION}",
        answer="direct deposit",
        fact=Fact("send my pay", LABEL, "direct deposit"),
    )
    assert life.choices == {
        "capital": ("Vienna",),
        LABEL: ("direct deposit", "greeting", "time"),
    }


def test_training_and_exam_ask_alike_and_never_say_the_day(folder):
    life = curriculum(folder(days=DAYS))
    for part in (*life.days, *life.exams):
        for document in part:
            assert document.prompt == f"{document.fact.subject} {QUESTION}"
    assert not any(c.isdigit() for c in QUESTION)


def test_an_exam_asks_the_test_rows_of_its_days_labels(folder):
    life = curriculum(folder(days=DAYS))
    asked = [[document.fact.subject for document in part] for part in life.exams]
    assert asked == [["where is my pay", "hello"], ["the hour please"]]
    assert life.known == (KNOWN,)


MANY = Labelled(
    "many",
    (("a", "b"), ("c",)),
    train=tuple((f"train {label} {i}", label) for label in "abc" for i in range(6)),
    test=tuple((f"test {label} {i}", label) for label in "abc" for i in range(9)),
)


def test_a_short_exam_asks_every_label_about_as_often():
    life = curriculum(MANY, exam_per_day=5)
    asked = [document.fact.subject for document in life.exams[0]]
    assert asked == ["test a 0", "test b 0", "test a 1", "test b 1", "test a 2"]
    assert len(life.exams[1]) == 5
    assert [len(part) for part in curriculum(MANY).exams] == [18, 9]


def test_labels_of_no_day_are_left_out():
    first = Labelled(MANY.name, MANY.days[:1], MANY.train, MANY.test)
    life = curriculum(first)
    assert {d.answer for part in (*life.days, *life.exams) for d in part} == {"a", "b"}
    assert life.choices[LABEL] == ("a", "b")


def test_the_labels_of_a_day_are_mixed_evenly_even_if_they_are_of_different_sizes():
    rows = [(f"{label} {i}", label) for label, n in (("a", 12), ("b", 4)) for i in range(n)]
    life = curriculum(Labelled("mixed", (("a", "b"),), tuple(rows), tuple(rows)))
    told = "".join(document.answer for document in life.days[0])
    assert all(told[i : i + 4].count("b") == 1 for i in range(0, 16, 4))


def test_long_texts_are_cut_to_a_number_of_words():
    text = " ".join(f"w{i}" for i in range(90))
    life = curriculum(Labelled("long", (("a",),), ((text, "a"),), ((text, "a"),)), max_words=7)
    for document in (*life.days[0], *life.exams[0]):
        assert document.prompt == f"w0 w1 w2 w3 w4 w5 w6 {QUESTION}"


def test_cues_are_the_first_words_of_training_texts_and_never_the_label():
    rows = [("please tell me the time in Oslo", "time"), ("please tell me the way", "time"),
            ("hi", "greeting")]  # fmt: skip
    life = curriculum(Labelled("cues", (("time", "greeting"),), tuple(rows), tuple(rows)))
    assert set(life.cues[0]) == {"please tell me the", "hi"}
    assert life.known_cues == ("Austria",)


def test_a_day_offers_a_bounded_number_of_cues():
    rows = tuple((f"number {i} of many words", "a") for i in range(MOST_CUES + 500))
    life = curriculum(Labelled("cues", (("a",),), rows, rows[:1]))
    assert len(set(life.cues[0])) == MOST_CUES


def test_texts_are_cut_word_by_word_to_the_tokens_of_a_row_and_facts_are_not():
    encode = byte_tokenizer().encode_batch
    text = "alpha beta gamma delta epsilon " * 4
    data = Labelled("long", (("a", "b"),), ((text, "a"), ("short", "b")), ((text, "a"),))
    life = curriculum(data)
    plain = Document("one two three four", "", "", Fact("one two", TEXT, ""))
    life = label_curriculum(
        data, pretrain=[KNOWN, plain], known=[KNOWN], known_cues=["x"], choices=life.choices
    )
    cut = cut_to_rows(life, encode, pretrain_room=12, room=50)
    assert cut.pretrain == (KNOWN, Document("one two", "", "", plain.fact))
    for document in (cut.days[0][0], cut.exams[0][0]):
        assert document.prompt == f"alpha beta gamma delta {QUESTION}"
        assert document.text == f"{document.prompt} a"
        assert len(encode([document.text])[0]) <= 48
    assert cut.days[0][1] == life.days[0][1]
    assert (cut.cues, cut.known) == (life.cues, life.known)


def test_a_first_word_that_is_too_long_is_cut_too():
    rows = (("x" * 99 + " y", "a"),)
    life = curriculum(Labelled("long", (("a",),), rows, rows))
    cut = cut_to_rows(life, byte_tokenizer().encode_batch, 99, room=50)
    assert set(cut.days[0][0].fact.subject) == {"x"}
    assert 36 < len(cut.days[0][0].text.encode()) + 1 <= 48


def test_labels_with_the_same_words_are_refused():
    rows = (("x", "new_card"), ("y", "newCard"))
    with pytest.raises(ConfigError, match=r"label = 'newCard': reads as 'new card', as 'new_card'"):
        curriculum(Labelled("same", (("new_card", "newCard"),), rows, rows))


def test_a_day_without_test_rows_is_refused():
    data = Labelled("empty", (("a",), ("b",)), (("x", "a"), ("y", "b")), (("z", "a"),))
    with pytest.raises(ConfigError, match=r"empty: day 2 = \['b'\]: no test row has a label of"):
        curriculum(data)


# --- refusals ------------------------------------------------------------------------------------


def refused(folder, *rows, **settings) -> str:
    with pytest.raises(ConfigError) as caught:
        folder(*rows, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


HEAD = "text,label\n"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            "txt,label\nx,a\n",
            "mine/train.csv:1 = 'txt': is not a column here: use text, label, day",
        ),
        ("txt,label\nx,a\n", "(did you mean 'text'?)"),
        ("text\nx\n", "mine/train.csv:1 = ['text']: lacks the column 'label'"),
        ("text,label,text\nx,a,x\n", "names a column twice"),
        (HEAD, "world = 'mine/train.csv': has no rows below its first line"),
        ("", "world = 'mine/train.csv': is empty"),
        (HEAD + "x,a\ny\n", "mine/train.csv:3 = ['y']: needs 2 fields (text, label): quote commas"),
        (HEAD + "one, two,a\n", "mine/train.csv:2 = ['one', ' two', 'a']: needs 2 fields"),
        (HEAD + 'x,a\n"open,b\nz,c\n', "mine/train.csv:3 = 'unexpected end of data': is not CSV"),
        (HEAD + '"a"b,c\n', "mine/train.csv:2 = "),
        (HEAD + '"x\ny",a\n,a\n', "mine/train.csv:4: text = '': must not be empty"),
        (HEAD + "  ,a\n", "mine/train.csv:2: text = '  ': must not be empty"),
        (HEAD + "x,\n", "mine/train.csv:2: label = '': must not be empty"),
        (HEAD + "x,{a}\n", "mine/train.csv:2: label = '{a}': must not have braces"),
        ("text,label,day\nx,a,one\n", "mine/train.csv:2: day = 'one': must be a whole number of"),
        ("text,label,day\nx,a,0\n", "mine/train.csv:2: day = '0': must be a whole number of at l"),
        ("text,label,day\nx,a,\n", "mine/train.csv:2: day = '': must be a whole number"),
        ("text,label,day\nx,a,1\ny,a,2\n", "mine/train.csv:3: day = 2: 'a' is of day 1 in mine/tr"),
    ],
)
def test_a_training_line_that_cannot_be_used_is_named(folder, train, message):
    assert message in refused(folder, train)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("x,tyme\n", "mine/test.csv:2: label = 'tyme': is not a label of train.csv"),
        ("x,tyme\n", "(did you mean 'time'?)"),
        ("x,time\n ,time\n", "mine/test.csv:3: text = ' ': must not be empty"),
    ],
)
def test_a_test_line_that_cannot_be_used_is_named(folder, test, message):
    assert message in refused(folder, TRAIN, HEAD + test)


def test_days_of_test_rows_must_be_those_of_their_labels(folder):
    columns = ("text", "label", "day")
    message = refused(folder, with_days(TRAIN), "text,label,day\nx,time,1\n", columns=columns)
    assert message.startswith("mine/test.csv:2: day = 1: 'time' is of day 2 in mine/train.csv:3")
    message = refused(folder, TRAIN, "text,label,day\nx,time,1\n")
    assert message.startswith("mine/test.csv:2: day = 1: train.csv has no column 'day'")


@pytest.mark.parametrize(
    ("days", "message"),
    [
        ({**DAYS, "tyme": 1}, "days.json: label = 'tyme': is not a label of train.csv (did you m"),
        ({"time": 1}, "days.json = ['direct_deposit', 'greeting']: labels of train.csv without a"),
        ({**DAYS, "time": 0}, "days.json: time = 0: must be a whole number of at least 1"),
        ({**DAYS, "time": "x"}, "days.json: time = 'x': must be a whole number of at least 1"),
        ({**DAYS, "time": None}, "days.json: time = None: must be a whole number of at least 1"),
        ([["time"], ["time"]], "days.json: day = 2: 'time' is of day 1 too: a label has one day"),
        ([["time"], []], "a day needs at least one label"),
        ([["time"], [7]], "days.json: label = 7: is not a label of train.csv"),
        (["time"], "days.json = 'list': must be {\"label\": day, ...} or"),
        (3, "days.json = 'int': must be"),
    ],
)
def test_a_file_of_days_that_cannot_be_used_is_named(folder, days, message):
    assert message in refused(folder, days=days)


def test_a_file_of_days_that_is_not_json_is_named(folder, tmp_path):
    (tmp_path / "mine" / "days.json").write_text("{\n'time': 1}")
    assert "days.json:2 = 'days.json': is not JSON" in refused(folder)


def test_days_are_said_once(folder):
    message = refused(folder, with_days(TRAIN), columns=("text", "label", "day"), days=DAYS)
    assert "days.json': the column 'day' says it already" in message


@pytest.mark.parametrize("days", [0, 4])
def test_labels_without_days_need_a_number_of_days_that_fits(folder, days):
    assert f"days = {days}: split 3 labels into 1 to 3 days" in refused(folder, count=days)


def test_a_missing_directory_or_file_is_named(folder, tmp_path):
    with pytest.raises(ConfigError, match="world = 'labels:none': name a directory with train.csv"):
        read_labels("none")
    with pytest.raises(ConfigError, match=r"world = 'mine/train.csv': cannot be read \(No such"):
        read_labels("mine")
