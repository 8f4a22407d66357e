"""A whole round of dreaming, and the writer's reinforcement: what comes out, and what stays."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm import testing
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.phase import consolidate, repeat
from sleeplm.core.types import WRITER
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.memory.slots import open_all
from sleeplm.methods.dreams.config import REWARDS, SCORES, DreamConfig
from sleeplm.methods.dreams.dream import dream, dreams, given, no_dreams, round_of
from sleeplm.methods.dreams.reinforce import of_writer, reinforce, tutor, with_writer
from sleeplm.methods.dreams.rewards import agreement_reward
from sleeplm.methods.dreams.rounds import _prepared, in_bases, whole_round
from sleeplm.methods.dreams.select import score
from sleeplm.methods.dreams.trials import Lesson
from sleeplm.methods.dreams.write import as_contexts, memory_of, whole
from sleeplm.methods.objectives import language_model
from sleeplm.methods.sleep import night
from sleeplm.methods.update import optimizer
from sleeplm.runtime import parallel

pytestmark = pytest.mark.slow  # whole rounds take long to compile
KEY = jax.random.key(8)


def settings(**changes) -> DreamConfig:
    brief = {"dreams": 6, "context_tokens": 6, "new_tokens": 4, "keep": 2, "extra": 2, "ngram": 2}
    trial = {"rank": 2, "steps": 2, "learning_rate": 0.01, "memories": 3, "chunk": 3}
    writer = {"writer_rank": 2, "writer_epochs": 2, "writer_learning_rate": 0.01}
    return DreamConfig(**{**brief, **trial, **writer, **changes})


@pytest.fixture(scope="module")
def learning(tiny):
    """A model and a learner with a writer, whose slow level has open experts."""
    model = tiny.model()
    state = tiny.learner(model, tiny.config())[1]
    level, table = open_all(get_level(state.params, "slow"), jax.random.key(1), 0.0)
    b = jax.random.normal(jax.random.key(2), level["experts"]["b"].shape)
    level = {**level, "experts": {**level["experts"], "b": b}}
    params = with_writer(with_levels(state.params, {"slow": level}), 2, jax.random.key(3))
    return model, state.replace(params=params, slots={**state.slots, "slow": table})


def light(**changes) -> DreamConfig:
    """Rounds whose reward is the test's own: no gradients, nothing recalled, less to compile."""
    return settings(**{"reward": "questions", "score": "random", **changes})


def contexts(tiny, seed=0):
    random = np.random.default_rng(seed)
    tokens = random.integers(3, tiny.vocabulary, (3, 6)).astype(np.int32)
    tokens[:, 0] = 1
    length = np.array([6, 5, 4], np.int32)
    tokens[np.arange(6) >= length[:, None]] = 0
    return {"contexts": {"tokens": tokens, "length": length}, "today": np.int32(1)}


def by_number(before, after, batch):
    """Rewards by the sign of one number of the trial's adapters: about half are accepted."""
    mine = after["params"]["blocks"]["attn"]["q"]["adapter"]["a"][0, 0, 0]
    return (mine > 0).astype(jnp.float32), {"mine": (mine, jnp.ones(()))}


def always(before, after, batch):
    return jnp.ones(()), {}


def once(learning, batch, config, key=KEY, **parts):
    model, state = learning
    return jax.jit(round_of(model, config, **parts))(state.variables, batch, key)


def test_accepted_dreams_have_weight_and_the_others_none(tiny, learning):
    found, metrics = once(learning, contexts(tiny), settings(), reward=by_number)
    accepted = np.asarray(found.told.reward)
    assert set(accepted) == {0.0, 1.0}
    np.testing.assert_array_equal(np.asarray(found.mask), accepted > 0)
    np.testing.assert_array_equal(found.written.reward, accepted)
    assert metrics["accepted"] == (accepted.sum(), 4)
    assert metrics["trial_last"][0] < metrics["trial_first"][0]
    assert {"unique", "length", "copied", "score", "mine"} < metrics.keys()
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), found)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), no_dreams(settings()))
    alone = settings(alone=True)
    shapes = jax.eval_shape(lambda: once(learning, contexts(tiny), alone, reward=by_number)[0])
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, no_dreams(alone))


def test_without_a_reward_what_is_kept_is_accepted_and_nothing_is_tried(tiny, learning):
    config = settings(reward="none", memories=0)
    found, metrics = once(learning, contexts(tiny), config)
    assert found.mask.all() and metrics["accepted"] == (4, 4)
    assert not {"trial_first", "lift_held"} & metrics.keys()
    kept, _ = once(learning, contexts(tiny), settings(reward="questions"), reward=always)
    np.testing.assert_array_equal(found.told.tokens, kept.told.tokens)  # the same are selected


@pytest.mark.parametrize("held", [True, False], ids=["held", "nothing else"])
@pytest.mark.parametrize("given_too", [True, False], ids=["a reference", "none"])
def test_what_gradients_are_aligned_with_does_not_depend_on_what_rewards(
    tiny, learning, held, given_too
):
    """A reference of the batch's own, else what is held back, else what is written from."""
    model, state = learning
    batch = contexts(tiny)
    texts = whole(as_contexts(contexts(tiny, 1)["contexts"], 6))
    reference = whole(as_contexts(contexts(tiny, 2)["contexts"], 6))
    batch |= ({"held": texts} if held else {}) | ({"reference": reference} if given_too else {})
    for reward in REWARDS:
        config = settings(reward=reward, hold=0.0001, memories=0)
        written_from, found = _prepared(model, config, state.variables, batch, KEY, None)
        expected = reference if given_too else texts if held else whole(written_from)
        jax.tree.map(np.testing.assert_array_equal, found["reference"], expected)


def test_agreement_alone_judges_if_there_is_no_task(tiny, learning):
    def reward(before, after, batch):
        judge = agreement_reward(learning[0], margin=batch["margin"], worse=99.0)
        return judge(before, after, batch)

    model, state = learning
    run = jax.jit(round_of(model, settings(score="norm"), reward=reward))
    free, metrics = run(state.variables, {**contexts(tiny), "margin": -99.0}, KEY)
    none, told = run(state.variables, {**contexts(tiny), "margin": 99.0}, KEY)
    assert metrics["accepted"][0] == metrics["accepted"][1] == 4 and free.mask.all()
    assert told["accepted"] == (0, 4) and not none.mask.any()
    np.testing.assert_array_equal(none.told.tokens, free.told.tokens)
    assert told["lift_held"][1] == told["lift_memories"][1] == 4


def test_scores_can_be_compared_by_what_their_best_earned_of_the_same_dreams(tiny, learning):
    """Every dream earns a number of its own, so the sum of two says which two were the best."""

    def reward(before, after, batch):
        _, told = by_number(before, after, batch)
        return jnp.abs(told["mine"][0]), {"lift_held": told["mine"]}

    config = settings(keep=6, extra=0, compare=2, score="norm")
    (model, state), batch = learning, contexts(tiny)
    tokens, length = contexts(tiny, seed=1)["contexts"].values()
    batch["reference"] = memory_of(tokens, tokens > 1, jnp.asarray(length))
    outcome = jax.jit(whole_round(model, config, reward=reward))(state.variables, batch, KEY)
    tried, earned = outcome.tried.told, np.asarray(outcome.accepted.told.reward)
    there = np.flatnonzero(outcome.tried.mask)
    assert len(there) > 3 and len(set(np.abs(earned[there]))) == len(there)

    mean = row_gradients(learning, batch["reference"]).mean(0)
    gradients = row_gradients(learning, tried)
    drawn = score("random", None, None, outcome.written.told, jax.random.split(KEY, 5)[1],
                  trainable=None)  # fmt: skip
    places = [np.argmax((outcome.written.told.tokens == row).all(1)) for row in tried.tokens]
    by_hand = {
        "norm": np.linalg.norm(gradients, axis=1),
        "alignment": gradients @ mean / np.maximum(np.linalg.norm(gradients, axis=1), 1e-9),
        "random": np.asarray(drawn)[places],
    }
    assert by_hand.keys() == set(SCORES)
    best = {kind: set(there[np.argsort(-by_hand[kind][there])[:2]]) for kind in SCORES}
    assert len(set(map(frozenset, best.values()))) == 3  # no two scores prefer the same
    for kind in SCORES:
        total, count = outcome.metrics[f"earned_by_{kind}"]
        lift, times = outcome.metrics[f"lift_held_by_{kind}"]
        assert count == times == 2
        np.testing.assert_allclose(total, earned[list(best[kind])].sum(), rtol=1e-6)
        assert np.isfinite(lift) and abs(lift) <= total * (1 + 1e-6)
    assert best["norm"] == {0, 1}  # tried are the best first, by the score that chose


def row_gradients(learning, memory) -> np.ndarray:
    """The gradients of the rows' mean losses, as vectors, each by a pass of its own."""
    model, state = learning
    chosen, rest = tree.split(state.params, in_bases)

    def loss(chosen, row):
        variables = {**state.variables, "params": tree.merge(chosen, rest)}
        total, weight, _ = language_model(model)(variables, row)
        return total / jnp.maximum(weight, 1e-8)

    gradient = jax.jit(jax.grad(loss))
    count = len(memory.source)
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], memory) for i in range(count)]
    found = [jax.tree.leaves(gradient(chosen, row)) for row in rows]
    return np.stack([np.concatenate([np.ravel(x) for x in leaves]) for leaves in found])


def test_scores_are_not_compared_unless_they_are_asked_for(tiny, learning):
    run = whole_round(learning[0], light(), reward=by_number)
    told = jax.eval_shape(run, learning[1].variables, contexts(tiny), KEY).metrics
    assert not any("_by_" in name for name in told)
    with pytest.raises(ConfigError, match="dream.compare = 5.*use at most keep"):
        settings(compare=5).check("dream")


def test_a_dream_may_have_to_agree_with_what_its_own_context_held_back_alone(tiny, learning):
    """Held rows that stand for their contexts: each dream is asked about the one it came from."""
    state, batch, seen = learning[1], contexts(tiny), []
    count, width = batch["contexts"]["tokens"].shape
    held = memory_of(
        jnp.broadcast_to(jnp.arange(count)[:, None], (count, width)),
        jnp.ones((count, width), bool),
        jnp.full((count,), width),
    )

    def which(before, after, batch):
        rows = batch["held"].tokens[:, 0]
        seen.append(len(rows))
        return jnp.ones(()), {"row": (rows.sum() * 1.0, jnp.ones(()))}

    def run(agree: str):
        return whole_round(learning[0], settings(agree=agree, score="random"), reward=which)

    jax.eval_shape(run("all"), state.variables, {**batch, "held": held}, KEY)
    outcome = jax.jit(run("own"))(state.variables, {**batch, "held": held}, KEY)
    assert set(seen[:-1]) == {count} and seen[-1] == 1
    # Dreams are written from the whole contexts, and each was asked about its own.
    given = [row[:n].tolist() for row, n in zip(*batch["contexts"].values(), strict=True)]
    starts = np.argmax(np.asarray(outcome.tried.written.weights) > 0, 1)
    written = zip(np.asarray(outcome.tried.written.tokens), starts, strict=True)
    froms = [given.index(tokens[:start].tolist()) for tokens, start in written]
    assert outcome.metrics["row"][0] == sum(froms)


def test_with_questions_contexts_are_written_from_whole(tiny, learning):
    cues = tiny.cues(3, 0, 4)
    answers = np.full((4, 2), 7, np.int32)
    answers[:, 1] = tiny.eos
    questions = {"prompts": cues["tokens"], "lengths": cues["length"], "answers": answers}
    batch = {**contexts(tiny), "questions": questions}
    found, metrics = once(learning, batch, settings(reward="questions", margin=-99.0))
    assert found.mask.all() and metrics["lift_logp"][1] == 4
    rows = {tuple(row[:n]) for row, n in zip(*batch["contexts"].values(), strict=True)}
    starts = np.argmax(np.asarray(found.written.weights) > 0, 1)
    for tokens, start in zip(np.asarray(found.written.tokens), starts, strict=True):
        assert tuple(tokens[:start]) in rows


def test_contexts_of_no_length_change_nothing(tiny, learning):
    model, state = learning
    batch = contexts(tiny)
    tokens, length = batch["contexts"].values()
    none = np.zeros(2, np.int32)

    def padded(junk, order):
        both = np.concatenate([tokens, np.full((2, 6), junk, np.int32)])
        lengths = np.concatenate([length, none])
        return {**batch, "contexts": {"tokens": both[order], "length": lengths[order]}}

    run = jax.jit(round_of(model, settings()))
    want = run(state.variables, padded(9, [0, 1, 2, 3, 4]), KEY)
    got = run(state.variables, padded(7, [3, 0, 1, 4, 2]), KEY)
    assert want[1]["accepted"][1] == 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


def test_trials_a_few_at_once_give_the_same_round(tiny, learning):
    want = once(learning, contexts(tiny), light(), reward=by_number)
    got = once(learning, contexts(tiny), light(at_once=2), reward=by_number)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_what_dreams_are_learned_as_may_be_rows_that_they_say(tiny, learning):
    """Two rows for every dream; those that say nothing are masked, dreams stay as written."""
    model, state = learning
    seen = []

    def expand(told, batch, keys):
        jax.debug.callback(lambda count: seen.append(int(count)), keys.shape[0])
        fit = told.tokens[:, 1] % 2 == 0
        rows = jnp.broadcast_to(batch["text"], (len(fit), 2, 6))
        lesson = memory_of(rows[0], rows[0] > 0, jnp.full(2, 6))
        lesson = jax.tree.map(lambda x: jnp.stack([x] * len(fit)), lesson)
        pace = jnp.where(fit, 1.0, 0.0)[:, None] * jnp.ones(2)
        return Lesson(lesson, pace), fit

    config = dataclasses.replace(light(alone=True), keep=4, batch=1)
    batch = {**contexts(tiny), "text": jnp.arange(3, 9)}
    run = jax.jit(whole_round(model, config, reward=always, expand=expand))
    outcome = run(state.variables, batch, KEY)
    usual = jax.jit(whole_round(model, config, reward=always))(state.variables, batch, KEY)
    assert seen == [config.dreams]
    said = outcome.written.told.tokens
    assert np.array_equal(said, usual.written.told.tokens)
    fit = np.asarray(said[:, 1] % 2 == 0)
    assert 0 < fit.sum() < len(fit)
    assert np.array_equal(outcome.written.mask, fit & np.asarray(usual.written.mask))
    total, count = outcome.metrics["fit"]
    assert (int(total), int(count)) == (fit.sum(), config.dreams)
    # All learn the same text here: the losses of trials begin alike, and not at those of dreams.
    first, many = outcome.metrics["trial_first"]
    loss, weight, _ = language_model(model)(
        state.variables, memory_of(batch["text"][None], jnp.arange(6)[None] > 0, jnp.array([6]))
    )
    np.testing.assert_allclose(first / many, loss / weight, rtol=1e-3)


def ranks_beside_matrices(variables) -> set[int]:
    """Of the adapters with which a model would run."""
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"]["blocks"])
    named = [([key.key for key in path], leaf) for path, leaf in leaves]
    return {leaf.shape[-1] for names, leaf in named if names[-2:] == ["adapter", "a"]}


def test_the_writer_writes_and_the_plain_learner_is_tried(tiny, learning):
    model, state = learning
    loud = jax.tree.map(lambda x: x + 0.5, state.params[WRITER])
    other = state.replace(params={**state.params, WRITER: loud})
    config = light(rank=3)  # the writer's is 2
    seen = []

    def spy(before, after, batch):
        seen.append((ranks_beside_matrices(before), ranks_beside_matrices(after)))
        return jnp.ones(()), {}

    plain, _ = once(learning, contexts(tiny), config, reward=spy)
    written, _ = once((model, other), contexts(tiny), config, reward=spy)
    assert (np.asarray(plain.written.tokens) != np.asarray(written.written.tokens)).any()
    assert len(seen) > 1 and all(pair == (set(), {3}) for pair in seen), seen


def test_a_round_keeps_the_laws(tiny, learning):
    model, state = learning
    batches = [contexts(tiny, seed) for seed in range(2)]

    @functools.cache  # compiled once for all of them
    def make(axis_name=None):
        return dream(model, settings(), reward=by_number)

    brief = light(dreams=4, steps=1)  # run operation by operation
    eager = lambda axis_name=None: dream(model, brief, reward=by_number)  # noqa: E731
    testing.jitted_equals_eager(eager, state, batches[:1])
    testing.traces_once(make, state, batches)
    testing.vmapped_seeds_equal_a_loop(make, state, batches[0])
    testing.frozen_stay_frozen(make, state, batches, ["params", "slots", "anchors", "cues"])


def for_four_devices(tiny, seed=0):
    """A context for each device, one of which is padding; nothing else is a multiple of four."""
    batch = contexts(tiny, seed)
    rows = jax.tree.map(lambda x: np.concatenate([x, 0 * x[:1]]), batch["contexts"])
    return {**batch, "contexts": rows}


def on_four_devices(make, state, batch):
    """The outcome of one step by four devices inside ``shard_map``, held to that of one alone."""
    alone = make()
    start = testing.begin(alone, state)
    want = testing.run(jax.jit(alone.step), start, [batch])
    mesh = parallel.mesh({"data": 4})
    step = parallel.shard_map_step(lambda axis: make(axis).step, mesh, donate=False)
    got = testing.run(step, parallel.replicate(start, mesh), [batch])
    testing.same("3 (shard_map)", got, want, testing.Tolerance())
    return want


def test_devices_that_share_a_round_and_its_reinforcement_agree_with_one_alone(tiny, learning):
    model, state = learning

    def make(axis_name=None):
        return reinforce(model, settings(sketch=16, margin=-1.0, worse=1.0), axis_name=axis_name)

    want = on_four_devices(make, state, for_four_devices(tiny))
    assert tree.differing(want.state.params[WRITER], state.params[WRITER])
    assert {"lift_held", "lift_memories", "writer_loss"} <= want.metrics.keys()


def test_devices_that_share_a_round_learn_the_dreams_of_one_alone(tiny, learning):
    model, state = learning
    update = optimizer(dataclasses.replace(tiny.config(), optimizer="sgd", learning_rate=0.1))

    def make(axis_name=None):
        extract = dreams(model, light(keep=1), reward=always, axis_name=axis_name)
        return consolidate(extract, language_model(model, 8), update, axis_name=axis_name)

    want = on_four_devices(make, state, for_four_devices(tiny))
    assert tree.differing(want.state.params, state.params)


def test_devices_share_every_minibatch_of_the_dreams_of_one_alone(tiny, learning):
    """Six dreams in two minibatches of three: one device has nothing in either."""
    model, state = learning
    update = optimizer(dataclasses.replace(tiny.config(), optimizer="sgd", learning_rate=0.1))

    def make(axis_name=None):
        extract = dreams(model, light(keep=6, extra=0), reward=always, axis_name=axis_name)
        objective = language_model(model, 8)
        return consolidate(extract, objective, update, inner=2, axis_name=axis_name)

    batch = {**for_four_devices(tiny), "rows": np.zeros((2, 4), np.int32)}
    want = on_four_devices(make, state, batch)
    first, both = (want.metrics[name] for name in ("first_loss", "loss"))
    assert 0 < first[1] < both[1]  # two minibatches, and not of the same dreams
    assert abs(2 * first[0] - both[0]) > 0.1


def test_dreams_that_minibatches_cannot_share_are_refused_wherever_they_lie(tiny, learning):
    model, state = learning
    batch = {**contexts(tiny), "rows": np.zeros((3, 4), np.int32)}
    extract = dreams(model, light(), reward=always).extract
    with pytest.raises(ConfigError, match=r"inner = 3: must divide the rows of a memory \(4\)"):
        jax.eval_shape(extract, state.variables, (), batch, KEY)


# --- learning what was dreamt --------------------------------------------------------------------


def test_a_kept_round_is_learned_as_the_extraction_of_the_same_round_is(tiny, learning):
    model, state = learning
    config, batch = light(), contexts(tiny)
    update = optimizer(dataclasses.replace(tiny.config(), optimizer="sgd", learning_rate=0.1))
    task = language_model(model, chunk=8)
    at_once = consolidate(dreams(model, config, reward=by_number), task, update)
    first = state.replace(private=at_once.init(state.params, KEY))
    want, _ = jax.jit(at_once.step)(first, batch, KEY)

    phase, learn = dream(model, config, reward=by_number), consolidate(given(), task, update)
    dreamt = state.replace(private=phase.init(state.params, KEY))
    dreamt, _ = jax.jit(phase.step)(dreamt, batch, KEY)
    second = dreamt.replace(private=learn.init(state.params, KEY))
    got, _ = jax.jit(learn.step)(second, dreamt.private.told, KEY)
    assert tree.differing(want.params, state.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got.params, want.params
    )


def test_a_night_can_put_dreams_into_a_fresh_expert(tiny, learning):
    model, state = learning
    closed = state.replace(slots=model.init_slots())
    sleep = tiny.config(updates=2, inner=1, epochs=2, alpha=1.0, learning_rate=0.05)
    extract = dreams(model, light(), reward=always)
    parts = night(model, sleep, "fast", "slow", extract=extract, objective=language_model(model))
    now = closed.replace(private=parts.seed.init(state.params, KEY))
    batch = {**contexts(tiny), "rows": np.zeros((1, 1), np.int32), "today": np.int32(1)}
    for step in (parts.begin, parts.seed.step, parts.end):
        now, metrics = jax.jit(step)(now, batch, KEY)
    assert now.slots["slow"].active.tolist() == [True, False, False]
    assert metrics["rolled_back"][0] == 0 and int(now.counters["nights"]) == 1
    moved = tree.differing(get_level(now.params, "slow"), get_level(closed.params, "slow"))
    assert {name.split("'")[1] for name in moved} == {"experts", "router"}


# --- reinforcement -------------------------------------------------------------------------------


def reinforced(learning, batch, config, reward=by_number, rounds=1):
    model, state = learning
    phase = repeat(rounds, reinforce(model, config, reward=reward))
    state = state.replace(private=phase.init(state.params, KEY))
    batches = jax.tree.map(lambda x: np.stack([x] * rounds), batch)
    return jax.jit(phase.step)(state, batches, KEY)


def test_only_the_writers_adapters_move_and_every_memory_keeps_its_bits(tiny, learning):
    state = learning[1]
    after, metrics = reinforced(learning, contexts(tiny), light(), rounds=2)
    before = {n: x for n, x in state.params.items() if n != WRITER}
    assert not tree.differing({n: x for n, x in after.params.items() if n != WRITER}, before)
    for part in ("slots", "anchors", "cues"):
        assert not tree.differing(getattr(after, part), getattr(state, part))
    assert tree.differing(after.params[WRITER], state.params[WRITER])
    assert metrics["writer_taught"][1] == 2 and metrics["accepted"][1] == 8


def test_learners_side_by_side_are_reinforced_as_each_is_alone(tiny, learning):
    model, state = learning
    make = lambda axis_name=None: reinforce(model, light(), reward=by_number)  # noqa: E731
    testing.vmapped_seeds_equal_a_loop(make, state, contexts(tiny))


def test_the_writer_becomes_more_likely_to_write_what_was_accepted(tiny, learning):
    config = light(writer_epochs=12, writer_restarts=False)
    model = learning[0]
    after, _ = reinforced(learning, contexts(tiny), config)
    loss = jax.jit(lambda p: of_writer(language_model(model, 8))(
        {**after.variables, "params": p}, after.private.written)[0])  # fmt: skip
    assert loss(after.params) < loss(learning[1].params) - 0.1


def test_a_round_without_reward_leaves_the_writer_bit_for_bit(tiny, learning):
    never = lambda before, after, batch: (jnp.zeros(()), {})  # noqa: E731
    after, metrics = reinforced(learning, contexts(tiny), light(), reward=never)
    assert not tree.differing(after.params, learning[1].params)
    assert metrics["writer_taught"] == (0, 1)


@pytest.mark.parametrize("restarts", [True, False])
def test_a_writer_that_restarts_forgets_the_rounds_before(tiny, learning, restarts):
    model, state = learning
    moved = jax.tree.map(lambda x: x * 3 + 1.0, state.params[WRITER])
    other = (model, state.replace(params={**state.params, WRITER: moved}))
    config = light(writer_restarts=restarts)
    after, _ = reinforced(other, contexts(tiny), config, reward=always)
    named = jax.tree_util.tree_leaves_with_path(after.params[WRITER])
    b = max(float(jnp.abs(x).max()) for path, x in named if path[-1].key == "b")
    assert (b < 0.1) == restarts


def test_a_writer_that_keeps_a_few_dreams_at_once_learns_the_same(tiny, learning):
    """Three of the four that were accepted, then the other."""
    model, state = learning
    accepted, _ = once(learning, contexts(tiny), light(), reward=always)

    def taught(rows):
        phase = tutor(model, light(writer_rows=rows, writer_epochs=1))
        start = state.replace(private=phase.init(state.params, KEY))
        return jax.jit(phase.step)(start, accepted, KEY)[0].params[WRITER]

    want, got = taught(0), taught(3)
    assert tree.differing(want, state.params[WRITER])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, want)


def test_a_learner_without_a_writer_cannot_be_reinforced(learning):
    model, state = learning
    params = {name: x for name, x in state.params.items() if name != WRITER}
    with pytest.raises(ConfigError, match="with_writer"):
        reinforce(model, settings()).init(params, KEY)


def test_a_learner_without_cues_is_asked_for_no_memories(tiny, learning):
    model, state = learning
    bare = state.replace(cues=())
    with pytest.raises(ConfigError, match=r"dream\.memories = 3: this learner keeps no cues"):
        once((model, bare), contexts(tiny), settings())
    once((model, bare), contexts(tiny), settings(memories=0))
