"""Passages with questions: files of three layouts, days of pieces, and what is asked of them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path

import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.data.curriculum import check_curriculum, digest, repeated
from sleeplm.data.facts import Document, Fact
from sleeplm.data.passage_days import (
    ANSWER,
    PASSAGE,
    check_ask,
    deal,
    in_pieces,
    passage_curriculum,
)
from sleeplm.data.passages import Passage, PassageQuestion, read_passages
from sleeplm.data.text import byte_tokenizer

#: Where data sets are, if this machine has them; they are no part of the project.
DATA = Path(os.environ.get("SLEEPLM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))

KHAN = Passage(
    "Genghis Khan",
    "The army took Otrar. The Shah fled to an island.",
    (
        PassageQuestion("Which town fell?", ("Otrar", "the town of Otrar")),
        PassageQuestion("What did the Shah do?", ("fled",)),
    ),
)
PLANT = Passage(
    "", "Leaves are green.", (PassageQuestion("Leaves have which colour?", ("green",)),)
)


def own(passage: Passage) -> dict:
    """A passage as people write them."""
    questions = [
        {"question": q.question, "answer": q.answers[0]}
        if len(q.answers) == 1
        else {"question": q.question, "answers": list(q.answers)}
        for q in passage.questions
    ]
    title = {"title": passage.title} if passage.title else {}
    return {**title, "context": passage.context, "questions": questions}


def squad(*passages: Passage) -> dict:
    """Passages as SQuAD's own file has them."""
    return {
        "version": "1.1",
        "data": [
            {
                "title": p.title.replace(" ", "_"),
                "paragraphs": [
                    {
                        "context": p.context,
                        "qas": [
                            {
                                "id": f"{i}",
                                "question": q.question,
                                "answers": [{"text": a, "answer_start": 0} for a in q.answers],
                            }
                            for i, q in enumerate(p.questions)
                        ],
                    }
                ],
            }
            for p in passages
        ],
    }


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Writes a file in the working directory, and reads its passages."""
    monkeypatch.chdir(tmp_path)

    def run(content, name="mine.json"):
        text = content if isinstance(content, str) else json.dumps(content)
        raw = text.encode()
        Path(name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return read_passages(name)

    return run


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_three_layouts_say_the_same(read, packed):
    lines = "\n".join(json.dumps(own(p)) for p in (KHAN, PLANT)) + "\n\n"
    assert read(squad(KHAN, PLANT), f"squad.json{packed}") == (KHAN, PLANT)
    assert read([own(KHAN), own(PLANT)], f"list.json{packed}") == (KHAN, PLANT)
    assert read(lines, f"lines.jsonl{packed}") == (KHAN, PLANT)


def test_questions_that_have_no_answer_are_left_out(read):
    content = squad(KHAN, PLANT)
    first, second = (article["paragraphs"][0]["qas"] for article in content["data"])
    first[1] |= {"is_impossible": True, "answers": [], "plausible_answers": [{"text": "x"}]}
    second[0] |= {"is_impossible": True, "answers": []}
    assert read(content) == (dataclasses.replace(KHAN, questions=KHAN.questions[:1]),)
    content["data"][1]["paragraphs"][0]["qas"] = []
    assert len(read(content)) == 1


def test_accepted_answers_count_once_and_the_first_is_expected(read):
    content = squad(KHAN)
    answers = content["data"][0]["paragraphs"][0]["qas"][1]["answers"]
    answers += [{"text": "ran  away"}, {"text": "fled"}]
    assert read(content)[0].questions[1].answers == ("fled", "ran away")


def test_spaces_of_questions_are_single_ones_and_lines_of_a_text_stay(read):
    passage = own(KHAN) | {"title": " Genghis\n Khan ", "context": " One.\nTwo.  \n"}
    passage["questions"][0]["question"] = "Which  town\nfell? "
    (found,) = read([passage])
    assert (found.title, found.context) == ("Genghis Khan", "One.\nTwo.")
    assert found.questions == KHAN.questions


def test_other_keys_of_squad_do_not_matter_and_numbers_of_ones_own_may_be_there(read):
    content = squad(KHAN)
    content["data"][0]["paragraphs"][0] |= {"document_id": 3}
    assert read(content) == (KHAN,)
    passage = own(KHAN) | {"id": 1}
    passage["questions"][0]["id"] = "a"
    assert read([passage]) == (KHAN,)


def changed(content, value, *path):
    """The content with another value at a path, or without that key if it is None."""
    content = json.loads(json.dumps(content))
    part = content
    for key in path[:-1]:
        part = part[key]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return content


SQUAD, OWN = squad(KHAN), [own(KHAN)]
PARAGRAPH = ("data", 0, "paragraphs", 0)
WHERE = "mine.json: data[0].paragraphs[0]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "world = 'mine.json': is empty"),
        ('{"data": [\n}', "mine.json:2 = 'mine.json': is not JSON (Expecting value at column 1)"),
        ('{"data": [], "data": []}', "is not usable JSON (the key 'data' stands in it twice)"),
        ("3", "mine.json = 'int': must be a list of objects such as {"),
        (own(KHAN), "mine.json = 'dict': must be a list of objects such as {"),
        ([], "world = 'mine.json': has no passage with a question that has an answer"),
        (changed(SQUAD, [], "data"), "mine.json: data = []: must not be empty"),
        (changed(SQUAD, {}, "data"), "mine.json: data = 'dict': must be a list"),
        (changed(SQUAD, "x", "data", 0), "mine.json: data[0] = 'str': must be an object"),
        (changed(SQUAD, 3, "data", 0, "title"), "data[0].title = 3: must be text, or left out"),
        (
            changed(SQUAD, None, "data", 0, "paragraphs"),
            "mine.json: data[0] = ['title']: lacks the key 'paragraphs'",
        ),
        (changed(SQUAD, None, *PARAGRAPH, "qas"), f"{WHERE} = ['context']: lacks the key 'qas'"),
        (changed(SQUAD, " ", *PARAGRAPH, "context"), f"{WHERE}.context = ' ': must not be empty"),
        (
            changed(SQUAD, "", *PARAGRAPH, "qas", 1, "question"),
            f"{WHERE}.qas[1].question = '': must not be empty",
        ),
        (
            changed(SQUAD, [], *PARAGRAPH, "qas", 0, "answers"),
            f"{WHERE}.qas[0].answers = []: must not be empty",
        ),
        (
            changed(SQUAD, 1842, *PARAGRAPH, "qas", 0, "answers", 1, "text"),
            f'{WHERE}.qas[0].answers[1].text = 1842: must be text: write "1842"',
        ),
        (
            changed(SQUAD, None, *PARAGRAPH, "qas", 0, "answers", 1, "text"),
            f"{WHERE}.qas[0].answers[1] = ['answer_start']: lacks the key 'text'",
        ),
        (changed(OWN, "x", 0), "mine.json: [0] = 'str': must be an object"),
        (changed(OWN, [], 0, "questions"), "mine.json: [0].questions = []: must not be empty"),
        (
            changed(OWN, None, 0, "questions"),
            "mine.json: [0] = ['context', 'title']: lacks the key 'questions'",
        ),
        (
            changed(OWN, "x", 0, "titel"),
            "mine.json: [0] = 'titel': is not a key here: use context, questions, title, id (did",
        ),
        (changed(OWN, "", 0, "context"), "mine.json: [0].context = '': must not be empty"),
        (
            changed(OWN, "x", 0, "questions", 0, "answer"),
            "[0].questions[0] = ['answer', 'answers']: use one of the two",
        ),
        (
            changed(OWN, None, 0, "questions", 1, "answer"),
            "[0].questions[1] = ['question']: use one of the two",
        ),
        (
            changed(OWN, [], 0, "questions", 0, "answers"),
            "mine.json: [0].questions[0].answers = []: must not be empty",
        ),
        (
            changed(OWN, ["Otrar", 7], 0, "questions", 0, "answers"),
            'mine.json: [0].questions[0].answers[1] = 7: must be text: write "7"',
        ),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(read, content, message):
    with pytest.raises(ConfigError) as caught:
        read(content)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", "mine.jsonl:2 = '{': is not JSON"),
        ("[]", "mine.jsonl:2 = '[]': must be an object such as {"),
        ('{"context": "x"}', "mine.jsonl:2 = ['context']: lacks the key 'questions'"),
        (
            '{"context": "x", "questions": [{"question": "?", "answer": " "}]}',
            "mine.jsonl:2: questions[0].answer = ' ': must not be empty",
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_its_number(read, second, message):
    with pytest.raises(ConfigError) as caught:
        read(json.dumps(own(KHAN)) + "\n" + second, "mine.jsonl")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(read, tmp_path):
    with pytest.raises(ConfigError, match=r"world = 'none.json': cannot be read \(No such file"):
        read_passages("none.json")
    Path("bad.json.gz").write_text("{}")
    with pytest.raises(ConfigError, match=r"world = 'bad.json.gz': cannot be read \(Not a gzipped"):
        read_passages("bad.json.gz")
    Path("latin.json").write_bytes('["\nä"]'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.json:2 = 'byte 0xe4': is not UTF-8"):
        read_passages("latin.json")


# --- who reads what ------------------------------------------------------------------------------

MANY = tuple(
    Passage(f"Title {i}", f"Text {i}.", (PassageQuestion(f"Question {i}?", (f"answer {i}",)),))
    for i in range(7)
)


def test_learners_with_one_passage_each_read_the_file_in_its_order_and_begin_again():
    dealt = [deal(MANY, [1], seed) for seed in range(9)]
    assert dealt == [((MANY[seed % 7],),) for seed in range(9)]


def test_other_days_are_passages_in_an_order_of_the_seed():
    orders = {deal(MANY, [2, 3], seed) for seed in range(5)}
    assert len(orders) == 5
    for first, second in orders:
        assert (len(first), len(second)) == (2, 3)
        assert len({*first, *second}) == 5
    assert deal(MANY, [2, 3], 4) == deal(MANY, [2, 3], 4)
    assert {*deal(MANY, [7], 1)[0]} == {*MANY}


def test_more_passages_than_there_are_are_refused():
    with pytest.raises(ConfigError, match=r"days = 2: 8 passages are asked for .*, there are 7"):
        deal(MANY, [4, 4], 0)


# --- days and exams ------------------------------------------------------------------------------

KNOWN = Document("Austria: which capital? Vienna", "Austria: which capital?", "Vienna",
                 Fact("Austria", "capital", "Vienna"))  # fmt: skip
TOLD = Document("Vienna is the capital of Austria.", "", "Vienna", KNOWN.fact)
ENCODE = byte_tokenizer().encode_batch


def life(*days, room=0, **settings):
    """The curriculum of days of passages; with ``room`` in pieces of as many bytes."""
    whole = passage_curriculum(
        "mine",
        days,
        pretrain=[TOLD],
        known=[KNOWN],
        known_cues=["Austria"],
        choices={"capital": ("Vienna",)},
        **settings,
    )
    check_curriculum(whole)
    if not room:
        return whole
    cut = in_pieces(whole, ENCODE, room)
    check_curriculum(cut)
    return cut


def texts(documents) -> list[str]:
    return [document.text for document in documents]


def test_a_passage_is_read_in_pieces_that_begin_with_its_title():
    found = life([KHAN], room=200)
    assert texts(found.days[0]) == [f"Genghis Khan: {KHAN.context}"]
    found = life([KHAN, PLANT], room=50)
    assert texts(found.days[0]) == [
        "Genghis Khan: The army took Otrar.",
        "Genghis Khan: The Shah fled to an island.",
        "Leaves are green.",
    ]
    for document in found.days[0]:
        assert (document.prompt, document.answer) == ("", "")
        assert len(ENCODE([document.text])[0]) + 2 <= 50
        assert document.fact.relation == PASSAGE


def test_an_exam_asks_without_the_text_and_expects_the_first_answer():
    found = life([KHAN], [PLANT], room=200)
    first, second = found.exams
    assert first[0] == Document(
        text="Which town fell? Otrar",
        prompt="Which town fell?",
        answer="Otrar",
        fact=Fact("Which town fell?", ANSWER, "Otrar"),
    )
    assert [question.answer for question in (*first, *second)] == ["Otrar", "fled", "green"]
    assert found.accepted == ((("Otrar", "the town of Otrar"), ("fled",)), (("green",),))
    assert found.choices == {"capital": ("Vienna",), ANSWER: ("Otrar", "fled", "green")}
    assert found.known == (KNOWN,)


def test_words_around_a_question_are_part_of_what_is_asked():
    first, _ = life([KHAN], ask="Be brief.\nQ: {q}\nA:").exams[0]
    assert first.prompt == "Be brief.\nQ: Which town fell?\nA:"
    assert first.text == f"{first.prompt} Otrar"
    assert first.fact.subject == "Which town fell?"


@pytest.mark.parametrize("ask", ["", "Answer:", "{q} {q}", "{q} "])
def test_words_around_a_question_need_one_place_for_it(ask):
    with pytest.raises(ConfigError, match="ask = .*needs one {q}"):
        check_ask("ask", ask)


def test_questions_are_never_read():
    for room in (0, 50, 200):
        found = life([KHAN], [PLANT], room=room)
        read = " ".join(texts((*found.pretrain, *found.days[0], *found.days[1])))
        for question in (*found.exams[0], *found.exams[1]):
            assert question.prompt not in read
        assert not repeated(found)


def test_the_same_question_about_two_texts_keeps_the_answers_of_each():
    twice = [
        dataclasses.replace(KHAN, questions=(PassageQuestion("When?", (year,)),))
        for year in ("1220", "1221")
    ]
    assert life(twice).accepted == ((("1220",), ("1221",)),)


def test_a_short_exam_asks_questions_from_all_over_the_day():
    found = life(MANY, exam_per_day=3)
    assert [q.answer for q in found.exams[0]] == ["answer 0", "answer 3", "answer 6"]
    assert found.accepted == ((("answer 0",), ("answer 3",), ("answer 6",)),)


def test_cues_are_titles_with_first_words_and_end_before_they_give_an_answer_away():
    found = life([KHAN, PLANT], room=50)
    assert found.cues == (("Genghis Khan: The army took", "Genghis Khan: The Shah", "Leaves are"),)
    assert found.known_cues == ("Austria",)
    begins = Passage("", "Otrar fell.", KHAN.questions)
    assert life([begins], room=50).cues == (("Otrar",),)  # where there is no title
    titled = dataclasses.replace(begins, title="A town")
    assert life([titled], room=50).cues == (("A town:",),)


def test_the_digest_tells_accepted_answers_apart():
    fewer = dataclasses.replace(KHAN, questions=(
        PassageQuestion("Which town fell?", ("Otrar",)), KHAN.questions[1]))  # fmt: skip
    assert digest(life([KHAN])) != digest(life([fewer]))
    assert digest(life([KHAN])) == digest(life([KHAN]))


@pytest.mark.parametrize(
    ("accepted", "message"),
    [
        (((("Otrar",),),), "needs an entry for every question: [2]"),
        (((("Otrar",), ("ran",)),), "must have the exam's answer 'fled'"),
    ],
)
def test_accepted_answers_must_belong_to_the_exam(accepted, message):
    with pytest.raises(ConfigError) as caught:
        check_curriculum(dataclasses.replace(life([KHAN]), accepted=accepted))
    assert message in str(caught.value)


# --- the published subset ------------------------------------------------------------------------


def test_the_published_evaluation_subset_has_200_passages_and_974_questions():
    file = DATA / "squad_seal" / "eval200.jsonl"
    if not file.is_file():
        pytest.skip("needs squad_seal/eval200.jsonl in $SLEEPLM_TEST_DATA")
    found = read_passages(str(file))
    assert len(found) == 200
    assert sum(len(passage.questions) for passage in found) == 974
    asked = life(*deal(found, [20] * 10, 0), room=400)
    assert sum(map(len, asked.exams)) == 974
    assert not repeated(asked)
