"""Frames: where a text first names something known, and what is told behind its beginning."""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.memory.cues import EMPTY, Cues
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.methods import frames
from sleeplm.methods.extract import teacher_samples
from sleeplm.methods.frames import TEXTS, WIDTH, write_frames

BOS = 1
KEY = jax.random.key(6)
find_frames, framed = jax.jit(frames.find_frames), jax.jit(frames.framed)


def cues_of(names, days=None, junk=0):
    """Cues [BOS, *name, junk ...]."""
    wide = max(len(name) for name in names) + 1
    tokens = np.full((len(names), wide), junk, np.int32)
    for row, name in zip(tokens, names, strict=True):
        row[: len(name) + 1] = [BOS, *name]
    return Cues(
        tokens=jnp.asarray(tokens),
        length=jnp.asarray([len(name) + 1 for name in names]),
        day=jnp.asarray([0] * len(names) if days is None else days),
        priority=jnp.zeros(len(names)),
    )


# --- where a frame ends --------------------------------------------------------------------------


def first_name(text, names):
    for at in range(len(text)):
        if any(list(text[at : at + len(name)]) == list(name) for name in names):
            return at
    return len(text)


def test_a_frame_ends_where_the_earliest_known_name_begins():
    random = np.random.default_rng(0)
    texts = random.integers(3, 9, (300, 10)).astype(np.int32)
    texts[:, 0] = BOS
    names = [(3, 4), (4, 3, 5), (5,), (6, 6, 6), (), (7,), (8, 8)]
    days = [0, 1, 2, -1, 0, EMPTY, 3]  # one without a name, one unused entry
    known = [name for name, day in zip(names, days, strict=True) if name and day != EMPTY]
    want = [first_name(text, known) for text in texts.tolist()]
    assert {1, 5, 10} <= set(want)
    got = find_frames(jnp.asarray(texts), cues_of(names, days, junk=5))
    np.testing.assert_array_equal(got, want)


def test_a_name_that_the_text_does_not_finish_is_not_found():
    texts = jnp.array([[BOS, 9, 9, 3, 4], [BOS, 9, 3, 4, 5], [BOS, 9, 9, 9, 3]])
    np.testing.assert_array_equal(find_frames(texts, cues_of([(3, 4, 5)])), [5, 2, 5])


def test_a_reservoir_without_cues_finds_nothing():
    texts = jnp.array([[BOS, 3, 4], [BOS, 0, 0]])
    nothing = cues_of([(3,), ()], [EMPTY, 0])
    np.testing.assert_array_equal(find_frames(texts, nothing), [3, 3])


# --- frames of a teacher's texts -----------------------------------------------------------------


def named_at(*positions):
    """Texts as long as those that are written; the name (3, 4) stands at these positions."""
    texts = 10 + np.arange(TEXTS * (WIDTH + 2), dtype=np.int32).reshape(TEXTS, -1)
    texts[:, 0] = BOS
    for row, at in enumerate(positions):
        texts[row, at : at + 2] = [3, 4][: WIDTH + 2 - at]
    return texts


def test_frames_come_first_in_order_and_end_before_the_name(monkeypatch):
    positions = [1, WIDTH, 2, WIDTH + 1, 7]  # all others name nothing
    texts, asked = named_at(*positions), {}

    def scripted(model, teacher, prompts, lengths, keys, **settings):
        asked.update(settings, prompts=prompts, lengths=lengths, keys=len(keys))
        return types.SimpleNamespace(tokens=jnp.asarray(texts))

    monkeypatch.setattr(frames, "generate", scripted)
    model = types.SimpleNamespace(config=types.SimpleNamespace(bos=BOS))
    tokens, length, count = write_frames(model, None, cues_of([(3, 4)]), KEY, 0.7)

    # The name at the very beginning makes no frame, nor one that lies beyond a frame's end.
    assert int(count) == 3 and tokens.shape == (TEXTS, WIDTH)
    np.testing.assert_array_equal(length, [WIDTH, 2, 7] + [1] * (TEXTS - 3))
    for got, source, size in zip(tokens, (1, 2, 4), (WIDTH, 2, 7), strict=False):
        np.testing.assert_array_equal(got[:size], texts[source, :size])
        assert not np.any(got[size:])
    # Written from nothing, and long enough for a name behind the longest frame.
    assert asked["keys"] == TEXTS and asked["max_new"] == WIDTH + 1
    assert asked["temperature"] == 0.7
    np.testing.assert_array_equal(asked["prompts"], np.full((TEXTS, 1), BOS))
    np.testing.assert_array_equal(asked["lengths"], np.ones(TEXTS))


# --- cues behind frames --------------------------------------------------------------------------

FRAMES = (
    jnp.array([[BOS, 21, 22, 0, 0], [BOS, 31, 0, 0, 0], [BOS, 0, 0, 0, 0]]),
    jnp.array([3, 2, 1]),
)
PROMPTS = np.array([[BOS, 5, 0], [BOS, 6, 7]] * 32, np.int32)
LENGTHS = np.array([2, 3] * 32)


def test_a_cue_stands_behind_one_of_the_frames_without_its_begin_of_text():
    rows = jnp.arange(64)
    tokens, length = framed((*FRAMES, jnp.int32(2)), PROMPTS, LENGTHS, rows, KEY)
    assert tokens.shape == (64, 5 + 3 - 1)
    starts = [[BOS, 21, 22], [BOS, 31]]
    used = []
    for row, size, cue, n in zip(tokens, length, PROMPTS, LENGTHS, strict=True):
        wants = [start + cue[1:n].tolist() for start in starts]
        got = row[:size].tolist()
        assert got in wants and not np.any(row[size:])
        used.append(wants.index(got))
    assert 16 < sum(used) < 48  # both, about equally often


def test_the_frame_of_a_row_depends_on_its_number_and_the_key_alone():
    some = (*FRAMES, jnp.int32(2))
    whole, _ = framed(some, PROMPTS, LENGTHS, jnp.arange(64), KEY)
    back, _ = framed(some, PROMPTS[::-1], LENGTHS[::-1], jnp.arange(64)[::-1], KEY)
    np.testing.assert_array_equal(whole, back[::-1])
    other, _ = framed(some, PROMPTS, LENGTHS, jnp.arange(64), jax.random.key(7))
    assert np.any(whole != other)


def test_without_any_frame_cues_are_as_they_were():
    bare = (jnp.array([[BOS, 0], [BOS, 0]]), jnp.ones(2, jnp.int32), jnp.int32(0))
    tokens, length = framed(bare, PROMPTS, LENGTHS, jnp.arange(64), KEY)
    np.testing.assert_array_equal(tokens, np.pad(PROMPTS, ((0, 0), (0, 1))))
    np.testing.assert_array_equal(length, LENGTHS)


# --- in the night --------------------------------------------------------------------------------

LONG = 12


@pytest.fixture(scope="module")
def dusk(tiny):
    """A model, a learner whose sender was another this evening, and that teacher's variables."""
    model = tiny.model()
    state = tiny.learner(model, tiny.config())[1]
    sender = jax.tree.map(lambda x: 2.0 * x, get_level(state.params, "fast"))
    anchor = dataclasses.replace(state.anchors["fast"], dusk=sender)
    state = state.replace(anchors={"fast": anchor})
    teacher = {"params": with_levels(state.params, {"fast": sender}), "slots": state.slots}
    return model, jax.jit(model.logits), state, teacher


def greedily(logits, variables, text, length, eos):
    """``text`` and what is likeliest after it, recomputed for every token."""
    text = list(text)
    while len(text) < length:
        padded = np.array([text + [0] * (WIDTH - len(text))], np.int32)
        text.append(int(np.argmax(logits(variables, padded)[0, len(text) - 1])))
        if text[-1] == eos:
            break
    return text


def test_a_memory_of_today_is_told_behind_the_teachers_own_beginning(tiny, dusk):
    """Whoever goes on from there: here it is the student."""
    model, logits, state, teacher = dusk
    own = greedily(logits, teacher, [BOS], WIDTH, tiny.eos)
    at = next(i for i in range(2, WIDTH) if own[i] not in own[1:i])
    # What the teacher names is known from before; what is asked for is of today.
    today = next(t for t in range(3, tiny.vocabulary) if t not in own)
    cues = cues_of([(own[at],), (today,)], [-1, 0])
    extract = teacher_samples(
        model, ("fast", "slow"), teacher="dusk", source="today", source_id=0, framed=True,
        length=LONG, temperature=0.0, writer="student",
    )  # fmt: skip
    batch = {"rows": jnp.arange(6).reshape(2, 3), "today": jnp.int32(0)}
    run = jax.jit(lambda v, b: extract.extract(v, (), b, KEY)[0])
    memory = run({**state.variables, "cues": cues}, batch)

    begun = [*own[:at], today]
    want = greedily(logits, state.variables, begun, LONG, tiny.eos)
    assert want != greedily(logits, teacher, begun, LONG, tiny.eos)
    student = greedily(logits, state.variables, [BOS], WIDTH, tiny.eos)
    assert student[:at] != own[:at]
    assert memory.tokens.shape == (6, LONG)
    written = (np.arange(LONG) >= len(begun)) & (np.arange(LONG) < len(want))
    for i, (row, weights) in enumerate(zip(memory.tokens, memory.weights, strict=True)):
        assert row[: len(want)].tolist() == want
        np.testing.assert_array_equal(weights, written * (i == 0))  # repeats weigh nothing
    read = logits(teacher, np.pad(memory.tokens[:1], ((0, 0), (0, WIDTH - LONG))))
    read, said = (x[0, len(begun) - 1] for x in (read, memory.reference @ state.params["embed"].T))
    np.testing.assert_allclose(said, read, atol=1e-4)
