"""A frozen sentence encoder (BERT): sentences become unit vectors whose cosine says how alike.

It reads WordPiece ids, which are made of text on the host (:mod:`sleeplm.pretrained.minilm`).

Dimension letters: B sentences, T word pieces of one, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core import checks
from sleeplm.core.types import Array, Params


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape of a BERT encoder.

    Attributes:
      vocab_size: word pieces. d_model: D. n_layers: N. n_heads: H. width: F, of the MLPs.
      max_positions: positions that there are embeddings for. token_types: kinds of sentences;
        all pieces are of kind 0. norm_eps: of the layer norms.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    width: int
    max_positions: int = 512
    token_types: int = 2
    norm_eps: float = 1e-12

    def check(self, field: str) -> None:
        names = ("vocab_size", "d_model", "n_layers", "n_heads", "width")
        for name in (*names, "max_positions", "token_types"):
            checks.positive_integer(f"{field}.{name}", getattr(self, name))
        checks.divides(f"{field}.n_heads", self.n_heads, self.d_model, "d_model")
        checks.positive(f"{field}.norm_eps", self.norm_eps)


class EncoderBlock(nn.Module):
    """Attention to every piece of the sentence, then an MLP; each is added, then normed."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """x [B, T, D], mask bool [B, T]: which pieces are there."""
        c = self.config
        norm = functools.partial(nn.LayerNorm, epsilon=c.norm_eps, use_fast_variance=False)
        heads = (*x.shape[:2], c.n_heads, c.d_model // c.n_heads)
        q, k, v = (nn.Dense(c.d_model, name=name)(x).reshape(heads) for name in "qkv")
        out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
        x = norm(name="attn_norm")(x + nn.Dense(c.d_model, name="o")(out.reshape(x.shape)))
        hidden = jax.nn.gelu(nn.Dense(c.width, name="up")(x), approximate=False)
        return norm(name="mlp_norm")(x + nn.Dense(c.d_model, name="down")(hidden))


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The encoder as plain functions of its parameters; the layers are stacked, as a Model's."""

    config: EncoderConfig

    def init(self, key: Array) -> Params:
        """Fresh parameters: ``{"words", "positions", "types", "norm", "blocks"}``, float32."""
        c = self.config
        *keys, block_key = jax.random.split(key, 4)
        sizes = {"words": c.vocab_size, "positions": c.max_positions, "types": c.token_types}
        tables = {
            name: 0.02 * jax.random.normal(k, (size, c.d_model))
            for k, (name, size) in zip(keys, sizes.items(), strict=True)
        }
        x, mask = jnp.zeros((1, 1, c.d_model)), jnp.ones((1, 1), bool)
        blocks = jax.vmap(lambda k: EncoderBlock(c).init(k, x, mask)["params"])
        norm = {"scale": jnp.ones((c.d_model,)), "bias": jnp.zeros((c.d_model,))}
        return {**tables, "norm": norm, "blocks": blocks(jax.random.split(block_key, c.n_layers))}

    def embed(self, params: Params, pieces: Array, length: Array) -> Array:
        """One unit vector a sentence: the mean of its pieces' last states, normalised.

        Args:
          pieces: int32 [B, T], [CLS] and [SEP] included; padding may be any id.
          length: int32 [B], pieces of each sentence; a sentence of none gives zeros.

        Returns:
          float32 [B, D].
        """
        c = self.config
        mask = jnp.arange(pieces.shape[1]) < length[:, None]
        x = params["words"][pieces] + params["positions"][: pieces.shape[1]] + params["types"][0]
        norm = nn.LayerNorm(epsilon=c.norm_eps, use_fast_variance=False)
        x = norm.apply({"params": params["norm"]}, x)

        def block(x, layer):
            return EncoderBlock(c).apply({"params": layer}, x, mask), None

        x, _ = jax.lax.scan(block, x, params["blocks"])
        total = jnp.sum(jnp.where(mask[..., None], x, 0.0), axis=1)
        # The sum points where the mean does.
        return total / jnp.maximum(jnp.linalg.norm(total, axis=1, keepdims=True), 1e-12)


class SentenceEncoder(NamedTuple):
    """An encoder with its weights, and how text becomes its word pieces.

    Attributes:
      encoder: the functions. params: their weights, on the device; never learned.
      pieces: ``texts -> ids of each``, [CLS] and [SEP] included, all of them.
      max_len: longest sentence in pieces; :func:`padded` cuts longer ones.
    """

    encoder: Encoder
    params: Params
    pieces: Callable[[Sequence[str]], list[list[int]]]
    max_len: int


def padded(
    rows: Sequence[Sequence[int]], width: int, keep_end: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Word pieces as int32 [B, width] and their lengths int32 [B].

    A longer sentence is cut between its first piece, [CLS], and its last, [SEP].

    Args:
      keep_end: its beginning is what is cut, not its end.
    """
    out = np.zeros((len(rows), width), np.int32)
    length = np.zeros(len(rows), np.int32)
    for i, row in enumerate(rows):
        cut = row
        if len(row) > width:
            cut = [row[0], *row[1 - width :]] if keep_end else [*row[: width - 1], row[-1]]
        out[i, : len(cut)], length[i] = cut, len(cut)
    return out, length


def similarity(
    encoder: SentenceEncoder, said: Sequence[str], expected: Sequence[str], batch: int = 64
) -> np.ndarray:
    """How alike pairs of texts are: cosines, float32 [N], for evaluations of any size.

    Different texts are embedded once, shortest first, in batches padded to a multiple of 16 word
    pieces: a few shapes, few of them padding.

    Raises:
      ConfigError: lists of different lengths.
    """
    checks.require(len(said) == len(expected), "expected", len(expected), f"give {len(said)} texts")
    if not said:
        return np.zeros(0, np.float32)
    texts = sorted({*said, *expected})
    pieces = encoder.pieces(texts)
    order = sorted(range(len(texts)), key=lambda i: len(pieces[i]))
    vectors = np.zeros((len(texts), encoder.encoder.config.d_model), np.float32)
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        width = min(-(-len(pieces[some[-1]]) // 16) * 16, encoder.max_len)
        rows, length = padded([pieces[i] for i in some], width)
        fill = ((0, batch - len(some)), (0, 0))
        found = _embed(
            encoder.encoder, encoder.params, np.pad(rows, fill), np.pad(length, fill[:1])
        )
        vectors[some] = np.asarray(found)[: len(some)]
    at = {text: i for i, text in enumerate(texts)}
    ours, theirs = ([at[text] for text in side] for side in (said, expected))
    return np.sum(vectors[ours] * vectors[theirs], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _embed(encoder: Encoder, params: Params, pieces: Array, length: Array) -> Array:
    return encoder.embed(params, pieces, length)
