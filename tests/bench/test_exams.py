"""Probes: what an exam says of a model, and that many learners can be asked at once."""

from __future__ import annotations

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench import exams
from sleeplm.core.clusters import largest_cluster
from sleeplm.core.errors import ConfigError
from sleeplm.data.facts import Document, Fact
from sleeplm.data.text import BOS, EOS, train_bpe
from sleeplm.memory.experts import route
from sleeplm.models.layers import Block
from sleeplm.models.rope import rotary

TOWNS = ("Rome", "Oslo", "Lima", "Quito")
COLOURS = ("red", "blue")
CHOICES = {"town": TOWNS, "colour": COLOURS}
GROUPS = 3  # two days and pretraining


def ask(name: str, relation: str, value: str) -> Document:
    prompt = {"town": f"Where was {name} born?", "colour": f"{name} likes which colour?"}[relation]
    return Document(f"{prompt} {value}", prompt, value, Fact(name, relation, value))


def papers() -> list[list[Document]]:
    """Groups of different sizes, with questions and answers of different lengths."""
    names = iter(("Ada", "Bo", "Cleopatra", "Dan", "Evelyn", "Fay", "Gus"))
    sizes, groups = (3, 2, 2), []
    for size in sizes:
        people = [next(names) for _ in range(size)]
        groups.append([ask(n, "town", TOWNS[len(n) % 4]) for n in people])
        groups[-1].append(ask(people[0], "colour", COLOURS[size % 2]))
    return groups


TOKENIZER = train_bpe([d.text for group in papers() for d in group], 300)


@pytest.fixture(scope="module")
def paper():
    return exams.make_exam(TOKENIZER, papers(), max_len=64)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model(vocab_size=300, max_len=64, n_layers=2, scan_layers=True)


def learner(tiny, model, seed: int):
    """Variables of a model with two of three experts open, which change what it says."""
    params = tiny.params(model, seed)
    slow = params["blocks"]["levels"]["slow"]
    keys = jax.random.split(jax.random.key(seed), 3)
    slow["experts"] = {
        name: jax.random.normal(key, x.shape)
        for key, (name, x) in zip(keys, slow["experts"].items(), strict=False)
    }
    slow["router"]["w"] = jax.random.normal(keys[2], slow["router"]["w"].shape)
    slots = model.init_slots()
    opened = jnp.asarray([True, False, True])
    slots["slow"] = dataclasses.replace(slots["slow"], active=opened)
    return {"params": params, "slots": slots}


@pytest.fixture(scope="module")
def variables(tiny, model):
    return learner(tiny, model, 0)


@pytest.fixture(scope="module")
def grade(model):
    return jax.jit(exams.grade(model))


def only(variables, *slots: int):
    """The same variables with these experts of the slow level open."""
    table = variables["slots"]["slow"]
    opened = jnp.isin(jnp.arange(3), jnp.asarray(slots, int))
    slow = dataclasses.replace(table, active=opened)
    return {**variables, "slots": {**variables["slots"], "slow": slow}}


@pytest.fixture(scope="module")
def logits_of(model):
    """``(variables, tokens of one text) -> logits``, with nothing else in the batch."""
    run = jax.jit(model.logits)

    def logits(variables, tokens: list[int]) -> np.ndarray:
        row = np.zeros((1, 64), np.int32)  # what comes after the last token cannot be seen
        row[0, : len(tokens)] = tokens
        return np.asarray(run(variables, row))[0, : len(tokens)]

    return logits


@pytest.fixture(scope="module")
def says(logits_of):
    """``(variables, exam) -> int32 [Q, A]``: greedy answers, token by token and with no cache."""

    def write(variables, exam) -> np.ndarray:
        out = np.zeros_like(exam.answers)
        for row, prompt, length in zip(out, exam.prompts, exam.lengths, strict=True):
            tokens = prompt[:length].tolist()
            for i in range(len(row)):
                row[i] = logits_of(variables, tokens)[-1].argmax()
                tokens.append(int(row[i]))
                if row[i] == EOS:
                    break
        return out

    return write


def text_of(exam, row: int) -> list[int]:
    answer = exam.answers[row]
    return [*exam.prompts[row, : exam.lengths[row]], *answer[answer > 0]]


def rows_of(exam, group: int) -> np.ndarray:
    return np.flatnonzero(exam.group == group)


def half_right(exam, said: np.ndarray):
    """The exam on which someone who says this is right in every second question."""
    right = np.arange(len(said)) % 2 == 0
    return dataclasses.replace(exam, answers=np.where(right[:, None], said, said + 1)), right


# --- the paper -----------------------------------------------------------------------------------


def test_exam_rows_hold_prompt_and_answer_of_their_document(paper):
    documents = [document for group in papers() for document in group]
    for row, document in enumerate(documents):
        assert paper.prompts[row, 0] == BOS
        assert TOKENIZER.decode(paper.prompts[row, : paper.lengths[row]]) == document.prompt
        stop = paper.answers[row].tolist().index(EOS)
        assert TOKENIZER.decode(paper.answers[row, :stop]) == document.answer
        assert not paper.answers[row, stop + 1 :].any()
    assert paper.group.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert paper.groups == GROUPS


def test_a_question_has_the_bits_of_how_many_answers_were_possible(paper):
    assert not paper.choices.any()  # nobody said
    counted = exams.make_exam(TOKENIZER, papers(), 64, choices=CHOICES)
    asked = [document.fact.relation for group in papers() for document in group]
    assert counted.choices.tolist() == [{"town": 2.0, "colour": 1.0}[name] for name in asked]


def test_padding_and_stacking_give_exams_one_shape_and_padding_belongs_to_no_group(paper):
    wide = exams.make_exam(TOKENIZER, papers(), 64, pad_to=(12, 5, 9))
    assert wide.shape == (12, paper.shape[1], max(9, paper.shape[2]))
    assert wide.group[10:].tolist() == [GROUPS] * 2
    short = exams.make_exam(TOKENIZER, [group[:1] for group in papers()], 64)
    both = exams.stack_exams([short, wide])
    assert (both.shape, both.groups) == (wide.shape, GROUPS)
    second = jax.tree.map(lambda x: x[1], both)
    jax.tree.map(np.testing.assert_array_equal, second, wide)
    assert both.group[0].tolist() == [0, 1, 2] + [GROUPS] * 9


def test_exams_that_cannot_be_made_are_refused_in_one_line(paper):
    with pytest.raises(ConfigError, match="an exam needs at least one question"):
        exams.make_exam(TOKENIZER, [[], []], 64)
    one = exams.make_exam(TOKENIZER, papers()[:1], 64)
    with pytest.raises(ConfigError, match=r"exams = \[1, 3\]: all need the same number of groups"):
        exams.stack_exams([one, paper])


# --- grades --------------------------------------------------------------------------------------


def test_an_answer_is_right_if_the_greedy_continuation_is_the_answer_and_stops(
    grade, variables, says
):
    exam = exams.make_exam(TOKENIZER, papers(), 64, choices=CHOICES)
    said = says(variables, exam)
    exam, right = half_right(exam, said)
    exam.answers[2, -1] += 1  # all but the last token
    right[2] = False
    found = grade(variables, exam)
    groups = [rows_of(exam, g) for g in range(GROUPS)]
    np.testing.assert_allclose(found["recall"], [right[rows].mean() for rows in groups])
    bits = [(right * exam.choices)[rows].sum() for rows in groups]
    assert min(bits) > 0
    np.testing.assert_allclose(found["bits"], bits)
    most = max(collections.Counter(map(tuple, said.tolist())).values())
    assert found["cluster"] == pytest.approx(most / len(said))


def test_what_was_said_is_handed_out_on_request_with_room_for_more_than_was_expected(
    model, grade, variables, says
):
    exam = exams.make_exam(TOKENIZER, papers(), 64, pad_to=(0, 0, 20))
    assert exam.shape[2] == 20
    found = jax.jit(exams.grade(model, said=True))(variables, exam)
    np.testing.assert_array_equal(found.pop("said"), says(variables, exam))
    plain = grade(variables, exam)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, plain)


def test_the_log_probability_is_that_of_the_whole_right_answer_with_its_stop_token(
    grade, variables, paper, logits_of
):
    by_hand = []
    for row in range(len(paper.lengths)):
        tokens, start = text_of(paper, row), int(paper.lengths[row])
        assert tokens[-1] == EOS
        logp = jax.nn.log_softmax(logits_of(variables, tokens))
        by_hand.append(sum(float(logp[i - 1, tokens[i]]) for i in range(start, len(tokens))))
    found = grade(variables, paper)["logp"]
    wanted = [np.mean(np.array(by_hand)[rows_of(paper, g)]) for g in range(GROUPS)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_grades_do_not_depend_on_padding_or_on_the_size_of_a_block(
    model, grade, variables, paper, says, monkeypatch
):
    exam, _ = half_right(paper, says(variables, paper))
    wanted = grade(variables, exam)
    longer = exams._padded(exam, (13, 30, exam.shape[2]), np.pad)
    monkeypatch.setattr(exams, "BLOCK", 4)
    found = jax.jit(exams.grade(model))(variables, longer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)


def test_a_view_is_what_is_asked(model, grade, variables, paper):
    def view(variables):
        return only(variables, 0)

    through = jax.jit(exams.grade(model, view))(variables, paper)
    direct = grade(view(variables), paper)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), through, direct)
    assert np.abs(through["logp"] - grade(variables, paper)["logp"]).max() > 1e-3
    measure = jax.jit(exams.divergence_from(model, view))
    assert measure(variables, only(variables, 0), paper) == 0


def test_the_largest_cluster_is_the_most_frequent_row_and_padding_has_no_weight():
    random = np.random.default_rng(0)
    for _ in range(5):
        rows = random.integers(0, 3, (40, 2)).astype(np.int32)
        weights = (random.random(40) < 0.7).astype(np.float32)
        counts = collections.Counter(
            tuple(row) for row, weight in zip(rows.tolist(), weights, strict=True) if weight
        )
        found = largest_cluster(jnp.asarray(rows), jnp.asarray(weights))
        assert found == pytest.approx(max(counts.values()) / weights.sum())
    flipped = np.array([[1, 2], [2, 1], [0, 3], [3, 0], [12, 0]], np.int32)  # order matters
    assert largest_cluster(jnp.asarray(flipped), jnp.ones(5)) == pytest.approx(0.2)
    alike = jnp.zeros((4, 3), jnp.int32)
    assert largest_cluster(alike, jnp.full(4, 0.1)) == pytest.approx(1.0)
    assert largest_cluster(alike, jnp.zeros(4)) == 0


# --- divergence ----------------------------------------------------------------------------------


def test_divergence_is_from_the_origin_to_now_over_all_tokens_of_the_last_group(
    model, variables, paper, logits_of
):
    params = variables["params"]
    origin = {**only(variables), "params": {**params, "embed": 1.5 * params["embed"]}}
    total, count = 0.0, 0
    for row in rows_of(paper, GROUPS - 1):
        tokens = text_of(paper, row)
        now, then = (jax.nn.log_softmax(logits_of(v, tokens)[:-1]) for v in (variables, origin))
        total += float(jnp.sum(jnp.exp(then) * (then - now)))
        count += len(tokens) - 1
    measure = jax.jit(exams.divergence_from(model))
    assert measure(variables, origin, paper) == pytest.approx(total / count, rel=1e-4)
    assert measure(variables, origin, paper) > 1e-3
    assert measure(origin, variables, paper) != pytest.approx(total / count, rel=1e-2)
    assert measure(variables, variables, paper) == 0
    alone = exams.last_group(paper)
    assert alone.shape[0] == len(list(rows_of(paper, GROUPS - 1))) < paper.shape[0]
    assert measure(variables, origin, alone) == pytest.approx(total / count, rel=1e-4)


def test_the_last_group_alone_is_cut_out_of_stacked_exams_too(paper):
    last = np.arange(paper.shape[0]) == paper.shape[0] - 1
    fewer = dataclasses.replace(paper, group=np.where(last, GROUPS, paper.group))
    both = exams.last_group(exams.stack_exams([fewer, paper]))
    alone = exams.last_group(paper)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y), both, alone)


# --- who answers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gates_of(model):
    """``(variables, text) -> [N, L, S]``, gates of the slow level: its norm, then ``route``."""
    c, length = model.config, 64
    rope = rotary(jnp.arange(length)[None], c.rope_frequencies)
    mask = jnp.tril(jnp.ones((length, length), bool))[None, None]

    @jax.jit
    def layer(weights, active, x):
        (x, _), seen = Block(c).apply(
            {"params": weights}, x, active, None, rope, mask, None, 0, capture_intermediates=True
        )
        (inside,) = seen["intermediates"]["levels"]["slow"]["norm"]["__call__"]
        router, lv = weights["levels"]["slow"]["router"], c.level("slow")
        return x, *route(inside, router, active["slow"], top_k=lv.top_k, gate=lv.gate)

    def gates(variables, tokens: list[int]) -> np.ndarray:
        row = np.zeros((1, length), np.int32)
        row[0, : len(tokens)] = tokens
        params = variables["params"]
        active = {name: table.active for name, table in variables["slots"].items()}
        x = params["embed"][row]
        out = np.zeros((c.n_layers, length, 3))
        for i in range(c.n_layers):
            weights = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
            x, index, weight = layer(weights, active, x)
            np.put_along_axis(out[i], np.asarray(index)[0], np.asarray(weight)[0], -1)
        return out[:, : len(tokens)]

    return gates


def test_traffic_is_the_mean_gate_weight_over_layers_and_tokens_and_0_for_closed_slots(
    model, variables, paper, gates_of
):
    wanted = []
    for group in range(GROUPS):
        texts = [text_of(paper, row) for row in rows_of(paper, group)]
        gates = np.concatenate([gates_of(variables, text) for text in texts], axis=1)
        wanted.append(gates.mean((0, 1)))
    measure = jax.jit(exams.traffic(model, "slow"))
    found = np.asarray(measure(variables, paper))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert (found[:, 1] == 0).all() and (found[:, [0, 2]] > 0.01).all()
    assert not np.asarray(measure(only(variables), paper)).any()


def test_oracle_routing_opens_for_each_group_its_own_experts_only(
    model, grade, variables, paper, says
):
    days = np.array([1, 0, 0], np.int32)  # slot 1 is closed and stays so
    alone = [says(only(variables, 2), paper), says(only(variables, 0), paper)]
    alone.append(says(only(variables), paper))
    said = np.stack([alone[g][row] for row, g in enumerate(paper.group)])
    exam, right = half_right(paper, said)
    recall = jax.jit(exams.oracle(model, "slow"))(variables, exam, days)
    wanted = [right[rows_of(exam, g)].mean() for g in range(GROUPS)]
    np.testing.assert_allclose(recall, wanted)
    assert (np.asarray(grade(variables, exam)["recall"]) < recall).any()


def test_oracle_routing_is_the_same_in_an_exam_of_many_questions(model, variables, paper):
    """Long answers of a large batch go on without the short ones, but each has its own experts."""
    days = np.array([1, 0, 0], np.int32)
    times = -(-80 // paper.shape[0])
    large = jax.tree.map(lambda x: np.concatenate([x] * times), paper)
    ask = jax.jit(exams.oracle(model, "slow"))
    np.testing.assert_allclose(ask(variables, large, days), ask(variables, paper, days), rtol=1e-6)


def test_levels_without_experts_have_no_traffic_and_no_oracle(model):
    for probe in (exams.traffic, exams.oracle):
        with pytest.raises(ConfigError, match=r"level = 'fast': has no experts; these have: slow"):
            probe(model, "fast")


# --- many learners -------------------------------------------------------------------------------


@pytest.mark.slow
def test_learners_side_by_side_are_asked_as_each_alone(tiny, model, variables, paper, says):
    learners = [variables, learner(tiny, model, 1)]
    fewer = exams.make_exam(TOKENIZER, [group[:1] for group in papers()], 64, CHOICES, paper.shape)
    own = [
        half_right(exam, says(mine, exam))[0]
        for mine, exam in zip(learners, (paper, fewer), strict=True)
    ]
    days = np.array([[0, 1, 1], [1, 0, 0]], np.int32)

    def probes(variables, exam, days):
        return {
            **exams.grade(model)(variables, exam),
            "kl": exams.divergence_from(model)(variables, only(variables), exam),
            "traffic": exams.traffic(model, "slow")(variables, exam),
            "oracle": exams.oracle(model, "slow")(variables, exam, days),
        }

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *learners)
    found = jax.jit(jax.vmap(probes))(stacked, exams.stack_exams(own), days)
    asked = jax.jit(probes)
    for e in range(2):
        alone = asked(learners[e], own[e], days[e])
        assert alone["recall"].max() > 0
        jax.tree.map(
            lambda a, b, e=e: np.testing.assert_allclose(a[e], b, rtol=1e-5, atol=1e-6),
            found,
            alone,
        )
