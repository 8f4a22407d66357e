"""A night: what moves, what does not, who teaches, and what happens when it goes wrong."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sleeplm.core import tree
from sleeplm.core.errors import ConfigError, PoolFullError
from sleeplm.core.losses import forward_kl
from sleeplm.core.types import Extract
from sleeplm.memory.anchors import pool_of, teacher_variables
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.memory.slots import SlotTable, require_room, take_slot
from sleeplm.methods.config import SleepConfig, TeacherConfig, evening, merging, paper_v2
from sleeplm.methods.held_days import of_two_experts
from sleeplm.methods.merge import merge_night
from sleeplm.methods.objectives import seeding
from sleeplm.methods.sleep import night, sleep, teachings
from sleeplm.methods.update import only_slot
from sleeplm.models.decode import generate

PAIR = ("fast", "slow")
pytestmark = pytest.mark.slow

KEY = jax.random.key(8)


def noisy(subtree, scale, seed):
    leaves, structure = jax.tree.flatten(subtree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def open_slots(table, n):
    index = jnp.arange(len(table.active))
    return SlotTable(index < n, jnp.where(index < n, index, -1).astype(jnp.int32))


def at_dusk(tiny, config, *, taken=1, slots=3):
    """An evening: the sender has moved and holds an expert; the receiver has ``taken`` experts."""
    levels = tiny.two_levels(slots=slots)
    levels[0].slots, levels[0].top_k = 2, 1
    model = tiny.model(levels)
    state = tiny.learner(model, config)[1]
    fast, slow = (get_level(state.params, name) for name in PAIR)
    moved = {"base": noisy(fast["base"], 0.3, 1), "norm": fast["norm"]}
    learned = {"experts": noisy(fast["experts"], 0.3, 2), "router": noisy(fast["router"], 0.3, 3)}
    fast = fast | moved | jax.tree.map(lambda x: x, learned)
    used = pool_of(state.params, "slow")
    for slot in range(taken):
        used = fill(used, slot, 10 + slot)
    slots = {
        "fast": open_slots(state.slots["fast"], 2),
        "slow": open_slots(state.slots["slow"], taken),
    }
    params = with_levels(state.params, {"fast": fast, "slow": slow | used})
    counters = {**state.counters, "nights": jnp.int32(taken)}
    return model, state.replace(params=params, slots=slots, counters=counters)


def fill(pool, slot, seed):
    mask = {
        "experts": {name: lambda x: x.at[:, slot] for name in "ab"},
        "router": {"w": lambda x: x.at[:, :, slot], "bias": lambda x: x.at[:, slot]},
    }
    new = noisy(jax.tree.map(jnp.zeros_like, pool), 0.5, seed)
    return {
        part: {n: mask[part][n](x).set(at(new[part][n], part, n, slot)) for n, x in sub.items()}
        for part, sub in pool.items()
    }


def at(x, part, name, slot):
    return x[:, :, slot] if (part, name) == ("router", "w") else x[:, slot]


def through(model, config, state, tiny, **kwargs):
    phase = sleep(model, config, *PAIR, **kwargs)
    state = state.replace(private=phase.init(state.params, KEY))
    return jax.jit(phase.step)(state, tiny.rows(config), KEY)


def slot_of(state, level, slot):
    return take_slot(pool_of(state.params, level), jnp.int32(slot))


def assert_same(a, b):
    assert tree.differing(a, b) == []


# --- the two protocols ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [evening, paper_v2])
def test_a_night_writes_one_expert_prunes_the_sender_and_moves_nothing_else(tiny, protocol):
    config = tiny.config(protocol)
    model, before = at_dusk(tiny, config)
    after, metrics = through(model, config, before, tiny)

    # the new expert is slot 1, the first free one
    assert tree.differing(slot_of(after, "slow", 1), slot_of(before, "slow", 1))
    assert np.abs(slot_of(after, "slow", 1)["experts"]["b"]).max() > 0
    assert np.abs(slot_of(after, "slow", 1)["router"]["w"]).max() > 0
    for other in (0, 2):
        assert_same(slot_of(after, "slow", other), slot_of(before, "slow", other))
    assert after.slots["slow"].active.tolist() == [True, True, False]
    assert after.slots["slow"].since.tolist() == [0, 1, -1]

    # everything else, bit for bit
    changed = {"fast": get_level(before.params, "fast")}
    slow = get_level(after.params, "slow") | pool_of(before.params, "slow")
    assert_same(with_levels(after.params, changed | {"slow": slow}), before.params)
    assert_same((after.cues, after.key), (before.cues, before.key))

    # the sender: its start, or its dusk, without experts
    sender = get_level(after.params, "fast")
    becomes = before.anchors["fast"].start if protocol is evening else get_level(
        before.params, "fast"
    )  # fmt: skip
    assert_same((sender["base"], sender["norm"]), (becomes["base"], becomes["norm"]))
    for x in jax.tree.leaves(pool_of(after.params, "fast")):
        np.testing.assert_array_equal(x, 0.0)
    assert not after.slots["fast"].active.any()

    # and that is its dawn
    assert_same(after.anchors["fast"].dawn, sender)
    assert_same(after.anchors["fast"].start, before.anchors["fast"].start)
    assert int(after.counters["nights"]) == 2 and int(after.counters["rolled_back"]) == 0
    assert float(metrics["rolled_back"][0]) == 0.0
    assert float(metrics["loss"][1]) > 0


def test_in_v2_the_teacher_has_the_old_base_and_the_student_the_new_one(tiny):
    """Compute, consolidate, update: theta_new stands in the student before seeding begins."""
    config = tiny.config(paper_v2)
    model, before = at_dusk(tiny, config)
    parts = night(model, config, *PAIR)
    state = before.replace(private=parts.seed.init(before.params, KEY))
    student, _ = jax.jit(parts.begin)(state, tiny.rows(config), KEY)
    new, old = get_level(before.params, "fast"), before.anchors["fast"].dawn
    assert tree.differing(new["base"], old["base"])

    held = get_level(student.params, "fast")
    assert_same(held["base"], new["base"])
    assert not any(np.any(x) for x in jax.tree.leaves(pool_of(student.params, "fast")))

    teacher = teacher_variables(student.variables, *PAIR, "before_update")
    taught = get_level(teacher["params"], "fast")
    assert_same(taught["base"], old["base"])
    assert_same(pool_of(teacher["params"], "fast"), pool_of(before.params, "fast"))
    assert_same(teacher["slots"], before.slots)  # before expansion, experts of earlier sleeps open
    np.testing.assert_array_equal(slot_of(student, "slow", 1)["experts"]["b"], 0.0)


def test_the_night_brings_the_student_closer_to_its_teacher(tiny):
    config = tiny.config(
        evening, alpha=1.0, lam=0.0, updates=150, inner=2, epochs=3, decay=False, rollback=1.0
    )
    model, before = at_dusk(tiny, config)
    after, _ = through(model, config, before, tiny)
    anchor = after.anchors["fast"]
    assert float(anchor.last_loss) < 0.85 * float(anchor.first_loss)
    assert int(after.counters["rolled_back"]) == 0


# --- what is asked of the night ------------------------------------------------------------------


def rows_of_a_minibatch(tiny, config):
    model, state = at_dusk(tiny, config)
    extract = teachings(model, config, PAIR, config.teachers, None)
    private = extract.init(state.params, KEY)
    run = lambda: extract.extract(state.variables, private, tiny.rows(config), KEY)[0]  # noqa: E731
    return jax.eval_shape(run).tokens.shape[0] // (config.inner * config.rows)


@pytest.mark.parametrize(
    ("settings", "sets"),
    [
        ({"lam": 0.0, "alpha": 1.0}, 1),  # what the teacher says
        ({"lam": 1.0, "alpha": 1.0}, 1),  # what the student says
        ({"lam": 0.5, "alpha": 1.0}, 2),
        ({"lam": 0.5, "alpha": 0.5}, 3),  # and random-prefix continuations
        ({"lam": 0, "alpha": 1}, 1),
    ],
)
def test_data_sets_of_weight_zero_are_not_made(tiny, settings, sets):
    assert rows_of_a_minibatch(tiny, tiny.config(evening, **settings)) == sets


def test_every_teacher_brings_its_own_rows_weighted_and_numbered(tiny):
    teachers = [
        TeacherConfig("dusk", "today", 2.0, True),
        TeacherConfig("dawn", "past", 0.5, False),
    ]
    config = tiny.config(teachers=teachers, lam=0.25, alpha=0.5)
    model, state = at_dusk(tiny, config)
    extract = teachings(model, config, PAIR, teachers, None)
    private = extract.init(state.params, KEY)
    memory = jax.jit(lambda: extract.extract(state.variables, private, tiny.rows(config), KEY)[0])()
    block = np.repeat([0, 0, 0, 1, 1], config.rows)
    np.testing.assert_array_equal(memory.source, np.tile(block, config.inner))
    weights = np.asarray(memory.weights).reshape(config.inner, 5, -1).max(axis=(0, 2))
    np.testing.assert_allclose(weights, [0.75 * 2, 0.25 * 2, 2.0, 0.75 * 0.5, 0.25 * 0.5])
    rewarded = np.asarray(memory.reward).reshape(config.inner, 5, -1).any(axis=(0, 2))
    assert not rewarded[[0, 1, 3, 4]].any()


def test_without_imitation_the_score_function_is_not_in_the_night(tiny):
    config = tiny.config(evening, alpha=1.0, lam=0.0)
    model, state = at_dusk(tiny, config)
    parts = night(model, config, *PAIR)
    state = state.replace(private=parts.seed.init(state.params, KEY))
    metrics = jax.eval_shape(parts.seed.step, state, tiny.rows(config), KEY)[1]
    assert "divergence" in metrics and "advantage" not in metrics


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"group": 3}, "group"),
        ({"length": 4}, "length"),
        ({"updates": 5}, "updates"),
        ({"teachers": [TeacherConfig(imitate=False)]}, "alpha"),
    ],
)
def test_nights_that_cannot_work_are_refused(tiny, settings, field):
    with pytest.raises(ConfigError, match=rf"sleep\.{field}"):
        tiny.config(**settings)


# --- nights that go wrong ------------------------------------------------------------------------


def uphill():
    """Away from the teacher, ever faster."""
    return only_slot(optax.sgd(-3.0))


def poison(variables, memory):
    """NaN wherever the new expert is asked."""
    weight = memory.weights.sum()
    return jnp.sqrt(-1.0 - get_level(variables["params"], "slow")["experts"]["b"].sum()), weight, {}


def assert_evening_again(after, before):
    assert_same(after.params, before.params)
    assert_same(after.slots, before.slots)
    assert_same(after.cues, before.cues)
    for name in ("start", "dawn", "dawn_slots"):
        assert_same(getattr(after.anchors["fast"], name), getattr(before.anchors["fast"], name))
    assert int(after.counters["rolled_back"]) == 1
    assert int(after.counters["nights"]) == int(before.counters["nights"])


@pytest.mark.parametrize("pool", ["refuse", "merge_oldest"])
def test_a_night_of_nan_is_rolled_back_to_the_evening_bit_for_bit(tiny, pool):
    config = tiny.config(evening, alpha=1.0, lam=0.0, pool=pool)
    model, before = at_dusk(tiny, config)
    after, metrics = through(model, config, before, tiny, objective=poison)
    assert_evening_again(after, before)
    assert int(after.counters["skipped"]) == config.updates
    assert float(metrics["rolled_back"][0]) == 1.0


def leaps_at(update):
    """An optimiser with one update, far too large."""

    def step(updates, count, params=None):
        return jax.tree.map(lambda x: jnp.where(count == update, 50.0, 0.0 * x), updates), count + 1

    return only_slot(optax.GradientTransformation(lambda params: jnp.int32(0), step))


def breaks(model):
    """The night's objective, no number once an expert has leapt."""
    usual = seeding(model, forward_kl, alpha=1.0)

    def objective(variables, memory):
        loss, weight, aux = usual(variables, memory)
        far = jnp.abs(get_level(variables["params"], "slow")["experts"]["b"]).max() > 10
        return jnp.where(far, jnp.nan, loss), weight, aux

    return objective


def test_a_student_that_breaks_on_the_way_is_no_good_night(tiny):
    """Updates behind the break are refused, and weigh nothing: those before it look fine."""
    config = tiny.config(evening, alpha=1.0, lam=0.0)
    model, before = at_dusk(tiny, config)
    own = {"update": leaps_at(config.updates - 2), "objective": breaks(model)}
    after, metrics = through(model, config, before, tiny, **own)
    assert int(after.counters["skipped"]) == 1
    assert np.isfinite(float(metrics["divergence"][0])) and float(metrics["divergence"][1]) > 0
    assert_evening_again(after, before)


def test_a_night_that_diverges_is_rolled_back_and_the_next_one_is_good(tiny):
    config = tiny.config(evening, alpha=1.0, lam=0.0, updates=20, rollback=2.0)
    model, before = at_dusk(tiny, config)
    after, _ = through(model, config, before, tiny, update=uphill())
    assert_evening_again(after, before)
    night_after, _ = through(model, config, after, tiny)
    assert int(night_after.counters["nights"]) == int(before.counters["nights"]) + 1
    assert night_after.slots["slow"].active.tolist() == [True, True, False]


def test_without_a_rollback_factor_only_nan_undoes_a_night(tiny):
    config = tiny.config(evening, alpha=1.0, lam=0.0, updates=20, rollback=0.0)
    model, before = at_dusk(tiny, config)
    after, _ = through(model, config, before, tiny, update=uphill())
    anchor = after.anchors["fast"]
    assert float(anchor.last_loss) > 2 * float(anchor.first_loss)
    assert int(after.counters["rolled_back"]) == 0


def with_weights(model, config, weights):
    """The usual night, whose extractions weigh what ``weights`` says, one number a minibatch."""
    usual = teachings(model, config, PAIR, config.teachers, None)
    weights = jnp.asarray(weights, jnp.float32).reshape(config.blocks, config.inner)

    def extract(variables, count, batch, key):
        memory, _ = usual.extract(variables, usual.init(None, KEY), batch, key)
        rows = len(memory.tokens) // config.inner
        mine = jnp.repeat(weights[count], rows)[:, None]
        return dataclasses.replace(memory, weights=memory.weights * mine), count + 1

    return Extract(lambda params, key: jnp.int32(0), extract)


@pytest.mark.parametrize(
    "weights", [(1, 1, 0, 0), (0, 1, 1, 1), (0, 0, 1, 0), (0, 0, 0, 0)],
    ids=["nothing at last", "nothing at first", "once", "nothing at all"],
)  # fmt: skip
def test_minibatches_of_nothing_are_not_held_against_a_night(tiny, weights):
    """As those of a night of dreams of which none was accepted."""
    config = tiny.config(evening, alpha=1.0, lam=0.0)
    model, before = at_dusk(tiny, config)
    own = with_weights(model, config, weights)
    after, metrics = through(model, config, before, tiny, extract=own)
    assert float(metrics["rolled_back"][0]) == 0.0
    assert int(after.counters["nights"]) == int(before.counters["nights"]) + 1
    assert bool(np.any(slot_of(after, "slow", 1)["experts"]["b"])) is any(weights)


# --- full pools ----------------------------------------------------------------------------------


def test_a_full_pool_is_refused_in_one_clear_line(tiny):
    _, state = at_dusk(tiny, tiny.config(), taken=2)
    require_room(state.slots["slow"], "slow")
    _, full = at_dusk(tiny, tiny.config(), taken=3)
    with pytest.raises(PoolFullError, match=r"levels.slow.slots = 3.*merge_balanced") as error:
        require_room(full.slots["slow"], "slow")
    assert "\n" not in str(error.value)


def divergence_from(model, teacher, student, seed):
    """Mean KL per written token on fresh samples of the teacher."""
    prompts = jnp.ones((64, 1), jnp.int32)
    keys = jax.random.split(jax.random.key(seed), 64)
    write = jax.jit(functools.partial(generate, model, max_new=8))
    told = write(teacher, prompts, jnp.ones(64, jnp.int32), keys)
    read = jax.jit(model.logits)
    p, q = (jax.nn.log_softmax(read(v, told.tokens, told.segments)) for v in (teacher, student))
    kl = jnp.sum(jnp.exp(p) * (p - q), -1)[:, :-1]
    counts = told.written[:, 1:]
    return float(jnp.sum(kl * counts) / counts.sum())


@pytest.fixture(scope="module")
def merged(tiny):
    config = tiny.config(
        evening, pool="merge_oldest", updates=240, inner=4, epochs=3, lam=0.0,
        learning_rate=0.02, alpha=0.5,
    )  # fmt: skip
    model, before = at_dusk(tiny, config, taken=3)
    parts = merge_night(model, config, *PAIR)
    state = before.replace(private=parts.seed.init(before.params, KEY))
    batch = tiny.rows(config)
    state, _ = jax.jit(parts.begin)(state, batch, KEY)
    student = state.variables
    seed = jax.jit(parts.seed.step)
    for i in range(config.blocks):
        state, _ = seed(state, batch, jax.random.fold_in(KEY, i))
    after, metrics = jax.jit(parts.end)(state, batch, KEY)
    return model, before, student, after, metrics


def test_merging_frees_a_slot_and_keeps_all_others_bit_for_bit(merged):
    _, before, _, after, metrics = merged
    assert float(metrics["merge_failed"][0]) == 0.0
    assert after.slots["slow"].active.tolist() == [True, False, True]
    assert after.slots["slow"].since.tolist() == [0, -1, 2]
    assert_same(slot_of(after, "slow", 2), slot_of(before, "slow", 2))
    assert tree.differing(slot_of(after, "slow", 0), slot_of(before, "slow", 0))
    for x in jax.tree.leaves(slot_of(after, "slow", 1)):
        np.testing.assert_array_equal(x, 0.0)
    slow = get_level(after.params, "slow") | pool_of(before.params, "slow")
    assert_same(with_levels(after.params, {"slow": slow}), before.params)  # the sender at dusk
    assert_same(after.slots["fast"], before.slots["fast"])
    assert_same(after.anchors["fast"].dawn, before.anchors["fast"].dawn)
    require_room(after.slots["slow"], "slow")


def test_the_balanced_pool_merges_whom_its_ledger_names(tiny):
    config = tiny.config(evening, pool="merge_balanced", updates=4, inner=2, epochs=1)
    model, before = at_dusk(tiny, config, taken=3)
    table = SlotTable(jnp.ones(3, bool), jnp.asarray([0, 5, 6], jnp.int32))  # 5, 1 and 1 nights
    before = before.replace(
        slots={**before.slots, "slow": table},
        counters={**before.counters, "nights": jnp.int32(7)},
    )
    parts = merge_night(model, config, *PAIR)
    state = before.replace(private=parts.seed.init(before.params, KEY))
    batch = tiny.rows(config)
    state, _ = parts.begin(state, batch, KEY)
    state, _ = jax.jit(parts.seed.step)(state, batch, KEY)
    after, metrics = parts.end(state, batch, KEY)
    assert (float(metrics["kept"][0]), float(metrics["freed"][0])) == (5.0, 6.0)
    assert after.slots["slow"].since.tolist() == [0, 5, -1]
    assert_same(slot_of(after, "slow", 0), slot_of(before, "slow", 0))


def test_to_a_merging_today_is_what_its_two_experts_hold(tiny):
    """Cues of the real today, of which nothing is known at dawn, are nobody's."""
    config = tiny.config(evening, pool="merge_balanced", updates=4, inner=2, epochs=1)
    model, state = at_dusk(tiny, config, taken=3)
    table = SlotTable(jnp.ones(3, bool), jnp.asarray([4, 0, 2], jnp.int32))  # two nights each
    days = jnp.asarray([-2, -1, 0, 1, 2, 3, 4, 5, 6], jnp.int32)
    cues = jax.tree.map(lambda x: x[: len(days)], state.cues)
    state = state.replace(
        slots={**state.slots, "slow": table},
        cues=dataclasses.replace(cues, day=days),
        counters={**state.counters, "nights": jnp.int32(6)},
    )
    parts = merge_night(model, config, *PAIR)
    state = state.replace(private=parts.seed.init(state.params, KEY))
    state, _ = parts.begin(state, tiny.rows(config), KEY)
    assert state.slots["slow"].active.tolist() == [True, True, False]
    listed = Extract(
        lambda params, key: (), lambda variables, s, batch, key: (variables["cues"], s)
    )
    extract = of_two_experts(listed, PAIR).extract
    found, _ = extract(state.variables, (), {"today": jnp.int32(6)}, KEY)
    assert found.day.tolist() == [-2, -1, 6, 6, 6, 6, 4, 5, -2]


def test_those_who_teach_a_night_teach_a_merging_awake_at_dawn():
    teachers = [
        TeacherConfig("dusk", "today", uncued=0.4, times=2),
        TeacherConfig("origin", "before", framed=True, weight=3.0),
    ]
    found = merging(SleepConfig(teachers=teachers, alpha=0.5, cues="self"))
    assert found.teachers == [
        TeacherConfig("dawn", "today", uncued=0.4, times=2, imitate=False),
        TeacherConfig("origin", "before", framed=True, weight=3.0, imitate=False),
    ]
    assert (found.alpha, found.cues) == (1.0, "subjects")


@pytest.mark.parametrize(("own", "updates"), [(0, 12), (4, 4)])
def test_a_merging_has_updates_of_its_own_or_as_many_as_a_night(tiny, own, updates):
    settings = {"updates": 12, "merge_updates": own, "inner": 2, "epochs": 2}
    config = tiny.config(evening, pool="merge_oldest", alpha=1.0, **settings)
    assert (merging(config).updates, merging(config).blocks) == (updates, updates // 4)
    model, state = at_dusk(tiny, config, taken=3)
    parts = merge_night(model, config, *PAIR)
    state = state.replace(private=parts.seed.init(state.params, KEY))
    state, _ = jax.jit(parts.begin)(state, tiny.rows(config), KEY)
    assert int(state.anchors["fast"].updates) == updates  # over which its learning rate falls


@pytest.mark.parametrize("make", [evening, paper_v2])
def test_a_merging_tells_of_its_two_experts_and_of_all_else_whoever_teaches(make):
    sources = {(teacher.state, teacher.source) for teacher in merging(make()).teachers}
    both = {("dawn", "today"), ("dawn", "past")}
    assert sources in (both, {("dawn", "all")})


def test_merging_keeps_more_of_what_was_known_than_dropping_an_expert(merged):
    model, before, _, after, _ = merged
    anchor = before.anchors["fast"]

    def awake_at_dawn(state, slots):
        params = with_levels(state.params, {"fast": anchor.dawn})
        return {"params": params, "slots": {"fast": anchor.dawn_slots, "slow": slots}}

    knew = awake_at_dawn(before, before.slots["slow"])
    table = before.slots["slow"]
    losses = [
        divergence_from(model, knew, awake_at_dawn(before, table_without(table, slot)), seed=3)
        for slot in (0, 1)
    ]
    kept = divergence_from(model, knew, awake_at_dawn(after, after.slots["slow"]), seed=3)
    assert kept < min(losses)


def table_without(table, slot):
    return SlotTable(table.active.at[slot].set(False), table.since.at[slot].set(-1))


def test_a_merge_that_fails_leaves_the_evening_as_it_was(tiny):
    config = tiny.config(
        evening, pool="merge_oldest", updates=8, lam=0.0, rollback=1e-9  # nothing is good enough
    )  # fmt: skip
    model, before = at_dusk(tiny, config, taken=3)
    parts = merge_night(model, config, *PAIR)
    state = before.replace(private=parts.seed.init(before.params, KEY))
    batch = tiny.rows(config)
    state, _ = jax.jit(parts.begin)(state, batch, KEY)
    seed = jax.jit(parts.seed.step)
    for i in range(config.blocks):
        state, _ = seed(state, batch, jax.random.fold_in(KEY, i))
    after, metrics = jax.jit(parts.end)(state, batch, KEY)
    assert float(metrics["merge_failed"][0]) == 1.0
    assert_same(after.params, before.params)
    assert_same(after.slots, before.slots)
