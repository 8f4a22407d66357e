"""What nights read besides: an archive of raw text, more rows a cue, cues of the learner's own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.memory.cues import EMPTY, Cues
from sleeplm.methods.config import TeacherConfig
from sleeplm.methods.extract import mix, multiplied, own_cues, raw_text, stateless, teacher_samples

KEY = jax.random.key(3)
BOS = 1
DAYS = [0] * 2 + [1] * 8 + [2] * 4 + [EMPTY] * 3
LONG = 10


def archive():
    """Text i reads 100 + i all over; texts of different lengths, unused rows at the end."""
    ids = 100 + np.arange(len(DAYS), dtype=np.int32)
    length = (4 + np.arange(len(DAYS)) % 7).astype(np.int32)
    tokens = np.where(np.arange(LONG) < length[:, None], ids[:, None], 0)
    return {"tokens": tokens, "length": length, "day": np.array(DAYS, np.int32)}


def read(day=1, rows=None, key=KEY, **settings):
    rows = np.arange(60).reshape(2, 30) if rows is None else rows
    settings = {"source": "past", "source_id": 4, "length": 8} | settings
    extract = raw_text(**settings)
    batch = {"rows": rows, "today": np.int32(77), "archive": archive(), "day": np.int32(day)}
    return extract.extract({}, (), batch, key)[0]


def texts_of(memory):
    """How often each text was read."""
    ids, times = np.unique(np.asarray(memory.tokens)[:, 0] - 100, return_counts=True)
    return dict(zip(ids.tolist(), times.tolist(), strict=True))


@pytest.mark.parametrize(
    ("source", "day", "days"),
    [("past", 2, {0, 1}), ("today", 1, {1}), ("all", 0, {0, 1, 2}), ("past", 1, {0})],
)
def test_texts_are_of_the_days_that_the_source_names(source, day, days):
    read_texts = texts_of(read(day, source=source))
    assert {DAYS[i] for i in read_texts} == days
    assert set(read_texts) == {i for i, d in enumerate(DAYS) if d in days}


def test_texts_without_a_teacher_do_not_mix_with_what_a_teacher_told():
    plain = raw_text(source="past", source_id=0, length=8)

    def told(variables, batch, key):
        memory = plain.extract(variables, (), batch, key)[0]
        return dataclasses.replace(memory, reference=jnp.zeros((*memory.tokens.shape, 4)))

    both = mix(plain, stateless(told))
    rows = {"rows": np.arange(8).reshape(2, 4), "archive": archive(), "day": np.int32(1)}
    with pytest.raises(ConfigError, match=r"memory.reference = \[False, True\]: must be in all"):
        both.extract({}, both.init({}, KEY), rows, KEY)


def test_a_text_is_cut_at_the_length_and_every_next_token_has_the_weight():
    memory = read(2, source="all", weight=0.5)
    assert memory.tokens.shape == (60, 8)
    own = archive()
    for tokens, weights, segments in zip(
        *(np.asarray(x) for x in (memory.tokens, memory.weights, memory.segments)), strict=True
    ):
        size = min(int(own["length"][tokens[0] - 100]), 8)
        np.testing.assert_array_equal(tokens, [tokens[0]] * size + [0] * (8 - size))
        np.testing.assert_array_equal(segments, [1] * size + [0] * (8 - size))
        np.testing.assert_array_equal(weights, [0] + [0.5] * (size - 1) + [0] * (8 - size))
    assert memory.reference is None and not np.any(memory.reward)
    assert set(np.asarray(memory.source).tolist()) == {4}


def test_an_archive_of_short_texts_is_not_padded():
    assert read(2, source="all", length=32).tokens.shape == (60, LONG)


def test_days_are_read_equally_often_or_texts_are():
    by_day, by_text = (read(2, balance=b) for b in (0.0, 1.0))
    for memory, wants in ((by_day, {0: 15.0, 1: 30 / 8}), (by_text, {0: 6.0, 1: 6.0})):
        for text, times in texts_of(memory).items():
            assert abs(times - wants[DAYS[text]]) <= 2


def test_where_the_past_is_empty_there_is_nothing_to_learn():
    memory = read(0)
    assert not np.any(memory.weights)
    assert memory.tokens.shape == (60, 8)


def test_a_row_reads_by_its_number_and_not_by_its_place():
    whole = read(2)
    back = read(2, rows=np.arange(60)[::-1].reshape(2, 30))
    np.testing.assert_array_equal(whole.tokens, np.asarray(back.tokens)[::-1])
    assert np.any(whole.tokens != read(2, key=jax.random.key(4)).tokens)


# --- several for every row -----------------------------------------------------------------------


def test_multiplied_rows_have_numbers_of_their_own():
    got = multiplied(jnp.array([[3, 0], [7, 1]]).reshape(-1), 3)
    np.testing.assert_array_equal(got, [9, 10, 11, 0, 1, 2, 21, 22, 23, 3, 4, 5])
    many = multiplied(jnp.arange(50), 7)
    np.testing.assert_array_equal(np.sort(many), np.arange(350))


def test_several_texts_a_row_are_those_of_as_many_rows():
    rows = np.arange(10).reshape(2, 5)
    several = read(2, rows=rows, times=3)
    np.testing.assert_array_equal(several.tokens, read(2, rows=np.arange(30).reshape(2, 15)).tokens)


@pytest.fixture(scope="module")
def learned(tiny):
    model = tiny.model()
    return model, tiny.learner(model, tiny.config())[1]


def test_a_teacher_tells_several_sequences_a_row_and_of_days_in_balance(learned):
    """One cue of day -1, five of day 0: every day alike, or every cue."""
    model, state = learned
    tokens = jnp.array([[BOS, 30, 30]] + [[BOS, i, i] for i in range(10, 15)])
    days = jnp.array([-1, 0, 0, 0, 0, 0])
    cues = Cues(tokens, jnp.full(6, 3), days, jnp.zeros(6))
    variables = {**state.variables, "cues": cues}

    @jax.jit
    def told(rows, balance):
        extract = teacher_samples(
            model, ("fast", "slow"), teacher="dusk", source="all", source_id=0,
            length=6, balance=balance, times=3,
        )  # fmt: skip
        batch = {"rows": rows, "today": jnp.int32(0)}
        return extract.extract(variables, (), batch, KEY)[0]

    by_day, by_cue = (told(jnp.arange(12).reshape(2, 6), b) for b in (0.0, 1.0))
    for memory, share in ((by_day, 1 / 2), (by_cue, 1 / 6)):
        assert memory.tokens.shape == (36, 6)
        first = np.asarray(memory.tokens)[:, 1]
        assert abs((first == 30).sum() - 36 * share) <= 2
    # All of a cue's sequences are drawn for themselves.
    told_of_one = np.asarray(by_day.tokens)[np.asarray(by_day.tokens)[:, 1] == 30]
    assert len({tuple(row) for row in told_of_one}) > 6
    # Row r has the numbers 3 r, 3 r + 1 and 3 r + 2, wherever it stands.
    moved = told(jnp.arange(12)[::-1].reshape(2, 6), 0.0)
    grouped = [np.asarray(m.tokens).reshape(12, 3, 6) for m in (by_day, moved)]
    np.testing.assert_array_equal(grouped[1], grouped[0][::-1])


@pytest.mark.parametrize(
    ("changes", "field"), [({"times": 0}, "times"), ({"balance": 1.5}, "balance")]
)
def test_teachers_that_cannot_tell_are_refused(tiny, changes, field):
    with pytest.raises(ConfigError, match=rf"teachers\[0\]\.{field}"):
        tiny.config(teachers=[TeacherConfig(**changes)])


# --- cues of one's own ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writing(tiny, learned):
    """Cues offered at day 5, into a reservoir that holds those of two days already."""
    model, state = learned

    @jax.jit
    def write(temperature, key):
        config = tiny.config(own_cues=10, reservoir=16)
        config.temperature = temperature
        return own_cues(model, config)(state, {"today": jnp.int32(5)}, key)

    return write


def of_day(state, day):
    cues = state.cues
    mine = np.asarray(cues.day) == day
    return [
        row[:n].tolist()
        for row, n in zip(np.asarray(cues.tokens)[mine], np.asarray(cues.length)[mine], strict=True)
    ]


def test_a_learner_of_one_mind_offers_one_cue_the_beginning_of_what_it_would_say(
    tiny, learned, writing
):
    model, state = learned
    after, metrics = writing(0.0, KEY)
    logits, text = jax.jit(model.logits), [BOS]
    while len(text) < tiny.cue and text[-1] != tiny.eos:
        padded = np.array([text + [0] * (tiny.cue - len(text))], np.int32)
        text.append(int(np.argmax(logits(state.variables, padded)[0, len(text) - 1])))
    assert of_day(after, 5) == [text]
    assert float(metrics["offered"][0]) == 1.0


def test_every_different_beginning_is_offered_under_its_day(tiny, learned, writing):
    _, state = learned
    after, metrics = writing(1.0, KEY)
    mine = of_day(after, 5)
    assert len(mine) > 3 and len({tuple(cue) for cue in mine}) == len(mine)
    assert all(cue[0] == BOS and 2 <= len(cue) <= tiny.cue for cue in mine)
    assert len(mine) <= float(metrics["offered"][0]) <= 10
    assert float(metrics["cues"][0]) == int((after.cues.day != EMPTY).sum())
    # Of earlier days nothing is changed, only room is made.
    for day in (-1, 0):
        assert {tuple(c) for c in of_day(after, day)} <= {tuple(c) for c in of_day(state, day)}
        assert of_day(after, day)
    other, _ = writing(1.0, jax.random.key(9))
    assert of_day(other, 5) != mine
