"""What learners answer in words is read up to where it ends, and scored beside their tokens."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench.combine import combine
from sleeplm.bench.page import blocks
from sleeplm.bench.report import summarize
from sleeplm.bench.textscores import TextScores, answer_text, judged, text_scores
from sleeplm.core.types import Turns
from sleeplm.data.text import EOS, byte_tokenizer
from sleeplm.methods.config import SleepConfig

TOKENIZER = byte_tokenizer()
END_OF_TURN = 1  # stands for a special token of a published model here


def tokens(text: str, *ends: int) -> list[int]:
    return [*TOKENIZER.encode(text), *ends]


# --- where an answer ends ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (tokens("Graz", EOS, 0, 0), "Graz"),
        (tokens("Graz, I think"), "Graz, I think"),  # cut off by the room that it had
        (tokens(" Graz \nUser: and", EOS), "Graz"),
        (tokens("\nGraz", EOS, 99, 100), "Graz"),
        ([EOS, *tokens("Graz")], ""),
        ([0, 0], ""),
    ],
)
def test_an_answer_is_its_first_line_up_to_the_stop_token(row, text):
    assert answer_text(TOKENIZER, row) == text
    assert answer_text(TOKENIZER, np.asarray(row, np.int32)) == text


@dataclasses.dataclass
class Published:
    """A tokenizer that knows of other ends, as published ones do."""

    turns: Turns
    stops: tuple[int, ...] = ()
    eos: int = EOS
    decode = staticmethod(TOKENIZER.decode)


def test_an_answer_in_turns_ends_with_its_turn_whatever_is_babbled_behind_it():
    special = Published(Turns(end=(END_OF_TURN,)), stops=(EOS, END_OF_TURN))
    assert answer_text(special, tokens("Graz", END_OF_TURN, *tokens("no", EOS))) == "Graz"
    words = Published(Turns(end=tuple(tokens("</s>")[1:])))  # without a space
    assert answer_text(words, tokens("a </b> c</s>d</s>")) == "a </b> c"
    assert answer_text(words, tokens("Graz", EOS, *tokens("</s>"))) == "Graz"


# --- scores --------------------------------------------------------------------------------------


def learner(*days):
    """The material of a learner with the accepted answers of its days."""
    curriculum = SimpleNamespace(
        accepted=tuple(tuple(map(tuple, day)) for day in days),
        exams=tuple(tuple(answers[0] for answers in day) for day in days),
    )
    return SimpleNamespace(curriculum=curriculum, tokenizer=TOKENIZER)


def exam_of(*learners, width=24):
    """int32 [E, Q, A]: what each of the learners said, padded to as many questions."""
    most = max(map(len, learners))
    out = np.zeros((len(learners), most, width), np.int32)
    for rows, texts in zip(out, learners, strict=True):
        for row, text in zip(rows, texts, strict=False):
            said = tokens(text, EOS)
            row[: len(said)] = said
    return jnp.asarray(out)


LEARNERS = [
    learner([["Otrar", "town of Otrar"], ["silver"]], [["fled"]]),
    learner([["Graz"]], [["a b"], ["1842"], ["x"]]),
]
SAID = exam_of(
    ["the town of Otrar", "molten silver", "Fled.", "known before", "known too"],
    ["graz", "b", "in 1842", "", "known before"],
)


def test_scores_are_means_over_each_days_questions_and_every_learner_has_its_own():
    found = TextScores(LEARNERS, None, 0.8)({"said": SAID, "recall": jnp.zeros((2, 3))})
    assert set(found) == {"said", "recall", "em", "f1"}
    np.testing.assert_allclose(found["em"], [[0.5, 1], [1, 1 / 3]])
    np.testing.assert_allclose(found["f1"], [[(1 + 2 / 3) / 2, 1], [1, (1 + 2 / 3 + 0) / 3]])
    assert found["said"] == [
        ["the town of Otrar", "molten silver", "Fled."],  # not what was asked of pretraining
        ["graz", "b", "in 1842", ""],
    ]


def test_a_judge_accepts_what_it_takes_for_an_accepted_answer(tiny_encoder):
    pairs = [
        ("The Shah fled", ["fled"]),
        ("fled", ["ran", "FLED."]),  # equal, however it is written
        ("", ["fled"]),
        ("ran", ["fled", "ran away"]),
    ]
    assert judged(tiny_encoder, -1.0, pairs) == [1, 1, 0, 1]
    assert judged(tiny_encoder, 1.1, pairs) == [0, 1, 0, 0]
    found = TextScores(LEARNERS, tiny_encoder, -1.0)({"said": SAID})
    np.testing.assert_allclose(found["judged"], [[1, 1], [1, 2 / 3]])
    assert judged(tiny_encoder, 0.5, []) == []


def test_only_worlds_of_passages_are_scored():
    assert text_scores(SimpleNamespace(world="atlas"), LEARNERS) is None
    settings = {"score_judge": False, "sleep": SleepConfig(judge_threshold=0.7)}
    made = text_scores(SimpleNamespace(world="passages:x.json", **settings), LEARNERS)
    assert (made.encoder, made.threshold) == (None, 0.7)


# --- reports -------------------------------------------------------------------------------------


def results(seed=0, **entries):
    arm = {
        "seed": seed,
        "world_seed": seed,
        "matrix": [[0.0, None], [0.0, 0.5]],
        "awake": [0.0, 0.5],
        "pretrain": [1.0, 1.0],
        "pretrain_start": 1.0,
        **entries,
    }
    world = {"name": "passages:x.json", "passages_per_day": [1, 1], "digests": [f"text {seed}"]}
    return {"experiment": "retention", "config": {"seed": seed}, "world": world, "arms": {"a": arm}}


SCORED = {
    "em": [[0.5, 0.0], [0.25, 0.75]],
    "em_start": [0.0, 0.25],
    "f1": [[0.6, 0.1], [0.5, 0.9]],
    "f1_start": [0.2, 0.3],
}


def test_a_report_has_the_scores_of_all_days_after_the_last_night_and_before_life():
    report = summarize(json.loads(json.dumps(results(**SCORED))))
    figures = report["arms"]["a"]["figures"]
    means = {name: figures[name]["mean"] for name in figures if name[:2] in ("em", "f1")}
    wanted = {"em_last": 0.5, "em_start": 0.125, "f1_last": 0.7, "f1_start": 0.25}
    assert means == pytest.approx(wanted)
    assert figures["f1_last"]["low"] < 0.7 < figures["f1_last"]["high"]
    assert "judged_last" not in figures
    page = str(blocks(report, "x.png"))
    assert "Answers as text" in page and "token F1" in page and "judged" not in page


def test_a_report_without_them_does_not_name_them():
    report = summarize(results())
    assert not {"em_last", "f1_start"} & set(report["arms"]["a"]["figures"])
    assert "Answers as text" not in str(blocks(report, "x.png"))


def test_seeds_that_read_other_passages_in_other_runs_are_one_arm():
    """Passages have more questions or fewer: days of as many passages are alike."""
    both = combine([results(0, **SCORED), results(1, **SCORED)], ["first", "second"])
    report = summarize(both)
    assert report["arms"]["a"]["seeds"] == 2
