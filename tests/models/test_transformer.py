from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.tree import differing
from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model, next_token_weights, positions_in

V, B, L = 50, 2, 7
TINY = ModelConfig(
    vocab_size=V,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    levels=[
        LevelConfig(name="fast", width=8, period=1, slots=3, rank=2, top_k=2),
        LevelConfig(name="slow", width=12, slots=3, rank=2),
    ],
)


def tiny(**changes):
    return Model(dataclasses.replace(TINY, **changes))


def alive(model, seed=0):
    """Variables without a zero in them: every norm, graft, expert and router counts."""
    params = jax.jit(model.init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [
        x + 0.3 * jax.random.normal(k, x.shape, jnp.float32).astype(x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]
    slots = model.init_slots()
    slots = {
        name: dataclasses.replace(t, active=jnp.arange(t.active.size) % 3 != 1)
        for name, t in slots.items()
    }
    return {"params": jax.tree.unflatten(tree, noisy), "slots": slots}


def tokens_of(seed=0, batch=B, length=L):
    return jax.random.randint(jax.random.key(seed + 7), (batch, length), 0, V)


# --- an independent decoder, token by token and head by head, in float64 -------------------


def np_norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def np_rope(vector, position, theta):
    half = len(vector) // 2
    out = np.empty_like(vector)
    for i in range(half):
        angle = position / theta ** (2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i] = a * np.cos(angle) - b * np.sin(angle)
        out[i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


def np_attention(x, w, c):
    length, width = len(x), c.width_of_head
    q = (x @ w["q"]["kernel"]).reshape(length, c.n_heads, width)
    k = (x @ w["k"]["kernel"]).reshape(length, c.n_kv_heads, width)
    v = (x @ w["v"]["kernel"]).reshape(length, c.n_kv_heads, width)
    if c.qk_norm:
        q = np_norm(q, w["q_norm"]["scale"], c.norm_eps)
        k = np_norm(k, w["k_norm"]["scale"], c.norm_eps)
    out = np.zeros((length, c.n_heads, width))
    for h in range(c.n_heads):
        group = h // (c.n_heads // c.n_kv_heads)
        for t in range(length):
            query = np_rope(q[t, h], t, c.rope_theta)
            scores = np.array(
                [query @ np_rope(k[s, group], s, c.rope_theta) for s in range(t + 1)]
            ) / np.sqrt(width)
            p = np.exp(scores - scores.max())
            out[t, h] = (p / p.sum()) @ v[: t + 1, group]
    return out.reshape(length, -1) @ w["o"]["kernel"]


def np_mlp(x, w):
    gate = x @ w["gate"]["kernel"]
    return (gate / (1 + np.exp(-gate)) * (x @ w["up"]["kernel"])) @ w["down"]["kernel"]


def np_level(x, w, lv, active, c, base=True):
    x = np_norm(x, w["norm"]["scale"], c.norm_eps)
    out = np_mlp(x, w["base"]) if base else np.zeros_like(x)
    if not lv.slots:
        return out
    gates = 1 / (1 + np.exp(-(x @ w["router"]["w"] + w["router"]["bias"])))
    for t in range(len(x)):
        chosen = sorted(np.flatnonzero(active), key=lambda s, t=t: -gates[t, s])[: lv.top_k]
        for s in chosen:
            out[t] += gates[t, s] * (x[t] @ w["experts"]["a"][s] @ w["experts"]["b"][s])
    return out


def np_levels(x, w, slots, c):
    total, start = x, x
    for i, lv in enumerate(c.levels):
        source = start if c.wiring == "independent" else total
        base = c.wiring != "nested" or i == 0
        added = np_level(source, w[lv.name], lv, np.asarray(slots[lv.name].active), c, base)
        total = total + (w["mix"][i] * added if c.wiring == "independent" else added)
    return total


def np_logits(model, variables, row):
    c = model.config
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    x = params["embed"][row]
    for n in range(c.n_layers):
        w = jax.tree.map(lambda leaf, n=n: leaf[n], params["blocks"])
        x = x + np_attention(np_norm(x, w["attn_norm"]["scale"], c.norm_eps), w["attn"], c)
        x = np_levels(x, w["levels"], variables["slots"], c)
    x = np_norm(x, params["final_norm"], c.norm_eps)
    return x @ (params["embed"].T if c.tie_embeddings else params["unembed"])


NESTED = [
    LevelConfig(name="fast", width=8, period=1, slots=3, rank=2, top_k=2),
    LevelConfig(name="slow", width=8, slots=3, rank=2),
]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False, "qk_norm": True},
        {"head_dim": 6, "n_kv_heads": 1, "rope_theta": 100.0},
        {"n_kv_heads": 4, "norm_eps": 1e-2},
        {"wiring": "independent"},
        {"wiring": "nested", "levels": NESTED},
    ],
    ids=["grouped", "untied+qk_norm", "wide heads", "multi-head", "independent", "nested"],
)
def test_logits_are_those_of_a_plain_numpy_decoder(changes):
    model = tiny(**changes)
    variables = alive(model)
    tokens = tokens_of()
    got = jax.jit(model.logits)(variables, tokens)
    assert got.shape == (B, L, V)
    assert got.dtype == jnp.float32
    for row in range(B):
        wanted = np_logits(model, variables, np.asarray(tokens[row]))
        np.testing.assert_allclose(got[row], wanted, atol=1e-4, rtol=1e-4)


# --- settings that must not matter ----------------------------------------------------------


@pytest.mark.parametrize("remat", [False, True])
def test_scanning_and_rematerialising_layers_change_neither_values_nor_gradients(remat):
    tokens = tokens_of()
    plain = tiny()
    variables = alive(plain)

    def value(model):
        def loss(params):
            logits = model.logits({**variables, "params": params}, tokens)
            return jnp.sum(jnp.sin(logits))

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    wanted = value(plain)
    got = value(tiny(scan_layers=True, remat=remat))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_what_is_recomputed_changes_no_bit():
    """Operation by operation; a compiler fuses, and so rounds, each program as it likes."""
    tokens = tokens_of()[:1, :4]
    variables = alive(tiny(n_layers=1))
    one = functools.partial(tiny, n_layers=1)

    def value(**settings):
        def loss(params):
            return jnp.sum(jnp.sin(one(**settings).logits({**variables, "params": params}, tokens)))

        return jax.value_and_grad(loss)(variables["params"])

    stored = value()
    for policy in ("full", "dots"):
        assert differing(stored, value(remat=True, remat_policy=policy)) == []


def test_parameters_are_the_same_tree_and_bits_whether_layers_are_scanned_or_not():
    a, b = (jax.jit(tiny(scan_layers=s).init)(jax.random.key(3)) for s in (False, True))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert differing(a, b) == []
    assert {x.shape[0] for x in jax.tree.leaves(a["blocks"])} == {2}


def test_parameters_have_the_documented_places_shapes_and_type():
    low = {"param_dtype": "bfloat16", "memory_dtype": "bfloat16"}
    params = jax.jit(tiny(tie_embeddings=False, **low).init)(jax.random.key(0))
    assert sorted(params) == ["blocks", "embed", "final_norm", "unembed"]
    fast = params["blocks"]["levels"]["fast"]
    shapes = jax.tree.map(jnp.shape, fast)
    assert shapes["base"]["gate"]["kernel"] == shapes["base"]["up"]["kernel"] == (2, 16, 8)
    assert shapes["base"]["down"]["kernel"] == (2, 8, 16)
    assert shapes["experts"] == {"a": (2, 3, 16, 2), "b": (2, 3, 2, 16)}
    assert shapes["router"] == {"w": (2, 16, 3), "bias": (2, 3)}
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_what_learns_on_a_narrow_backbone_is_wide_unless_asked_otherwise():
    levels = [dataclasses.replace(TINY.levels[0], kind="graft"), TINY.levels[1]]
    params = jax.jit(tiny(levels=levels, param_dtype="bfloat16").init)(jax.random.key(0))
    fast, slow = (params["blocks"]["levels"][name] for name in ("fast", "slow"))
    wide = [fast, slow["experts"], slow["router"]]
    narrow = [params["embed"], params["blocks"]["attn"], slow["base"], slow["norm"]]
    for trees, dtype in ((wide, "float32"), (narrow, "bfloat16")):
        assert {x.dtype.name for x in jax.tree.leaves(trees)} == {dtype}


def test_every_layer_and_every_key_starts_differently():
    init = jax.jit(tiny().init)
    a, b = (init(jax.random.key(s)) for s in (0, 1))
    gate = a["blocks"]["levels"]["fast"]["base"]["gate"]["kernel"]
    assert not np.array_equal(gate[0], gate[1])
    assert not np.array_equal(gate, b["blocks"]["levels"]["fast"]["base"]["gate"]["kernel"])


@pytest.mark.parametrize("scan_layers", [False, True])
def test_bfloat16_activations_stay_close_to_float32(scan_layers):
    variables = jax.jit(tiny().init)(jax.random.key(0))
    variables = {"params": variables, "slots": tiny().init_slots()}
    half = tiny(dtype="bfloat16", scan_layers=scan_layers)
    assert half.hidden(variables, tokens_of()).dtype == jnp.bfloat16
    got = jax.jit(half.logits)(variables, tokens_of())
    assert got.dtype == jnp.float32
    wanted = jax.jit(tiny().logits)(variables, tokens_of())
    assert float(jnp.abs(got - wanted).max()) < 0.05 * float(jnp.abs(wanted).max())


def test_open_experts_are_data_and_never_recompile_the_model():
    model = tiny()
    variables = alive(model)
    traces = []

    @jax.jit
    def run(variables):
        traces.append(1)
        return model.hidden(variables, tokens_of())

    outs = []
    for n in range(4):
        slots = {
            name: dataclasses.replace(t, active=jnp.arange(3) < n)
            for name, t in variables["slots"].items()
        }
        outs.append(np.asarray(run({**variables, "slots": slots})))
    assert len(traces) == 1
    assert not np.allclose(outs[0], outs[3])


# --- who sees whom ----------------------------------------------------------------------------


def test_a_later_token_never_changes_an_earlier_state():
    model = tiny()
    variables = alive(model)
    hidden = jax.jit(model.hidden)
    tokens = tokens_of()
    before = hidden(variables, tokens)
    for t in range(L):
        after = hidden(variables, tokens.at[:, t].set((tokens[:, t] + 1) % V))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert not np.allclose(after[:, t], before[:, t])


def test_packed_documents_have_the_states_of_each_document_alone_whatever_pads_them():
    model = tiny()
    variables = alive(model)
    hidden = jax.jit(model.hidden)
    docs = [tokens_of(s, 1, n)[0] for s, n in ((0, 4), (1, 3), (2, 2))]
    segments = jnp.array([[1] * 4 + [2] * 3 + [3] * 2 + [0] * 3])
    for padding in (jnp.zeros((3,), jnp.int32), jnp.array([5, 9, 11])):
        packed = jnp.concatenate([*docs, padding])[None]
        got = hidden(variables, packed, segments)[0]
        assert np.all(np.isfinite(got))
        start = 0
        for doc in docs:
            alone = hidden(variables, doc[None])[0]
            np.testing.assert_allclose(got[start : start + len(doc)], alone, atol=2e-5)
            start += len(doc)


def test_positions_restart_with_every_segment():
    segments = jnp.array([[1, 1, 1, 2, 3, 3, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4]])
    np.testing.assert_array_equal(
        positions_in(segments), [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]
    )


def test_a_token_is_predicted_only_from_a_token_of_its_own_document():
    segments = jnp.array([[1, 1, 1, 2, 3, 3, 0, 0], [0, 5, 5, 0, 0, 5, 5, 5]])
    weights = next_token_weights(jnp.zeros_like(segments), segments)
    assert weights.dtype == jnp.float32
    np.testing.assert_array_equal(weights, [[0, 1, 1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 1, 1]])


# --- levels -----------------------------------------------------------------------------------


def graft(name, **changes):
    return dataclasses.replace(
        LevelConfig(name=name, kind="graft", width=8, slots=2, rank=2), **changes
    )


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("wiring", ["sequential", "independent"])
@pytest.mark.parametrize("place", [(1, 0), (0, 1), (1, 1), (3, 2)], ids=str)
def test_grafting_levels_before_or_behind_leaves_every_logit_bit_for_bit(
    wiring, place, scan_layers
):
    own = LevelConfig(name="own", width=12)
    bare = tiny(levels=[own], wiring=wiring, scan_layers=scan_layers)
    before = [graft(f"before{i}") for i in range(place[0])]
    behind = [graft(f"behind{i}") for i in range(place[1])]
    full = tiny(levels=[*before, own, *behind], wiring=wiring, scan_layers=scan_layers)
    old, new = jax.jit(bare.init)(jax.random.key(0)), jax.jit(full.init)(jax.random.key(1))
    levels = {**new["blocks"]["levels"], "own": old["blocks"]["levels"]["own"]}
    grafted = {**old, "blocks": {**old["blocks"], "levels": levels}}
    np.testing.assert_array_equal(
        jax.jit(full.logits)({"params": grafted, "slots": full.init_slots()}, tokens_of()),
        jax.jit(bare.logits)({"params": old, "slots": bare.init_slots()}, tokens_of()),
    )


def test_a_graft_learns_although_it_adds_nothing_yet():
    model = tiny(levels=[graft("fast", period=1), LevelConfig(name="slow", width=12)])
    variables = {"params": jax.jit(model.init)(jax.random.key(0)), "slots": model.init_slots()}

    def loss(params):
        return jnp.sum(jnp.sin(model.logits({**variables, "params": params}, tokens_of())))

    grads = jax.jit(jax.grad(loss))(variables["params"])["blocks"]["levels"]["fast"]["base"]
    assert np.any(grads["down"]["kernel"])


def test_a_frozen_replacing_level_alone_is_a_plain_transformer():
    model = tiny(levels=[LevelConfig(name="mlp", kind="replace", width=12, period=0)])
    variables = {"params": jax.jit(model.init)(jax.random.key(0)), "slots": model.init_slots()}
    assert sorted(variables["params"]["blocks"]["levels"]["mlp"]) == ["base", "norm"]
    tokens = tokens_of()
    got = jax.jit(model.logits)(variables, tokens)
    wanted = np_logits(model, variables, np.asarray(tokens[0]))
    np.testing.assert_allclose(got[0], wanted, atol=1e-4, rtol=1e-4)


def test_the_nested_wiring_ignores_the_mlps_of_the_slower_levels_and_not_their_experts():
    model = tiny(wiring="nested", levels=NESTED)
    variables = alive(model)
    hidden = jax.jit(model.hidden)
    before = hidden(variables, tokens_of())

    def changed(part):
        params = variables["params"]
        levels = dict(params["blocks"]["levels"])
        levels["slow"] = {**levels["slow"], part: jax.tree.map(jnp.negative, levels["slow"][part])}
        blocks = {**params["blocks"], "levels": levels}
        return hidden({**variables, "params": {**params, "blocks": blocks}}, tokens_of())

    np.testing.assert_array_equal(changed("base"), before)
    assert not np.allclose(changed("router"), before)


def test_exploring_changes_states_only_through_open_experts():
    model = tiny()
    variables = alive(model)
    noise = {
        lv.name: jax.random.uniform(jax.random.key(2), (2, B, lv.slots))
        for lv in model.config.levels
    }
    plain = model.hidden(variables, tokens_of())
    assert not np.allclose(model.hidden(variables, tokens_of(), explore=noise), plain)
    closed = {**variables, "slots": model.init_slots()}
    np.testing.assert_array_equal(
        model.hidden(closed, tokens_of(), explore=noise), model.hidden(closed, tokens_of())
    )
