"""Dreams are written: m texts from contexts, each with a key of its own (section 6, step 1).

Dimension letters: n contexts, C their longest, m dreams, L positions of a dream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sleeplm.core.errors import ConfigError
from sleeplm.core.shares import Axis, shared
from sleeplm.core.types import Array, Memory, Metrics, Variables
from sleeplm.methods.extract import first_of_its_kind, row_keys, tail_of
from sleeplm.models.decode import Samples, generate
from sleeplm.models.transformer import Model

DREAM = -2  # source id of dreams


class Contexts(NamedTuple):
    """What is dreamt about, C of (C, tau): int32 [n, C], left-aligned, and int32 [n].

    A text or a cue, with the begin of text. Rows of length 0 are padding.
    """

    tokens: Array
    length: Array


class Dreams(NamedTuple):
    """m dreams twice: as they were written, and as they are learned.

    Attributes:
      written: rows [m, C + new] of context and dream; the dream has weight. What the writer is
        reinforced on.
      told: what a learner learns: the same rows, or the dreams alone, [m, 1 + new].

    In both, the tokens of masked dreams have no weight.
    """

    written: Memory
    told: Memory

    @property
    def mask(self) -> Array:
        """bool [m], dreams that count."""
        return self.told.weights.sum(1) > 0

    def weighed(self, by: Array) -> Dreams:
        """The dreams with their tokens' weights multiplied by float [m], which is the reward."""
        return Dreams(*(_weighed(memory, by) for memory in self))

    def only(self, mask: Array) -> Dreams:
        """The dreams without the weight of those that bool or float [m] masks."""
        return Dreams(*(only(memory, mask) for memory in self))

    def take(self, index: Array) -> Dreams:
        """The dreams of int32 [k]."""
        return jax.tree.map(lambda x: x[index], self)


def only(memory: Memory, mask: Array) -> Memory:
    """The memory without the weight of those of its rows, or groups of rows, that [m] masks."""
    weights = memory.weights * mask.reshape(-1, *(1,) * (memory.weights.ndim - 1))
    return Memory(**{**vars(memory), "weights": weights})


def _weighed(memory: Memory, by: Array) -> Memory:
    fields = {"weights": memory.weights * by[:, None], "reward": memory.reward + by}
    return Memory(**{**vars(memory), **fields})


def as_contexts(given: Contexts | Mapping[str, Array], width: int) -> Contexts:
    """Contexts of ``width`` columns.

    Args:
      given: contexts, or a mapping with their fields.

    Raises:
      ConfigError: tokens of more columns.
    """
    tokens, length = given if isinstance(given, Contexts) else Contexts(**given)
    if tokens.shape[1] > width:
        raise ConfigError("context_tokens", width, f"contexts have {tokens.shape[1]} columns")
    padded = jnp.pad(jnp.asarray(tokens), ((0, 0), (0, width - tokens.shape[1])))
    return Contexts(padded, jnp.asarray(length))


def hold_back(contexts: Contexts, share: float) -> tuple[Contexts, Memory]:
    """Contexts without the last ``share`` of their tokens, and a memory in which only those weigh.

    One token at least stays, and one is held back where there are two. What is held back is to
    be predicted behind what is not: the rows of the memory are the whole contexts.
    """
    length = contexts.length
    stay = jnp.round(length * (1.0 - share)).astype(jnp.int32)
    stay = jnp.where(length > 0, jnp.clip(stay, 1, jnp.maximum(length - 1, 1)), 0)
    index = jnp.arange(contexts.tokens.shape[1])
    inside, held = index < length[:, None], index >= stay[:, None]
    tokens = jnp.where(inside, contexts.tokens, 0)
    seen = Contexts(jnp.where(held, 0, tokens), stay)
    return seen, memory_of(tokens, inside & held, length)


def whole(contexts: Contexts) -> Memory:
    """The contexts as a memory: every token after the first is to be predicted."""
    index = jnp.arange(contexts.tokens.shape[1])
    inside = index < contexts.length[:, None]
    return memory_of(jnp.where(inside, contexts.tokens, 0), inside & (index > 0), contexts.length)


def memory_of(tokens: Array, weighted: Array, length: Array) -> Memory:
    """Texts [B, L] of so many tokens [B], to be predicted where bool [B, L] says."""
    return Memory(
        tokens=tokens,
        weights=weighted.astype(jnp.float32),
        segments=(jnp.arange(tokens.shape[1]) < length[:, None]).astype(jnp.int32),
        reference=None,
        reward=jnp.zeros(length.shape),
        source=jnp.full(length.shape, DREAM, jnp.int32),
    )


def write(
    model: Model,
    variables: Variables,
    contexts: Contexts,
    numbers: Array,
    key: Array,
    *,
    new_tokens: int,
    temperature: Array | float = 1.0,
    top_k: int = 0,
    explore: bool = True,
    alone: bool = False,
    ngram: int = 4,
    stop: Array | int | None = None,
    axis_name: Axis = None,
) -> tuple[Dreams, Metrics]:
    """m dreams ~ LM(. | C), while every router uses one random extra expert.

    Dreams take the contexts in turn. Masked are repeats of a dream with a lower number, dreams
    without a word, and all if there is no context.

    Args:
      numbers: int32 [m], all different: dream i depends on ``fold_in(key, numbers[i])`` and its
        context, ``numbers[i]`` modulo the number of contexts, alone.
      new_tokens: most tokens of a dream, its stop token included.
      explore: the random extra expert, drawn for each dream (and level and layer).
      alone: see :class:`Dreams`. ngram: n of the metric ``copied``.
      stop: the token that ends a dream, where that is not what ends a text: a dream alone is
        learned with the end of a text in its place. May be traced.
      axis_name: mapped axis whose devices share the writing; all have the same contexts.

    Returns:
      The dreams, and metrics: ``unique``, share of dreams that are not masked; of these ``length``,
      tokens of a dream, and ``copied``, share of its n-grams that stand in the contexts.
    """
    prompts, lengths = _prompts(contexts, numbers)

    def written_by_me(part: tuple[Array, Array, Array]) -> Samples:
        return generate(
            model, variables, *part,
            max_new=new_tokens, temperature=temperature, top_k=top_k, explore=explore, eos=stop,
        )  # fmt: skip

    given = (prompts, jnp.maximum(lengths, 1), row_keys(key, numbers))
    samples = shared(written_by_me, given, axis_name)
    end = model.config.eos if stop is None else stop
    at_end = (samples.tokens == end) | (samples.tokens == model.config.eos)
    # Whatever else ends a dream, nothing of it stands behind the end of a text.
    ends = jnp.cumsum(samples.written & at_end, axis=1) - (samples.written & at_end)
    written = samples.written & (ends == 0)
    length = samples.start + written.sum(1)
    words = written & ~at_end
    alive = (lengths > 0) & words.any(1)
    # What the sampler went on with behind it must not make another dream of the same one.
    tokens = jnp.where(jnp.arange(written.shape[1]) < length[:, None], samples.tokens, 0)
    as_written = memory_of(tokens, written, length)
    tokens = jnp.where(written & at_end, model.config.eos, tokens)
    told = _alone(tokens, samples.start, length, new_tokens, model.config.bos)
    told = told if alone else as_written
    fresh = once(told.tokens, numbers, alive)
    dreams = Dreams(as_written, told).only(fresh)
    one = jnp.ones(())
    metrics = {
        "unique": (fresh.sum(), jnp.sum(lengths > 0) * one),
        "length": (jnp.sum(written.sum(1) * fresh), fresh.sum()),
        "copied": copied(samples.tokens, written & (fresh > 0)[:, None], *_inside(contexts), ngram),
    }
    return dreams, metrics


def once(tokens: Array, numbers: Array, counts: Array) -> Array:
    """float32 [m]: 1 for the lowest-numbered dream of every distinct one among those that count."""
    # A dream that does not count must not make another one a repeat.
    order = jnp.where(counts, numbers, numbers + jnp.max(numbers) + 1)
    return first_of_its_kind(tokens, order) * counts


def in_turn(contexts: Contexts, numbers: Array) -> Array:
    """int32 [m], the row of the context that each dream is written from."""
    there = contexts.length > 0
    order, count = jnp.argsort(~there, stable=True), there.sum()
    return order[numbers % jnp.maximum(count, 1)]


def _prompts(contexts: Contexts, numbers: Array) -> tuple[Array, Array]:
    """The prompt of every dream, [m, C] and [m]; lengths of 0 if there is no context at all."""
    row = in_turn(contexts, numbers)
    length = contexts.length[row]
    inside = jnp.arange(contexts.tokens.shape[1]) < length[:, None]
    return jnp.where(inside, contexts.tokens[row], 0), length


def _inside(contexts: Contexts) -> tuple[Array, Array]:
    return contexts.tokens, jnp.arange(contexts.tokens.shape[1]) < contexts.length[:, None]


def _alone(tokens: Array, start: Array, end: Array, new: int, bos: int) -> Memory:
    """Written tokens behind the begin of text, as texts of their own."""
    words, count = tail_of(tokens, start, end)
    first = jnp.full_like(words[:, :1], bos)
    texts = jnp.concatenate([first, words[:, :new]], axis=1)
    index = jnp.arange(new + 1)
    return memory_of(texts, (index > 0) & (index <= count[:, None]), count + 1)


def copied(
    tokens: Array, mask: Array, texts: Array, text_mask: Array, n: int
) -> tuple[Array, Array]:
    """How many n-grams of the masked tokens [m, L] also stand in texts [k, T], and of how many.

    Exact, by sorting all n-grams of both. An n-gram counts if all of its tokens are masked.

    Returns:
      float32 ``(sum, weight)``.
    """
    ours, our_ok = _ngrams(tokens, mask, n)
    theirs, their_ok = _ngrams(texts, text_mask, n)
    every, ok = jnp.concatenate([ours, theirs]), jnp.concatenate([our_ok, their_ok])
    order = jnp.lexsort(every.T)
    ranked = every[order]
    new = jnp.pad((ranked[1:] != ranked[:-1]).any(1), (1, 0))
    kind = jnp.zeros_like(order).at[order].set(jnp.cumsum(new))
    told = jnp.zeros(len(every), bool).at[kind].max(ok & (jnp.arange(len(every)) >= len(ours)))
    found = told[kind[: len(ours)]] & our_ok
    return found.sum().astype(jnp.float32), our_ok.sum().astype(jnp.float32)


def _ngrams(tokens: Array, mask: Array, n: int) -> tuple[Array, Array]:
    """All windows of n tokens, [rows * windows, n], and which of them are masked throughout."""
    short = ((0, 0), (0, max(n - tokens.shape[1], 0)))
    tokens, mask = jnp.pad(tokens, short), jnp.pad(mask, short)
    windows = tokens.shape[1] - n + 1
    grams = jnp.stack([tokens[:, i : i + windows] for i in range(n)], -1)
    ok = jnp.stack([mask[:, i : i + windows] for i in range(n)], -1).all(-1)
    return grams.reshape(-1, n), ok.reshape(-1)
