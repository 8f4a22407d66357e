"""Dreaming in a life: after consolidation, of the day's own texts, resumed to the same bits."""

from __future__ import annotations

import dataclasses
import pathlib
import signal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench.arms import DREAMING, Arm, build_arm, check_dreaming
from sleeplm.bench.dream_material import FIELDS, DreamMaterial, tell_falsehoods, truth_of
from sleeplm.bench.dreamings import undone_lines
from sleeplm.bench.lives import Bench, life_of, newborns
from sleeplm.bench.outcome import outcomes
from sleeplm.bench.report import summarize
from sleeplm.bench.worlds import world_of
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import WRITER, Turns
from sleeplm.data.curriculum import from_world
from sleeplm.data.falsehoods import SILENT, TRUE, falsehoods
from sleeplm.data.formats import MARKS, PROMPTS, TURNS
from sleeplm.memory.levels import get_level
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.stage import TEXTS
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.runtime import parallel
from sleeplm.runtime.config import read_module
from sleeplm.runtime.lifecycle import Moment, Stopped, StopRequest
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import METRICS, Run, Stage

simulated = read_module(str(pathlib.Path(__file__).parents[1] / "simulated.py"))
#: Rounds that are over soon, and accept whatever was dreamt.
DREAM = DreamConfig(
    **{"dreams": 6, "context_tokens": 24, "new_tokens": 8, "contexts": 8, "questions": 6},
    **{"keep": 2, "extra": 1, "chunk": 3, "rank": 2, "steps": 1, "memories": 4},
    **{"margin": -99.0, "worse": 99.0, "writer_rank": 2, "writer_epochs": 1, "rounds": 2},
    **{"updates": 4, "inner": 2, "rows": 4, "gate": 8},
)
EVENTS = ["dream", "dream", "absorb", "absorb", "dream_end"]
slow = pytest.mark.slow


def settings(brief, dream: dict[str, Any] | None = None, **changes):
    dreams = dataclasses.replace(DREAM, **(dream or {}))
    return brief.config(
        **{"dream": dreams, "schedule": ScheduleConfig(when="day_end"), "arms": ["dream"]} | changes
    )


@pytest.fixture(scope="module")
def bench(brief) -> Bench:
    """Two learners whose days tell a lot of lies."""
    return brief.bench(settings(brief, seeds=2, falsehoods=0.3))


def arm_of(bench: Bench, name: str, **dream) -> Arm:
    config = dataclasses.replace(bench.config, dream=dataclasses.replace(DREAM, **dream))
    return build_arm(name, config, classes=0)


def events(agenda: list[Moment]) -> list[str]:
    return [moment.record["event"] for moment in agenda if "event" in moment.record]


# --- a life that dreams ----------------------------------------------------------------


class Dreamt(NamedTuple):
    """A life, its agenda, and where it left its lines."""

    arm: Arm
    agenda: list[Moment]
    stage: Stage
    run: Run
    newborn: Any
    state: Any
    lines: list[dict]

    def of(self, event: str, **fields: Any) -> list[dict]:
        wanted = {"event": event, **fields}
        return [line for line in self.lines if wanted.items() <= line.items()]


@pytest.fixture(scope="module")
def dreamt(bench, tmp_path_factory) -> Dreamt:
    """The life of an arm that dreams, once for all tests: the one whose rounds compile soonest."""
    arm = arm_of(bench, "dream_random", memories=0)
    run = Run(tmp_path_factory.mktemp("dream"), bench.config, quiet=True)
    life, newborn = life_of(bench, arm), newborns(bench, arm)
    agenda = life.agenda()
    # The first step takes its state's memory.
    stage = Stage("dream", lambda: jax.tree.map(jnp.copy, newborn), agenda, life.streams)
    state = run.stage(stage)
    lines = read_metrics(run.directory / METRICS)
    return Dreamt(arm, agenda, stage, run, newborn, state, lines)


@slow
def test_every_night_consolidates_and_then_dreams(dreamt):
    night = ["seed", "seed", "seed_end", *EVENTS]
    day = ["cues", "wake", "wake", "exam", *night, "exam"]
    assert events(dreamt.agenda) == [line["event"] for line in dreamt.lines] == ["cues", *day, *day]
    labels = [moment.label for moment in dreamt.agenda if "night 2/2" in moment.label]
    assert "night 2/2 dreaming 2/2" in labels and "night 2/2 absorbing dreams 4/4" in labels


@slow
def test_dreams_go_into_the_experts_of_their_nights_and_the_writer_learns(dreamt):
    state = dreamt.state
    assert state.slots["slow"].active.tolist() == [[True, True, False, False]] * 2
    for name, value in {"nights": 2, "today": 2, "dreamt": 2, "undone": 0, "dreaming": 0}.items():
        assert state.counters[name].tolist() == [value, value]
    assert tree.differing(dreamt.newborn.params[WRITER], state.params[WRITER])
    assert tree.differing(*(get_level(s.params, "fast") for s in (dreamt.newborn, state))) == []
    # The two learners dreamt each of their own.
    assert all(a != b for a, b in (line["dream_loss"] for line in dreamt.of("absorb")))


@slow
def test_its_metrics_say_what_was_dreamt_and_what_became_of_it(dreamt):
    told = {"unique", "length", "copied", "score", "accepted", "writer_taught", "lift_held"}
    for line in dreamt.of("dream"):
        assert told <= line.keys() and line["accepted"] == [1.0, 1.0]
        assert all(0 < share <= 1 for share in line["unique"])
        assert {f"told_{name.removesuffix('_texts')}" for name in TEXTS} <= line.keys()
    for line in dreamt.of("dream_end"):
        assert line["absorbed"] == [1.0, 1.0] and line["undone"] == [0.0, 0.0]
        assert np.isfinite([*line["gate_recall"], *line["gate_cluster"]]).all()
    assert undone_lines(dreamt.lines) == []


@slow
def test_results_have_every_night_and_what_it_cost(bench, dreamt):
    results = outcomes(bench, dreamt.run, {"dream": dreamt.arm})
    for told in results["arms"]["dream"]:
        assert [night["day"] for night in told["dreams"]] == [0, 1]
        assert [len(night["rounds"]) for night in told["dreams"]] == [2, 2]
        assert told["log"]["dreams_absorbed"] == 2 and told["log"]["dreams_undone"] == 0
        kinds = {"dreamt", "tried", "rewarded", "reinforced", "absorbed", "gated"}
        assert all(told["flops"][kind] > 0 for kind in kinds)
        assert all(told["tokens"][kind] > 0 for kind in ("dreamt", "tried", "absorbed"))
    assert summarize(results)["arms"]["dream"]["log"]["dreams_absorbed"] == 2


@slow
def test_a_life_stopped_while_it_dreams_goes_on_to_the_same_bits(bench, dreamt, tmp_path):
    labels = [moment.label for moment in dreamt.agenda]

    def run(agenda, stop=None):
        one = Run(tmp_path / "run", bench.config, quiet=True, resume=True, stop=stop)
        return one.stage(dataclasses.replace(dreamt.stage, agenda=agenda))

    place, stop = labels.index("night 2/2 dreaming 2/2"), StopRequest()
    last = dreamt.agenda[place]

    def done(state):
        stop.signum = signal.SIGTERM
        return last.run(state)

    agenda = [*dreamt.agenda]
    agenda[place] = dataclasses.replace(last, run=done)
    with pytest.raises(Stopped):
        run(agenda, stop)
    assert tree.differing(run(dreamt.agenda), dreamt.state) == []
    lines = [(place / METRICS).read_bytes() for place in (tmp_path / "run", dreamt.run.directory)]
    assert lines[0] == lines[1]


@slow
def test_on_a_mesh_it_is_the_life_of_one_device(bench, dreamt, tmp_path):
    spread = dataclasses.replace(bench, mesh=parallel.mesh({"data": 2, "fsdp": 2}))
    life = life_of(spread, dreamt.arm)
    run = Run(tmp_path / "run", bench.config, quiet=True)
    newborn = lambda: newborns(spread, dreamt.arm)  # noqa: E731
    state = run.stage(Stage("dream", newborn, life.agenda(), life.streams))
    simulated.assert_same_lines(read_metrics(tmp_path / "run" / METRICS), dreamt.lines)
    simulated.assert_same_learners(state, dreamt.state)


# --- either left out ------------------------------------------------------------------------------


def outlines(bench, *names) -> list[list[str]]:
    return [events(life_of(bench, arm_of(bench, name)).agenda()) for name in names]


@slow
def test_without_dreams_the_rest_of_a_night_is_the_same_and_without_consolidation_too(bench):
    both, sleep, alone = outlines(bench, "dream", "sleep", "dream_alone")
    assert [event for event in both if event not in EVENTS] == sleep
    assert [event for event in both if event != "seed"] == alone
    assert "seed" in sleep and "dream" in alone


def test_arms_differ_from_dream_in_what_they_are_named_for(bench):
    usual = arm_of(bench, "dream")
    assert (usual.dream.score, usual.dream.reward) == ("alignment", "agreement")
    changed = {}
    for name in DREAMING:
        arm = arm_of(bench, name)
        assert arm.learner.dreaming is not None and arm.follows_schedule and not arm.raw_text
        for part in ("dream", "sleep"):
            mine, theirs = (vars(getattr(a, part)) for a in (arm, usual))
            changed[name] = changed.get(name, {}) | {
                k: v for k, v in mine.items() if v != theirs[k]
            }
    assert changed == {
        "dream": {},
        "dream_random": {"score": "random"},
        "dream_no_explore": {"explore": False},
        "dream_no_reinforcement": {"reinforce": False},
        "dream_questions": {"reward": "questions"},
        "dream_no_reward": {"reward": "none"},
        "dream_alone": {"updates": 0, "becomes": "dusk"},
    }


@slow
def test_a_round_rewarded_by_questions_fits_the_learner(bench):
    arm = arm_of(bench, "dream_questions")
    stage = arm.learner.dreaming
    batch = DreamMaterial(bench, stage.config)(1, 0)

    def a_round(state, batch):
        one = jax.tree.map(lambda x: x[0], (state, batch))
        more = {"round": np.int32(0), "today": np.int32(0)}
        return stage.round(one[0], {**one[1], **more}, jax.random.key(0))

    state = jax.eval_shape(lambda: newborns(bench, arm))
    after, metrics = jax.eval_shape(a_round, state, batch)
    assert {"lift_logp", "lift_accuracy", "accepted", *TEXTS} <= metrics.keys()
    shapes = [[x.shape for x in jax.tree.leaves(s.params)] for s in (after, state)]
    assert shapes[0] == [shape[1:] for shape in shapes[1]]


# --- what is dreamt of ----------------------------------------------------------------------------


def rows_of(contexts, e: int) -> list[tuple[int, ...]]:
    """The contexts of one learner, without padding."""
    pairs = zip(contexts["tokens"][e].tolist(), contexts["length"][e], strict=True)
    return [tuple(row[:n]) for row, n in pairs if n]


def test_contexts_are_texts_of_the_day_alone_and_no_exam(bench):
    material = DreamMaterial(bench, DREAM)
    seen = set()
    for e, life in enumerate(bench.materials):
        for day, number in ((0, 0), (0, 1), (1, 0)):
            rows = rows_of(material(day, number)["contexts"], e)
            own = {tuple(row[: DREAM.context_tokens]) for row in life.days[day]}
            assert len(rows) == DREAM.contexts and set(rows) <= own
            seen.add(tuple(rows))
    assert len(seen) == 6  # each learner, day and round has its own
    again = material(1, 0)["contexts"]
    jax.tree.map(
        np.testing.assert_array_equal, again, DreamMaterial(bench, DREAM)(1, 0)["contexts"]
    )


def test_marked_contexts_are_whole_statements_held_against_another_one_of_the_fact(bench):
    config = dataclasses.replace(DREAM, formats=["question", "free"], context_tokens=48, hold=0.5)
    material = DreamMaterial(bench, config)
    batch = material(1, 0)
    for e, life in enumerate(bench.materials):
        documents = dict(zip(map(tuple, life.days[1]), life.curriculum.days[1], strict=True))
        by_text = {document.text: document for document in documents.values()}
        tokens, length = (batch["contexts"][name][e] for name in ("tokens", "length"))
        held = jax.tree.map(lambda x, e=e: x[e], batch["held"])
        against = [
            tuple(row[:n].tolist())
            for row, n in zip(held.tokens, held.segments.sum(1), strict=False)
        ]
        for n in range(config.contexts):
            row, told = tuple(tokens[n, : length[n]].tolist()), documents[against[n]]
            weights = held.weights[n, : len(against[n])]
            if n % 2:  # free: the beginning of the text whose end is held back
                assert against[n][: len(row)] == row and len(row) < len(against[n])
                assert (weights == (np.arange(len(weights)) >= len(row))).all()
                continue
            text = life.tokenizer.decode([t for t in row if t != life.tokenizer.bos]).strip()
            written = by_text[text.removesuffix(MARKS["question"]).strip()]
            assert text.endswith(f" {MARKS['question']}")
            assert told.fact == written.fact and told.text != written.text
            assert not told.prompt and not written.prompt
            assert weights[-1] == 1 and weights.sum() == pytest.approx(len(weights) / 2, abs=1)


def test_an_implication_is_written_from_two_facts_of_one_subject(bench):
    config = dataclasses.replace(DREAM, formats=["implication"], context_tokens=90)
    batch = DreamMaterial(bench, config)(0, 0)
    for e, life in enumerate(bench.materials):
        statements = [d for d in life.curriculum.days[0] if not d.prompt]
        for row in rows_of(batch["contexts"], e):
            text = life.tokenizer.decode([t for t in row if t != life.tokenizer.bos]).strip()
            told, end = text[: -len(MARKS["implication"])].strip(), text
            assert end.endswith(f" {MARKS['implication']}")
            first = [d for d in statements if told.startswith(f"{d.text} ")]
            second = [d for d in statements if told.endswith(f" {d.text}")]
            (pair,) = {
                (a.fact, b.fact) for a in first for b in second if f"{a.text} {b.text}" == told
            }
            assert pair[0] != pair[1] and pair[0].subject == pair[1].subject


@pytest.mark.parametrize("setting", ["chat", "dream_chat"])
def test_backbones_that_chat_are_asked_in_a_turn_whose_end_ends_a_dream(bench, setting):
    dream = dataclasses.replace(DREAM, formats=["rewrite", "free"], context_tokens=90)
    asked = {"backbone": "smollm2", setting: True}
    published = dataclasses.replace(bench.config, dream=dream, **asked)
    turns = Turns(before=(7, 8), between=(9, 10, 11), end=(12, 13))
    materials = []
    for one in bench.materials:
        asker = dataclasses.replace(one.tokenizer, turns=turns)
        talks = {"tokenizer": asker} if setting == "chat" else {}
        materials.append(dataclasses.replace(one, asker=asker, **talks))
    chatting = dataclasses.replace(bench, config=published, materials=materials)
    batch = DreamMaterial(chatting, dream)(0, 0)
    assert batch["stop"].tolist() == [13, 13]
    for e, life in enumerate(bench.materials):
        texts = {document.text for document in life.curriculum.days[0] if not document.prompt}
        for row in rows_of(batch["contexts"], e)[::2]:
            assert row[:3] == (life.tokenizer.bos, 7, 8) and row[-3:] == (9, 10, 11)
            asked, told = life.tokenizer.decode(list(row[3:-3])).split("\n\n")
            assert asked == TURNS["rewrite"] and told in texts
    assert "stop" not in DreamMaterial(bench, dataclasses.replace(DREAM, reward="questions"))(0, 0)


def test_where_texts_are_too_few_contexts_stay_empty_and_where_none_fits_it_is_said(bench):
    config = dataclasses.replace(DREAM, formats=["rewrite"], contexts=500, context_tokens=48)
    rows = DreamMaterial(bench, config)(0, 0)["contexts"]["length"] > 0
    assert rows.any(1).all() and not rows.all(1).any()
    short = dataclasses.replace(config, context_tokens=4)
    with pytest.raises(ConfigError, match=r"dream.context_tokens.*day 1 .*\(rewrite\): use more"):
        DreamMaterial(bench, short)
    pairs = dataclasses.replace(short, formats=["implication"])
    with pytest.raises(ConfigError, match="no two statements about one subject .* leave it out of"):
        DreamMaterial(bench, pairs)


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (["question"], "dream.formats.*has to have seen 'question'"),
        (["poem"], "dream.formats.*'poem'"),
        ([], "dream.formats.*name some of"),
    ],
)
def test_formats_that_the_backbone_has_not_seen_are_refused(bench, formats, message):
    with pytest.raises(ConfigError, match=message):
        arm_of(bench, "dream", formats=formats)
    config = dataclasses.replace(bench.config, formats=["question"])
    dream = dataclasses.replace(DREAM, formats=["question"], agree="own")
    build_arm("dream", dataclasses.replace(config, dream=dream), classes=0)


def test_a_marked_context_is_not_rewarded_by_its_own_text_held_back_for_another(bench):
    config = dataclasses.replace(bench.config, formats=["question"])
    dream = dataclasses.replace(DREAM, formats=["free", "question"], agree="all")
    with pytest.raises(
        ConfigError, match=r"dream.agree = 'all': what is written from for question"
    ):
        build_arm("dream", dataclasses.replace(config, dream=dream), classes=0)
    assert build_arm("dream_no_reward", dataclasses.replace(config, dream=dream), classes=0).dream


def test_published_backbones_are_asked_in_words_and_need_no_examples(bench):
    marked = {"formats": ["question", "implication"], "agree": "own"}
    dream = dataclasses.replace(DREAM, **marked, context_tokens=48)
    published = dataclasses.replace(bench.config, backbone="smollm2", dream=dream)
    check_dreaming(published)
    ours = dataclasses.replace(bench.config, dream=dream)
    with pytest.raises(ConfigError, match="dream.formats"):
        check_dreaming(ours)
    material = DreamMaterial(dataclasses.replace(bench, config=published), dream)
    for e, life in enumerate(bench.materials):
        rows = rows_of(material(0, 0)["contexts"], e)
        ends = [PROMPTS[kind] for kind in dream.formats] * (len(rows) // 2)
        texts = [life.tokenizer.decode(row) for row in rows]
        assert all(text.endswith(end) for text, end in zip(texts, ends, strict=True))


def test_questions_are_training_texts_of_the_day_that_no_context_asks(bench):
    config = dataclasses.replace(DREAM, reward="questions", contexts=200)
    made = DreamMaterial(bench, config)
    batch = made(1, 0)
    for e, life in enumerate(bench.materials):
        prompts, lengths, answers = (batch["questions"][name][e] for name in FIELDS)
        assert prompts.shape == (6, made.shape[1]) and answers.shape == (6, made.shape[2])
        documents = life.curriculum.days[1]
        training = {tuple(row): d for row, d in zip(life.days[1], documents, strict=True)}
        asked = {
            (*prompt[:n].tolist(), *answer[answer > 0].tolist())
            for prompt, n, answer in zip(prompts, lengths, answers, strict=True)
        }
        assert len(asked) == 6 and all(training[row].prompt for row in asked)
        left = [row for row in training if row not in asked]
        starts = rows_of(batch["contexts"], e)
        assert len(starts) == len(left)
        assert all(any(row[: len(start)] == start for row in left) for start in starts)


def test_both_rewards_write_from_the_same_beginnings(bench):
    agree, ask = (
        DreamMaterial(bench, dataclasses.replace(DREAM, reward=reward))(0, 1)["contexts"]
        for reward in ("agreement", "questions")
    )
    stay = np.clip(np.round(agree["length"] * (1 - DREAM.hold)), 1, None)
    np.testing.assert_array_equal(ask["length"], stay)
    inside = np.arange(DREAM.context_tokens) < ask["length"][..., None]
    np.testing.assert_array_equal(np.where(inside, agree["tokens"], 0), ask["tokens"])


def test_days_without_questions_cannot_reward_by_them(bench):
    curriculum = bench.materials[0].curriculum
    told = tuple(tuple(d for d in day if not d.prompt) for day in curriculum.days)
    material = dataclasses.replace(
        bench.materials[0], curriculum=dataclasses.replace(curriculum, days=told)
    )
    silent = dataclasses.replace(bench, materials=[material])
    with pytest.raises(ConfigError, match=r"dream\.reward = 'questions': day 1 has no question"):
        DreamMaterial(silent, dataclasses.replace(DREAM, reward="questions"))


# --- falsehoods -----------------------------------------------------------------------------------


def test_planted_falsehoods_are_counted_among_dreams_and_among_accepted_ones(bench):
    tell = tell_falsehoods(bench)
    texts: dict[str, list] = {name: [] for name in TEXTS}
    for life in bench.materials:
        rows = dict(zip((d.text for d in life.curriculum.days[0]), life.days[0], strict=True))
        lies = [d.text for d in falsehoods(life.curriculum.days[0])]
        honest = [d.text for d in life.curriculum.days[0] if d.text not in lies]
        silent = life.tokenizer.encode("nobody")
        chosen = [rows[text] for text in (*lies[:2], *honest[:2])] + [silent]
        wide = np.zeros((5, 96), np.int32)
        for row, tokens in zip(wide, chosen, strict=True):
            row[: len(tokens)] = tokens
        for name, kept in zip(TEXTS, ([1] * 5, [1, 0, 1, 1, 1], [0, 0, 1, 1, 0]), strict=True):
            texts[name].append((wide, np.asarray(kept)[:, None] * np.ones((5, 96))))
    told = tell({n: tuple(map(np.stack, zip(*each, strict=True))) for n, each in texts.items()})
    shares = {
        name: [float(s / w) for s, w in zip(*pair, strict=True)] for name, pair in told.items()
    }
    assert shares["told_written"] == pytest.approx([4 / 5] * 2)
    assert shares["planted_written"] == shares["false_written"] == pytest.approx([1 / 2] * 2)
    assert shares["planted_tried"] == pytest.approx([1 / 3] * 2)
    assert shares["planted_accepted"] == shares["false_accepted"] == [0, 0]
    assert shares["told_accepted"] == [1, 1]


def test_an_invented_example_is_not_taken_for_somebody(bench):
    world = world_of(bench.config)
    settings = {"statements": 2, "questions": 5, "exam_pretrain": 4}
    life = from_world(
        world, rng=np.random.default_rng(0), formats=["question"], format_examples=1, **settings
    )
    example, known = life.pretrain[-1], life.pretrain[0]
    assert truth_of(life)(example.text) == SILENT and truth_of(life)(known.text) == TRUE


def test_worlds_without_facts_have_no_falsehoods_to_tell(bench):
    labels = dataclasses.replace(bench.config, world="clinc150")
    assert tell_falsehoods(dataclasses.replace(bench, config=labels)) is None


def test_what_was_undone_is_told_with_its_cause_and_by_how_much():
    end = {"event": "dream_end", "day": 2, "undone": [0.0, 1.0, 1.0], "absorbed": [1.0, 0.0, 0.0]}
    end |= {"undone_recall": [0.0, 1.0, 0.0], "undone_cluster": [0.0, 0.0, 1.0]}
    end |= {"gate_recall": [0.0, -0.31, 0.1], "gate_cluster": [0.1, 0.1, 0.5]}
    end |= {"gate_cluster_before": [0.1, 0.1, 0.0625]}
    first, second = undone_lines([{"event": "seed"}, end])
    assert first.startswith("night 3, learner 1: dreaming undone: recall of earlier days changed")
    assert "-0.310 nats a token" in first and "one text" not in first
    assert "50% of what it tells is one text (6% before)" in second
