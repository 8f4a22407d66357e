"""Extraction: whose samples, which tokens count, what the teacher says, what is rewarded."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from rapidfuzz.distance import Levenshtein

from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.methods.extract import (
    first_of_its_kind,
    imitation,
    mix,
    tail_of,
    teacher_samples,
    wake_batch,
)
from sleeplm.methods.rewards import exact_match_judge
from sleeplm.runtime.parallel import mesh

PAIR = ("fast", "slow")
KEY = jax.random.key(4)
LONG = 9


def noisy(subtree, scale, seed=0):
    leaves, structure = jax.tree.flatten(subtree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


@pytest.fixture(scope="module")
def evening(tiny):
    """A model, a learner whose sender was another this evening, and that teacher's variables."""
    model = tiny.model()
    state = tiny.learner(model, tiny.config())[1]
    dusk = noisy(get_level(state.params, "fast"), 0.5)
    anchor = dataclasses.replace(state.anchors["fast"], dusk=dusk)
    state = state.replace(anchors={"fast": anchor})
    teacher = {"params": with_levels(state.params, {"fast": dusk}), "slots": state.slots}
    return model, state, teacher


def batch(tiny, minibatches=2, rows=6):
    numbers = np.arange(minibatches * rows, dtype=np.int32).reshape(minibatches, rows)
    return {"rows": jnp.asarray(numbers), "today": jnp.int32(0)}


def told(model, state, numbers, **settings):
    settings = {"teacher": "dusk", "source": "today", "source_id": 3, "length": LONG} | settings
    extract = teacher_samples(model, PAIR, **settings)
    return jax.jit(lambda v, b: extract.extract(v, (), b, KEY)[0])(state.variables, numbers)


def cues_of(state, day):
    cues = state.cues
    return [
        tuple(int(t) for t in tokens[:n])
        for tokens, n, d in zip(cues.tokens, cues.length, cues.day, strict=True)
        if int(d) == day
    ]


def written_by_hand(row, cue, eos):
    """Positions that the model wrote after its cue: up to the stop token or the end."""
    start = len(cue)
    stops = [t for t in range(start, len(row)) if row[t] == eos]
    return range(start, stops[0] + 1 if stops else len(row))


def test_wake_predicts_every_token_from_its_own_document(tiny):
    text = tiny.text(0)
    memory = wake_batch().extract(None, (), text, KEY)[0]
    for t in range(1, tiny.length):
        same = (text["segments"][:, t] == text["segments"][:, t - 1]) & (text["segments"][:, t] > 0)
        np.testing.assert_array_equal(memory.weights[:, t], same)
    np.testing.assert_array_equal(memory.weights[:, 0], 0)
    assert set(np.asarray(memory.source)) == {-1} and memory.reference is None


@pytest.mark.parametrize("writer", ["teacher", "student"])
def test_samples_start_from_todays_cues_and_weigh_written_tokens_only(tiny, evening, writer):
    model, state, _ = evening
    memory = told(model, state, batch(tiny), writer=writer, weight=0.25)
    assert memory.tokens.shape == (12, LONG)
    cues = cues_of(state, 0)
    for row, weights in zip(np.asarray(memory.tokens), np.asarray(memory.weights), strict=True):
        started = {int(np.flatnonzero(weights)[0])} if weights.any() else set()
        cue = max((c for c in cues if tuple(row[: len(c)]) == c), key=len)
        spans = [written_by_hand(row, c, tiny.eos) for c in cues if tuple(row[: len(c)]) == c]
        wants = [[0.25 * (t in span) for t in range(LONG)] for span in spans]
        assert not started or any(np.array_equal(weights, want) for want in wants), (row, cue)
    assert set(np.asarray(memory.source)) == {3}
    assert not np.asarray(memory.reward).any()


@pytest.mark.parametrize("writer", ["teacher", "student"])
def test_the_reference_is_the_teachers_own_distribution(tiny, evening, writer):
    model, state, teacher = evening
    memory = told(model, state, batch(tiny), writer=writer)
    want = jax.nn.softmax(model.logits(teacher, memory.tokens, memory.segments))
    got = jax.nn.softmax(memory.reference @ model.unembed(state.params))
    used = np.asarray(memory.weights)[:, 1:] > 0  # a distribution stands one before its token
    used = np.pad(used, ((0, 0), (0, 1)))
    assert used.sum() > 20
    np.testing.assert_allclose(got[used], want[used], rtol=1e-4, atol=1e-6)
    student = jax.nn.softmax(model.logits(state.variables, memory.tokens, memory.segments))
    assert np.abs(got - student)[used].max() > 0.01


@pytest.mark.parametrize("writer", ["teacher", "student"])
def test_the_writer_writes_what_is_likeliest_to_itself(tiny, evening, writer):
    model, state, teacher = evening
    memory = told(model, state, batch(tiny), writer=writer, temperature=0.0)
    author = teacher if writer == "teacher" else state.variables
    likeliest = jnp.argmax(model.logits(author, memory.tokens, memory.segments), -1)
    written = np.asarray(memory.weights)[:, 1:] > 0
    assert written.sum() > 10
    np.testing.assert_array_equal(
        np.asarray(memory.tokens)[:, 1:][written], np.asarray(likeliest)[:, :-1][written]
    )


def test_the_same_rows_tell_the_same_wherever_they_are_computed(tiny, evening):
    model, state, _ = evening
    numbers = batch(tiny, 1, 8)
    whole = told(model, state, numbers)
    halves = [
        told(model, state, numbers | {"rows": numbers["rows"][:, part]})
        for part in (slice(0, 4), slice(4, 8))
    ]
    np.testing.assert_array_equal(whole.tokens, jnp.concatenate([m.tokens for m in halves]))


# --- repeats -------------------------------------------------------------------------------------


def with_repeats(seed, rows=16):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 3, (rows, 3)).astype(np.int32)
    return tokens, random.permutation(100)[:rows].astype(np.int32)


def lowest_of_each(tokens, numbers):
    keep = np.zeros(len(tokens))
    for row in {tuple(t) for t in tokens}:
        same = [i for i, t in enumerate(tokens) if tuple(t) == row]
        keep[min(same, key=lambda i: numbers[i])] = 1.0
    return keep


@pytest.mark.parametrize("seed", range(3))
def test_of_every_distinct_sequence_the_lowest_numbered_row_survives(seed):
    tokens, numbers = with_repeats(seed)
    want = lowest_of_each(tokens, numbers)
    assert 3 < want.sum() < 16
    np.testing.assert_array_equal(first_of_its_kind(jnp.asarray(tokens), numbers), want)


@pytest.mark.parametrize(
    ("shape", "axis"), [({"data": 4}, "data"), ({"data": 2, "fsdp": 2}, ("data", "fsdp"))]
)
def test_of_repeats_on_several_devices_one_survives_in_all(shape, axis):
    tokens, numbers = with_repeats(7)
    step = jax.shard_map(
        lambda t, n: first_of_its_kind(t, n, axis),
        mesh=mesh(shape),
        in_specs=(P(axis), P(axis)),
        out_specs=P(axis),
    )
    got = jax.jit(step)(tokens, numbers)
    np.testing.assert_array_equal(got, lowest_of_each(tokens, numbers))


def test_order_and_padding_make_sequences_distinct():
    tokens = jnp.array([[1, 2, 0], [2, 1, 0], [1, 2, 2], [1, 0, 2], [0, 1, 2], [1, 2, 0]])
    got = first_of_its_kind(tokens, jnp.arange(6))
    np.testing.assert_array_equal(got, [1, 1, 1, 1, 1, 0])


# --- imitation -----------------------------------------------------------------------------------

GROUP = 3


def imitate(model, state, numbers, gamma, z0=100.0, temperature=1.0, judge=None):
    """The memory, and what the judge was shown."""
    shown = {}

    def spy(variables, candidate, candidate_mask, reference, reference_mask):
        shown.update(own=candidate, own_mask=candidate_mask)
        shown.update(told=reference, told_mask=reference_mask)
        rule = judge or exact_match_judge(eos=2)
        shown["r_sem"] = rule(variables, candidate, candidate_mask, reference, reference_mask)
        return shown["r_sem"]

    def run(variables, numbers):
        extract = imitation(
            model, PAIR, spy, teacher="dusk", source="today", source_id=1, group=GROUP,
            gamma=gamma, z0=z0, length=LONG, temperature=temperature,
        )  # fmt: skip
        memory = extract.extract(variables, (), numbers, KEY)[0]
        return memory, dict(shown)

    memory, shown = jax.jit(run)(state.variables, numbers)
    return memory, {name: np.asarray(x) for name, x in shown.items()}


def equation_3_and_4(shown, gamma, z0):
    out = []
    for own, own_mask, told, told_mask, r_sem in zip(
        *(shown[n] for n in ("own", "own_mask", "told", "told_mask", "r_sem")), strict=True
    ):
        a, b = own[own_mask].tolist(), told[told_mask].tolist()
        z = Levenshtein.distance(a, b)
        r_abs = 1 - z / max(len(a), len(b)) if z <= z0 else 0.0
        out.append(gamma * r_sem + (1 - gamma) * r_abs)
    return np.array(out)


def less_the_others(reward):
    groups = reward.reshape(-1, GROUP)
    others = (groups.sum(1, keepdims=True) - groups) / (GROUP - 1)
    return (groups - others).reshape(-1)


def test_a_student_that_is_its_teacher_earns_everything_and_has_no_advantage(tiny, evening):
    model, state, _ = evening
    twin = state.replace(params=with_levels(state.params, {"fast": state.anchors["fast"].dusk}))
    memory, shown = imitate(model, twin, batch(tiny), gamma=0.5, temperature=0.0)
    np.testing.assert_allclose(equation_3_and_4(shown, 0.5, 100.0), 1.0)
    np.testing.assert_array_equal(memory.reward, 0.0)


@pytest.mark.parametrize(("gamma", "z0"), [(0.0, 100.0), (0.25, 5.0)])
def test_another_student_is_rewarded_by_equations_3_and_4(tiny, evening, gamma, z0):
    model, state, _ = evening
    memory, shown = imitate(model, state, batch(tiny), gamma, z0)
    reward = equation_3_and_4(shown, gamma, z0)
    assert reward.min() < 0.5 and reward.std() > 0.02
    np.testing.assert_allclose(memory.reward, less_the_others(reward), atol=1e-5)
    np.testing.assert_allclose(np.asarray(memory.reward).reshape(-1, GROUP).sum(1), 0, atol=1e-5)


def test_a_judge_of_meaning_alone_decides_when_gamma_is_one(tiny, evening):
    model, state, _ = evening
    verdict = jnp.asarray([1.0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0])
    memory, _ = imitate(model, state, batch(tiny), 1.0, judge=lambda *_: verdict)
    want = [1, -0.5, -0.5, 0.5, 0.5, -1, 0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(memory.reward, want, atol=1e-6)


def test_a_group_continues_one_prefix_and_only_its_own_words_count(tiny, evening):
    model, state, _ = evening
    memory, shown = imitate(model, state, batch(tiny), 0.5)
    tokens = np.asarray(memory.tokens).reshape(-1, GROUP, LONG)
    mask = shown["own_mask"].reshape(-1, GROUP, LONG)
    cuts = np.argmax(mask, axis=2)
    assert (cuts == cuts[:, :1]).all() and len(set(cuts[:, 0])) > 1
    for group, cut in zip(tokens, cuts[:, 0], strict=True):
        assert (group[:, :cut] == group[0, :cut]).all()
        assert any(tuple(group[0, : len(c)]) == c for c in cues_of(state, 0) if len(c) <= cut)
    np.testing.assert_array_equal(np.asarray(memory.weights) > 0, shown["own_mask"])
    assert len({tuple(row) for row in tokens.reshape(-1, LONG)}) > len(tokens)


def test_of_continuations_it_is_known_how_likely_they_were_to_the_student_that_wrote_them(
    tiny, evening
):
    model, state, _ = evening
    memory, _ = imitate(model, state, batch(tiny), 0.5, temperature=0.7)
    logits = model.logits(state.variables, memory.tokens, memory.segments)
    logp = jax.nn.log_softmax(logits[:, :-1] / 0.7)
    want = jnp.take_along_axis(logp, memory.tokens[:, 1:, None], -1)[..., 0]
    written = np.asarray(memory.weights)[:, 1:] > 0
    assert written.sum() > 20
    np.testing.assert_allclose(memory.logp[:, 1:][written], want[written], rtol=1e-4, atol=1e-5)


def test_a_group_that_does_not_fit_a_minibatch_is_refused(tiny, evening):
    model, state, _ = evening
    with pytest.raises(ConfigError, match="group"):
        imitate(model, state, batch(tiny, 3, 4), 0.5)


# --- together ------------------------------------------------------------------------------------


def test_mixed_extractions_put_some_of_each_into_every_minibatch(tiny, evening):
    model, state, _ = evening
    common = {"teacher": "dusk", "source": "today"}
    parts = [
        teacher_samples(model, PAIR, **common, source_id=0, length=LONG),
        teacher_samples(model, PAIR, **common, source_id=1, length=LONG - 2, writer="student"),
    ]
    both = mix(*parts)
    private = both.init(state.params, KEY)
    run = jax.jit(lambda b: both.extract(state.variables, private, b, KEY)[0])
    memory = run(batch(tiny))
    np.testing.assert_array_equal(memory.source, [*[0] * 6, *[1] * 6] * 2)
    assert memory.tokens.shape == (24, LONG) and memory.reference.shape == (24, LONG, 16)
    shorter = np.asarray(memory.source) == 1
    assert not np.asarray(memory.weights)[shorter, LONG - 2 :].any()
    alone, _ = parts[0].extract(state.variables, (), batch(tiny), jax.random.fold_in(KEY, 0))
    np.testing.assert_array_equal(memory.tokens[~shorter], alone.tokens)


def test_the_tail_of_a_row_moves_to_the_left():
    tokens = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 1, 2, 3]])
    moved, length = tail_of(tokens, jnp.array([1, 0, 3]), jnp.array([3, 4, 3]))
    np.testing.assert_array_equal(moved, [[2, 3, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0]])
    np.testing.assert_array_equal(length, [2, 4, 0])
