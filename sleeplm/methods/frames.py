"""Frames: beginnings of the model's own wordings, up to where a subject stands.

A cue asks for texts that begin with it, so wordings that name their subject later ("What is the
capital of ...") are hardly ever told of an old memory. A frame is such a beginning, cut out of a
text that the teacher itself has just written; with a remembered cue behind it the teacher tells
that wording of that memory. Nothing but the model's own words and the cues it has goes in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array, Variables
from sleeplm.memory.cues import EMPTY, Cues
from sleeplm.models.decode import generate
from sleeplm.models.transformer import Model

TEXTS = 96  # texts written for their frames, in every extraction
WIDTH = 14  # tokens of a frame at most, begin of text included


def find_frames(tokens: Array, cues: Cues) -> Array:
    """Where each text first names something that there is a cue for.

    Args:
      tokens: int32 [F, W], texts that begin with the begin-of-text token.

    Returns:
      int32 [F]: position of the first token of the earliest such name; W where there is none.
    """
    width = tokens.shape[1]
    names, length = cues.tokens[:, 1:], cues.length - 1  # without the begin of text
    known = (cues.day != EMPTY) & (length > 0)
    open_end = jnp.pad(tokens, ((0, 0), (0, names.shape[1])), constant_values=-1)
    found = jnp.ones((*tokens.shape, len(length)), bool)
    for i in range(names.shape[1]):
        same = open_end[:, i : i + width, None] == names[:, i]
        found = found & (same | (i >= length))
    named = (found & known).any(-1)
    return jnp.where(named.any(1), jnp.argmax(named, 1), width).astype(jnp.int32)


def write_frames(
    model: Model, teacher: Variables, cues: Cues, key: Array, temperature: Array | float
) -> tuple[Array, Array, Array]:
    """Frames of texts that a teacher writes without any cue.

    The same on every device: they depend on ``key`` alone.

    Returns:
      tokens int32 [F, W], the frames that were found first; lengths int32 [F]; and how many were
      found, int32. A name at the very beginning makes no frame.
    """
    keys = jax.random.split(key, TEXTS)
    bare = jnp.full((TEXTS, 1), model.config.bos, jnp.int32)
    ones = jnp.ones((TEXTS,), jnp.int32)
    texts = generate(model, teacher, bare, ones, keys, max_new=WIDTH + 1, temperature=temperature)
    at = find_frames(texts.tokens, cues)
    good = (at > 1) & (at <= WIDTH)
    order = jnp.argsort(~good, stable=True)
    length = jnp.where(good, at, 1)[order]
    kept = jnp.arange(WIDTH) < length[:, None]
    return jnp.where(kept, texts.tokens[order, :WIDTH], 0), length, good.sum()


def framed(
    frames: tuple[Array, Array, Array], prompts: Array, lengths: Array, rows: Array, key: Array
) -> tuple[Array, Array]:
    """Puts a random frame in front of each cue; without any frame, cues are as they were.

    Args:
      prompts, lengths: cues [B, C], [B]. rows: int32 [B], global row numbers.

    Returns:
      int32 [B, W + C - 1] and [B].
    """
    tokens, size, count = frames
    pick = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(rows)
    mine = jnp.minimum((pick * count).astype(jnp.int32), jnp.maximum(count - 1, 0))
    before = jnp.where(count > 0, size[mine], 1)
    width = tokens.shape[1] + prompts.shape[1] - 1
    index = jnp.arange(width)
    behind = index - before[:, None] + 1  # the cue's own begin of text is left out
    cue = jnp.take_along_axis(prompts, jnp.clip(behind, 0, prompts.shape[1] - 1), 1)
    frame = jnp.pad(tokens[mine], ((0, 0), (0, width - tokens.shape[1])))
    length = before + lengths - 1
    both = jnp.where(index < before[:, None], frame, cue)
    return jnp.where(index < length[:, None], both, 0), length
