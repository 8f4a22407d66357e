"""Elastic weight consolidation on a small tree of parameters, against arithmetic by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core import tree
from sleeplm.core.types import Extract, Memory, State
from sleeplm.methods.ewc import EWC, anchored, fisher, nothing_protected, protect

KEY = jax.random.key(0)
PARAMS = {"w": jnp.array([0.5, -1.0, 2.0]), "deep": {"b": jnp.array([[0.25]])}}
STAR = {"w": jnp.array([0.0, -1.0, 1.0]), "deep": {"b": jnp.array([[1.25]])}}
FISHER = {"w": jnp.array([2.0, 3.0, 0.5]), "deep": {"b": jnp.array([[4.0]])}}


def memory_of(rows):
    """Rows of numbers; a row's loss is (w . x + b - 1)^2."""
    tokens = jnp.asarray(rows, jnp.int32)
    return Memory(
        tokens=tokens,
        weights=jnp.ones(tokens.shape),
        segments=jnp.ones_like(tokens),
        reference=None,
        reward=jnp.zeros(len(tokens)),
        source=jnp.zeros(len(tokens), jnp.int32),
    )


def squares(variables, memory):
    params, x = variables["params"], memory.tokens.astype(jnp.float32)
    off = x @ params["w"] + params["deep"]["b"][0, 0] - 1.0
    return jnp.sum(off**2), jnp.float32(len(x)), {"largest": (jnp.abs(off).max(), jnp.ones(()))}


def gradient_of_row(x):
    """By hand: d/dw = 2 (w . x + b - 1) x, d/db = 2 (w . x + b - 1)."""
    x = np.asarray(x, float)
    off = 2 * (x @ np.asarray(PARAMS["w"]) + 0.25 - 1.0)
    return off * x, off


def learner(anchor=None, private=None):
    zero = jnp.int32(0)
    return State(
        params=PARAMS,
        slots={},
        anchors={EWC: anchor or nothing_protected(PARAMS), "another": jnp.ones(2)},
        cues=(),
        private=private,
        counters={"step": jnp.int32(3), "nights": zero, "today": zero},
        key=KEY,
    )


# --- awake ---------------------------------------------------------------------------------------


def test_the_penalty_is_half_the_fisher_weighted_squared_distance_per_token_of_weight():
    memory = memory_of([[1, 2, 3], [2, 0, 1]])
    variables = {"params": PARAMS, "anchors": {EWC: {"fisher": FISHER, "star": STAR}}}
    plain, weight, _ = squares(variables, memory)
    loss, got_weight, aux = jax.jit(anchored(squares, 0.3))(variables, memory)
    distance = 2.0 * 0.5**2 + 3.0 * 0.0 + 0.5 * 1.0**2 + 4.0 * 1.0**2
    np.testing.assert_allclose(aux["penalty"][0], 0.5 * 0.3 * distance, rtol=1e-6)
    np.testing.assert_allclose(loss, plain + 2 * 0.5 * 0.3 * distance, rtol=1e-6)
    assert got_weight == weight == 2.0
    assert set(aux) == {"largest", "penalty"} and aux["penalty"][1] == 1.0


def test_its_gradient_pulls_every_parameter_back_by_its_fisher_information():
    memory = memory_of([[1, 2, 3], [2, 0, 1]])

    def gradient(objective):
        def loss(params):
            anchors = {EWC: {"fisher": FISHER, "star": STAR}}
            total, weight, _ = objective({"params": params, "anchors": anchors}, memory)
            return total / weight

        return jax.jit(jax.grad(loss))(PARAMS)

    pull = jax.tree.map(jnp.subtract, gradient(anchored(squares, 0.3)), gradient(squares))
    np.testing.assert_allclose(pull["w"], 0.3 * np.array([2.0 * 0.5, 0.0, 0.5 * 1.0]), atol=1e-5)
    np.testing.assert_allclose(pull["deep"]["b"], [[0.3 * 4.0 * -1.0]], atol=1e-5)


def test_a_newborn_learner_protects_nothing():
    anchor = nothing_protected(PARAMS)
    variables = {"params": STAR, "anchors": {EWC: anchor}}
    memory = memory_of([[1, 2, 3]])
    assert float(anchored(squares, 1e6)(variables, memory)[0]) == float(
        squares(variables, memory)[0]
    )
    assert tree.differing(anchor["star"], PARAMS) == []


# --- asleep --------------------------------------------------------------------------------------

NIGHT = [[[1, 2, 3], [2, 0, 1]], [[0, 0, 1], [3, 1, 1]]]


def reading():
    """The rows of the batch, and how often it was asked."""
    return Extract(
        lambda params, key: jnp.int32(0),
        lambda variables, s, batch, key: (memory_of(batch["rows"]), s + 1),
    )


@pytest.fixture(scope="module")
def measured():
    phase = fisher(reading(), squares)
    state = learner({"fisher": FISHER, "star": STAR}, phase.init(PARAMS, KEY))
    step, metrics = jax.jit(phase.step), None
    states = [state]
    for rows in NIGHT:
        state, metrics = step(state, {"rows": jnp.array(rows)}, KEY)
        states.append(state)
    return states, metrics


def test_the_sum_is_that_of_squared_gradients_of_single_rows(measured):
    states, metrics = measured
    w, b = np.zeros(3), 0.0
    for row in (row for rows in NIGHT for row in rows):
        by_w, by_b = gradient_of_row(row)
        w, b = w + by_w**2, b + by_b**2
    private = states[-1].private
    np.testing.assert_allclose(private["squares"]["w"], w, rtol=1e-5)
    np.testing.assert_allclose(private["squares"]["deep"]["b"], [[b]], rtol=1e-5)
    assert float(private["rows"]) == 4.0 and int(private["extract"]) == 2
    np.testing.assert_allclose(metrics["fisher_trace"][0], (w.sum() + b) / 4, rtol=1e-5)


def test_measuring_moves_nothing(measured):
    states, _ = measured
    start, end = (state.replace(private=None) for state in (states[0], states[-1]))
    assert tree.differing(end, start) == []


def test_at_the_end_of_the_night_the_mean_is_added_and_the_anchor_is_here(measured):
    states, _ = measured
    after, _ = jax.jit(protect())(states[-1], {}, KEY)
    gradients = [gradient_of_row(row) for rows in NIGHT for row in rows]
    anchor = after.anchors[EWC]
    w = np.mean([by_w**2 for by_w, _ in gradients], axis=0)
    b = np.mean([by_b**2 for _, by_b in gradients])
    np.testing.assert_allclose(anchor["fisher"]["w"], FISHER["w"] + w, rtol=1e-5)
    np.testing.assert_allclose(anchor["fisher"]["deep"]["b"], [[4.0 + b]], rtol=1e-5)
    assert tree.differing(anchor["star"], PARAMS) == []

    # Today's sums are cleared, a new day has begun; all else is as it was.
    private = after.private
    assert not any(np.any(x) for x in jax.tree.leaves((private["squares"], private["rows"])))
    assert int(private["extract"]) == 2
    assert {k: int(v) for k, v in after.counters.items()} == {"step": 3, "nights": 1, "today": 1}
    assert tree.differing(after.params, PARAMS) == []
    np.testing.assert_array_equal(after.anchors["another"], jnp.ones(2))


def test_what_was_known_before_the_first_day_is_protected_without_counting_a_night(measured):
    states, _ = measured
    after, _ = jax.jit(protect())(states[-1], {"day": jnp.int32(-1)}, KEY)
    later, _ = jax.jit(protect())(states[-1], {"day": jnp.int32(0)}, KEY)
    assert tree.differing(after.anchors[EWC], later.anchors[EWC]) == []
    assert (int(after.counters["nights"]), int(later.counters["nights"])) == (0, 1)
    assert (int(after.counters["today"]), int(later.counters["today"])) == (0, 1)


def test_a_night_without_rows_protects_what_was_protected():
    phase = fisher(reading(), squares)
    state = learner({"fisher": FISHER, "star": STAR}, phase.init(PARAMS, KEY))
    after, _ = protect()(state, {}, KEY)
    assert tree.differing(after.anchors[EWC]["fisher"], FISHER) == []
