"""Dreaming after a night's consolidation: what it may move, and what undoes it to the last bit."""

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
from sleeplm.core.types import WRITER, Memory, Phase
from sleeplm.memory.anchors import pool_of
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.memory.slots import put_slot, take_slot
from sleeplm.methods.config import TeacherConfig
from sleeplm.methods.dreams.absorb import absorb, dreams_and_teachers
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.stage import _once, dreaming
from sleeplm.methods.dreams.write import DREAM, Contexts, Dreams, whole
from sleeplm.methods.learner import learner
from sleeplm.models.transformer import next_token_weights
from sleeplm.runtime import parallel

pytestmark = pytest.mark.slow  # nights take long to compile
KEY, PAIR, TONIGHT = jax.random.key(4), ("fast", "slow"), 0
OPENS = {"updates": 0, "becomes": "dusk"}  # a night that opens an expert and consolidates nothing


def settings(**changes) -> DreamConfig:
    sizes = {"dreams": 4, "context_tokens": 6, "new_tokens": 4, "keep": 2, "extra": 0, "rounds": 2}
    nightly = {"updates": 4, "inner": 2, "rows": 2, "absorb_learning_rate": 0.05, "gate": 24}
    return DreamConfig(**{**sizes, **nightly, "writer_rank": 2, "ngram": 2, **changes})


class Sleeper:
    """A learner after a night that ended well, and the jitted steps of its dreaming."""

    def __init__(self, tiny, **changes):
        # Silu experts push one way, so that one can be made to say one thing only.
        self.model = tiny.model(tiny.two_levels(activation="silu"))
        self.sleep, self.config = tiny.config(**OPENS, alpha=1.0), settings(**changes)
        made, state = tiny.learner(self.model, self.sleep, dream=self.config)
        sharp = {**state.params, "final_norm": state.params["final_norm"] * 16}
        state = state.replace(params=sharp)
        (rest,), batch = made.rests, {**tiny.rows(self.sleep, today=1)}
        for step in (rest.begin, rest.end):
            state, _ = jax.jit(step)(state, batch, KEY)
        self.stage, self.state = made.dreaming, state
        steps = (self.stage.begin, self.stage.absorb, self.stage.end)
        self.begin, self.absorb, self.end = map(jax.jit, steps)
        self.batch = {"today": np.int32(1), "rows": np.arange(4, dtype=np.int32).reshape(2, 2)}

    def dreaming(self, accepted: float = 1.0):
        """The state after the rounds, with dreams of the test's own in place of theirs."""
        state, _ = self.begin(self.state, self.batch, KEY)
        working = state.private["dream"]
        random, rows = np.random.default_rng(7), self.config.rounds * self.config.kept
        tokens = random.integers(3, 40, (rows, self.config.width)).astype(np.int32)
        dreams = whole(Contexts(jnp.asarray(tokens), jnp.full((rows,), self.config.width)))
        dreams = Dreams(dreams, dreams).weighed(jnp.full((rows,), accepted))
        private = {**state.private, "dream": working._replace(accepted=dreams)}
        return state.replace(private=private)

    def absorbed(self, state, times: int = 2):
        metrics = []
        for i in range(times):
            state, one = self.absorb(state, self.batch, jax.random.fold_in(KEY, i))
            metrics.append(one)
        return state, metrics

    def spoilt(self, state, b):
        """The state whose expert of tonight is loud and writes ``b`` (broadcast to [N, R, D])."""
        pool = pool_of(state.params, "slow")
        expert = take_slot(pool, jnp.int32(TONIGHT))
        a, old = expert["experts"]["a"], expert["experts"]["b"]
        expert["experts"] = {"a": 100 * a, "b": jnp.broadcast_to(b, old.shape)}
        level = get_level(state.params, "slow")
        level = {**level, **put_slot(pool, jnp.int32(TONIGHT), expert)}
        return state.replace(params=with_levels(state.params, {"slow": level}))


@pytest.fixture(scope="module")
def sleeper(tiny):
    """``changes -> Sleeper``, each made once."""
    return functools.cache(lambda **changes: Sleeper(tiny, **changes))


def value(metrics, name) -> float:
    total, weight = metrics[name]
    return float(total / weight)


def differences(a, b) -> list[str]:
    """Paths that differ between two learners, counters of dreams left out."""
    counters = [
        {name: x for name, x in s.counters.items() if name not in ("dreamt", "undone", "dreaming")}
        for s in (a, b)
    ]
    return tree.differing(*(s.replace(counters=c) for s, c in zip((a, b), counters, strict=True)))


# --- nights that cannot have dreams ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"into": "pool"}, r"sleep\.into = 'pool': .* an expert that the night has opened"),
        (
            {"becomes": "dusk", "teachers": [TeacherConfig("dawn", "past")]},
            r"sleep\.becomes = 'dusk': its dawn is then tonight's",
        ),
    ],
)
def test_nights_that_leave_nothing_to_dream_with_are_refused(tiny, changes, message):
    sleep = tiny.config(alpha=1.0, lam=0.0, **changes)
    with pytest.raises(ConfigError, match=message):
        learner(tiny.model(tiny.two_levels()), sleep, dream=settings())


def test_a_learner_without_nights_has_no_dreams(tiny):
    with pytest.raises(ConfigError, match=r"model\.levels = \['only'\]: no level has a night"):
        learner(tiny.model([tiny.level("only")]), tiny.config(), dream=settings())


# --- a night's dreaming that stays ----------------------------------------------------------------


def test_dreams_move_tonights_expert_and_nothing_else(sleeper):
    one = sleeper()
    state, told = one.absorbed(one.dreaming())
    state, metrics = one.end(state, one.batch, KEY)
    assert value(metrics, "absorbed") == 1 and value(metrics, "undone") == 0
    assert value(told[-1], "dream_loss") < value(told[0], "dream_loss")
    assert told[0]["divergence"][1] > 0  # teachers told beside the dreams
    moved = differences(state, one.state)
    pool = ".params['blocks']['levels']['slow']"
    may_move = tuple(f"{pool}['{part}']" for part in ("experts", "router"))
    assert moved and all(path.startswith(may_move) for path in moved), moved
    before, after = (pool_of(s.params, "slow") for s in (one.state, state))
    for slot in (1, 2):
        pair = (take_slot(pool, jnp.int32(slot)) for pool in (before, after))
        assert tree.differing(*pair) == []
    assert [int(state.counters[name]) for name in ("dreamt", "undone", "dreaming")] == [1, 0, 0]


def test_dreams_are_learned_by_their_loss_and_all_else_as_teachers_would_tell_it(tiny, sleeper):
    """What a dream has for a reference is looked at by nobody."""
    one, dreamt = sleeper(), np.arange(8) < 4
    model, variables, text = one.model, one.state.variables, tiny.text(0)
    tokens, segments = text["tokens"], text["segments"]
    blocks = tiny.params(model, seed=1)["blocks"]
    teacher = {**variables, "params": {**variables["params"], "blocks": blocks}}
    share = np.asarray([1.0, 0.5, 0.25, 0.0, 1.0, 0.5, 2.0, 0.25], np.float32)
    weights = next_token_weights(tokens, segments) * share[:, None]
    memory = Memory(
        tokens=tokens,
        weights=weights,
        segments=segments,
        reference=model.hidden(teacher, tokens, segments),
        reward=jnp.zeros(8),
        source=jnp.where(dreamt, DREAM, 1),
    )
    wanted, logp = (
        jax.nn.log_softmax(model.logits(v, tokens, segments))[:, :-1] for v in (teacher, variables)
    )
    surprise = -jnp.take_along_axis(logp, tokens[:, 1:, None], -1)[..., 0]
    apart = (jnp.exp(wanted) * (wanted - logp)).sum(-1)
    by_hand = np.asarray(jnp.where(dreamt[:, None], surprise, apart) * weights[:, 1:])
    learn = jax.jit(dreams_and_teachers(model, one.sleep))
    loss, weight, told = learn(variables, memory)
    np.testing.assert_allclose((loss, weight), (by_hand.sum(), weights[:, 1:].sum()), rtol=1e-4)
    for name, rows in (("dream_loss", dreamt), ("divergence", ~dreamt)):
        want = by_hand[rows].sum(), weights[rows, 1:].sum()
        assert min(want) > 1
        np.testing.assert_allclose(told[name], want, rtol=1e-4, err_msg=name)


def test_what_teachers_tell_beside_dreams_weighs_what_the_settings_say(sleeper):
    """Where tonight's expert is no longer what they would tell."""

    def first(one):
        """(sum, weight) of the first minibatch: of teachers, and of dreams."""
        noise = jax.random.normal(KEY, (4, 1))
        _, (told,) = one.absorbed(one.spoilt(one.dreaming(), noise), 1)
        both, teachers = (np.asarray(told[f"first_{name}"]) for name in ("loss", "divergence"))
        return teachers, both - teachers

    (alike, dreams), (less, same) = first(sleeper()), first(sleeper(past=0.25))
    assert min(*alike, *dreams) > 1
    np.testing.assert_allclose(less, 0.25 * alike, rtol=1e-4)
    np.testing.assert_allclose(same, dreams, rtol=1e-4)


def test_after_dreaming_nothing_is_kept_of_the_texts_it_was_about(sleeper):
    one = sleeper()
    middle, _ = one.absorbed(one.dreaming(), 1)
    assert np.asarray(middle.private["dream"].accepted.written.tokens).any()
    state, _ = one.end(middle, one.batch, KEY)
    working = state.private["dream"]
    assert tree.differing(working, one.state.private["dream"]) == []
    assert not np.asarray(working.accepted.written.tokens).any()


def test_only_a_night_that_ended_well_is_followed_by_dreams(tiny, sleeper):
    assert int(sleeper().state.counters["dreaming"]) == 1
    model, night = tiny.model(), tiny.config()  # of updates, of which none is done
    made, state = tiny.learner(model, night, dream=settings())
    for step in (made.rests[0].begin, made.rests[0].end):
        state, _ = jax.jit(step)(state, tiny.rows(night), KEY)
    assert [int(state.counters[name]) for name in ("rolled_back", "dreaming")] == [1, 0]


def test_without_an_accepted_dream_every_bit_stays(sleeper):
    one = sleeper()
    state, told = one.absorbed(one.dreaming(accepted=0.0))
    assert {float(weight) for each in told for _, weight in each.values()} == {0.0}
    state, metrics = one.end(state, one.batch, KEY)
    assert differences(state, one.state) == []
    assert value(metrics, "absorbed") == value(metrics, "undone") == 0
    assert metrics["gate_recall"][1] == 0


def test_dreams_can_have_an_expert_of_their_own(sleeper):
    one = sleeper(into="new", gate=0)
    state, _ = one.absorbed(one.dreaming())
    state, metrics = one.end(state, one.batch, KEY)
    table = state.slots["slow"]
    assert table.active.tolist() == [True, True, False]
    assert table.since.tolist() == [0, 1, -1]  # its own is of the day that the batch says
    mine = (take_slot(pool_of(s.params, "slow"), jnp.int32(TONIGHT)) for s in (one.state, state))
    assert tree.differing(*mine) == []
    assert np.asarray(take_slot(pool_of(state.params, "slow"), jnp.int32(1))["experts"]["b"]).any()
    assert "gate_recall" not in metrics
    nothing, _ = one.end(one.dreaming(accepted=0.0), one.batch, KEY)
    assert differences(nothing, one.state) == []  # its slot is free again


def test_an_expert_of_their_own_is_of_the_day_that_was_dreamt_of(sleeper):
    """Where several levels sleep there are more good nights than days."""
    one = sleeper(into="new", gate=0)
    counters = {**one.state.counters, "nights": jnp.int32(5)}
    state, _ = one.begin(one.state.replace(counters=counters), {**one.batch, "today": 3}, KEY)
    assert state.slots["slow"].since.tolist() == [0, 3, -1]


def test_what_an_earlier_round_has_accepted_is_learned_once():
    """A dream that was not accepted makes no other a repeat of it."""
    tokens = jnp.asarray([[1, 5, 6], [1, 7, 8], [1, 9, 9], [1, 7, 8], [1, 5, 6], [1, 9, 9]])
    told = whole(Contexts(tokens, jnp.full(6, 3)))
    dreams = Dreams(told, told).weighed(jnp.asarray([1.0, 1, 0, 1, 0, 1]))
    left, repeated = _once(dreams)
    assert left.mask.tolist() == [True, True, False, False, False, True]
    assert float(repeated) == 1


# --- the gate -------------------------------------------------------------------------------------


def test_recall_that_falls_undoes_the_whole_dreaming_to_the_last_bit(sleeper):
    one = sleeper()
    state, _ = one.absorbed(one.dreaming())
    writer = jax.tree.map(lambda x: x + 1.0, state.params[WRITER])
    state = state.replace(params={**state.params, WRITER: writer})
    noise = 3.0 * jax.random.normal(KEY, (4, 1))
    state, metrics = one.end(one.spoilt(state, noise), one.batch, KEY)
    assert value(metrics, "gate_recall") < -one.config.gate_margin
    assert value(metrics, "undone") == value(metrics, "undone_recall") == 1
    assert value(metrics, "absorbed") == value(metrics, "undone_cluster") == 0
    assert differences(state, one.state) == []
    assert [int(state.counters[name]) for name in ("dreamt", "undone", "dreaming")] == [0, 1, 0]


def test_outputs_that_become_one_undo_it_too_however_likely_memories_are(sleeper):
    one = sleeper(gate_margin=1e9)
    state, _ = one.absorbed(one.dreaming())
    token = 1e3 * state.params["embed"][9]
    state, metrics = one.end(one.spoilt(state, token), one.batch, KEY)
    assert value(metrics, "gate_cluster") > one.config.gate_cluster
    assert value(metrics, "gate_cluster_before") < one.config.gate_cluster
    assert value(metrics, "undone") == value(metrics, "undone_cluster") == 1
    assert value(metrics, "undone_recall") == 0
    assert differences(state, one.state) == []


def test_what_is_not_a_number_is_undone(sleeper):
    one = sleeper()
    state, _ = one.absorbed(one.dreaming())
    state, metrics = one.end(one.spoilt(state, jnp.nan), one.batch, KEY)
    assert value(metrics, "undone") == 1
    assert differences(state, one.state) == []


# --- laws -----------------------------------------------------------------------------------------


def test_learners_side_by_side_take_dreams_in_as_each_does_alone(sleeper):
    one = sleeper()
    state = one.dreaming()

    def make(axis_name=None) -> Phase:
        return absorb(one.model, one.sleep, one.config, PAIR, jnp.int32(TONIGHT))

    batch = {**one.batch, "dreams": state.private["dream"].accepted.told}
    testing.vmapped_seeds_equal_a_loop(make, state, batch)


def test_devices_that_share_what_is_absorbed_and_judged_agree_with_one_alone(sleeper):
    one, mesh = sleeper(), parallel.mesh({"data": 2})

    def spread(name):
        def make(axis):
            made = learner(one.model, one.sleep, dream=one.config, axis_name=axis)
            return getattr(made.dreaming, name)

        return parallel.shard_map_step(make, mesh, donate=False)

    start = one.dreaming()
    want, _ = one.absorb(start, one.batch, KEY)
    got, _ = spread("absorb")(parallel.replicate(start, mesh), one.batch, KEY)
    testing.same("absorbed", got, want, testing.Tolerance())
    spoilt = one.spoilt(want, 3.0 * jax.random.normal(KEY, (4, 1)))
    want = one.end(spoilt, one.batch, KEY)
    got = spread("end")(parallel.replicate(spoilt, mesh), one.batch, KEY)
    testing.same("judged", got, want, testing.Tolerance())
    assert value(want[1], "undone") == 1


def test_learners_side_by_side_are_judged_as_each_is_alone(sleeper):
    one = sleeper()
    good, _ = one.absorbed(one.dreaming())
    bad = one.spoilt(good, 3.0 * jax.random.normal(KEY, (4, 1)))
    both = jax.tree.map(lambda *x: jnp.stack(x), good, bad)
    after, metrics = jax.jit(jax.vmap(one.stage.end, in_axes=(0, None, None)))(both, one.batch, KEY)
    assert metrics["undone"][0].tolist() == [0, 1]
    for e, state in enumerate((good, bad)):
        alone, _ = one.end(state, one.batch, KEY)
        mine = jax.tree.map(lambda x, e=e: x[e], after)
        assert differences(mine, alone) == []


def test_a_learner_that_reinforces_nothing_has_no_writer(tiny):
    model = tiny.model()
    made, state = tiny.learner(model, tiny.config(), dream=settings(reinforce=False))
    assert WRITER not in state.params
    assert made.dreaming.init(state.params).writer == ()
    with_one = dataclasses.replace(settings(), reinforce=True)
    assert WRITER in tiny.learner(model, tiny.config(), dream=with_one)[1].params
    assert callable(dreaming(model, tiny.config(), settings(), PAIR).round)
