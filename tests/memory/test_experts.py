from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from sleeplm.memory.experts import apply_experts, route

B, L, D, S, R = 3, 5, 8, 6, 2
DISPATCHES = ("gather", "grouped", "dense")


def inputs(seed=0, slots=S):
    k = jax.random.split(jax.random.key(seed), 5)
    x = jax.random.normal(k[0], (B, L, D))
    router = {
        "w": jax.random.normal(k[1], (D, slots)),
        "bias": jax.random.normal(k[2], (slots,)),
    }
    experts = {
        "a": jax.random.normal(k[3], (slots, D, R)),
        "b": jax.random.normal(k[4], (slots, R, D)),
    }
    return x, router, experts


def open_slots(*which, slots=S):
    return jnp.zeros((slots,), bool).at[jnp.array(which, int)].set(True)


def softmax_with_zero(logits):
    e = np.exp(logits)
    return e / (1.0 + e.sum(-1, keepdims=True))


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_gates_weigh_open_experts_against_a_zero_route(gate):
    x, router, _ = inputs()
    index, weight = route(x, router, open_slots(1, 4), top_k=2, gate=gate)
    logits = (np.asarray(x) @ np.asarray(router["w"]) + np.asarray(router["bias"]))[..., [1, 4]]
    value = 1 / (1 + np.exp(-logits)) if gate == "sigmoid" else softmax_with_zero(logits)
    got = np.zeros((B, L, S))
    np.put_along_axis(got, np.asarray(index), np.asarray(weight), -1)
    np.testing.assert_allclose(got[..., [1, 4]], value, rtol=1e-5, atol=1e-6)
    assert got[..., [0, 2, 3, 5]].max() == 0


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_top_k_keeps_the_heaviest_experts_only_and_lists_them_in_order(gate):
    x, router, _ = inputs()
    _, every = route(x, router, open_slots(0, 2, 3, 5), top_k=S, gate=gate)
    index, weight = route(x, router, open_slots(0, 2, 3, 5), top_k=2, gate=gate)
    np.testing.assert_array_equal(weight, -np.sort(-every)[..., :2])
    assert index.shape == weight.shape == (B, L, 2)
    assert index.dtype == jnp.int32


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("which", [(), (3,), (0, 5)])
def test_closed_slots_get_neither_weight_nor_gradient(gate, which, dispatch):
    x, router, experts = inputs()
    active = open_slots(*which)

    def loss(params):
        index, weight = route(x, params["router"], active, top_k=3, gate=gate)
        assert weight.shape == (B, L, 3)
        return jnp.sum(jnp.sin(apply_experts(x, params["experts"], index, weight, dispatch)))

    grads = jax.grad(loss)({"router": router, "experts": experts})
    closed = [s for s in range(S) if s not in which]
    assert not np.any(grads["experts"]["a"][jnp.array(closed)])
    assert not np.any(grads["experts"]["b"][jnp.array(closed)])
    assert not np.any(grads["router"]["w"][:, jnp.array(closed)])
    assert not np.any(grads["router"]["bias"][jnp.array(closed)])
    for s in which:
        assert np.any(grads["experts"]["a"][s])
        assert np.any(grads["router"]["w"][:, s])
    _, weight = route(x, router, active, top_k=3, gate=gate)
    assert (np.asarray(weight) > 0).sum() == B * L * len(which)


def test_a_closed_slot_is_not_chosen_however_strongly_its_router_column_speaks():
    x, router, _ = inputs()
    loud = {**router, "bias": router["bias"].at[2].set(1e4)}
    for gate in ("sigmoid", "softmax"):
        quiet_index, quiet = route(x, router, open_slots(0, 1), top_k=1, gate=gate)
        index, weight = route(x, loud, open_slots(0, 1), top_k=1, gate=gate)
        np.testing.assert_array_equal(index, quiet_index)
        np.testing.assert_array_equal(weight, quiet)


def weights_by_slot(index, weight):
    """[B, L, S]: the weight with which each token uses each expert."""
    out = np.zeros((*index.shape[:2], S), np.float32)
    for place in np.ndindex(*index.shape):
        out[(*place[:2], int(index[place]))] += float(weight[place])
    return out


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("top_k", [1, 2, S])
def test_exploring_uses_one_open_expert_a_row_at_half_weight_at_least(gate, top_k):
    """Where every open expert is used anyway, the drawn one is never used at a gate and a half."""
    x, router, _ = inputs()
    noise = jax.random.uniform(jax.random.key(9), (B, S))
    active = open_slots(1, 3, 4)
    plain = weights_by_slot(*route(x, router, active, top_k=top_k, gate=gate))
    index, weight = route(x, router, active, top_k=top_k, gate=gate, explore=noise)
    assert index.shape == weight.shape == (B, L, top_k + 1)
    explored = weights_by_slot(index, weight)
    drawn = np.argmax(np.where(np.asarray(active), noise, -1), -1)
    expected = plain.copy()
    for row, slot in enumerate(drawn):
        expected[row, :, slot] = np.maximum(plain[row, :, slot], 0.5)
    np.testing.assert_allclose(explored, expected, rtol=1e-6)
    assert (expected != plain).any()


def test_exploring_an_empty_pool_adds_nothing():
    x, router, experts = inputs()
    noise = jax.random.uniform(jax.random.key(9), (B, S))
    index, weight = route(x, router, open_slots(), top_k=2, gate="sigmoid", explore=noise)
    assert not np.any(weight)
    for dispatch in DISPATCHES:
        assert not np.any(apply_experts(x, experts, index, weight, dispatch))


def test_the_explored_expert_varies_by_row_and_key_and_covers_the_open_experts_evenly():
    x, router, _ = inputs()
    x = x[:1, :1]
    active = open_slots(0, 2, 5)

    def pick(key):
        noise = jax.random.uniform(key, (1, S))
        return route(x, router, active, top_k=1, gate="sigmoid", explore=noise)[0][0, 0, -1]

    picked = np.asarray(jax.vmap(pick)(jax.random.split(jax.random.key(1), 3000)))
    counts = np.bincount(picked, minlength=S)
    assert set(np.flatnonzero(counts)) == {0, 2, 5}
    # five standard deviations of a binomial with p = 1/3
    assert np.abs(counts[[0, 2, 5]] - 1000).max() < 5 * math.sqrt(3000 * (1 / 3) * (2 / 3))


def by_hand(x, experts, index, weight):
    x, a, b = np.asarray(x, np.float64), np.asarray(experts["a"]), np.asarray(experts["b"])
    out = np.zeros_like(x)
    for i, t, k in np.ndindex(*index.shape):
        s = int(index[i, t, k])
        out[i, t] += float(weight[i, t, k]) * (x[i, t] @ a[s] @ b[s])
    return out


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_dispatch_sums_weighted_experts_repeated_indices_included(dispatch, seed):
    x, _, experts = inputs(seed)
    k = jax.random.split(jax.random.key(seed + 10))
    index = jax.random.randint(k[0], (B, L, 3), 0, S)
    index = index.at[0, 0].set(2)  # the same expert three times
    weight = jax.random.normal(k[1], (B, L, 3))
    out = apply_experts(x, experts, index, weight, dispatch)
    np.testing.assert_allclose(out, by_hand(x, experts, index, weight), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dispatch", ["grouped", "dense", "auto"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_dispatch_has_the_gradients_of_gather(dispatch, seed):
    x, _, experts = inputs(seed)
    k = jax.random.split(jax.random.key(seed + 20))
    index = jax.random.randint(k[0], (B, L, 2), 0, S).at[1, 1].set(4)
    weight = jax.random.uniform(k[1], (B, L, 2))

    def grads(how):
        def loss(x, experts, weight):
            return jnp.sum(jnp.sin(apply_experts(x, experts, index, weight, how)))

        return jax.grad(loss, argnums=(0, 1, 2))(x, experts, weight)

    for ours, theirs in zip(
        jax.tree.leaves(grads(dispatch)), jax.tree.leaves(grads("gather")), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_experts_answer_in_the_type_of_their_input(dispatch):
    x, _, experts = inputs()
    index, weight = jnp.zeros((B, L, 1), jnp.int32), jnp.ones((B, L, 1))
    out = apply_experts(x.astype(jnp.bfloat16), experts, index, weight, dispatch)
    assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("mapped", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)])
def test_mapping_over_learners_or_rows_equals_a_loop_in_value_and_gradient(dispatch, mapped):
    def call(x, params, index):
        def loss(params):
            chosen, weight = index, jnp.full(index.shape, 0.7)
            return jnp.sum(jnp.sin(apply_experts(x, params, chosen, weight, dispatch)))

        return jax.value_and_grad(loss)(params)

    stacked = []
    for seed in range(3):
        x, _, experts = inputs(seed)
        index = jax.random.randint(jax.random.key(seed), (B, L, 2), 0, S)
        stacked.append((x, experts, index))
    one = stacked[0]
    args = [
        jax.tree.map(lambda *z: jnp.stack(z), *[s[i] for s in stacked]) if m == 0 else one[i]
        for i, m in enumerate(mapped)
    ]
    together = jax.jit(jax.vmap(call, in_axes=mapped))(*args)
    for seed in range(3):
        alone = call(*[stacked[seed][i] if m == 0 else one[i] for i, m in enumerate(mapped)])
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[seed], b, rtol=1e-5, atol=1e-5)


def jaxpr_costs(jaxpr):
    """(multiply-adds, largest array made) of a jaxpr, nested ones included."""
    flops, largest = 0, 0
    for eqn in jaxpr.eqns:
        out = eqn.outvars[0].aval
        name = eqn.primitive.name
        if name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            flops += out.size * math.prod(eqn.invars[0].aval.shape[i] for i in contract)
        elif name.startswith("ragged_dot"):
            flops += out.size * eqn.invars[0].aval.shape[-1]
        largest = max(largest, *(v.aval.size for v in eqn.outvars))
        for sub in jaxprs_in_params(eqn.params):
            f, m = jaxpr_costs(sub)
            flops, largest = flops + f, max(largest, m)
    return flops, largest


def costs(dispatch, slots, top_k=1, dtype=jnp.float32):
    x = jnp.zeros((B, L, D), dtype)
    experts = {"a": jnp.zeros((slots, D, R)), "b": jnp.zeros((slots, R, D))}
    index, weight = jnp.zeros((B, L, top_k), jnp.int32), jnp.zeros((B, L, top_k))
    made = jax.make_jaxpr(lambda *a: apply_experts(*a, dispatch))(x, experts, index, weight)
    return jaxpr_costs(made.jaxpr)


@pytest.mark.parametrize("dispatch", ["gather", "grouped"])
def test_multiplications_grow_with_the_experts_a_token_uses_and_not_with_the_pool(dispatch):
    few, many = costs(dispatch, 4)[0], costs(dispatch, 400)[0]
    assert few == many == B * L * 2 * D * R
    assert costs(dispatch, 400, top_k=3)[0] == 3 * few


def test_dense_dispatch_multiplies_by_the_whole_pool():
    assert costs("dense", 40)[0] > 9 * costs("dense", 4)[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gather_makes_no_array_of_the_size_of_the_pool(dtype):
    assert costs("gather", 4, dtype=dtype)[1] == costs("gather", 4000, dtype=dtype)[1]


def test_compiled_gather_costs_the_same_for_a_small_and_a_large_pool():
    def flops(slots):
        x = jnp.zeros((B, L, D))
        experts = {"a": jnp.zeros((slots, D, R)), "b": jnp.zeros((slots, R, D))}
        index, weight = jnp.zeros((B, L, 1), jnp.int32), jnp.zeros((B, L, 1))
        call = jax.jit(lambda *a: apply_experts(*a, "gather"))
        compiled = call.lower(x, experts, index, weight).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    assert flops(8) == flops(512)


def test_how_many_experts_are_open_is_data_and_never_recompiles():
    x, router, experts = inputs()
    traces = []

    @jax.jit
    def pool(active):
        traces.append(1)
        index, weight = route(x, router, active, top_k=2, gate="sigmoid")
        return apply_experts(x, experts, index, weight)

    for n in range(S + 1):
        pool(jnp.arange(S) < n)
    assert len(traces) == 1
