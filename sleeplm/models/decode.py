"""Generation: prefill, then one compiled loop over a key/value cache."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array, Variables
from sleeplm.models.transformer import Model

MIN_TEMPERATURE = 1e-4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """Prompts and what the model wrote after them, left-aligned.

    Attributes:
      tokens: int32 [B, C + new], prompt then continuation then padding (0).
      start: int32 [B], where the continuation begins (the prompt's length).
      length: int32 [B], tokens in all, the stop token included.
      logp: float32 [B, C + new], log-probability (temperature 1) of each written token, else 0.
    """

    tokens: Array
    start: Array
    length: Array
    logp: Array

    @property
    def written(self) -> Array:
        """bool [B, C + new]: the tokens that the model wrote, the stop token included."""
        index = jnp.arange(self.tokens.shape[1])
        return (index >= self.start[:, None]) & (index < self.length[:, None])

    @property
    def segments(self) -> Array:
        """int32 [B, C + new]: 1 on tokens, 0 on padding."""
        return (jnp.arange(self.tokens.shape[1]) < self.length[:, None]).astype(jnp.int32)


def generate(
    model: Model,
    variables: Variables,
    prompts: Array,
    lengths: Array,
    keys: Array,
    *,
    max_new: int,
    temperature: Array | float = 1.0,
    top_k: int = 0,
    eos: int = 2,
    explore: bool = False,
) -> Samples:
    """Continues prompts until the stop token or ``max_new`` tokens.

    Args:
      prompts: int32 [B, C], left-aligned. lengths: int32 [B], at least 1 each.
      keys: [B] PRNG keys, one a row, so that the sample of a row does not depend on how rows
        are spread over devices.
      max_new: most tokens written per row.
      temperature: 0 is greedy; may be traced.
      top_k: sample among the k likeliest tokens only; 0: all.
      explore: every router also uses one random open expert, drawn per row (section 6).
    """
    batch, cue = prompts.shape
    c = model.config
    pad = cue - lengths
    index = jnp.arange(cue)
    # Right-align: every row then writes its cache at the same time, with no scatter.
    source = index[None] - pad[:, None]
    aligned = jnp.take_along_axis(prompts, jnp.maximum(source, 0), axis=1)
    noise = explore_noise(model, keys) if explore else None
    uniform = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 0), (max_new,)))(keys)
    unembed = model.unembed(variables["params"]).astype(jnp.dtype(c.dtype))
    total = cue + max_new
    times = jnp.arange(total)

    def forward(tokens: Array, at: Array | int, cache):
        now = at + jnp.arange(tokens.shape[1])
        seen = (times[None, None] <= now[None, :, None]) & (times >= pad[:, None])[:, None]
        # A padding query sees only itself, so that no row of the softmax is empty.
        seen = seen | (times[None, None] == now[None, :, None])
        positions = jnp.maximum(now[None] - pad[:, None], 0)
        x, cache = model.run(
            variables, tokens, positions, seen[:, None], explore=noise, cache=cache, at=at
        )
        logits = jnp.matmul(x[:, -1], unembed, preferred_element_type=jnp.float32)
        return logits, cache

    def choose(logits: Array, step: Array, done: Array) -> tuple[Array, Array]:
        token = sample(logits, uniform[:, step], temperature, top_k)
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], 1)[:, 0]
        return jnp.where(done, 0, token), jnp.where(done, 0.0, logp)

    def cond(carry):
        step, _, done, *_ = carry
        return (step < max_new) & ~done.all()

    def body(carry):
        step, logits, done, out, logps, cache = carry
        token, logp = choose(logits, step, done)
        out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], step, 1)
        logps = jax.lax.dynamic_update_slice_in_dim(logps, logp[:, None], step, 1)
        done = done | (token == eos)
        logits, cache = forward(token[:, None], cue + step, cache)
        return step + 1, logits, done, out, logps, cache

    logits, cache = forward(aligned, 0, model.init_cache(batch, total))
    start = (
        jnp.int32(0),
        logits,
        jnp.zeros_like(lengths, bool),
        jnp.zeros_like(prompts, shape=(batch, max_new)),
        jnp.zeros_like(logits, shape=(batch, max_new)),
        cache,
    )
    *_, out, logps, _ = jax.lax.while_loop(cond, body, start)
    stop = out == eos
    new = jnp.where(stop.any(1), jnp.argmax(stop, 1) + 1, max_new).astype(jnp.int32)
    return _join(prompts, lengths, out, logps, new)


def sample(logits: Array, uniform: Array, temperature: Array | float, top_k: int) -> Array:
    """Tokens int32 [B] from logits [B, V] by inverting the CDF at uniform [B] in [0, 1).

    One random number a row instead of V; ``temperature`` 0 takes the likeliest token.
    """
    greedy = jnp.argmax(logits, -1)
    if top_k:
        cut = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < cut, -jnp.inf, logits)
    scaled = logits / jnp.maximum(temperature, MIN_TEMPERATURE)
    cdf = jnp.cumsum(jax.nn.softmax(scaled, -1), -1)
    drawn = jnp.sum(cdf <= uniform[:, None] * cdf[:, -1:], -1)
    drawn = jnp.minimum(drawn, logits.shape[-1] - 1)
    return jnp.where(temperature <= MIN_TEMPERATURE, greedy, drawn).astype(jnp.int32)


def explore_noise(model: Model, keys: Array) -> dict[str, Array]:
    """``{level: float32 [N, B, S]}``: its largest open entry picks a row's random extra expert."""
    layers = model.config.n_layers

    def one(key: Array, salt: int, slots: int) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, salt), (layers, slots))

    return {
        lv.name: jax.vmap(lambda k, i=i, s=lv.slots: one(k, i, s), out_axes=1)(keys)
        for i, lv in enumerate(model.config.levels, start=1)
    }


def _join(prompts: Array, lengths: Array, out: Array, logps: Array, new: Array) -> Samples:
    """Puts continuations [B, new] right behind prompts [B, C] of ragged lengths."""
    cue, max_new = prompts.shape[1], out.shape[1]
    index = jnp.arange(cue + max_new)
    offset = index[None] - lengths[:, None]
    written = (offset >= 0) & (offset < new[:, None])
    take = jnp.clip(offset, 0, max_new - 1)
    prompt = jnp.pad(prompts, ((0, 0), (0, max_new)))
    tail = jnp.where(written, jnp.take_along_axis(out, take, 1), 0)
    tokens = jnp.where(offset < 0, prompt, tail)
    logp = jnp.where(written, jnp.take_along_axis(logps, take, 1), 0.0)
    return Samples(tokens=tokens, start=lengths, length=lengths + new, logp=logp)
