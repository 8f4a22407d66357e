"""The retention job: its exam, its report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.data.text import BOS, EOS
from sleeplm.models.decode import generate
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.runtime import cli, exams
from sleeplm.runtime.config import load_config
from sleeplm.runtime.material import paper_of, prepare
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.retention import arm_model

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = str(ROOT / "experiments" / "retention.py")
LIFE = str(pathlib.Path(__file__).with_name("tiny_life.py"))


def life(**overrides):
    return load_config(LIFE, [f"--config.{k}={v}" for k, v in overrides.items()])


def experiment(*overrides):
    return load_config(EXPERIMENT, [f"--config.{o}" for o in overrides])


def test_wake_only_is_the_same_model_without_nights():
    config = experiment()
    assert arm_model(config, "sleep") == config.model
    awake = arm_model(config, "wake_only")
    assert [level.night for level in awake.levels] == [0, 0]
    for one, other in zip(awake.levels, config.model.levels, strict=True):
        assert dataclasses.replace(one, night=other.night) == other


# --- exams ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examined():
    """A tiny model that has learnt a few answers by heart, and an exam with them."""
    config = life()
    material = prepare(config)
    model = Model(backbone_config(config.model))
    params = jax.jit(model.init)(jax.random.key(0))
    return config, material, model, params


def greedy(model, variables, prompt: list[int], new: int) -> list[int]:
    """Token by token, each time over the whole text, with no cache."""

    @jax.jit
    def logits_of(row):
        return model.hidden(variables, row[None])[0] @ model.unembed(variables["params"])

    tokens = list(prompt)
    for _ in range(new):
        row = np.zeros(128, np.int32)  # what comes after the last token cannot be seen
        row[: len(tokens)] = tokens
        tokens.append(int(jnp.argmax(logits_of(row)[len(tokens) - 1])))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]


def test_an_answer_is_right_if_the_greedy_continuation_is_the_answer_and_stops(examined):
    config, material, model, params = examined
    tokenizer = material.tokenizer
    variables = {"params": params, "slots": model.init_slots()}
    asked = [*material.curriculum.known[:3], *material.curriculum.exams[0][:2]]
    # Expect of some questions what the model says, of others what is true.
    said = []
    for document in asked:
        prompt = [BOS, *tokenizer.encode(document.prompt)]
        said.append(greedy(model, variables, prompt, 8))
    paper = exams.make_exam(tokenizer, [asked[:3], asked[3:]], config.model.max_len)
    width = max(8, paper.answers.shape[1])
    answers = np.pad(paper.answers, ((0, 0), (0, width - paper.answers.shape[1])))
    for row in (0, 2, 3):
        answers[row] = 0
        answers[row, : len(said[row])] = said[row]
    answers[3, len(said[3]) - 1] += 1  # all but the last token
    paper = dataclasses.replace(paper, answers=answers)
    expected = []
    for row in range(5):
        prompt = paper.prompts[row, : paper.lengths[row]].tolist()
        continuation = greedy(model, variables, prompt, width)
        padded = continuation + [0] * (width - len(continuation))
        expected.append(padded == answers[row].tolist())
    recall = np.asarray(exams.grade(model, paper)(variables))
    np.testing.assert_allclose(recall, [np.mean(expected[:3]), np.mean(expected[3:])])


def test_grading_is_by_question_whatever_the_size_of_a_block(examined, monkeypatch):
    config, material, model, params = examined
    variables = {"params": params, "slots": model.init_slots()}
    paper = paper_of(config, material)
    count = len(paper.lengths)
    assert (paper.groups, count) == (4, 3 * 3 + 4)
    samples = jax.jit(
        lambda: generate(
            model,
            variables,
            jnp.asarray(paper.prompts),
            jnp.asarray(paper.lengths),
            jax.random.split(jax.random.key(0), count),
            max_new=paper.answers.shape[1],
            temperature=0.0,
        )
    )()
    # A paper on which the model is right in every second question.
    index = paper.lengths[:, None] + np.arange(paper.answers.shape[1])
    says = np.take_along_axis(np.asarray(samples.tokens), index, 1)
    right = np.arange(count) % 2 == 0
    answers = np.where(right[:, None], says, says + 1)
    groups = [np.flatnonzero(paper.group == g) for g in range(4)]
    wanted = [right[rows].mean() for rows in groups]
    for block in (256, 5, 1):
        monkeypatch.setattr(exams, "BLOCK", block)
        padded = paper_of(config, material)
        extra = len(padded.lengths) - count
        assert len(padded.lengths) % min(block, count) == 0
        full = np.pad(answers, ((0, extra), (0, 0)))
        recall = jax.jit(exams.grade(model, dataclasses.replace(padded, answers=full)))(variables)
        np.testing.assert_allclose(np.asarray(recall), wanted, rtol=1e-6)


def test_exam_rows_hold_prompt_and_answer_of_their_document(examined):
    config, material, _, _ = examined
    tokenizer = material.tokenizer
    paper = paper_of(config, material)
    documents = [document for part in material.curriculum.exams for document in part]
    for row, document in enumerate(documents):
        prompt = paper.prompts[row, : paper.lengths[row]]
        assert tokenizer.decode(prompt) == document.prompt
        answer = paper.answers[row]
        stop = answer.tolist().index(EOS)
        assert tokenizer.decode(answer[:stop]) == document.answer
        assert not answer[stop + 1 :].any()
        assert paper.group[row] == row // config.facts_per_day


# --- the whole job -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The directory of a tiny run through the command line."""
    place = tmp_path_factory.mktemp("retention")
    arguments = [
        *("run", LIFE, "--workdir", str(place / "run"), "--quiet"),
        *(f"--config.cache={place / 'cache'}", "--config.world=biographies"),
        *("--config.save_seconds=60", "--config.days=2", "--config.sleep.alpha=1"),
    ]
    assert cli.main(arguments) == 0
    return place / "run"


@pytest.mark.slow
def test_the_report_has_what_programs_look_for(ran):
    report = json.loads((ran / "report.json").read_text())
    assert report["experiment"] == "retention"
    assert set(report["arms"]) == {"sleep", "wake_only"}
    for arm in report["arms"].values():
        recall = arm["mean_recall_last"]
        assert 0 <= recall["low"] <= recall["mean"] <= recall["high"] <= 1
        matrix = arm["matrix"]
        assert [len(row) for row in matrix] == [2, 2]
        assert matrix[0][1] is None
        assert recall["mean"] == pytest.approx(np.mean(matrix[1]))
        assert len(arm["awake"]) == len(arm["pretrain"]) == 2
        assert arm["cost"][0]["tokens"]["wake"] == 2 * 4 * 4 * 96
        assert arm["cost"][0]["seconds"]["total"] > 0
    difference = report["difference"]["sleep_minus_wake_only"]["mean_recall_last"]
    assert {"mean", "low", "high"} <= set(difference)
    assert set(report["certified"]) == {"awake", "wake_only_loses"}
    assert report["config"]["world"] == "biographies"
    assert (ran / "report.md").read_text().startswith("# retention")


@pytest.mark.slow
def test_the_matrix_is_what_the_exams_said_after_every_night(ran):
    report = json.loads((ran / "report.json").read_text())
    lines = read_metrics(ran / "metrics.jsonl")
    for name, when in (("sleep", "dawn"), ("wake_only", "dusk")):
        said = [r for r in lines if r["stage"] == name and r.get("when") == when]
        for day, line in enumerate(said):
            row = report["arms"][name]["matrix"][day]
            assert row[: day + 1] == line["recall"][: day + 1]
            assert report["arms"][name]["pretrain"][day] == line["pretrain"]
    events = {r["event"] for r in lines if r["stage"] == "sleep"}
    assert events == {"cues", "wake", "exam", "seed", "seed_end"}
    assert {r["event"] for r in lines if r["stage"] == "wake_only"} == {"wake", "exam"}


@pytest.mark.slow
def test_both_arms_read_the_same_text_in_the_same_order_until_the_first_night(ran):
    lines = read_metrics(ran / "metrics.jsonl")
    losses = [
        [r["loss"] for r in lines if r["stage"] == arm and r["event"] == "wake" and r["day"] == 0]
        for arm in ("sleep", "wake_only")
    ]
    first, *_ = losses[0]
    assert first == losses[1][0]  # the same parameters and the same batch
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_sampled_tokens_are_counted_as_they_are_made(ran):
    report = json.loads((ran / "report.json").read_text())
    sleep = life().sleep
    sources = sum(1 for _ in itertools.product(sleep.teachers, ("teacher", "student")))
    rows = sources * sleep.rows * sleep.inner
    tokens = report["arms"]["sleep"]["cost"][0]["tokens"]
    assert tokens["sampled"] == 2 * sleep.blocks * rows * sleep.length
    assert tokens["seeded"] == tokens["sampled"] * sleep.epochs
    assert report["arms"]["wake_only"]["cost"][0]["tokens"]["sampled"] == 0


@pytest.mark.slow
def test_the_report_of_a_run_can_be_written_again(ran, capsys):
    before = json.loads((ran / "report.json").read_text())
    (ran / "report.json").unlink()
    assert cli.main(["report", str(ran)]) == 0
    assert json.loads((ran / "report.json").read_text()) == before
    assert "# retention" in capsys.readouterr().out
