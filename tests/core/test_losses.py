"""Divergences point the right way, and chunking changes memory but never a number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import PartitionSpec as P

from sleeplm.core import losses
from sleeplm.core.errors import ConfigError

DIVERGENCES = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "jsd(0.5)": losses.jsd(0.5),
    "jsd(0.1)": losses.jsd(0.1),
}
every_divergence = pytest.mark.parametrize("div", DIVERGENCES.values(), ids=DIVERGENCES)
logits_pairs = hnp.arrays(
    np.float32, (2, 5), elements=st.floats(-30, 30, width=32, allow_subnormal=False)
)


def kl_oracle(p, q):
    """KL(p || q) of two probability vectors in float64, as the textbook writes it."""
    return sum(pi * np.log(pi / qi) for pi, qi in zip(p, q, strict=True) if pi > 0)


def jsd_oracle(p, q, beta):
    m = beta * p + (1 - beta) * q
    return beta * kl_oracle(p, m) + (1 - beta) * kl_oracle(q, m)


def softmax64(logits):
    e = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return e / e.sum()


def log_softmaxes(pair):
    return tuple(jax.nn.log_softmax(jnp.asarray(pair), axis=-1))


# --- divergences -------------------------------------------------------------------------------


def test_named_directions_match_a_hand_worked_example():
    teacher, student = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.75, 0.25]))
    # KL(t||s) = .5 ln(2/3) + .5 ln 2 = .5 ln(4/3);  KL(s||t) = .75 ln 1.5 + .25 ln .5
    forward, reverse = 0.5 * np.log(4 / 3), 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert float(losses.forward_kl(teacher, student)) == pytest.approx(forward, rel=1e-5)
    assert float(losses.reverse_kl(teacher, student)) == pytest.approx(reverse, rel=1e-5)
    assert abs(forward - reverse) > 0.01


@settings(max_examples=60, deadline=None)
@given(logits_pairs, st.floats(0.05, 0.95))
def test_divergences_equal_a_float64_oracle(pair, beta):
    p, q = softmax64(pair[0]), softmax64(pair[1])
    teacher, student = log_softmaxes(pair)
    close = {"rtol": 2e-4, "atol": 2e-6}
    np.testing.assert_allclose(losses.forward_kl(teacher, student), kl_oracle(p, q), **close)
    np.testing.assert_allclose(losses.reverse_kl(teacher, student), kl_oracle(q, p), **close)
    got = losses.jsd(beta)(teacher, student)
    np.testing.assert_allclose(got, jsd_oracle(p, q, beta), **close)


@every_divergence
@settings(max_examples=40, deadline=None)
@given(logits_pairs)
def test_divergences_are_never_negative(div, pair):
    assert float(div(*log_softmaxes(pair))) >= -1e-6


@every_divergence
def test_divergences_are_zero_for_equal_distributions_only(div):
    logits = jax.random.normal(jax.random.key(0), (16, 7)) * 3
    a = jax.nn.log_softmax(logits)
    b = jax.nn.log_softmax(logits + 0.3 * jax.random.normal(jax.random.key(1), logits.shape))
    np.testing.assert_allclose(div(a, a), 0.0, atol=1e-6)
    assert float(div(a, b).min()) > 1e-5


@settings(max_examples=30, deadline=None)
@given(logits_pairs, st.floats(0.05, 0.95))
def test_jsd_swaps_sides_with_beta_and_is_symmetric_and_bounded_at_one_half(pair, beta):
    a, b = log_softmaxes(pair)
    np.testing.assert_allclose(losses.jsd(beta)(a, b), losses.jsd(1 - beta)(b, a), atol=1e-6)
    np.testing.assert_allclose(losses.jsd(0.5)(a, b), losses.jsd(0.5)(b, a), atol=1e-6)
    assert float(losses.jsd(0.5)(a, b)) <= np.log(2) + 1e-6


def test_jsd_gradient_over_its_small_weight_tends_to_the_two_kls():
    teacher, student = jax.random.normal(jax.random.key(3), (2, 6))

    def grad_of(div):
        return jax.grad(lambda s: div(jax.nn.log_softmax(teacher), jax.nn.log_softmax(s)))(student)

    with jax.enable_x64(True):
        teacher, student = teacher.astype(jnp.float64), student.astype(jnp.float64)
        small = 1e-6
        towards_forward = grad_of(losses.jsd(small)) / small
        towards_reverse = grad_of(losses.jsd(1 - small)) / small
        np.testing.assert_allclose(towards_forward, grad_of(losses.forward_kl), rtol=1e-4)
        np.testing.assert_allclose(towards_reverse, grad_of(losses.reverse_kl), rtol=1e-4)


def test_jsd_at_the_ends_is_the_limiting_kl():
    a, b = log_softmaxes(np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32))
    assert float(losses.jsd(0.0)(a, b)) == float(losses.forward_kl(a, b))
    assert float(losses.jsd(1.0)(a, b)) == float(losses.reverse_kl(a, b))


def test_jsd_beta_may_be_traced():
    a, b = log_softmaxes(np.random.default_rng(1).normal(size=(2, 6)).astype(np.float32))
    betas = jnp.array([0.2, 0.5, 0.9])
    got = jax.jit(jax.vmap(lambda beta: losses.jsd(beta)(a, b)))(betas)
    want = [float(losses.jsd(float(beta))(a, b)) for beta in betas]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@every_divergence
@pytest.mark.parametrize("swap", [False, True])
def test_values_and_gradients_stay_finite_with_extreme_logits(div, swap):
    teacher = jnp.array([1e4, -1e4, 0.0, 1e4])
    student = jnp.array([-1e4, 1e4, 0.0, -1e4])
    teacher, student = (student, teacher) if swap else (teacher, student)

    def loss(s):
        return div(jax.nn.log_softmax(teacher), jax.nn.log_softmax(s))

    value, grad = jax.value_and_grad(loss)(student)
    assert np.isfinite(value) and np.isfinite(grad).all()


@every_divergence
def test_tokens_forbidden_with_minus_infinity_on_both_sides_do_not_count(div):
    a, b = jax.random.normal(jax.random.key(4), (2, 5))
    hide = jnp.array([0.0, 0.0, -jnp.inf, 0.0, -jnp.inf])
    keep = jnp.array([0, 1, 3])

    def loss(s, t):
        return div(jax.nn.log_softmax(t), jax.nn.log_softmax(s))

    value, grad = jax.value_and_grad(loss)(b + hide, a + hide)
    want, want_grad = jax.value_and_grad(loss)(b[keep], a[keep])
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(grad[keep], want_grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(grad[jnp.array([2, 4])], 0.0)


@every_divergence
def test_bfloat16_input_is_computed_in_float32(div):
    a, b = (x.astype(jnp.bfloat16) for x in jax.random.normal(jax.random.key(5), (2, 3, 9)))
    a, b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    got = div(a, b)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, div(a.astype(jnp.float32), b.astype(jnp.float32)))


def test_divergence_is_found_by_name_or_passed_through():
    a, b = log_softmaxes(np.random.default_rng(2).normal(size=(2, 6)).astype(np.float32))
    assert losses.divergence("forward_kl") is losses.forward_kl
    assert losses.divergence("reverse_kl") is losses.reverse_kl
    assert float(losses.divergence("jsd", 0.3)(a, b)) == float(losses.jsd(0.3)(a, b))

    def own(teacher_logp, student_logp):
        return jnp.sum((teacher_logp - student_logp) ** 2, -1)

    assert losses.divergence(own) is own


@pytest.mark.parametrize("bad", [lambda: losses.divergence("kl"), lambda: losses.jsd(1.5)])
def test_unknown_names_and_impossible_betas_are_refused_in_one_line(bad):
    with pytest.raises(ConfigError) as error:
        bad()
    assert "\n" not in str(error.value)


# --- chunked losses ----------------------------------------------------------------------------

B, L, D, V = 3, 11, 6, 17


def problem(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(7), 6)
    student = jax.random.normal(keys[0], (B, L, D), dtype)
    teacher = jax.random.normal(keys[1], (B, L, D + 2), dtype)
    w_student = jax.random.normal(keys[2], (D, V), dtype)
    w_teacher = jax.random.normal(keys[3], (D + 2, V), dtype)
    weights = jax.random.bernoulli(keys[4], 0.7, (B, L)).astype(jnp.float32) * 0.5
    targets = jax.random.randint(keys[5], (B, L), 0, V)
    return student, teacher, w_student, w_teacher, weights, targets


def full_logp(hidden, unembed, temperature=1.0):
    logits = jnp.einsum("bld,dv->blv", hidden, unembed)
    return jax.nn.log_softmax(logits / temperature)


@every_divergence
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_chunked_divergence_equals_the_full_formula_in_value_and_gradient(div, chunk):
    student, teacher, w_s, w_t, weights, _ = problem()

    def chunked(student, w_s):
        return losses.chunked_divergence(student, teacher, w_s, w_t, weights, div, chunk, 1.7)

    def full(student, w_s):
        value = div(full_logp(teacher, w_t, 1.7), full_logp(student, w_s, 1.7))
        return jnp.sum(value * weights), jnp.sum(weights)

    got, want = chunked(student, w_s), full(student, w_s)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    grads = [jax.grad(lambda *a, f=f: f(*a)[0], (0, 1))(student, w_s) for f in (chunked, full)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *grads)


def test_no_gradient_flows_to_the_teacher_even_through_a_shared_unembedding():
    student, _, w, _, weights, _ = problem()
    teacher = student[::-1]

    def loss(student, teacher, w_s, w_t):
        return losses.chunked_divergence(student, teacher, w_s, w_t, weights, losses.reverse_kl, 4)[
            0
        ]

    g_student, g_teacher, g_ws, g_wt = jax.grad(loss, (0, 1, 2, 3))(student, teacher, w, w)
    assert not np.any(g_teacher) and not np.any(g_wt)
    assert np.any(g_student) and np.any(g_ws)
    shared = jax.grad(lambda w: loss(student, teacher, w, w))(w)
    np.testing.assert_allclose(shared, g_ws, rtol=1e-6)


def test_a_traced_temperature_and_beta_work_under_jit_and_grad():
    student, teacher, w_s, w_t, weights, _ = problem()

    def loss(student, beta, temperature):
        div = losses.jsd(beta)
        return losses.chunked_divergence(student, teacher, w_s, w_t, weights, div, 4, temperature)[
            0
        ]

    got = jax.jit(jax.value_and_grad(loss))(student, 0.3, 2.0)
    want = jax.value_and_grad(loss)(student, jnp.float32(0.3), jnp.float32(2.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_chunked_cross_entropy_and_logp_equal_the_full_formula(chunk):
    student, _, w_s, _, weights, targets = problem()

    def full(hidden, w, temperature=1.0):
        logp = full_logp(hidden, w, temperature)
        return jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]

    logp = losses.chunked_token_logp(student, w_s, targets, chunk, 0.6)
    np.testing.assert_allclose(logp, full(student, w_s, 0.6), rtol=1e-5, atol=1e-5)

    def chunked_loss(h, w):
        return losses.chunked_cross_entropy(h, w, targets, weights, chunk)[0]

    def full_loss(h, w):
        return -jnp.sum(full(h, w) * weights)

    got = jax.value_and_grad(chunked_loss, (0, 1))(student, w_s)
    want = jax.value_and_grad(full_loss, (0, 1))(student, w_s)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
    total = losses.chunked_cross_entropy(student, w_s, targets, weights, chunk)[1]
    assert float(total) == float(weights.sum())


def test_bfloat16_states_give_float32_losses_and_an_unembedding_gradient_summed_in_float32():
    length = 512
    hidden = jnp.full((1, length, D), 0.01, jnp.bfloat16)
    w = jnp.zeros((D, V), jnp.bfloat16)
    targets, weights = jnp.zeros((1, length), jnp.int32), jnp.ones((1, length))

    def loss(w, chunk):
        return losses.chunked_cross_entropy(hidden, w, targets, weights, chunk)[0]

    assert loss(w, 1).dtype == jnp.float32
    grad = jax.grad(loss)(w, 1)
    assert grad.dtype == jnp.bfloat16
    # Summed in bfloat16, 512 equal terms would stall at 256 of them.
    want = float(hidden[0, 0, 0]) * length * (1 / V - np.eye(V)[0])
    np.testing.assert_allclose(np.asarray(grad, np.float32)[0], want, rtol=1e-2)


def temporary_bytes(div, chunk, batch=4, length=128, dim=8, vocabulary=8192):
    """Scratch memory of the compiled value and gradient, and the size of one model's logits."""

    def loss(student, w_s, teacher, w_t, weights):
        return losses.chunked_divergence(student, teacher, w_s, w_t, weights, div, chunk)[0]

    shapes = [(batch, length, dim), (dim, vocabulary)] * 2 + [(batch, length)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args).compile()
    full_logits = batch * length * vocabulary * 4
    return compiled.memory_analysis().temp_size_in_bytes, full_logits


@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_compiled_memory_stays_far_below_one_models_full_logits(name):
    used, full_logits = temporary_bytes(losses.divergence(name), chunk=4)
    assert used < full_logits / 2
    # One piece of the whole length is the unchunked loss: the measure does see full logits.
    used, full_logits = temporary_bytes(losses.divergence(name), chunk=128)
    assert used >= full_logits


def test_chunked_losses_and_their_gradients_run_inside_shard_map():
    student, teacher, w_s, w_t, weights, _ = problem()
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def loss(w_s, student, teacher, weights):
        return losses.chunked_divergence(student, teacher, w_s, w_t, weights, losses.forward_kl, 4)[
            0
        ]

    def local(w_s, *batch):
        w_s = jax.lax.pcast(w_s, "data", to="varying")
        return jax.lax.psum(jax.value_and_grad(loss)(w_s, *batch), "data")

    specs = (P(), P("data"), P("data"), P("data"))
    sharded = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P()))
    got = sharded(w_s, student, teacher, weights)
    want = jax.value_and_grad(loss)(w_s, student, teacher, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_a_chunk_below_one_is_refused():
    student, _, w_s, _, weights, targets = problem()
    with pytest.raises(ConfigError, match="chunk"):
        losses.chunked_cross_entropy(student, w_s, targets, weights, 0)
