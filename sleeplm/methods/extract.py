"""Memory extraction: where what is learned comes from.

Every extraction turns a batch into one :class:`Memory`. Awake the batch is text; asleep it is
``{"rows": int32 [T, B], "today": int32}``: T minibatches of numbered rows, from which each
extraction draws cues and samples. A row's sample depends on its number and the key only, never on
how rows are spread over devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sleeplm.core import checks
from sleeplm.core.clusters import row_hashes
from sleeplm.core.losses import chunked_token_logp, leave_one_out
from sleeplm.core.shares import Axis
from sleeplm.core.types import Array, Extract, Memory, Metrics, PyTree, State, Variables
from sleeplm.memory.anchors import teacher_variables
from sleeplm.memory.cues import BEFORE, Cues, draw, remember
from sleeplm.methods.frames import framed as put_frames
from sleeplm.methods.frames import write_frames
from sleeplm.methods.rewards import Judge, ask, imitation_reward, levenshtein, surface_reward
from sleeplm.models.decode import Samples, generate
from sleeplm.models.transformer import Model, next_token_weights

WAKE = -1  # source id of the wake stream
CHUNK = 128  # positions whose logits stand in memory at once


def stateless(extract) -> Extract:
    """An extraction that keeps nothing: ``extract(variables, batch, key) -> Memory``."""
    return Extract(
        lambda params, key: (),
        lambda variables, s, batch, key: (extract(variables, batch, key), s),
    )


def wake_batch() -> Extract:
    """The stream itself: batch {"tokens", "segments" int32 [B, L]} with every token to predict."""

    def extract(variables: Variables, batch: PyTree, key: Array) -> Memory:
        del variables, key
        tokens, segments = batch["tokens"], batch["segments"]
        zeros = jnp.zeros(tokens.shape[:1])
        return Memory(
            tokens=tokens,
            weights=next_token_weights(tokens, segments),
            segments=segments,
            reference=None,
            reward=zeros,
            source=jnp.full(tokens.shape[:1], WAKE, jnp.int32),
        )

    return stateless(extract)


def row_keys(key: Array, rows: Array) -> Array:
    """One key per row number: the same wherever the row is computed."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def multiplied(rows: Array, times: int) -> Array:
    """``times`` numbers for every row number [B], all different: int32 [B * times]."""
    return (rows[:, None] * times + jnp.arange(times)).reshape(-1)


def teacher_samples(
    model: Model,
    pair: tuple[str, str],
    *,
    teacher: str,
    source: str,
    source_id: int,
    uncued: Array | float = 0.0,
    balance: Array | float = 0.0,
    framed: bool = False,
    times: int = 1,
    weight: Array | float = 1.0,
    writer: str = "teacher",
    length: int,
    temperature: Array | float = 1.0,
    top_k: int = 0,
    axis_name: Axis = None,
) -> Extract:
    """Sequences written from remembered cues, with the teacher's distribution at every token.

    The data set D of the distillation (section 5) with ``writer="teacher"``, and the on-policy
    sequences with ``writer="student"``. Repeats of a sequence weigh nothing.

    Args:
      pair: (sender, receiver). teacher: a state of :data:`sleeplm.memory.anchors.TEACHERS`.
      source: which cues, see :data:`sleeplm.memory.cues.SOURCES`; uncued: share of rows without;
        balance: of days, see :func:`sleeplm.memory.cues.draw`; framed: cues stand behind
        beginnings of wordings of the teacher's own, see :mod:`sleeplm.methods.frames`.
      times: sequences for every row of the batch.
      weight: of every token of these rows in the loss.
      length: tokens of a remembered sequence at most, cue and stop token included (L).
    """

    def extract(variables: Variables, batch: PyTree, key: Array) -> Memory:
        rows = multiplied(batch["rows"].reshape(-1), times)
        cue_key, sample_key, frame_key, pick_key = jax.random.split(key, 4)
        prompts, lengths = draw(
            variables["cues"], source, batch["today"], rows, cue_key, uncued, balance
        )
        mentor = teacher_variables(variables, *pair, teacher)
        if framed:
            frames = write_frames(model, mentor, variables["cues"], frame_key, temperature)
            prompts, lengths = put_frames(frames, prompts, lengths, rows, pick_key)
        samples = generate(
            model,
            mentor if writer == "teacher" else variables,
            prompts,
            lengths,
            row_keys(sample_key, rows),
            max_new=length - 1,
            temperature=temperature,
            top_k=top_k,
            # A teacher's own distributions are those it wrote from; a student's rollouts have
            # to be read by the teacher.
            keep_hidden=writer == "teacher",
        )
        samples = crop(samples, length)
        fresh = first_of_its_kind(samples.tokens, rows, axis_name)
        memory = graded(model, mentor, samples, source_id)
        return jax.lax.stop_gradient(
            dataclasses.replace(memory, weights=memory.weights * fresh[:, None] * weight)
        )

    return stateless(extract)


def own_cues(model: Model, config: Any) -> Callable[[State, PyTree, Array], tuple[State, Metrics]]:
    """A step that offers the learner cues which it has written itself.

    It writes ``config.own_cues`` beginnings of texts from the begin-of-text token alone, as it is
    now; each different one of ``config.own_cue_tokens`` tokens becomes a cue of the day
    ``batch["today"]``. A text that has ended by then is none: there is nothing to go on with.
    """
    width = min(config.own_cue_tokens, config.cue_tokens)

    def step(state: State, batch: PyTree, key: Array) -> tuple[State, Metrics]:
        rows = jnp.arange(config.own_cues)
        bare = jnp.full((config.own_cues, 1), model.config.bos, jnp.int32)
        write_key, offer_key = jax.random.split(key)
        texts = generate(
            model,
            state.variables,
            bare,
            jnp.ones_like(rows),
            row_keys(write_key, rows),
            max_new=width - 1,
            temperature=config.temperature,
        )
        last = jnp.take_along_axis(texts.tokens, texts.length[:, None] - 1, 1)[:, 0]
        goes_on = last != model.config.eos
        fresh = (first_of_its_kind(texts.tokens, rows) > 0) & goes_on
        tokens = jnp.pad(texts.tokens, ((0, 0), (0, config.cue_tokens - width)))
        length = jnp.where(fresh, width, 0)
        cues = remember(state.cues, tokens, length, batch["today"], offer_key)
        one = jnp.ones(())
        kept = (cues.day >= BEFORE).sum() * one
        return state.replace(cues=cues), {"cues": (kept, one), "offered": (fresh.sum() * one, one)}

    return step


def imitation(
    model: Model,
    pair: tuple[str, str],
    judge: Judge,
    *,
    teacher: str,
    source: str,
    source_id: int,
    uncued: Array | float = 0.0,
    balance: Array | float = 0.0,
    group: int,
    gamma: Array | float,
    z0: Array | float,
    length: int,
    temperature: Array | float = 1.0,
    weight: Array | float = 1.0,
) -> Extract:
    """Learning to imitate: random-prefix continuations of teacher sequences, rewarded (Eq. 3, 4).

    Every ``group`` consecutive rows share a teacher sequence d and a random cut; the student
    continues each to its own d^. The reward in the memory is the leave-one-out advantage.
    A judge in the batch is asked instead of ``judge``, see :func:`~sleeplm.methods.rewards.ask`.
    """

    def extract(variables: Variables, batch: PyTree, key: Array) -> Memory:
        checks.divides("group", group, batch["rows"].shape[-1], "rows of a minibatch and device")
        rows = batch["rows"].reshape(-1)
        leaders = rows[::group]
        cue_key, teach_key, cut_key, sample_key = jax.random.split(key, 4)
        prompts, lengths = draw(
            variables["cues"], source, batch["today"], leaders, cue_key, uncued, balance
        )
        mentor = teacher_variables(variables, *pair, teacher)
        told = generate(
            model, mentor, prompts, lengths, row_keys(teach_key, leaders),
            max_new=length - 1, temperature=temperature,
        )  # fmt: skip
        told = crop(told, length)
        where = jax.vmap(jax.random.uniform)(row_keys(cut_key, leaders))
        room = jnp.maximum(told.length - told.start, 1)
        cut = told.start + (where * room).astype(jnp.int32)

        def per_row(x: Array) -> Array:
            return jnp.repeat(x, group, axis=0)

        tokens, cut, end = per_row(told.tokens), per_row(cut), per_row(told.length)
        index = jnp.arange(tokens.shape[1])
        prefix = jnp.where(index < cut[:, None], tokens, 0)
        own = generate(
            model, variables, prefix, cut, row_keys(sample_key, rows),
            max_new=length - 1, temperature=temperature,
        )  # fmt: skip
        own = crop(own, length)
        told_mask = (index >= cut[:, None]) & (index < end[:, None])
        # Nothing below waits for this: a judge may read on the host while the teacher grades.
        r_sem = ask(judge, variables, batch, own.tokens, own.written, tokens, told_mask)
        a, a_length = tail_of(own.tokens, own.start, own.length)
        b, b_length = tail_of(tokens, cut, end)
        distance = levenshtein(a, a_length, b, b_length)
        r_abs = surface_reward(distance, a_length, b_length, z0)
        reward = imitation_reward(r_sem, r_abs, gamma)
        memory = graded(model, mentor, own, source_id)
        memory = dataclasses.replace(
            memory,
            weights=memory.weights * weight,
            reward=leave_one_out(reward, group),
            logp=token_logp(model, variables, memory, temperature),
        )
        return jax.lax.stop_gradient(memory)

    return stateless(extract)


def raw_text(
    *,
    source: str,
    source_id: int,
    balance: Array | float = 0.0,
    times: int = 1,
    weight: Array | float = 1.0,
    length: int,
) -> Extract:
    """Rows of an archive of everything that was ever read: replay of raw text.

    The batch has, beside ``rows``, ``"archive"``: {"tokens" int32 [A, L], "length", "day"
    int32 [A]} and ``"day"``, today's number there. Texts are drawn as cues are, by day.

    Args:
      source: which days, see :data:`sleeplm.memory.cues.SOURCES`.
      length: tokens of a text at most; longer ones are cut.
    """

    def extract(variables: Variables, batch: PyTree, key: Array) -> Memory:
        rows = multiplied(batch["rows"].reshape(-1), times)
        archive = batch["archive"]
        width = min(length, archive["tokens"].shape[1])
        texts = Cues(
            tokens=archive["tokens"][:, :width],
            length=jnp.minimum(archive["length"], width),
            day=archive["day"],
            priority=jnp.zeros(archive["day"].shape),
        )
        tokens, size = draw(texts, source, batch["day"], rows, key, balance=balance)
        segments = (jnp.arange(width) < size[:, None]).astype(jnp.int32)
        return Memory(
            tokens=tokens,
            weights=next_token_weights(tokens, segments) * weight,
            segments=segments,
            reference=None,
            reward=jnp.zeros(rows.shape),
            source=jnp.full(rows.shape, source_id, jnp.int32),
        )

    return stateless(extract)


def graded(model: Model, teacher: Variables, samples: Samples, source_id: int) -> Memory:
    """Samples as a memory: weight 1 on written tokens, the teacher's states as reference.

    Samples that come with hidden states are the teacher's own: these are the reference.
    """
    reference = samples.hidden
    if reference is None:
        reference = model.hidden(teacher, samples.tokens, samples.segments)
    return Memory(
        tokens=samples.tokens,
        weights=samples.written.astype(jnp.float32),
        segments=samples.segments,
        reference=reference,
        reward=jnp.zeros(samples.length.shape),
        source=jnp.full(samples.length.shape, source_id, jnp.int32),
        logp=jnp.zeros(samples.tokens.shape),
    )


def crop(samples: Samples, length: int) -> Samples:
    """The first ``length`` columns."""
    return Samples(
        tokens=samples.tokens[:, :length],
        start=samples.start,
        length=jnp.minimum(samples.length, length),
        logp=samples.logp[:, :length],
        hidden=None if samples.hidden is None else samples.hidden[:, :length],
    )


def token_logp(
    model: Model, variables: Variables, memory: Memory, temperature: Array | float = 1.0
) -> Array:
    """float32 [B, L]: log-probability of every token after the first, at a temperature."""
    hidden = model.hidden(variables, memory.tokens, memory.segments)[:, :-1]
    unembed = model.unembed(variables["params"])
    logp = chunked_token_logp(hidden, unembed, memory.tokens[:, 1:], CHUNK, temperature)
    return jnp.pad(logp, ((0, 0), (1, 0)))


def mix(*extracts: Extract) -> Extract:
    """All extractions on the same rows, joined so that every minibatch holds some of each.

    Raises:
      ConfigError: when it is traced, of memories of which some have a teacher and others none.
    """

    def init(params: PyTree, key: Array) -> tuple:
        return tuple(e.init(params, jax.random.fold_in(key, i)) for i, e in enumerate(extracts))

    def extract(variables: Variables, s: Sequence[PyTree], batch: PyTree, key: Array):
        minibatches = batch["rows"].shape[0]
        parts, kept = [], []
        for i, (e, private) in enumerate(zip(extracts, s, strict=True)):
            part, private = e.extract(variables, private, batch, jax.random.fold_in(key, i))
            parts.append(part)
            kept.append(private)
        for name in ("reference", "logp"):
            has = [getattr(part, name) is not None for part in parts]
            remedy = "must be in all memories that are mixed, or in none"
            checks.require(len(set(has)) == 1, f"memory.{name}", has, remedy)
        longest = max(part.tokens.shape[1] for part in parts)
        parts = [_pad(part, longest) for part in parts]

        def join(*leaves: Array) -> Array:
            grouped = [x.reshape(minibatches, -1, *x.shape[1:]) for x in leaves]
            joined = jnp.concatenate(grouped, axis=1)
            return joined.reshape(-1, *joined.shape[2:])

        return jax.tree.map(join, *parts), tuple(kept)

    return Extract(init, extract)


def _pad(memory: Memory, length: int) -> Memory:
    extra = length - memory.tokens.shape[1]
    if not extra:
        return memory

    def pad(x: Array) -> Array:
        return x if x.ndim < 2 else jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2))

    return jax.tree.map(pad, memory)


def first_of_its_kind(tokens: Array, rows: Array, axis_name: Axis = None) -> Array:
    """float32 [B]: 1 for the lowest-numbered row of every distinct sequence, 0 for its repeats.

    Sequences int32 [B, L] are compared through two 32-bit hashes, over all devices of
    ``axis_name``.
    """
    columns = [rows.astype(jnp.uint32), *row_hashes(tokens)]
    everyone, offset = jnp.stack(columns), jnp.int32(0)
    if axis_name is not None:
        everyone = jax.lax.all_gather(everyone, axis_name, axis=1, tiled=True)
        offset = jax.lax.axis_index(axis_name) * len(rows)
    order = jnp.lexsort(everyone)  # by hashes, then by row number
    ranked = everyone[1:, order]
    repeat = (ranked[:, 1:] == ranked[:, :-1]).all(0)
    fresh = jnp.zeros(order.shape).at[order[0]].set(1.0).at[order[1:]].set(1.0 - repeat)
    return jax.lax.dynamic_slice_in_dim(fresh, offset, len(rows))


def tail_of(tokens: Array, start: Array, end: Array) -> tuple[Array, Array]:
    """Tokens [start, end) of each row moved to the left, [B, L], and how many they are."""
    index = jnp.arange(tokens.shape[1])
    moved = jnp.take_along_axis(
        tokens, jnp.minimum(index[None] + start[:, None], tokens.shape[1] - 1), axis=1
    )
    length = jnp.maximum(end - start, 0)
    return jnp.where(index < length[:, None], moved, 0), length
