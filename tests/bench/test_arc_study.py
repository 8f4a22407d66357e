"""Few-shot ARC as a whole, with a model and tasks of seconds."""

from __future__ import annotations

import dataclasses
import json
import re
import signal

import jax
import numpy as np
import pytest

from sleeplm.bench.arc import edits, study
from sleeplm.bench.arc.config import ArcConfig
from sleeplm.bench.arc.programs import Programs
from sleeplm.bench.arc.results import page, summary
from sleeplm.bench.results import read_results
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.data.grid_tasks import GridTaskConfig, make_task
from sleeplm.data.grids import EDIT_TOKENS, WORDS
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model
from sleeplm.runtime.config import check
from sleeplm.runtime.lifecycle import Stopped, StopRequest
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import METRICS, Run

slow = pytest.mark.slow
WIDTH = 72
#: Of the first six generated tasks of held-out families, those that fit into it.
FIT, TOO_LONG = ["invert2", "shift4"], ["shift0", "connect1", "hollow3", "connect5"]


def tasks_file(path):
    """Small tasks in ARC's form, and one that is too long."""
    found = [t for t in (make_task(9, i, ("part", "most"), 2) for i in range(30))]
    sizes = [sum(len(p.input) * (len(p.input[0]) + 1) for p in t.demonstrations) for t in found]
    small = [t for t, size in zip(found, sizes, strict=True) if size < 25][:3]
    long = next(t for t in found if sum(len(p.input[0]) for p in t.demonstrations) >= 10)
    lines = [
        {"task_id": name, **{
            part: [{"input": p.input, "output": p.output} for p in side]
            for part, side in (("train", t.demonstrations), ("test", t.tests))
        }}
        for name, t in (*((f"t{i}", t) for i, t in enumerate(small)), ("long", bigger(long)))
    ]  # fmt: skip
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def bigger(task):
    """The task with a test of thirty rows."""
    test = dataclasses.replace(task.tests[0], input=((1,) * 4,) * 30)
    return dataclasses.replace(task, tests=(test,))


@pytest.fixture(scope="module", autouse=True)
def every_text_is_an_edit():
    """A backbone of four steps writes none: what it writes is taken for one."""
    read = edits.read_edit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edits, "read_edit", lambda tokens: read(tokens)._replace(valid=True))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ArcConfig:
    here = tmp_path_factory.mktemp("arc")
    made = ArcConfig(
        train=tasks_file(here / "tasks.jsonl"),
        train_tasks=["t0", "t1"],
        evaluation=str(here / "tasks.jsonl"),
        evaluation_tasks=["t2", "long"],
        held_out=6,
        arms=["icl", "ttt", "dream"],
        tests=2,
        rows=2,
        paces=[1, 2, 3],
        writer_rows=3,
        widths=[WIDTH],
        tasks=GridTaskConfig(tasks=40, tokens=WIDTH, edits=1.0),
        model=ModelConfig(
            vocab_size=len(WORDS),
            d_model=16,
            n_layers=1,
            n_heads=2,
            n_kv_heads=1,
            max_len=WIDTH + EDIT_TOKENS,
            levels=[LevelConfig(width=16)],
        ),
        pretrain=PretrainConfig(steps=4, batch=2, length=WIDTH, warmup=1, chunk=2),
        dream=DreamConfig(
            dreams=6, new_tokens=EDIT_TOKENS, alone=True, keep=2, extra=1, score_rows=1, rank=2,
            steps=3, batch=1, at_once=3, reward="questions", margin=-1e9, rounds=1,
            writer_rank=2, writer_epochs=1,
        ),
        seeds=1,
        cache=str(here / "cache"),
        save_seconds=0.0,
    )  # fmt: skip
    check(made)
    return made


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """A run that went through, and its results."""
    run = Run(tmp_path_factory.mktemp("done") / "run", config, quiet=True)
    return run, config.run(run)


def exams(run):
    return [r for r in read_metrics(run.directory / METRICS) if r.get("event") == "exam"]


@slow
def test_every_task_that_fits_is_asked_in_every_arm(done):
    run, results = done
    assert results["left_out"] == {"train": [], "evaluation": ["long"], "held_out": TOO_LONG}
    fit = [("evaluation", "t2"), *(("held_out", name) for name in FIT)]
    asked = [(e["arm"], e["list"], e["task"]) for e in exams(run)]
    assert asked == [(arm, *task) for arm in ("icl", "ttt", "dream") for task in fit]
    for e in exams(run):  # once, or in as many copies as there are dreams
        assert len(e["solved"]) == len(e["logp"]) == (1 if e["arm"] == "icl" else 2)


@slow
def test_test_time_training_learns_from_the_one_edit_it_is_given(done, config):
    run, _ = done
    mine = [e for e in exams(run) if e["arm"] == "ttt"]
    assert mine and all(e["edits"] == [config.edit] * 2 for e in mine)
    assert all(len(set(e["logp"])) == 2 for e in mine)  # copies differ by what was drawn


@slow
def test_both_files_say_the_same(done):
    run, results = done
    assert json.loads((run.directory / "results.json").read_text())["arms"].keys() == (
        results["arms"].keys()
    )
    text = (run.directory / "report.md").read_text()
    assert text == page(results)
    assert "| dream |" in text and "counted as unsolved: long" in text
    assert not [*run.directory.glob("*.partial")]


@slow
def test_a_run_stopped_between_dreams_goes_on_to_the_same_bits(done, config, tmp_path):
    whole, _ = done
    stop = StopRequest()
    one = Run(tmp_path / "run", config, quiet=True, stop=stop)
    step = study.programs.kept

    def kept(*arguments):
        stop.signum = signal.SIGTERM  # as if it came while a round was going on
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.programs, "kept", kept)
        with pytest.raises(Stopped):
            config.run(one)
    events = [r["event"] for r in read_metrics(one.directory / METRICS)]
    assert events.count("dream") == 1
    config.run(Run(tmp_path / "run", config, quiet=True, resume=True))
    mine, theirs = ((r.directory / METRICS).read_bytes() for r in (one, whole))
    # The backbone came from the cache this time.
    assert [line for line in theirs.splitlines() if b'"pretrain"' not in line] == mine.splitlines()


@slow
def test_only_the_writer_moves(done, config):
    """The backbone, which answers, keeps every bit; the writer has learned something."""
    run, _ = done
    model = Model(config.model)
    params = study.backbone(config, model, run)
    tasks = study.read(config)
    made = study._Stages(config, model, params, tasks).stage("dream", 0)
    before = made.newborn()
    state = before
    for moment in made.agenda:
        if moment.record["event"] != "exam":
            state, _ = moment.run(state)
    moved = tree.differing(state.params, before.params)
    assert moved and all(path.startswith("['writer']") for path in moved)
    assert not jax.tree.leaves(state.private)[0].any()  # what was accepted is not kept


@slow
def test_a_backbone_is_taught_outputs_and_edits_alone(config):
    tokens = np.array([[1, *range(3, 8), 14, 15, 4, 13, 2, 16, 17, 2, 0]])
    segments = (tokens > 0).astype(np.int32)
    extract = study.outputs_only()
    memory, _ = extract.extract({}, (), {"tokens": tokens, "segments": segments}, None)
    words = [WORDS[t] for t in tokens[0][np.asarray(memory.weights[0]) > 0]]
    assert words == ["1", "/", "<eos>", "rotate", "<eos>"]


# --- figures and settings -------------------------------------------------------------------------


def exam(arm, seed, task, solved, logp=-1.0):
    entry = {"event": "exam", "arm": arm, "seed": seed, "list": "evaluation", "task": task}
    return {**entry, "solved": solved, "logp": [logp] * len(solved), "valid": [1.0, 0.0]}


def test_shares_are_of_all_tasks_those_that_are_too_long_included():
    records = [
        exam("dream", 0, "a", [1.0, 0.0]), exam("dream", 0, "b", [0.0, 0.0]),
        exam("dream", 1, "a", [1.0, 1.0]), exam("dream", 1, "b", [0.0, 1.0]),
    ]  # fmt: skip
    left = {"train": [], "evaluation": ["long", "longer"], "held_out": []}
    figures = summary(records, ArcConfig(arms=["dream"]), left)["arms"]["dream"]["evaluation"]
    assert figures["dreams"]["values"] == [0.5 / 4, 1.5 / 4]
    assert figures["any"]["values"] == [1 / 4, 2 / 4]
    assert figures["tasks"] == 4 and figures["by_task"] == {"a": 0.75, "b": 0.25}
    assert figures["valid"]["mean"] == 0.5
    low, mean, high = (figures["dreams"][name] for name in ("low", "mean", "high"))
    assert low <= mean == 0.25 <= high


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"arms": ["sleep"]}, "arms = 'sleep': must be one of icl, ttt"),
        ({"arms": []}, r"arms = \[\]: name some of"),
        ({"edit": "flip rotate on_all rate0 steps0"}, "edit = 'flip rotate .*in this order"),
        ({"edit": "rotate on_all steps0"}, "edit = 'rotate on_all steps0'"),
        ({"rates": [0.1, 0.2]}, r"rates = \[0.1, 0.2\]: must be 4 rising"),
        ({"paces": [3, 2, 1]}, r"paces = \[3, 2, 1\]: must be 3 rising"),
        ({"paces": [1, 2, 4]}, r"dream.steps = 3: must be the largest of paces \(4\)"),
        ({"widths": [72, 90]}, r"pretrain.length = 72: must be the last of widths \(90\)"),
        ({"tests": 0}, "tests = 0: must be an integer of at least 1"),
        ({"max_len": 75}, "model.max_len = 75: must have room for the last of widths"),
    ],
)
def test_settings_that_cannot_work_are_told_in_one_line(config, changes, complaint):
    if "max_len" in changes:
        changes = {"model": dataclasses.replace(config.model, **changes)}
    with pytest.raises(ConfigError, match=complaint):
        check(dataclasses.replace(config, **changes))


def test_a_writer_is_taught_what_was_selected_as_the_settings_say(config):
    norm = dataclasses.replace(config, dream=dataclasses.replace(config.dream, score="norm"))
    scores = {
        arm: Programs(None, norm, arm, 72).dreaming.score for arm in ("dream", "dream_random")
    }
    assert scores == {"dream": "norm", "dream_random": "random"}


def test_dreams_have_to_be_edits_about_tasks(config):
    others = (("alone", False), ("reward", "agreement"), ("new_tokens", 4), ("reinforce", False))
    for name, value in others:
        dream = dataclasses.replace(config.dream, **{name: value}, ngram=2)
        with pytest.raises(ConfigError, match=f"dream.{name} = "):
            check(dataclasses.replace(config, dream=dream))


def test_a_list_without_a_task_that_fits_is_refused(config):
    why = r"no task that fits into 72 positions \(long: \d+ tokens of .*, room for 72\)"
    with pytest.raises(ConfigError, match=rf"evaluation = .*{why}: use larger widths"):
        study.read(dataclasses.replace(config, evaluation_tasks=["long"]))


def test_a_task_that_is_left_out_is_told_with_its_reason(config, tmp_path, monkeypatch):
    run, said = Run(tmp_path / "run", config, quiet=True), []
    monkeypatch.setattr(run, "say", said.append)
    monkeypatch.setattr(study, "backbone", lambda *_: 1 / 0)  # it is told before anything is done
    with pytest.raises(ZeroDivisionError):
        config.run(run)
    (line,) = (line for line in said if "evaluation" in line)
    assert re.fullmatch(
        r"too long for 72 positions, evaluation: long: \d+ tokens of one .*, room for 72", line
    )


# --- exams are about other tasks than training ----------------------------------------------------


def test_no_exam_is_about_a_task_that_writers_are_trained_on(config):
    both = dataclasses.replace(config, evaluation_tasks=["t2", "t1"])
    with pytest.raises(ConfigError, match="^evaluation = 't1': has a pair of grids of the training "
                       "task 't1'.*leave one of the two out$"):  # fmt: skip
        study.read(both)
    # What fits nowhere is in nothing.
    study.read(dataclasses.replace(config, train_tasks=["t0", "long"], held_out=0))


@pytest.mark.parametrize(
    "other",
    [
        lambda t: t,
        lambda t: dataclasses.replace(t, demonstrations=t.demonstrations[::-1]),
        lambda t: dataclasses.replace(t, demonstrations=t.tests, tests=t.demonstrations),
        lambda t: dataclasses.replace(t, tests=make_task(5, 1).tests),  # its rule, asked elsewhere
        lambda t: dataclasses.replace(t, demonstrations=make_task(5, 1).demonstrations),
    ],
    ids=["same", "turned round", "tests for demonstrations", "other tests", "other demonstrations"],
)
def test_tasks_are_told_apart_by_their_grids_and_not_by_their_names(other):
    task = make_task(5, 0)
    study.check_apart([make_task(5, 2), task], [("evaluation", make_task(5, 3))])
    renamed = dataclasses.replace(other(task), name="another")
    with pytest.raises(ConfigError, match=f"held_out = 'another': .* training task '{task.name}'"):
        study.check_apart([make_task(5, 2), task], [("held_out", renamed)])


def test_its_results_are_refused_as_those_of_a_life(done):
    run, _ = done
    with pytest.raises(ConfigError, match="is of few-shot ARC, which has no days"):
        read_results(run.directory)


def test_several_processes_are_refused_before_anything_is_written(config, tmp_path, monkeypatch):
    run = Run(tmp_path / "run", config, quiet=True)
    monkeypatch.setattr(study.hosts, "alone", lambda: False)
    with pytest.raises(ConfigError, match="processes = 1: few-shot ARC is one process"):
        config.run(run)
    assert not (tmp_path / "run").exists()
