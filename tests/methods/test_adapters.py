"""Low-rank adapters beside a frozen backbone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sleeplm.core import tree
from sleeplm.methods.adapters import (
    ADAPTERS,
    adapted,
    beside,
    in_adapters,
    merged,
    with_adapters,
)
from sleeplm.methods.extract import wake_batch
from sleeplm.methods.objectives import language_model
from sleeplm.methods.wake import wake

RANK = 3
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def grafted(tiny):
    """A model, its variables with adapters, and the same with noise in every B."""
    model = tiny.model()
    params = with_adapters(tiny.params(model), RANK, KEY)
    random = np.random.default_rng(0)

    def noise(path, x):
        mine = in_adapters()(path) and path[-1].key == "b"
        return jnp.asarray(random.normal(size=x.shape).astype(np.float32)) if mine else x

    busy = jax.tree_util.tree_map_with_path(noise, params)
    slots = model.init_slots()
    return model, {"params": params, "slots": slots}, {"params": busy, "slots": slots}


def kernels(node, path=()):
    """Paths of all matrices below."""
    if not isinstance(node, dict):
        return []
    here = [(*path, "kernel")] if "kernel" in node else []
    return here + [p for name in node for p in kernels(node[name], (*path, name))]


def at(node, path):
    for name in path:
        node = node[name]
    return node


def test_every_matrix_of_the_blocks_has_an_adapter_and_nothing_else_has(grafted):
    _, variables, _ = grafted
    params = variables["params"]
    matrices = kernels(params["blocks"])
    assert len(matrices) == 4 + 2 * 3  # attention, and the MLPs of two levels
    for path in matrices:
        layers, fan_in, fan_out = at(params["blocks"], path).shape
        adapter = at(params[ADAPTERS], path)
        assert adapter["a"].shape == (layers, fan_in, RANK)
        assert adapter["b"].shape == (layers, RANK, fan_out)
        assert np.std(adapter["a"]) == pytest.approx(fan_in**-0.5, rel=0.5)
    assert len(jax.tree.leaves(params[ADAPTERS])) == 2 * len(matrices)
    drawn = {np.asarray(at(params[ADAPTERS], path)["a"]).tobytes() for path in matrices}
    assert len(drawn) == len(matrices)  # no two begin alike
    learning, _ = tree.split(params, in_adapters())
    assert len(jax.tree.leaves(learning)) == 2 * len(matrices)
    assert tree.differing(learning[ADAPTERS], params[ADAPTERS]) == []


def test_grafting_changes_nothing_at_first(grafted):
    _, variables, _ = grafted
    params = {name: x for name, x in variables["params"].items() if name != ADAPTERS}
    joined = merged(variables)
    assert tree.differing(joined["params"], params) == []  # raises if the shapes of trees differ
    assert joined["slots"] is variables["slots"]


def test_the_model_runs_on_w_plus_a_b(grafted):
    _, _, busy = grafted
    got, params = merged(busy)["params"], busy["params"]
    assert set(got) == set(params) - {ADAPTERS}
    want = {name: x for name, x in params.items() if name != ADAPTERS}
    for path in kernels(params["blocks"]):
        adapter = at(params[ADAPTERS], path)
        for layer, kernel in enumerate(at(params["blocks"], path)):
            product = np.asarray(adapter["a"][layer]) @ np.asarray(adapter["b"][layer])
            assert np.abs(product).max() > 0.1
            np.testing.assert_allclose(at(got["blocks"], path)[layer], kernel + product, atol=1e-5)
    moved = tree.differing(got, want)
    assert len(moved) == len(kernels(params["blocks"]))
    assert all(path.endswith("['kernel']") for path in moved)


def test_variables_without_adapters_are_as_they_are(grafted):
    _, variables, _ = grafted
    plain = merged(variables)
    assert merged(plain) is plain


def test_levels_may_have_the_names_of_an_adapters_own_parts():
    kernel = jnp.arange(6.0).reshape(1, 2, 3)
    params = {"blocks": {"a": {"kernel": kernel}, "b": {"kernel": 2 * kernel}}}
    grown = with_adapters(params, 1, KEY)
    assert tree.differing(merged({"params": grown})["params"], params) == []


def test_gradients_of_an_adapter_are_those_of_its_matrix_seen_through_the_other_half(tiny, grafted):
    model, _, busy = grafted
    memory, _ = wake_batch().extract(None, (), tiny.text(0), KEY)
    objective = language_model(model, chunk=8)

    def gradient(loss_of, variables):
        def loss(params):
            return loss_of({**variables, "params": params}, memory)[0]

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    (whole, by_matrix), (loss, by_adapter) = (
        gradient(objective, merged(busy)), gradient(adapted(objective), busy)
    )  # fmt: skip
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    for path in kernels(busy["params"]["blocks"]):
        adapter, got = at(busy["params"][ADAPTERS], path), at(by_adapter[ADAPTERS], path)
        dw = np.asarray(at(by_matrix["blocks"], path)[0])
        da, db = dw @ np.asarray(adapter["b"][0]).T, np.asarray(adapter["a"][0]).T @ dw
        for mine, want in ((got["a"][0], da), (got["b"][0], db)):
            np.testing.assert_allclose(mine, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_only_adapters_move_awake(tiny, grafted):
    model, variables, _ = grafted
    phase = wake(
        model,
        objective=adapted(language_model(model, chunk=8)),
        update=optax.sgd(0.1),
        trainable=in_adapters(),
    )
    _, state = tiny.learner(model, tiny.config())
    params = variables["params"]
    state = state.replace(params=params, private=phase.init(params, KEY))
    step, losses = jax.jit(phase.step), []
    for i in range(4):
        before = state.params
        state, metrics = step(state, tiny.text(0), KEY)
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
        moved = tree.differing(state.params, before)
        assert all(path.startswith(f"['{ADAPTERS}']") for path in moved)
        # While every B is zero, no A has a gradient.
        halves = {path[-5:] for path in moved}
        assert halves == ({"['b']"} if i == 0 else {"['a']", "['b']"})
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.01


# --- beside their matrices -----------------------------------------------------------------------


def test_beside_their_matrices_adapters_give_what_merged_ones_give(tiny, grafted):
    model, _, busy = grafted
    text = tiny.text(0)
    joined = beside(busy, busy["params"][ADAPTERS])
    got = jax.jit(model.logits)(joined, text["tokens"], text["segments"])
    want = jax.jit(model.logits)(merged(busy), text["tokens"], text["segments"])
    np.testing.assert_allclose(got, want, atol=2e-5)
    plain = jax.jit(model.logits)(busy, text["tokens"], text["segments"])
    assert np.abs(got - plain).max() > 0.1


def test_beside_their_matrices_fresh_adapters_change_no_bit(tiny, grafted):
    model, variables, _ = grafted
    text = tiny.text(0)
    joined = beside(variables, variables["params"][ADAPTERS])
    run = jax.jit(model.logits)
    np.testing.assert_array_equal(run(joined, text["tokens"]), run(variables, text["tokens"]))


def test_beside_their_matrices_gradients_are_those_of_merged_ones(tiny, grafted):
    model, _, busy = grafted
    memory, _ = wake_batch().extract(None, (), tiny.text(0), KEY)
    objective = language_model(model, chunk=8)
    adapters = busy["params"][ADAPTERS]

    def merging(adapters):
        params = {**busy["params"], ADAPTERS: adapters}
        return adapted(objective)({**busy, "params": params}, memory)[0]

    got = jax.jit(jax.grad(lambda a: objective(beside(busy, a), memory)[0]))(adapters)
    want = jax.jit(jax.grad(merging))(adapters)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())
