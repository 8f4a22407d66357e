"""The parts of one block, as Flax modules: norm, rotary attention, and the chain of levels."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sleeplm.core.linear import matmul
from sleeplm.core.types import Array, PyTree
from sleeplm.memory.experts import apply_experts, route
from sleeplm.memory.levels import LevelConfig
from sleeplm.models.cache import cached_attention
from sleeplm.models.config import ModelConfig
from sleeplm.models.rope import rotate


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Root-mean-square norm over the last axis, computed in float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + eps)
    return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nn.Module):
    """:func:`rms_norm` with a learned scale."""

    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        return rms_norm(x, scale, self.eps)


class Linear(nn.Module):
    """y = x W without bias; the one place where a matrix product with weights is written.

    Parameters that come with ``{"adapter": {"a" [in, R], "b" [R, out]}}`` beside their kernel give
    x W + (x A) B (arXiv:2106.09685). The model itself never makes any.
    """

    features: int
    param_dtype: Any
    init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        y = matmul(x, self.param("kernel", self.init, shape, self.param_dtype).astype(x.dtype))
        if not self.has_variable("params", "adapter"):
            return y
        low: PyTree = self.get_variable("params", "adapter")
        return y + matmul(matmul(x, low["a"].astype(x.dtype)), low["b"].astype(x.dtype))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and an optional key/value cache."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, rope, mask, cache, at):
        """x [B, L, D], mask bool [B, 1, L, T]; cache of one layer (``empty_cache``) or None.

        With a cache, this call's keys and values are written at time ``at`` and attention runs
        over the whole cache (T), else over the call's own L = T positions.
        """
        c = self.config
        batch, length, _ = x.shape
        width, pdt = c.width_of_head, jnp.dtype(c.param_dtype)
        q = Linear(c.n_heads * width, pdt, name="q")(x).reshape(batch, length, c.n_heads, width)
        k = Linear(c.n_kv_heads * width, pdt, name="k")(x)
        v = Linear(c.n_kv_heads * width, pdt, name="v")(x)
        k, v = (z.reshape(batch, length, c.n_kv_heads, width) for z in (k, v))
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, pdt, name="q_norm")(q)
            k = RMSNorm(c.norm_eps, pdt, name="k_norm")(k)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is None:
            out = jax.nn.dot_product_attention(q, k, v, mask=mask)
        else:
            out, cache = cached_attention(q, k, v, mask, cache, at)
        out = Linear(c.d_model, pdt, name="o")(out.reshape(batch, length, -1))
        return out, cache


class SwiGLU(nn.Module):
    """The MLP of a level; a graft's output matrix starts at zero."""

    width: int
    param_dtype: Any
    zero_output: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gate = Linear(self.width, self.param_dtype, name="gate")(x)
        up = Linear(self.width, self.param_dtype, name="up")(x)
        init = nn.initializers.zeros if self.zero_output else nn.initializers.lecun_normal()
        down = Linear(x.shape[-1], self.param_dtype, init=init, name="down")
        return down(jax.nn.silu(gate) * up)


class Level(nn.Module):
    """One memory level: norm, MLP, and the experts it has received (Eq. 1).

    Returns what the level *adds* to the residual stream. In the nested wiring only the fastest
    level's MLP runs (``run_base``); slower ones hold its initial state, and their experts.
    """

    level: LevelConfig
    config: ModelConfig
    run_base: bool = True

    @nn.compact
    def __call__(self, x: Array, active: Array, explore: Array | None) -> Array:
        lv, c = self.level, self.config
        mdt = jnp.dtype(c.memory_dtype)
        pdt = mdt if lv.kind == "graft" else jnp.dtype(c.param_dtype)
        x = RMSNorm(c.norm_eps, pdt, name="norm")(x)
        mlp = SwiGLU(lv.width, pdt, zero_output=lv.kind == "graft", name="base")
        out = mlp(x) if self.run_base or self.is_initializing() else jnp.zeros_like(x)
        if not lv.slots:
            return out
        d_model = x.shape[-1]
        zeros = functools.partial(jnp.zeros, dtype=mdt)
        experts = self.param(
            "experts",
            lambda _: {
                "a": zeros((lv.slots, d_model, lv.rank)),
                "b": zeros((lv.slots, lv.rank, d_model)),
            },
        )
        router = self.param(
            "router", lambda _: {"w": zeros((d_model, lv.slots)), "bias": zeros((lv.slots,))}
        )
        index, weight = route(x, router, active, top_k=lv.top_k, gate=lv.gate, explore=explore)
        self.sow("intermediates", "gates", (index, weight))  # kept only if asked for: see gates()
        return out + apply_experts(x, experts, index, weight, c.dispatch, lv.activation, active)


class Levels(nn.Module):
    """The chain of memory levels of one block, in the configured wiring (section 3)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, active: dict[str, Array], explore: dict | None) -> Array:
        c = self.config
        mix = None
        if c.wiring == "independent":
            ones = nn.initializers.ones
            mix = self.param("mix", ones, (len(c.levels),), jnp.dtype(c.param_dtype))
        side = x
        for i, lv in enumerate(c.levels):
            run_base = c.wiring != "nested" or i == 0
            level = Level(lv, c, run_base, name=lv.name)
            noise = None if explore is None else explore[lv.name]
            added = level(x if mix is None else side, active[lv.name], noise)
            x = x + (added if mix is None else mix[i].astype(x.dtype) * added)
        return x


class Block(nn.Module):
    """Attention, then the levels; both residual."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, active, explore, rope, mask, cache, at):
        c = self.config
        norm = RMSNorm(c.norm_eps, jnp.dtype(c.param_dtype), name="attn_norm")
        out, cache = Attention(c, name="attn")(norm(x), rope, mask, cache, at)
        return Levels(c, name="levels")(x + out, active, explore), cache


def gates(
    config: ModelConfig,
    blocks: PyTree,
    x: Array,
    active: dict[str, Array],
    rope: tuple[Array, Array],
    mask: Array,
    level: str,
    weights: Array,
) -> Array:
    """What the routers of one level say: float32 [B, S], the mean over layers.

    Args:
      blocks: the layers' stacked parameters. x: [B, L, D], the embedded tokens.
      weights: float32 [B, L]; each expert's gate weight is summed over positions by them.
    """
    slots = config.level(level).slots

    def block(x: Array, layer: PyTree) -> tuple[Array, Array]:
        inputs = (x, active, None, rope, mask, None, 0)
        (x, _), kept = Block(config).apply({"params": layer}, *inputs, mutable=["intermediates"])
        ((index, weight),) = kept["intermediates"]["levels"][level]["gates"]
        chosen = jax.nn.one_hot(index, slots)
        return x, jnp.einsum("blk,blks,bl->bs", weight, chosen, weights)

    return jax.lax.scan(block, x, blocks)[1].mean(0)
