"""The backbone as plain functions of ``variables = {"params", "slots"}``."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sleeplm.core.layout import named
from sleeplm.core.types import Array, Params, PyTree, Variables
from sleeplm.memory.slots import SlotTable, init_slots
from sleeplm.models.cache import empty_cache
from sleeplm.models.config import ModelConfig
from sleeplm.models.layers import Block, rms_norm
from sleeplm.models.rope import rotary


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder-only language model whose MLPs are memory levels.

    The layers' parameters are stacked: every leaf of ``params["blocks"]`` has N in front.
    """

    config: ModelConfig

    def init(self, key: Array) -> Params:
        """Fresh parameters: ``{"embed", "blocks", "final_norm"[, "unembed"]}``."""
        c = self.config
        embed_key, block_key, out_key = jax.random.split(key, 3)
        pdt = jnp.dtype(c.param_dtype)
        x = jnp.zeros((1, 1, c.d_model), pdt)
        rope = rotary(jnp.zeros((1, 1)), c.rope_frequencies)
        active = {lv.name: jnp.zeros((lv.slots,), bool) for lv in c.levels}

        def init_block(k):
            return Block(c).init(k, x, active, None, rope, None, None, 0)["params"]

        scale = c.d_model**-0.5
        params = {
            "embed": (jax.random.normal(embed_key, (c.vocab_size, c.d_model)) * scale).astype(pdt),
            "blocks": jax.vmap(init_block)(jax.random.split(block_key, c.n_layers)),
            "final_norm": jnp.ones((c.d_model,), pdt),
        }
        if not c.tie_embeddings:
            out = jax.random.normal(out_key, (c.d_model, c.vocab_size)) * scale
            params["unembed"] = out.astype(pdt)
        return params

    def init_slots(self) -> dict[str, SlotTable]:
        """The empty expert ledger of every level."""
        return init_slots(self.config.levels)

    def unembed(self, params: Params) -> Array:
        """The matrix [D, V] from final hidden states to logits."""
        return params["embed"].T if self.config.tie_embeddings else params["unembed"]

    def layers(self, params: Params) -> list[PyTree]:
        """Each block's parameters; a list of them in ``params["blocks"]`` is taken as it is."""
        blocks = params["blocks"]
        if isinstance(blocks, list):
            return blocks
        return [
            jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(self.config.n_layers)
        ]

    def hidden(
        self,
        variables: Variables,
        tokens: Array,
        segments: Array | None = None,
        explore: dict | None = None,
    ) -> Array:
        """Final hidden states [B, L, D] of tokens int32 [B, L], after the last norm.

        Args:
          variables: {"params", "slots"}.
          tokens: int32 [B, L].
          segments: int32 [B, L]; tokens attend within their own segment only, positions restart
            in each, and 0 is padding. None: every row is one document.
          explore: ``{level: noise [N, B, S]}``, see :func:`sleeplm.memory.experts.route`.
        """
        length = tokens.shape[1]
        mask = jnp.tril(jnp.ones((length, length), bool))[None, None]
        positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        if segments is not None:
            mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
            positions = positions_in(segments)
        x, _ = self.run(variables, tokens, positions, mask, explore=explore)
        return x

    def run(
        self,
        variables: Variables,
        tokens: Array,
        positions: Array,
        mask: Array,
        *,
        explore: dict | None = None,
        cache: PyTree | None = None,
        at: Array | int = 0,
    ) -> tuple[Array, PyTree | None]:
        """All blocks over tokens [B, L]; with a cache also its next state.

        ``cache`` comes from :meth:`init_cache`; the call writes its keys and values at time
        ``at``, and ``mask`` [B, 1, L, T] then runs over the cache's T entries.
        """
        c, params = self.config, variables["params"]
        dtype = jnp.dtype(c.dtype)
        active = {name: table.active for name, table in variables["slots"].items()}
        rope = rotary(positions, c.rope_frequencies)

        def block(x, layer):
            weights, noise, kv = layer
            out, kv = Block(c).apply({"params": weights}, x, active, noise, rope, mask, kv, at)
            return _by_rows(out), kv

        if c.remat:
            policies = jax.checkpoint_policies
            keep = policies.dots_with_no_batch_dims_saveable if c.remat_policy == "dots" else None
            block = jax.checkpoint(block, prevent_cse=not c.scan_layers, policy=keep)
        x = _by_rows(params["embed"][tokens].astype(dtype))
        if c.scan_layers:
            x, cache = jax.lax.scan(block, x, (params["blocks"], explore, cache))
        else:
            caches = []
            for i, weights in enumerate(self.layers(params)):
                noise = jax.tree.map(lambda leaf, i=i: leaf[i], explore)
                x, kv = block(x, (weights, noise, cache[i] if cache is not None else None))
                caches.append(kv)
            cache = caches if cache is not None else None
        return rms_norm(x, params["final_norm"], c.norm_eps), cache

    def init_cache(self, batch: int, length: int) -> PyTree:
        """Empty key/value cache: per layer (stacked if layers are scanned) {"k", "v"}."""
        c = self.config

        def empty(_=None) -> PyTree:
            return empty_cache(batch, length, c.n_kv_heads, c.width_of_head, jnp.dtype(c.dtype))

        if c.scan_layers:
            return jax.vmap(empty)(jnp.arange(c.n_layers))
        return [empty() for _ in range(c.n_layers)]

    def logits(self, variables: Variables, tokens: Array, segments: Array | None = None) -> Array:
        """Logits float32 [B, L, V]; for whole sequences, prefer the chunked losses."""
        x = self.hidden(variables, tokens, segments)
        unembed = self.unembed(variables["params"]).astype(x.dtype)
        return jnp.matmul(x, unembed, preferred_element_type=jnp.float32)


def _by_rows(x: Array) -> Array:
    return named(x, "row", "time", "width")


def positions_in(segments: Array) -> Array:
    """Positions int32 [B, L] that restart at 0 with every segment of int32 [B, L]."""
    index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    starts = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def next_token_weights(tokens: Array, segments: Array) -> Array:
    """float32 [B, L], 1 where token t is predicted from a token of its own document."""
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    first = jnp.zeros_like(tokens[:, :1], jnp.float32)
    return jnp.concatenate([first, same.astype(jnp.float32)], axis=1)
