"""Two sequences in one row: the same sums, and neither knows of the other."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.core.losses import forward_kl
from sleeplm.core.types import Extract, Memory
from sleeplm.methods import extract, packing
from sleeplm.methods.config import TeacherConfig
from sleeplm.methods.frames import write_frames
from sleeplm.methods.objectives import diversity, language_model, seeding
from sleeplm.methods.packing import packed
from sleeplm.methods.sleep import teachings

LONG, D = 9, 16
ROOMY = 16  # two of the longest that stand together fit
pack_pairs = jax.jit(packing.pack_pairs, static_argnums=1)


def told(sizes, seed=0, first=0):
    """Sequences of these sizes; their tokens, weights and references tell them apart."""
    random = np.random.default_rng(seed)
    rows, index = len(sizes), np.arange(LONG)
    real = index < np.array(sizes)[:, None]
    weighted = real & (index >= 2)  # a cue of two tokens, then what was written

    def noise(*shape):
        return random.normal(size=shape).astype(np.float32)

    return Memory(
        tokens=np.where(real, random.integers(3, 40, (rows, LONG)), 0).astype(np.int32),
        weights=np.where(weighted, random.uniform(0.2, 2.0, (rows, LONG)), 0).astype(np.float32),
        segments=real.astype(np.int32),
        reference=noise(rows, LONG, D),
        reward=np.zeros(rows, np.float32),
        source=np.arange(first, first + rows, dtype=np.int32),
        logp=np.where(weighted, -np.abs(noise(rows, LONG)), 0).astype(np.float32),
    )


def sequences(memory):
    """Every sequence of a memory, by its tokens: all that belongs to it."""
    out = {}
    for row in range(len(memory.tokens)):
        for segment in (1, 2):
            mine = np.asarray(memory.segments[row]) == segment
            if mine.any():
                assert (np.diff(np.flatnonzero(mine)) == 1).all()
                key = tuple(np.asarray(memory.tokens[row])[mine].tolist())
                fields = (memory.weights, memory.reference, memory.logp)
                out[key] = [np.asarray(x[row])[mine] for x in fields]
    return out


def assert_same_sequences(got, want):
    assert got.keys() == want.keys()
    for key, values in want.items():
        for mine, theirs in zip(got[key], values, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("sizes", [[3, 9, 5, 4, 7, 6], [4, 8, 5, 3, 6], [7]])
def test_every_sequence_is_there_once_with_its_weights_and_its_teachers_states(sizes):
    memory = told(sizes)
    pairs = pack_pairs(memory, ROOMY)
    assert pairs.tokens.shape == (-(-len(sizes) // 2), ROOMY)
    assert_same_sequences(sequences(pairs), sequences(memory))
    # Beside them there is nothing, and every row begins with the first of its two.
    empty = np.asarray(pairs.segments) == 0
    for x in (pairs.tokens, pairs.weights, pairs.reference, pairs.logp):
        assert not np.asarray(x)[empty].any()
    np.testing.assert_array_equal(pairs.segments[:, 0], 1)
    order = np.maximum.accumulate(np.where(empty, 3, pairs.segments), axis=1)
    np.testing.assert_array_equal(np.where(empty, 3, pairs.segments), order)


def test_the_shortest_joins_the_longest():
    pairs = pack_pairs(told([3, 9, 5, 4, 8, 6]), ROOMY)
    sizes = [[int((row == s).sum()) for s in (1, 2)] for row in np.asarray(pairs.segments)]
    assert sorted(sizes) == [[6, 5], [8, 4], [9, 3]]


def test_of_an_odd_number_one_row_stays_alone():
    pairs = pack_pairs(told([4, 8, 5, 3, 6]), ROOMY)
    assert [bool((row == 2).any()) for row in np.asarray(pairs.segments)].count(False) == 1


def test_what_does_not_fit_is_cut_from_the_end_of_the_shorter_one():
    memory = told([9, 8, 5, 4])
    pairs = pack_pairs(memory, 10)
    got, whole = sequences(pairs), sequences(memory)
    assert pairs.tokens.shape == (2, 10)
    kept = {key[:room]: [x[:room] for x in values] for key, values in whole.items()
            for room in [{9: 9, 8: 8, 5: 2, 4: 1}[len(key)]]}  # fmt: skip
    assert_same_sequences(got, kept)


def test_a_memory_without_teacher_is_packed_too():
    memory = dataclasses.replace(told([4, 8, 5]), reference=None, logp=None)
    pairs = pack_pairs(memory, ROOMY)
    assert pairs.reference is None and pairs.logp is None
    assert sorted((pairs.segments > 0).sum(1).tolist()) == [8, 9]


# --- what is learned from it ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tiny):
    model = tiny.model()
    return model, {"params": tiny.params(model), "slots": model.init_slots()}


OBJECTIVES = {
    "language_model": lambda model: language_model(model, 4),
    "seeding": lambda model: seeding(model, forward_kl, alpha=1.0, chunk=4),
}


@pytest.mark.parametrize(
    ("name", "sizes"), [("language_model", [3, 9, 5, 4, 7, 6]), ("seeding", [4, 9, 5, 7, 6])]
)
def test_packed_rows_have_the_loss_and_the_gradient_of_rows_of_their_own(student, name, sizes):
    model, variables = student
    objective = OBJECTIVES[name](model)

    @jax.jit
    def learn(params, memory):
        def loss(params):
            total, weight, aux = objective({**variables, "params": params}, memory)
            return total, (weight, aux)

        return jax.value_and_grad(loss, has_aux=True)(params)

    memory = told(sizes)
    (loss, (weight, aux)), gradient = learn(variables["params"], memory)
    pairs = pack_pairs(memory, ROOMY)
    (got, (got_weight, got_aux)), got_gradient = learn(variables["params"], pairs)
    assert float(loss) > 1.0
    np.testing.assert_allclose(got, loss, rtol=1e-5)
    np.testing.assert_allclose(got_weight, weight, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got_aux, aux)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        got_gradient,
        gradient,
    )
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) > 0.1


def test_neither_sequence_of_a_row_sees_the_other(student):
    model, variables = student
    pairs = pack_pairs(told([9, 8, 5, 4]), ROOMY)
    hidden = jax.jit(lambda tokens: model.hidden(variables, tokens, pairs.segments))
    before = np.asarray(hidden(pairs.tokens))
    for segment in (1, 2):
        mine = np.asarray(pairs.segments) == segment
        changed = np.asarray(hidden(jnp.where(mine, (pairs.tokens + 7) % 40, pairs.tokens)))
        assert np.abs(changed - before)[mine].max() > 0.1
        rest = (np.asarray(pairs.segments) > 0) & ~mine
        np.testing.assert_array_equal(changed[rest], before[rest])


def test_repeats_are_counted_by_sequence_and_not_by_row():
    memory = told([9, 5, 6, 4, 7])
    memory.weights[2] = 0.0  # a repeat of another one
    for one in (memory, pack_pairs(memory, ROOMY)):
        used, there = diversity(one)["unique"]
        assert (float(used), float(there)) == (4.0, 5.0)


# --- as an extraction ----------------------------------------------------------------------------


def test_only_sequences_of_one_minibatch_share_a_row():
    minibatches = [told([9, 8, 7], 1), told([3, 4, 2], 2), told([5, 6, 6], 3)]
    memory = jax.tree.map(lambda *x: jnp.concatenate(x), *minibatches)
    plain = Extract(lambda params, key: jnp.int32(7), lambda v, s, batch, key: (memory, s + 1))
    both = packed(plain, ROOMY)
    kept = both.init(None, None)
    batch = {"rows": np.zeros((3, 3), np.int32)}
    got, kept = jax.jit(lambda s: both.extract({}, s, batch, None))(kept)
    assert int(kept) == 8  # what the extraction keeps is handed through
    assert got.tokens.shape == (6, ROOMY) and got.reward.shape == (6,)
    for i, minibatch in enumerate(minibatches):
        mine = jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], got)
        assert_same_sequences(sequences(mine), sequences(minibatch))


def test_a_night_learns_from_packed_rows_and_frames_the_teachers_that_ask_for_it(tiny, monkeypatch):
    model, asked = tiny.model(), []
    teachers = [TeacherConfig("dusk", "today", framed=True), TeacherConfig("dawn", "past", times=2)]
    state = tiny.learner(model, tiny.config())[1]

    def counted(*args):
        asked.append(args)
        return write_frames(*args)

    monkeypatch.setattr(extract, "write_frames", counted)
    for pack, shape in ((0, (2, 24, 9)), (17, (2, 12, 17))):
        config = tiny.config(teachers=teachers, alpha=1.0, lam=0.0, pack=pack)
        told = teachings(model, config, ("fast", "slow"), teachers, None)
        key = jax.random.key(0)
        arguments = (state.variables, told.init(state.params, key), tiny.rows(config), key)
        memory, _ = jax.eval_shape(told.extract, *arguments)
        assert memory.tokens.shape == (shape[0] * shape[1], shape[2])
    assert len(asked) == 2  # one of the two teachers, with and without packing


@pytest.mark.parametrize(
    "settings", [{"pack": 8, "alpha": 1.0}, {"pack": -1, "alpha": 1.0}, {"pack": 18, "alpha": 0.9}]
)
def test_rows_too_short_or_with_rewards_are_not_packed(tiny, settings):
    with pytest.raises(ConfigError, match=r"sleep\.pack.*at least length \(9\)"):
        tiny.config(**settings)
    assert tiny.config(pack=9, alpha=1.0).pack == 9
