"""Where every array of a learner lies on a mesh of replica, data, fsdp and tensor."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.adapters import with_adapters
from sleeplm.methods.config import evening
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.dream import no_dreams
from sleeplm.methods.dreams.reinforce import with_writer
from sleeplm.methods.ewc import nothing_protected
from sleeplm.methods.gaussians import no_classes
from sleeplm.methods.learner import learner
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model
from sleeplm.pretrained.grafts import grafted
from sleeplm.runtime import parallel
from sleeplm.runtime.rules import (
    LEAVES,
    axes_of,
    born,
    cache_specs,
    kept_whole,
    place,
    placed_shapes,
    shardings,
    state_specs,
)
from sleeplm.testing import paths

#: Shapes of published models.
PUBLISHED = {
    "Llama 3.2 1B": {"vocab_size": 128256, "d_model": 2048, "n_layers": 16, "n_heads": 32,
                     "n_kv_heads": 8, "levels": [LevelConfig("mlp", width=8192)]},
    "Qwen3 1.7B": {"vocab_size": 151936, "d_model": 2048, "n_layers": 28, "n_heads": 16,
                   "n_kv_heads": 8, "head_dim": 128, "qk_norm": True,
                   "levels": [LevelConfig("mlp", width=6144)]},
    "SmolLM2 135M": {"vocab_size": 49152, "d_model": 576, "n_layers": 30, "n_heads": 9,
                     "n_kv_heads": 3, "levels": [LevelConfig("mlp", width=1536)]},
}  # fmt: skip


def published(name):
    return Model(grafted(ModelConfig(scan_layers=True, max_len=512, **PUBLISHED[name])))


def shapes_of(model, config, key=None):
    made = learner(model, config)
    return jax.eval_shape(
        lambda: made.init(model.init(jax.random.key(0)), jax.random.key(1) if key is None else key)
    )


@pytest.fixture(scope="module")
def mesh():
    return parallel.mesh({"fsdp": 2, "tensor": 2})


def specs_of(state, mesh, **more):
    return paths(state_specs(state, mesh, **more))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_array_of_a_published_model_with_five_levels_has_a_place(name, mesh):
    state = shapes_of(published(name), evening())
    specs = specs_of(state, mesh)
    assert specs.keys() == paths(state).keys()
    assert specs["params/embed"] == P("tensor", "fsdp")
    blocks = "params/blocks/"
    assert specs[f"{blocks}attn/q/kernel"] == P(None, "fsdp", "tensor")
    assert specs[f"{blocks}attn/o/kernel"] == P(None, "tensor", "fsdp")
    assert specs[f"{blocks}levels/level1/base/down/kernel"] == P(None, "tensor", "fsdp")
    assert specs[f"{blocks}levels/mlp/experts/a"] == P(None, None, "fsdp", "tensor")
    assert specs[f"{blocks}levels/mlp/experts/b"] == P(None, None, "tensor", "fsdp")
    assert specs[f"{blocks}levels/mlp/router/w"] == P(None, "fsdp")
    assert specs[f"{blocks}levels/mlp/norm/scale"] == specs["cues/tokens"] == P()


def test_half_of_a_learner_is_on_half_of_the_devices():
    state = shapes_of(published("Llama 3.2 1B"), evening())

    def share(shape):
        mesh = parallel.mesh(shape)
        leaves = list(
            zip(jax.tree.leaves(state), jax.tree.leaves(shardings(state, mesh)), strict=True)
        )
        mine = sum(math.prod(s.shard_shape(x.shape)) for x, s in leaves)
        return mine / sum(x.size for x, _ in leaves)

    assert share({"data": 4}) == 1.0
    for shape in ({"fsdp": 4}, {"tensor": 4}, {"fsdp": 2, "tensor": 2}):
        assert share(shape) == pytest.approx(0.25, abs=0.01)


def test_moments_accumulators_and_anchors_lie_where_their_parameter_does(tiny, mesh):
    model = tiny.model()
    specs = specs_of(shapes_of(model, tiny.config()), mesh)
    for kernel in ("base/gate/kernel", "base/down/kernel"):
        want = specs[f"params/blocks/levels/fast/{kernel}"]
        copies = {name: spec for name, spec in specs.items()
                  if "fast" in name and name.endswith(kernel)}  # fmt: skip
        assert {name.split("/")[0] for name in copies} == {"params", "private", "anchors"}
        assert len(copies) >= 7 and set(copies.values()) == {want}
        assert want in (P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp"))
    # The optimiser of a night sees one expert, without the axis of the slots.
    moments = [spec for name, spec in specs.items()
               if name.startswith("private/night") and name.endswith("experts/a")]  # fmt: skip
    assert moments and set(moments) == {P(None, "fsdp", "tensor")}


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ({"wiring": "independent"}, {}),
        ({"tie_embeddings": False, "qk_norm": True, "scan_layers": True}, {"into": "pool"}),
        ({}, {"into": "base"}),
        ({}, {"pool": "merge_balanced"}),
    ],
)
def test_every_kind_of_learner_has_a_place_for_all_it_has(tiny, mesh, model, config):
    state = shapes_of(tiny.model(**model), tiny.config(**config))
    assert specs_of(state, mesh).keys() == paths(state).keys()


def test_controls_writers_and_dreams_have_a_place_too(tiny, mesh):
    model = tiny.model()
    state = shapes_of(model, tiny.config())
    params = jax.eval_shape(lambda p: with_writer(p, 4, jax.random.key(0)), state.params)
    params = jax.eval_shape(lambda p: with_adapters(p, 4, jax.random.key(0)), params)
    dreams = DreamConfig(dreams=8, keep=3, extra=1)
    state = state.replace(
        params=params,
        private={**state.private, "dream": jax.eval_shape(lambda: no_dreams(dreams))},
        anchors={
            "ewc": jax.eval_shape(nothing_protected, params),
            "gaussians": jax.eval_shape(lambda: no_classes(8, 16)),
        },
    )
    specs = specs_of(state, mesh)
    for tree in ("params/writer", "params/adapters", "anchors/ewc/fisher/writer"):
        assert specs[f"{tree}/attn/o/kernel/a"] == P(None, "tensor")
        assert specs[f"{tree}/attn/q/kernel/b"] == P(None, "tensor")
    assert specs["private/dream/told/tokens"] == P("fsdp")


def test_an_adapter_of_a_matrix_whose_columns_are_spread_is_not_spread_twice(mesh):
    assert axes_of("adapters/attn/q/kernel/b", (1, 4, 16)) == ("layer", "rank", "heads")
    specs = state_specs({"attn": {"q": {"kernel": {"b": jnp.zeros((1, 4, 16))}}}}, mesh)
    assert specs["attn"]["q"]["kernel"]["b"] == P(None, "tensor")


def test_learners_side_by_side_are_spread_over_replica(tiny):
    mesh = parallel.mesh({"replica": 2, "fsdp": 2})
    one = shapes_of(tiny.model(), tiny.config())
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), one)
    got, alone = specs_of(many, mesh), specs_of(one, mesh)
    assert got == {name: P("replica", *spec) for name, spec in alone.items()}
    assert state_specs(many.params, mesh, learners=True) == state_specs(many, mesh).params


def test_an_array_that_no_rule_names_is_refused_and_a_rule_of_ones_own_is_enough(mesh):
    state = {"params": {"embed": jnp.zeros((4, 4)), "memory": {"table": jnp.zeros((8, 4))}}}
    with pytest.raises(
        ConfigError, match=r"params/memory/table \[8, 4\].*add \('table', "
    ) as error:
        state_specs(state, mesh)
    assert "\n" not in str(error.value)
    mine = functools.partial(state_specs, rules=(*LEAVES, ("memory/table", ("hidden", "model"))))
    assert mine(state, mesh)["params"]["memory"]["table"] == P("tensor", "fsdp")
    with pytest.raises(ConfigError, match=r"its rule names the axes vocab, model"):
        state_specs({"embed": jnp.zeros((2, 3, 4))}, mesh)
    odd = functools.partial(state_specs, rules=(("embed", ("vocabulary", "model")),))
    with pytest.raises(ConfigError, match=r"'vocabulary': name one of"):
        odd({"embed": jnp.zeros((2, 3))}, mesh)


def test_a_dimension_that_its_axes_do_not_divide_stays_whole_and_is_listed():
    mesh = parallel.mesh({"fsdp": 2, "tensor": 2})
    params = {"embed": jnp.zeros((5, 4)), "unembed": jnp.zeros((4, 6))}
    assert state_specs(params, mesh) == {"embed": P(None, "fsdp"), "unembed": P("fsdp", "tensor")}
    assert kept_whole(params, mesh) == ["embed: vocab = 5 is whole on the devices of tensor"]
    smol = shapes_of(published("SmolLM2 135M"), evening()).params
    assert not kept_whole(smol, mesh)


def test_a_learner_is_born_in_its_place_or_brought_there_with_the_same_bits(tiny, mesh):
    model = tiny.model()
    made = learner(model, tiny.config())
    make = lambda: made.init(model.init(jax.random.key(0)), jax.random.key(1))  # noqa: E731
    state, whole = born(make, mesh), jax.jit(make)()
    want = jax.tree.leaves(shardings(whole, mesh))
    for there in (state, place(whole, mesh)):
        for x, y, sharding in zip(*map(jax.tree.leaves, (there, whole)), want, strict=True):
            assert x.sharding.is_equivalent_to(sharding, x.ndim)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            np.testing.assert_array_equal(x, y)
    assert [s.data.shape for s in state.params["embed"].addressable_shards] == [(20, 8)] * 4
    assert jax.tree.leaves(placed_shapes(state, mesh))[0].sharding == want[0]


def test_a_cache_of_generation_lies_as_its_rows_and_heads_do(tiny):
    mesh = parallel.mesh({"data": 2, "tensor": 2})
    model = tiny.model(n_kv_heads=2, scan_layers=True)
    cache = model.init_cache(4, 6)
    params = tiny.params(model)
    variables = {"params": params, "slots": model.init_slots()}
    tokens, positions = jnp.arange(24).reshape(4, 6), jnp.broadcast_to(jnp.arange(6), (4, 6))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((6, 6), bool)), (4, 1, 6, 6))

    def prefill(variables, cache):
        return model.run(variables, tokens, positions, mask, cache=cache)

    want = jax.jit(prefill)(variables, cache)
    specs = cache_specs(cache, mesh)
    there = jax.tree.map(lambda s: jax.sharding.NamedSharding(mesh, s), specs)
    got = jax.jit(prefill, out_shardings=(None, there))(
        {**variables, "params": place(params, mesh)}, jax.device_put(cache, there)
    )
    shards = got[1]["k"].addressable_shards
    assert {math.prod(s.data.shape) for s in shards} == {want[1]["k"].size // 4}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
